"""Times that can be trusted on a shared machine: interleaved, several copies, ratios with intervals.

Processes with different flags stand beside one another, and one call after the other is made in
random order over all of them, so that what disturbs one disturbs its peers. Of each contender there
are copies, compiled apart: two copies of one program differ by a few per cent, and no difference
smaller than that means anything.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
import traceback
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contenders import Case, contender

Times = dict[str, np.ndarray]  # by contender: (copies, rounds), seconds per step


class Worker:
    """A process with its own flags, and its own environment, that holds contenders; a context manager."""

    def __init__(self, single_pass: bool = False, environment: dict[str, str] | None = None):
        # Not forked: JAX has threads. Memory on demand: several processes share an accelerator.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, single_pass), daemon=True)
        ours = dict(os.environ)
        os.environ.update(
            environment or {}
        )  # JAX reads it as it is imported, before anything is asked
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(ours)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # it ends by itself: to a signal libtpu would answer with a page
        self._process.join(5)
        self._process.terminate()
        self._process.join()

    def ask(self, function: Any, *args: Any) -> Any:
        """What `function(held, *args)` returns there; `held` is the worker's dict of contenders."""
        try:
            self._pipe.send((function, args))
            answer, error = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(
                f"a benchmark process ended with exit code {self._process.exitcode} (-9: too little memory?)"
            ) from None
        if error:
            raise RuntimeError(f"in a benchmark process: {error}")
        return answer


def _serve(pipe: Any, single_pass: bool) -> None:
    held: dict = {}
    try:
        import adamfx as fx

        fx.configure(single_pass=single_pass)
        while True:
            function, args = pipe.recv()
            try:
                pipe.send((function(held, *args), None))
            except Exception:
                pipe.send((None, traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):
        pass


def _make(held: dict, name: Any, case: Case) -> None:
    held[name] = contender(case)


def _time(held: dict, name: Any, steps: int) -> float:
    start = time.perf_counter()
    held[name](steps)
    return (time.perf_counter() - start) / steps


def _drop(held: dict) -> None:
    held.clear()


class Entry(NamedTuple):
    """A contender at the start: who, what, in which process, in how many copies."""

    name: str
    case: Case
    worker: Worker
    copies: int = 3  # also as memory lies: a large step differs by 10 % between two places


def race(entries: list[Entry], rounds: int, burst: float = 0.02) -> Times:
    """Seconds per step of every copy in every round.

    burst: how long one call lasts at least, in seconds: then the caches are as in a training loop,
    and not as the other contenders left them.
    """
    made = [(e, (e.name, k)) for e in entries for k in range(e.copies)]
    for e, key in made:
        e.worker.ask(_make, key, e.case)
    each = {e.name: e.case.dispatch if e.case.mode == "scan" else 1 for e in entries}
    steps = {}
    for e, key in made:
        warm = min(e.worker.ask(_time, key, each[e.name]) for _ in range(3))
        calls = max(1, round(burst / (warm * each[e.name])))
        steps[e.name] = calls * each[e.name]
    times = {e.name: np.zeros((e.copies, rounds)) for e in entries}
    order = random.Random(0)
    for r in range(rounds):
        for e, (name, k) in order.sample(made, len(made)):
            times[name][k, r] = e.worker.ask(_time, (name, k), steps[name])
    for worker in {e.worker for e in entries}:
        worker.ask(_drop)
    return times


class Ratio(NamedTuple):
    """Median with a 95 % interval, and how far two copies of the peer are apart."""

    middle: float
    low: float
    high: float
    same: float  # the slowest copy of the peer over its fastest


def ratio(ours: np.ndarray, peer: np.ndarray, draws: int = 2000) -> Ratio:
    """The ratio of two (copies, rounds) of times, bootstrapped over copies and rounds."""
    rng = np.random.default_rng(0)

    def drawn(times: np.ndarray, rounds: np.ndarray) -> float:
        copies = rng.integers(len(times), size=len(times))
        return float(np.mean(np.median(times[copies][:, rounds], axis=1)))

    found = []
    for _ in range(draws):
        rounds = rng.integers(ours.shape[1], size=ours.shape[1])
        found.append(drawn(ours, rounds) / drawn(peer, rounds))
    low, high = np.percentile(found, [2.5, 97.5])
    copies = np.median(peer, axis=1)
    middle = np.mean(np.median(ours, axis=1)) / np.mean(copies)
    return Ratio(float(middle), float(low), float(high), float(copies.max() / copies.min()))


def ceiling(held: dict, floats: int) -> float:
    """Bytes per second of y <- 2 y in place: the most that a step can move. Median of 15."""
    import jax
    import jax.numpy as jnp

    double = jax.jit(lambda y: y * 2, donate_argnums=0)
    y, times = double(jnp.zeros(floats)), []
    for _ in range(15):
        start = time.perf_counter()
        y = jax.block_until_ready(double(y))
        times.append(time.perf_counter() - start)
    return 8 * floats / float(np.median(times))


def device_name(held: dict) -> str:
    """Where JAX runs by default: cpu (...), gpu (...)."""
    import jax

    first = jax.devices()[0]
    return f"{first.platform} ({first.device_kind})"
