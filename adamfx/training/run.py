"""Parameters, state and history of a run of `fit`, its programs and its checkpoints."""

from __future__ import annotations

from collections.abc import Hashable
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

    def __init__(self, loss_fn, tx, params, state, history, has_aux, bar, together, interrupts):
        self.together, self.kept = together, 0
        self.checkpoints: Checkpoints | None = None
        self.interrupts = interrupts
        self.left = False  # whether Ctrl-C has left a computation that goes on
        self.tx = GradientTransformation.given("fit", "tx", tx)
        trees.check_leaves("fit", "params", params)
        if not any(map(trees.is_trained, jax.tree.leaves(params))):
            raise ValueError(f"fit: params must hold numbers to be trained, got {shown(params)}")
        self.params = copied(params)
        if state is not None:
            check_is_state("fit", state)
        self.state: Any = self.tx.init(self.params) if state is None else copied(state)
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
        cached = isinstance(loss_fn, Hashable)
        self.program = (program if cached else program.__wrapped__)(loss_fn, has_aux)
        self.loops = True

    def _before(self) -> int:
        """Of the state, or of the history where that is longer: a new state under a history goes on in it."""
        steps = [int(x) for x in self.history.get("step", np.zeros(0))[-1:]]
        return max([int(self.state["count"]), *steps])

    @property
    def total(self) -> int:
        return self.start + self.steps

    @property
    def needs_waiting(self) -> bool:
        """Whether only the host can keep a step from following a failure."""
        return self.skips and not self.loops

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
            self.columns |= {"step", *columns}
            self.history.extend({"step": step, **columns})
            shown = {"loss": "loss", "learning_rate": "lr", "gradient_norm": "grad"}
            last = {to: f"{columns[c][-1]:.3g}" for c, to in shown.items() if c in columns}
            self.bar.update(n, last)

    @property
    def keeps_every(self) -> int | None:
        return None if self.checkpoints is None else self.checkpoints.every

    def go_on(self, checkpoints: Checkpoints) -> int:
        """Continues from the newest checkpoint; how many steps were done before."""
        self.checkpoints, begun = checkpoints, self.start
        if checkpoints.latest is not None:
            if begun not in (0, checkpoints.latest):
                raise ValueError(
                    f"fit: what is given is of step {begun}, the newest checkpoint of step "
                    f"{checkpoints.latest} in {checkpoints.folder}; leave out state and history to go on "
                    "there, or name another folder"
                )
            like = {"params": self.params, "state": self.state, "history": self.history}
            found = checkpoints.restore(like)
            self.params, self.state = found["params"], found["state"]
            self.history = found["history"]
            self.start = self.kept = self._before()
            self.bar.update(self.start - begun, {})
        return self.start - begun

    def keep(self, due: bool) -> None:
        """Writes a checkpoint of what is complete, if one is due and it is not there."""
        lost = self.together.common and not self.together.in_step
        if self.checkpoints is None or not due or lost or self.total == self.kept:
            return
        self.drain()
        self.checkpoints.save(
            self.total, {"params": self.params, "state": self.state, "history": self.history}
        )
        self.kept = self.total

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


def copied(tree: Tree) -> Tree:
    """Copies of the arrays; numbers become arrays of a dtype that a step does not change."""

    def copy(x):
        if isinstance(x, jax.Array) and not getattr(x, "weak_type", False):  # random keys have none
            return x.copy()
        return jnp.array(x, trees.dtype_of(x))

    return jax.tree.map(copy, tree)
