"""One of several processes that train together: python tests/processes.py PORT COUNT INDEX FOLDER SCENARIO...

Writes what came of each scenario to FOLDER/SCENARIO-INDEX.json.
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adamfx as fx

STEPS, ROWS, FEATURES = 24, 16, 8
WHERE = {"w": {"data": P(), "fsdp": P("data")}, "b": {"data": P(), "fsdp": P()}}


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2)


def data(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    return x, np.sin(x.sum(1, keepdims=True)).astype(np.float32)


class World:
    """The mesh of all devices, and arrays on it."""

    def __init__(self, kind="data"):
        self.mesh, self.kind = jax.make_mesh((jax.device_count(),), ("data",)), kind
        self.index = jax.process_index()

    def put(self, x, spec):
        return jax.device_put(x, NamedSharding(self.mesh, spec))

    def params(self):
        rng = np.random.default_rng(99)
        w = rng.normal(size=(FEATURES, 1)).astype(np.float32)
        values = {"w": w, "b": np.zeros(1, np.float32)}
        return {k: self.put(x, WHERE[k][self.kind]) for k, x in values.items()}

    def batch(self, step):
        """Of the batch that all share, this process has some rows."""
        rows = NamedSharding(self.mesh, P("data"))
        n = jax.process_count()
        mine = slice(ROWS // n * self.index, ROWS // n * (self.index + 1))
        return tuple(jax.make_array_from_process_local_data(rows, x[mine]) for x in data(step))

    def batches(self, n=STEPS, start=0):
        return (self.batch(step) for step in range(start, start + n))


def is_one(world):
    """Whether this process is the one to which something happens."""
    return world.index == jax.process_count() - 1


def straight(world, **more):
    return fx.fit(loss, fx.adamw(0.03), world.params(), world.batches(), **more)


def uneven_data(world):
    return fx.fit(loss, fx.adamw(0.03), world.params(), world.batches(9 if is_one(world) else 24))


def interrupted(world):
    def batches():
        for step, batch in enumerate(world.batches(10_000)):
            if step == 7 and is_one(world):
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    return fx.fit(loss, fx.adamw(0.03), world.params(), batches())


def waits_for_another(world):
    """One process never gets a batch; Ctrl-C twice leaves the others, and that one, too."""

    def batches():
        for step, batch in enumerate(world.batches(10_000)):
            if step == 5:
                if is_one(world):
                    signal.setitimer(signal.ITIMER_REAL, 1.5, 0.3)
                    time.sleep(60)
                signal.setitimer(signal.ITIMER_REAL, 1.5, 0.3)
            yield batch

    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        return fx.fit(loss, fx.adamw(0.03), world.params(), batches())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def stops(world):
    return straight(world, stop=lambda history: is_one(world) and history.rows >= 11)


def batches_fail(world):
    def batches():
        for step, batch in enumerate(world.batches()):
            if step == 6 and is_one(world):
                raise OSError("no such file: shard 6")
            yield batch

    return fx.fit(loss, fx.adamw(0.03), world.params(), batches())


def evaluation_fails(world):
    def evaluate(params, state):
        if is_one(world) and int(state["count"]) == 10:
            raise ZeroDivisionError("of the evaluation")
        return 1.0

    return straight(world, evaluate=evaluate, evaluate_every=5)


def callback_fails(world):
    """At the end, in one process, when the others have ended."""

    class Odd(fx.Callback):
        def end(self, run):
            if is_one(world):
                raise ZeroDivisionError("of the callback")

    return straight(world, callbacks=[Odd()])


def shapes_differ(world):
    def batches():
        for step, batch in enumerate(world.batches()):
            if step == 8 and is_one(world):
                batch = batch[0].astype(jnp.bfloat16), batch[1]
            yield batch

    return fx.fit(loss, fx.adamw(0.03), world.params(), batches())


def numpy_of_its_own(world):
    """Every process gives its rows as they are, and none of the others'."""
    n = ROWS // jax.process_count()
    mine = slice(n * world.index, n * (world.index + 1))
    batches = [tuple(x[mine] for x in data(step)) for step in range(STEPS)]
    return fx.fit(loss, fx.adamw(0.03), world.params(), batches)


def jax_of_its_own(world):
    batches = ([jnp.asarray(x + world.index) for x in data(step)] for step in range(STEPS))
    return fx.fit(loss, fx.adamw(0.03), world.params(), batches)


def numpy_of_all(world):
    return fx.fit(loss, fx.adamw(0.03), world.params(), map(data, range(STEPS)))


