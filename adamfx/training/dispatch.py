"""Many steps in one program, over batches taken together."""

from __future__ import annotations

import functools
import math
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine import trees
from adamfx.engine.norms import global_norm
from adamfx.engine.packed import memories
from adamfx.engine.placement import summed
from adamfx.training.interrupts import LEFT, Interrupts
from adamfx.training.step import training_step
from adamfx.training.stream import as_batch
from adamfx.values.reads import Programs, Reads
from adamfx.wrappers.monitor import metrics

Tree = Any
SECONDS_PER_DISPATCH = 0.02  # about; Ctrl-C and the bar wait that long
PATIENCE = 0.1  # seconds to wait for the batches of one dispatch
FAILED = "failed"  # the column that says whether to end the run; not in the history


class Program(NamedTuple):
    """The first state; one step of one batch; n of at most k steps in a loop, none after a failure, by the
    same code for any n (without k it is one step and no loop); the parameters to use the model with."""

    init: Any
    one: Any
    run: Any
    used: Any


@Programs
def program(reads: Reads, form: Any, has_aux: bool, members: bool = False) -> Program:
    """Of a loss, the first of `reads`, and of transformations of a form, with the functions after it.

    With members, each in a row of tx, params and state, all take the same batches, and write columns of rows.
    """
    step = training_step(reads.functions[0], has_aux)

    def single(tx, params, state, batch):
        params, state, out, grads = step(tx, params, state, batch)
        loss, aux = out if has_aux else (out, {})
        record = {"loss": loss, "gradient_norm": global_norm(trees.map_trained(summed, grads))}
        for name, x in metrics(state).items():  # a monitor inside a wrapper sees other gradients
            record[f"monitor/{name}" if name in record else name] = x
        taken = {"step", *record} & set(_scalars(aux))
        if taken:
            raise ValueError(
                f"fit: aux holds {', '.join(sorted(taken))}, which is a column of the history already; give "
                "it another name"
            )
        record |= _scalars(aux)
        failed = [jnp.any(m.too_many) for m in memories(state, "too_many")]
        record[FAILED] = functools.reduce(jnp.logical_or, failed, jnp.asarray(False))
        return params, state, {n: jnp.asarray(x).astype(jnp.float32) for n, x in record.items()}

    def every(tx, params, state, batch):
        params, state, record = jax.vmap(single, (0, 0, 0, None))(tx, params, state, batch)
        return (
            params,
            state,
            record | {FAILED: jnp.min(record[FAILED])},
        )  # one that fails stops no other

    one = jax.jit(every if members else single)

    @functools.partial(jax.jit, donate_argnums=(1, 2), static_argnums=6)
    def run(tx, params, state, batches, n, failed, k):
        first = jax.tree.map(lambda x: x[0], batches)
        if k is None:
            params, state, record = one(tx, params, state, first)
            return n, record[FAILED] > 0, params, state, {c: x[None] for c, x in record.items()}
        columns = jax.eval_shape(one, tx, params, state, first)[2]
        records = {c: jnp.zeros((k, *x.shape), x.dtype) for c, x in columns.items()}

        def turn(carry):
            i, _, params, state, records = carry
            batch = jax.tree.map(lambda x: jnp.asarray(x)[i], batches)
            params, state, new = one(tx, params, state, batch)
            records = {c: records[c].at[i].set(x) for c, x in new.items()}
            return i + 1, new[FAILED] > 0, params, state, records

        start = (jnp.zeros_like(n), failed, params, state, records)
        return jax.lax.while_loop(lambda c: (c[0] < n) & ~c[1], turn, start)

    def init(tx, params):
        return tx.init(params)

    def used(tx, state, params):
        return tx.evaluate_at(state, params)

    if members:
        return Program(jax.jit(jax.vmap(init)), one, run, jax.jit(jax.vmap(used)))
    return Program(init, one, run, jax.jit(used))


