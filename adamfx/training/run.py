"""Parameters, state and history of a run of `fit`, its programs and its checkpoints."""

from __future__ import annotations

import re
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.checks import shown
from adamfx.engine import trees
from adamfx.engine.packed import memories
from adamfx.engine.sentence import check_is_state
from adamfx.training.dispatch import FAILED, SECONDS_PER_DISPATCH, convolves, program
from adamfx.training.history import History
from adamfx.training.interrupts import LEFT
from adamfx.training.orbax import Checkpoints
from adamfx.training.together import Left
from adamfx.transformation import GradientTransformation
from adamfx.values.reads import Reads, reading

Tree = Any
State = Any


class Fit(NamedTuple):
    """What `fit` returns: everything up to the last complete step."""

    params: Tree
    state: State
    history: History
    reason: (
        str  # "end of batches", "steps", "stop", "interrupted", "nonfinite"; of an error "failed"
    )


class Run:
    """Parameters, state and history of a run, always those of one step that is complete."""

    def __init__(
        self,
        loss_fn,
        tx,
        params,
        state,
        history,
        has_aux,
        bar,
        together,
        interrupts,
        stream,
        members,
    ):
        self.together, self.kept, self.stream, self.members = together, 0, stream, members
        self.checkpoints: Checkpoints | None = None
        self.interrupts = interrupts
        self.left = False  # whether Ctrl-C has left a computation that goes on
        self.tx = GradientTransformation.given("fit", "tx", tx)
        trees.check_leaves("fit", "params", params)
        if not any(map(trees.is_trained, jax.tree.leaves(params))):
            raise ValueError(f"fit: params must hold numbers to be trained, got {shown(params)}")
        self.params = copied(params)
        if state is not None and not members:
            check_is_state("fit", state)
        reads = Reads(loss_fn, *self.tx.form.functions)
        self.program, self.mark = program(reads, self.tx.form, has_aux, members)
        # What is no program of its own would compile each of its parts for this mark.
        with reading(self.mark if members else None):
            begun = self.program.init(self.tx, self.params) if state is None else copied(state)
        self.state: Any = begun
        try:
            self.history = History({} if history is None else history)
        except TypeError as error:
            raise TypeError(f"fit: history: {error}") from None
        self.start = self._before()  # steps of the runs before
        self.steps = 0  # of this run
        self.columns: set[str] = set()  # that every step writes
        self.failed = False
        self.skips = bool(memories(self.state, "too_many"))
        self.pending: list[tuple[int, Any, dict]] = []
        self.written = 0  # steps of this run that are in the history
        self.last: Any = np.False_  # whether the last dispatch has failed, on the device
        self.bar = bar
        self.loops = True

    def _before(self) -> int:
        """Of the state, or of the history where that is longer: a new state under a history goes on in it."""
        steps = [int(x) for x in self.history.get("step", np.zeros(0))[-1:]]
        return max([int(np.max(np.asarray(self.state["count"]))), *steps])

    @property
    def total(self) -> int:
        return self.start + self.steps

    @property
    def needs_waiting(self) -> bool:
        """Whether only the host can keep a step from following a failure."""
        return self.skips and not self.loops

    def used(self) -> Tree:
        """The parameters with which the model is to be used."""
        with reading(self.mark):
            return self.program.used(self.tx, self.state, self.params)

    def alive(self) -> bool:
        """Whether params and state are there; a step that fails has taken their memory."""
        try:
            jax.block_until_ready((self.params, self.state))
        except Exception:  # deleted, or not computed
            return False
        return self.intact()

    def intact(self) -> bool:
        """Whether no step has taken the memory of params and state."""
        return not any(x.is_deleted() for x in jax.tree.leaves((self.params, self.state)))

    def suited(self, batch: Tree, asked: int | None) -> int:
        """How many steps one program can hold. By counting, not by the clock: equal runs stay equal."""
        is_global = any(
            not getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(batch)
        )
        if is_global and not self.together.common:
            raise ValueError(
                "fit: the batches lie on devices of several processes, params on this one's alone; put them "
                "on the same mesh: jax.device_put(params, NamedSharding(mesh, PartitionSpec()))"
            )
        with reading(self.mark):
            step = self.program.one.trace(self.tx, self.params, self.state, batch)
        on_cpu = jax.default_backend() == "cpu"
        self.loops = not (on_cpu and convolves(step.jaxpr.jaxpr))
        if not self.loops:
            return 1
        if asked:
            return asked
        cost = step.lower().cost_analysis()
        speed = 1e10 if on_cpu else 1e13  # operations per second, of an ordinary device
        by_time = SECONDS_PER_DISPATCH * speed / max((cost or {}).get("flops", 0.0), 1.0)
        by_memory = 2**23 / max(sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(batch)), 1)
        return int(np.clip(min(by_time, by_memory), 1, 64))

    def dispatch(self, n: int, k: int, batches: Tree) -> None:
        """Starts n of at most k steps; does not wait for them."""
        self.together.in_step = False  # the others wait for this program, if it never comes
        k_in_loop = k if self.loops else None
        args = self.tx, self.params, self.state, batches, np.int32(n), self.last, k_in_loop
        # A trace can be left, a step that has begun cannot.
        with reading(self.mark):
            made = self.interrupts.leavable(self.program.run, *args, where=self.intact)
        if made is LEFT:
            raise Left
        done, self.last, self.params, self.state, records = made
        self.together.in_step = self.together.common
        self.pending.append((n, done, records))
        self.steps += n

    def drain(self, keep: int = 0) -> None:
        """Waits for all dispatches but the last `keep`, and writes down what they measured."""
        while len(self.pending) > keep:
            asked, done, records = self.pending[0]
            if not self.interrupts.until(done.is_ready):
                self.left = True
                raise Left
            self.pending.pop(0)
            n = int(done)  # fewer than asked for where a failure has ended them
            self.steps -= asked - n
            if not n:
                continue
            columns = {name: np.asarray(x)[:n] for name, x in records.items()}
            step = self.start + self.written + 1 + np.arange(n)
            self.written += n
            self.failed = self.failed or bool(columns.pop(FAILED)[-1])
            shown = {"loss": "loss", "learning_rate": "lr", "gradient_norm": "grad"}
            last = {to: _short(columns[c][-1]) for c, to in shown.items() if c in columns}
            if self.members:
                columns = by_member(columns)
            self.columns |= {"step", *columns}
            self.history.extend({"step": step, **columns})
            self.bar.update(n, last)

    @property
    def keeps_every(self) -> int | None:
        return None if self.checkpoints is None else self.checkpoints.every

    def go_on(self, checkpoints: Checkpoints) -> int:
        """Continues from the newest checkpoint; how many steps were done before."""
        self.checkpoints, begun = checkpoints, self.start
        self.kept_at = time.monotonic()
        if checkpoints.latest is not None:
            if begun not in (0, checkpoints.latest):
                raise ValueError(
                    f"fit: what is given is of step {begun}, the newest checkpoint of step "
                    f"{checkpoints.latest} in {checkpoints.folder}; leave out state and history to go on "
                    "there, or name another folder"
                )
            like = {"params": self.params, "state": self.state, "history": self.history}
            notes = checkpoints.notes(checkpoints.latest)
            found = checkpoints.restore(like)
            self.params, self.state = found["params"], found["state"]
            self.history = found["history"]
            self.start = self.kept = self._before()
            self._as_noted(checkpoints, notes)
            self.bar.update(self.start - begun, {})
        return self.start - begun

    def _as_noted(self, checkpoints: Checkpoints, notes: dict) -> None:
        """Says if the sentence has changed, and continues where the batches were."""
        before, now = notes.get("sentence"), _sentence(self.tx)
        if before not in (None, now):
            warnings.warn(
                f"fit: the run in {checkpoints.folder} was trained by {before} up to step {self.start}; it "
                f"goes on with {now}",
                stacklevel=5,
            )
        positions = notes.get("positions")
        if positions is None:
            return
        if len(positions) != self.together.count:
            raise ValueError(
                f"fit: the checkpoint of step {self.start} knows where {len(positions)} processes were in "
                f"their batches, and now it is {self.together.count}; go on with as many, or give batches "
                "without a position (get_state, state_dict) that begin where you let them"
            )
        self.stream.go_to(positions[self.together.index])

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        if self.checkpoints is None:
            return False
        minutes = self.checkpoints.minutes
        by_clock = minutes is not None and time.monotonic() > self.kept_at + 60 * minutes
        by_clock = self.together.any(by_clock) if minutes is not None else False
        return by_clock or (bool(self.keeps_every) and self.total % self.keeps_every == 0)

    def keep(self, due: bool) -> None:
        """Writes a checkpoint of what is complete, if one is due and it is not there."""
        lost = self.together.common and not self.together.in_step
        if self.checkpoints is None or not due or lost or self.total == self.kept:
            return
        self.drain()
        notes: dict[str, Any] = {"sentence": _sentence(self.tx)}
        position = self.stream.position(self.steps)
        if position is not None:
            notes["positions"] = self.together.texts(position)
        tree = {"params": self.params, "state": self.state, "history": self.history}
        self.checkpoints.save(self.total, tree, notes)
        self.kept, self.kept_at = self.total, time.monotonic()

    def keep_last(self) -> None:
        """Writes one of the last step, whatever has ended the run, and waits until it is there."""
        if self.checkpoints is not None and not self.left:
            self.keep(due=self.params is not None and self.alive())
            self.interrupts.leavable(self.checkpoints.wait)

    def result(self, reason: str) -> Fit:
        try:
            if not self.left:
                self.drain()
        except Left:
            pass
        except Exception:  # the device failed: its numbers are gone, the rows before are not
            if reason != "failed":
                raise
        if not self.left and not self.alive():  # what was left comes later, or never
            self.params = self.state = None
        return Fit(self.params, self.state, self.history, reason)


def by_member(columns: dict[str, Any]) -> dict[str, Any]:
    """Columns of rows as a column for each: "loss[0]", "loss[1]" ..."""
    rows = {name: np.moveaxis(np.asarray(x), -1, 0) for name, x in columns.items()}
    return {f"{name}[{i}]": y for name, x in rows.items() for i, y in enumerate(x)}


def _short(x: Any) -> str:
    """A number, or the range of those of all members."""
    if not np.ndim(x):
        return f"{x:.3g}"
    there = x[np.isfinite(x)]
    return f"{there.min():.3g}..{there.max():.3g}" if there.size else "nan"


def _sentence(tx: GradientTransformation) -> str:
    """As it prints, without the addresses of functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(tx))


def copied(tree: Tree) -> Tree:
    """Copies of the arrays; numbers become arrays of a dtype that a step does not change."""

    def copy(x):
        if isinstance(x, jax.Array) and not getattr(x, "weak_type", False):  # random keys have none
            return x.copy()
        return jnp.array(x, trees.dtype_of(x))

    return jax.tree.map(copy, tree)
