"""Trainers that something happens to: python tests/soak.py NAME ARGUMENTS..."""

import contextlib
import itertools
import json
import os
import pathlib
import random
import resource
import signal
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adamfx as fx

SIZE = 8
TX = fx.skip_nonfinite(fx.average_params(fx.adamw(0.01), fx.ema(0.9)))


def loss(params, x):
    return jnp.sum((params["w"] - x) ** 2)


def batch(step):
    """Some are storms of NaN."""
    if step % 13 == 5 or step % 100 in range(60, 66):
        return np.full(SIZE, np.nan, np.float32)
    return np.random.default_rng(step).normal(size=SIZE).astype(np.float32)


def params(devices=1):
    mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
    return {"w": jax.device_put(np.zeros(SIZE, np.float32), NamedSharding(mesh, P("x")))}


# ---- one that saves all the time, killed again and again -----------------------------------------


def saves(folder, said):
    """Writes one file over and over, and now and then into a folder of Orbax; says what is complete."""
    at, like = folder / "x.npz", {"n": 0, "w": np.zeros(20_000)}
    start = fx.load(at, like)["n"] if at.exists() else 0
    hidden = [x.name for x in folder.iterdir() if x.name.startswith(".")]
    os.write(said, f"file {start}\n".encode())
    with fx.Checkpoints(folder / "run", keep=2) as kept:
        step = kept.latest or 0
        if step:
            found = kept.restore({"w": np.zeros(2000)})["w"]
            assert np.all(found == step), "a damaged checkpoint"
        os.write(said, f"folder {step}\n".encode())
        for n in itertools.count(start + 1):
            fx.save(at, {"n": n, "w": np.full(20_000, float(n))})
            if n == start + 1:
                left = {x.name for x in folder.iterdir()} & set(hidden)
                assert not left, f"left behind: {left}"
            os.write(said, f"file {n}\n".encode())
            if n % 3 == 0:
                kept.wait()
                os.write(said, f"folder {step}\n".encode())
                step += 1
                kept.save(step, {"w": np.full(2000, float(step))})


def kills(count, folder, seed=0):
    """Forks `saves`, where JAX has not started, and kills it at a random moment; what was lost, as JSON."""
    folder, draw = pathlib.Path(folder), random.Random(seed)
    newest, lost, killed, most = {"file": 0, "folder": 0}, [], 0, 0
    while killed < int(count):
        reads, writes = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                saves(folder, writes)
            except BaseException as error:
                os.write(writes, f"error {type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os.close(writes)
        with os.fdopen(reads) as lines:
            said = [lines.readline() for _ in range(3)]  # it has begun to write
            time.sleep(draw.uniform(0, 0.4))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            said += lines.readlines()
        killed += 1
        for line in said:
            kind, _, n = line.strip().partition(" ")
            if kind == "error" or not n:
                lost.append(line)
            elif line.endswith("\n"):
                if int(n) < newest[kind]:
                    lost.append(f"{kind} {n} after {newest[kind]}")
                newest[kind] = int(n)
        at = folder / "x.npz"
        found = fx.load(at, {"n": 0, "w": np.zeros(20_000)})
        if found["n"] < newest["file"] or not np.all(found["w"] == found["n"]):
            lost.append(f"file {found['n']} after {newest['file']}")
        most = max(most, sum(x.name.startswith(".") for x in folder.iterdir()))
    print(json.dumps({"killed": killed, "lost": lost, "hidden": most} | newest))


# ---- one that trains, and goes on from where it was ----------------------------------------------


def trains(way, folder, devices, steps, space):
    """Up to a step, keeping every tenth, with so many bytes for each file from the first step on."""
    warnings.simplefilter("ignore")
    folder, steps, p = pathlib.Path(folder), int(steps), params(int(devices))

    def batches(start):
        for step in range(start, steps):
            print("step", step, flush=True)
            if space != "all" and step == start + 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(space), resource.RLIM_INFINITY))
            time.sleep(0.002)
            yield batch(step)

    if way == "folder":
        with fx.Checkpoints(folder / "run", every=10) as kept:
            run = fx.fit(
                loss,
                TX,
                p,
                batches(kept.latest or 0),
                steps=steps,
                checkpoints=kept,
                progress=False,
            )
            return run
    at = folder / "run.npz"
    run = {"params": p, "state": TX.init(p), "history": fx.History()}
    run = fx.load(at, run) if at.exists() else run
    stream = batches(run["history"].rows)
    while run["history"].rows < steps:
        some = itertools.islice(stream, 10)
        result = fx.fit(
            loss,
            TX,
            run["params"],
            some,
            state=run["state"],
            history=run["history"],
            progress=False,
        )
        run = {"params": result.params, "state": result.state, "history": result.history}
        fx.save(at, run)
        if result.reason == "interrupted":
            break
    return run


# ---- children of a process in which JAX runs -----------------------------------------------------


def forks(count):
    """What a forked child can do, and what it is told that it cannot; a hanging one ends by SIGALRM."""
    warnings.simplefilter("ignore")
    p, tx = {"w": jnp.zeros(3)}, fx.adam(0.1)
    state = jax.block_until_ready(tx.init(p))
    numpy = {"w": np.ones(3)}

    def told(function):
        with contextlib.suppress(RuntimeError):
            function()
            raise AssertionError("it was not told")

    def child():
        signal.alarm(60)
        assert fx.read(repr(fx.chain(fx.clip(1.0), tx))) == fx.chain(fx.clip(1.0), tx)
        assert fx.abstract_state(tx, p)["count"].shape == ()
        told(lambda: tx.init(p))
        told(lambda: tx.update(p, state, p))
        told(lambda: fx.fit(loss, tx, p, [np.zeros(3)], progress=False))
        told(lambda: fx.make_step(loss)(tx, p, state, np.zeros(3)))
        fx.save("forks.npz", numpy)
        assert fx.load("forks.npz", numpy)["w"].all()
        fx.save("forks.npz", p)
        told(lambda: fx.load("forks.npz", p))

    for _ in range(int(count)):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                child()
                status = 0
            except BaseException as error:
                print(repr(error), flush=True)
            finally:
                os._exit(status)
        status = os.waitpid(pid, 0)[1]
        assert status == 0, f"a forked child ended with {status}"


def in_a_pool(n):
    """What a spawned process computes."""
    return float(fx.fit(loss, TX, params(), map(batch, range(n)), progress=False).params["w"].sum())


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    globals()[sys.argv[1]](*sys.argv[2:])
