"""What is told of a run while it goes on, and what it may look at.

fit(loss_fn, tx, params, batches, callbacks=[Table("run.csv"), Summary()])
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.training.history import History
from adamfx.training.interrupts import Interrupts
from adamfx.training.run import copied
from adamfx.values.arguments import checked
from adamfx.values.value import Value

Tree = Any


class Running:
    """A run of `fit`, to look at."""

    def __init__(self, run: Any):
        self._run = run
        self.reason: str | None = None  # why it has ended

    @property
    def step(self) -> int:
        """The last step whose numbers are in the history, counted from the beginning of training."""
        return self._run.start + self._run.written

    @property
    def history(self) -> History:
        """What was measured up to now, to read only."""
        return self._run.history.shown()

    @property
    def columns(self) -> set[str]:
        """Those of the history that have a number at every step."""
        return set(self._run.columns)

    @property
    def tx(self) -> Any:
        """The transformation."""
        return self._run.tx

    @property
    def params(self) -> Tree:
        """Copies of the parameters after `wait`; None where a failed step had them."""
        return self._copied(self._run.params)

    @property
    def state(self) -> Tree:
        """A copy of the state, likewise."""
        return self._copied(self._run.state)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, of several."""
        return self._run.together.leads

    def wait(self) -> None:
        """Until all steps that were begun are done."""
        self._run.drain()

    def _copied(self, tree: Tree) -> Tree:
        if self.reason is None:
            self.wait()
        return None if tree is None or not self._run.intact() else copied(tree)


class Callback:
    """What is told of a run: a class of yours overrides what it needs. A plain function is told each turn.

    A turn comes after each dispatch, with the history up to the one before, and at the steps that are
    multiples of `every`, if it is given, with the history up to there. What a callback raises ends the run
    as an error of the batches does: nothing of it is lost. In a run of several processes all are told.
    """

    every: int | None = None

    def begin(self, run: Running) -> None:
        """Before the first step; a run that was resumed has a history then."""

    def turn(self, run: Running) -> None:
        """Between two dispatches."""

    def end(self, run: Running) -> None:
        """After the last step, whatever has ended the run: `run.reason`."""


class Summary(Callback):
    """Shows what has run: sentence, leaves, bytes, compilations, steps per second.

    Args:
      show: what to do with the text at the end: print, `logging.info`, None for nothing.

    `numbers` holds the same by name, `str(summary)` the text.
    """

    @checked
    def __init__(self, show: Callable[[str], Any] | None = print):
        self.show, self.numbers = show, {}

    def begin(self, run: Running) -> None:
        listen()
        self.began, self.from_step, self.compiled = time.monotonic(), run.step, list(COMPILED)

    def end(self, run: Running) -> None:
        seconds = time.monotonic() - self.began
        n, compiling = (now - before for now, before in zip(COMPILED, self.compiled, strict=True))
        steps = run.step - self.from_step
        params = [x for x in trees.flatten(run._run.params)[0] if hasattr(x, "dtype")]
        state = [x for x in jax.tree.leaves(run._run.state) if hasattr(x, "dtype")]
        loss = run.history.get("loss", np.zeros(0))[self.from_step - run.step :] if steps else []
        self.numbers = {
            "sentence": repr(run.tx),
            "leaves": len(params),
            "parameters": sum(int(x.size) for x in params),
            "parameter_bytes": sum(int(x.nbytes) for x in params),
            "state_arrays": len(state),
            "state_bytes": sum(int(x.nbytes) for x in state),
            "steps": steps,
            "seconds": seconds,
            "compilations": n,
            "compiling_seconds": compiling,
            "steps_per_second": steps / max(seconds - compiling, 1e-9),
            "first_loss": float(loss[0]) if len(loss) else float("nan"),
            "last_loss": float(loss[-1]) if len(loss) else float("nan"),
            "reason": run.reason,
        }
        if self.show is not None and run.leads:
            self.show(str(self))

    def __str__(self) -> str:
        if not self.numbers:
            return "Summary: no run yet"
        x = self.numbers
        rows = {
            "parameters": f"{x['parameters']:,} in {x['leaves']:,} leaves, {_bytes(x['parameter_bytes'])}",
            "state": f"{_bytes(x['state_bytes'])} in {x['state_arrays']:,} arrays",
            "steps": f"{x['steps']:,}, {x['steps_per_second']:,.0f} per second without compiling",
            "time": f"{x['seconds']:.2f} s",
            "compiling": f"{x['compiling_seconds']:.2f} s, {x['compilations']} programs",
            "loss": f"{x['first_loss']:.4g} -> {x['last_loss']:.4g}",
            "ended": x["reason"],
        }
        return "\n".join([x["sentence"], *(f"  {name:<12}{text}" for name, text in rows.items())])


