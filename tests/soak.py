"""Trainers that something happens to: python tests/soak.py NAME FOLDER ARGUMENTS..."""

import itertools
import os
import pathlib
import signal
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adamfx as fx
from adamfx.training import archive

SIZE = 8
TX = fx.skip_nonfinite(fx.average_params(fx.adamw(0.01), fx.ema(0.9)), max_consecutive=100)


def loss(params, x):
    return jnp.sum((params["w"] - x) ** 2)


def batch(step):
    """Every thirteenth makes a gradient that is no number, and so do some in a row."""
    if step % 13 == 5 or step % 100 in range(60, 66):
        return np.full(SIZE, np.nan, np.float32)
    return np.random.default_rng(step).normal(size=SIZE).astype(np.float32)


def params(devices=1):
    where = NamedSharding(jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices]), P("x"))
    w = jnp.zeros(SIZE)
    return {"w": jax.device_put(w, where) if devices > 1 else w}


def kept(p, folder):
    return {"params": p, "state": TX.init(p), "history": fx.History()}


def saves(folder):
    """Writes one file and one folder over and over, and says when each is complete."""
    at = pathlib.Path(folder) / "x.npz"
    like = {"n": 0, "w": np.zeros(20_000)}
    start = fx.load(at, like)["n"] if at.exists() else 0
    with fx.Checkpoints(pathlib.Path(folder) / "run", keep=2) as checkpoints:
        step = checkpoints.latest or 0
        for n in itertools.count(start + 1):
            fx.save(at, {"n": n, "w": np.full(20_000, n)})
            print("file", n, flush=True)
            if n % 10 == 0:
                checkpoints.wait()
                print("folder", step, flush=True)
                step += 1
                checkpoints.save(step, {"w": np.full(2000, step)})


def trains(folder, devices, steps, full):
    """Goes on from the newest checkpoint up to a step; prints each one, and is slow enough to be hit."""
    p, done = params(int(devices)), itertools.count(1)
    if full != "no":
        write, calls = archive.write, itertools.count(1)

        def fails(path, arrays):
            if next(calls) == int(full):
                raise OSError(28, "No space left on device")
            write(path, arrays)

        archive.write = fails
    at = pathlib.Path(folder) / "soak.npz"
    like = kept(p, folder)
    run = fx.load(at, like) if at.exists() else like
    print("from", run["history"].rows, flush=True)

    def keep(p, state):
        fx.save(at, {"params": last["params"], "state": last["state"], "history": last["history"]})
        return next(done)

    last = run
    warnings.simplefilter("ignore")
    while last["history"].rows < int(steps):
        first = last["history"].rows
        batches = map(batch, range(first, min(first + 20, int(steps))))
        result = fx.fit(
            loss, TX, last["params"], batches, state=last["state"], history=last["history"],
            steps_per_dispatch=4, progress=False,
        )  # fmt: skip
        last = {"params": result.params, "state": result.state, "history": result.history}
        fx.save(at, last)
        print("step", last["history"].rows, flush=True)
        if result.reason == "interrupted":
            return


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONWARNINGS", None)
    globals()[sys.argv[1]](*sys.argv[2:])