def convolves(jaxpr: Any) -> bool:
    """Whether there is a convolution in a program."""
    for eqn in jaxpr.eqns:
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(eqn.params.values()))]
        if eqn.primitive.name == "conv_general_dilated":
            return True
        if any(convolves(x) for x in inner if hasattr(x, "eqns")):
            return True
    return False


def _scalars(aux: Any) -> dict[str, Any]:
    items = aux.items() if isinstance(aux, dict) else ()
    return {str(name): x for name, x in items if trees.is_arrays(x) and np.ndim(x) == 0}


class Groups:
    """Batches taken together: as many of one shape as are asked for, stacked, k in length.

    k, if it is None, is what `suited` says of the first batch.
    """

    def __init__(self, stream: Iterator, k: int | None, interrupts: Interrupts, suited: Callable):
        self.stream, self.k, self.interrupts, self.suited = stream, k, interrupts, suited
        self.patience = PATIENCE if k is None else math.inf
        self.ahead = 1.0 if k is None else math.inf  # how many at most, of the k that fit
        self.begun = False
        self.ready: list = []  # taken, of one shape, in order
        self.held: Any = None  # the one after them, of another shape
        self.error: BaseException | None = None  # to be raised when what came before is trained

    @property
    def empty(self) -> bool:
        """Whether nothing is taken ahead."""
        return not self.ready and self.held is None

    def fill(self, n: int) -> int:
        """How many of at most n batches are ready; 0 at the end."""
        end = time.monotonic() + self.patience if self.ready else math.inf
        while len(self.ready) < min(n, self.ahead, self.k or 1) and not self.interrupts.pressed:
            if time.monotonic() > end:
                break
            batch, self.held = self.held, None
            if batch is None:
                try:
                    batch = self._next()
                except BaseException as error:
                    if not self.ready:
                        raise
                    self.error = error
                    break
                if batch is LEFT:
                    break
            if self.ready and _shapes(batch) != _shapes(self.ready[0]):
                self.held = batch
                break
            if not self.begun:
                k = self.interrupts.leavable(self.suited, batch, self.k)
                if k is LEFT:
                    self.held = batch
                    break
                self.begun, self.k = True, k
            if not self.ready:
                end = time.monotonic() + self.patience
            self.ready.append(batch)
        return min(n, len(self.ready))

    def form(self, of_all: bool) -> int:
        """A number that tells the shapes of what is ready from others; 0 if nothing is.

        Where it is to be the same in all processes, so are numbers that one process holds whole, which a
        program takes for those of all.
        """
        if not self.ready:
            return 0
        found = zlib.crc32(repr(_shapes(self.ready[0])).encode())
        for x in jax.tree.leaves(self.ready[0]) if of_all else ():
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                x = jax.random.key_data(x)
            if isinstance(x, np.ndarray) or x.is_fully_addressable:
                found = zlib.crc32(np.asarray(x).tobytes(), found)
        return found >> 2

    def stacked(self, n: int) -> Tree:
        """The first n of what is ready, k in length."""
        group, self.ready = self.ready[:n], self.ready[n:]
        return jax.tree.map(_stack, *group, *group[-1:] * ((self.k or 1) - n))

    def pace(self, seconds: float) -> None:
        """Adapts the size of groups to the measured seconds of a dispatch; results do not depend on it."""
        if seconds < SECONDS_PER_DISPATCH:
            self.ahead *= 2
        elif seconds > 2 * SECONDS_PER_DISPATCH:
            self.ahead = max(1.0, self.ahead / 2)

    def _next(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.interrupts.leavable(self._taken)

    def _taken(self) -> Any:
        """The next batch as arrays, LEFT at the end."""
        batch = next(self.stream, LEFT)
        return batch if batch is LEFT else as_batch(batch)


def _shapes(batch: Tree) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(x.shape, x.dtype) for x in leaves]


def _stack(*xs: Any) -> Any:
    if len(xs) == 1:
        return xs[0][None]
    return (jnp if isinstance(xs[0], jax.Array) else np).stack(xs)