class Profile(Callback):
    """Records a few steps with `jax.profiler`, for XProf or TensorBoard's profile plugin.

    Args:
      folder: where the trace goes.
      first: steps of this run to let pass before, so that compiling is not in it.
      steps: how many to record, >= 1; whole dispatches, so it may be some more.
    """

    @checked
    def __init__(self, folder: str | os.PathLike, first: int = 100, steps: int = 10):
        self.folder = os.fspath(folder)
        self.first = checks.steps("Profile", "first", first)
        self.steps = checks.steps("Profile", "steps", steps, 1)

    def begin(self, run: Running) -> None:
        self.at, self.until = run.step + self.first, None

    def turn(self, run: Running) -> None:
        if self.at is None or run.step < self.at:
            return
        run.wait()
        if self.until is None:
            jax.profiler.start_trace(self.folder)
            self.until = run.step + self.steps
        elif run.step >= self.until:
            self._stop()

    def end(self, run: Running) -> None:
        if self.at is not None and self.until is not None:
            self._stop()

    def _stop(self) -> None:
        self.at = None
        jax.profiler.stop_trace()


class Callbacks:
    """Those of a run; each that has begun is told of the end."""

    def __init__(self, given: Iterable, interrupts: Interrupts):
        if isinstance(given, (Callback, Value, str)) or not isinstance(given, Iterable):
            raise TypeError(
                f"fit: callbacks must be a list of Callbacks or functions, got {given!r}"
            )
        self.all = [_as_callback(x) for x in given]
        self.begun: list[Callback] = []
        self.interrupts = interrupts
        self.every = [
            checks.steps("fit", "every of a callback", c.every, 1) for c in self.all if c.every
        ]

    def begin(self, run: Any) -> None:
        self.run = Running(run)
        for callback in self.all:
            self.begun.append(callback)
            self.interrupts.leavable(callback.begin, self.run)

    def turn(self) -> None:
        for callback in self.all:
            self.interrupts.leavable(callback.turn, self.run)

    def fail(self) -> None:
        self.end("failed")

    def end(self, reason: str) -> None:
        error = None
        while self.begun:
            self.run.reason = reason
            try:
                self.interrupts.leavable(self.begun.pop(0).end, self.run)
            except Exception as more:
                error = error or more
        if error is not None:
            raise error


def _as_callback(x: Any) -> Callback:
    if isinstance(x, Callback):
        return x
    if isinstance(x, (type, Value)) or not callable(x):
        raise TypeError(f"fit: callbacks must be Callbacks or functions of a run, one is {x!r}")
    made = Callback()
    made.turn = x  # type: ignore[method-assign]
    return made


def _bytes(n: int) -> str:
    thousands = min(len(str(n)) - 1, 12) // 3
    return f"{n / 1000**thousands:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[thousands]}"


COMPILED = [0, 0.0]  # programs of this process since somebody has asked, and the seconds they took


@functools.cache
def listen() -> None:
    """Counts from now on, as long as the process lives."""

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            COMPILED[0] += 1
            COMPILED[1] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(compiled)