def local_params(world):
    params = jax.tree.map(lambda x: jnp.asarray(np.ones(x.shape, x.dtype)), world.params())
    return fx.fit(loss, fx.adamw(0.03), params, world.batches())


def on_its_own(world):
    """Each process has a run of its own, of another length."""
    n = 3 + world.index
    params = {"w": jnp.ones((FEATURES, 1)), "b": jnp.zeros(1)}
    return fx.fit(loss, fx.adamw(0.03), params, [data(step) for step in range(n)])


def killed(world):
    """After a few steps the last process is gone."""

    def batches():
        for step, batch in enumerate(world.batches(10_000)):
            if step == 6 and is_one(world):
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    return fx.fit(loss, fx.adamw(0.03), world.params(), batches())


def loss_fails(world):
    """The step of one process cannot be compiled, when the others are about to run it."""

    def odd(params, x, y):
        if is_one(world):
            raise FloatingPointError("of the loss")
        return loss(params, x, y)

    return fx.fit(odd, fx.adamw(0.03), world.params(), world.batches())


def data_parallel(world):
    return straight(world)


def fully_sharded(world):
    return straight(
        World("fsdp"), evaluate=lambda params, state: float(state["count"]), evaluate_every=10
    )


def saved(world, folder=None):
    world = World("fsdp")
    with fx.Checkpoints(folder, every=5) as checkpoints:
        batches = world.batches(13, start=checkpoints.latest or 0)
        return fx.fit(
            loss, fx.adamw(0.03), world.params(), batches, checkpoints=checkpoints, progress=False
        )


def whole(world):
    world = World("fsdp")
    return fx.fit(loss, fx.adamw(0.03), world.params(), world.batches(26), progress=False)


class Shard:
    """The batches of this process, and where it is in them; each process counts in its own way."""

    def __init__(self, world):
        self.world, self.at = world, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == 26:
            raise StopIteration
        self.at += 1
        return self.world.batch(self.at - 1)

    def get_state(self):
        return {"at": self.at, "of": self.world.index, "more": "x" * 100 * self.world.index}

    def set_state(self, state):
        assert state["of"] == self.world.index, state
        self.at = state["at"]


def with_positions(world, folder=None):
    """13 steps, and then the rest, by batches that know where they are."""
    world = World("fsdp")
    for steps in (13, None):
        done = fx.fit(
            loss,
            fx.adamw(0.03),
            world.params(),
            Shard(world),
            checkpoints=folder,
            steps=steps,
            progress=False,
        )
    return done


def endless(world, folder=None):
    """Until it is killed, from where it was."""
    world = World("fsdp")
    with fx.Checkpoints(folder, every=5) as checkpoints:
        start = checkpoints.latest or 0
        print("from", start, flush=True)

        def batches():
            for step, batch in enumerate(world.batches(100_000, start=start)):
                time.sleep(0.01)
                print("step", start + step, flush=True)
                yield batch

        return fx.fit(
            loss, fx.adamw(0.03), world.params(), batches(), checkpoints=checkpoints, progress=False
        )


def main():
    port, count, index, folder, *scenarios = sys.argv[1:]
    folder = pathlib.Path(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if int(count) > 1:
        quick = {"heartbeat_timeout_seconds": 5}  # else a process that is gone is missed after 100
        quick = quick if jax.__version_info__ >= (0, 8) else {}
        jax.distributed.initialize(f"localhost:{port}", int(count), int(index), **quick)
    world = World()
    for name in scenarios:
        start = time.monotonic()
        more = (
            {"folder": folder / "checkpoints"}
            if name in ("saved", "endless", "with_positions")
            else {}
        )
        error = None
        try:
            result = globals()[name](world, **more)
        except BaseException as e:
            error, result = f"{type(e).__name__}: {e}", getattr(e, "result", None)
        out = {"seconds": time.monotonic() - start, "error": error}
        if result is not None:
            out["reason"] = result.reason
            out["rows"] = result.history.rows
            out["loss"] = list(map(float, result.history.get("loss", [])))
            if result.params is not None:
                out["step"] = int(result.state["count"])
                if name in ("saved", "whole", "with_positions"):
                    one = jax.jit(lambda p: p, out_shardings=NamedSharding(world.mesh, P()))
                    out["w"] = np.asarray(one(result.params["w"])).ravel().tolist()
        (folder / f"{name}-{index}.json").write_text(json.dumps(out))
        print(name, out.get("reason"), out.get("step"), error, flush=True)


if __name__ == "__main__":
    main()
