"""Hyperparameters by descent: the gradient of what comes after some steps, through these steps.

found = tune(loss_fn, ["learning_rate", "b1"], tx, params, batches, optimizer=adam(0.1), every=20)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.training.bar import Bar
from adamfx.training.history import History
from adamfx.training.interrupts import LEFT, Interrupts
from adamfx.training.run import copied
from adamfx.training.step import training_step
from adamfx.training.stream import Stream, as_array
from adamfx.transformation import GradientTransformation
from adamfx.updates import apply_updates
from adamfx.values.arguments import check
from adamfx.values.reads import Programs, Reads, reading
from adamfx.values.value import match_name

Tree = Any


class Tuned(NamedTuple):
    """What `tune` returns; `params` and `state` are those after the last turn."""

    tx: GradientTransformation  # with the numbers found
    params: Tree
    state: Tree
    history: History  # of each turn: loss, and each hyperparameter by its name
    reason: str  # "end of batches", "turns", "interrupted", "nonfinite"


def tune(
    loss_fn: Callable,
    names: Sequence[str],
    tx: GradientTransformation,
    params: Tree,
    batches: Iterable,
    *,
    optimizer: GradientTransformation,
    every: int = 10,
    turns: int | None = None,
    epochs: int = 1,
    restart: bool = False,
    progress: bool | None = None,
) -> Tuned:
    """Trains, and every few steps moves the hyperparameters against their gradient.

    A turn takes `every` steps from where the last one ended, and one batch more, on which the loss after
    these steps is measured. Its derivative with respect to the hyperparameters, through all the steps, is a
    gradient for `optimizer`. It moves logarithms, so that a step is a factor; of decays (b1, b2, decay,
    momentum) those of b / (1 - b). Maclaurin et al. 2015; Baydin et al. 2018 for one step.

    Args:
      loss_fn: `loss_fn(params, *batch)`, a scalar.
      names: hyperparameters of tx, dotted or their unambiguous ends: numbers, also of a schedule.
      tx, params, batches, epochs, progress: as for `fit`.
      optimizer: the sentence that moves the hyperparameters, such as `adam(0.05)`.
      every: steps of a turn, >= 1. Memory grows with it: all of them are kept for the derivative.
      turns: how many at most; None: until the batches end.
      restart: whether each turn begins from `params` anew, for the hyperparameters of the first steps.

    Ctrl-C ends it after the turn. Raises ValueError for a hyperparameter that is not a positive number.
    """
    check(tune, locals())
    every = checks.steps("tune", "every", every, 1)
    turns = None if turns is None else checks.steps("tune", "turns", turns)
    trees.check_leaves("tune", "params", params)
    tx = GradientTransformation.given("tune", "tx", tx)
    optimizer = GradientTransformation.given("tune", "optimizer", optimizer)
    at = {match_name(n, list(tx.hyperparams), "tune"): n for n in names}
    numbers = {full: tx.hyperparams[full] for full in at}
    for full, x in numbers.items():
        if isinstance(x, bool) or not isinstance(x, (int, float)) or x <= 0:
            raise ValueError(f"tune: {full} must be a number > 0 to be tuned, it is {x!r}")
    decays = frozenset(n for n, x in numbers.items() if _is_decay(n, x))
    free = {n: _to_free(jnp.asarray(x, float), n in decays) for n, x in numbers.items()}
    reads = Reads(loss_fn, *tx.form.functions, *optimizer.form.functions)
    turn, mark = _turn(reads, tx.form, every, decays)
    stream = (jax.tree.map(as_array, _as_tuple(b)) for b in Stream(batches, epochs))
    params = copied(params)
    state, outer = tx.init(params), optimizer.init(free)
    start, history, reason = (params, state), History(), "turns"
    with Interrupts() as interrupts, Bar(progress, turns) as bar:
        for n in itertools.count(1):
            if turns is not None and n > turns:
                break
            taken = interrupts.leavable(_take, stream, every + 1)
            if interrupts.pressed or taken is LEFT:
                reason = "interrupted"
                break
            if taken is None:
                reason = "end of batches"
                break
            with reading(mark):
                params, state, value, gradient = turn(
                    tx, free, *(start if restart else (params, state)), taken
                )
            found = {at[name]: float(_to_number(x, name in decays)) for name, x in free.items()}
            history.extend({"step": np.array([n]), "loss": np.array([float(value)])})
            history.record(found)
            bar.update(
                1, {"loss": f"{float(value):.3g}", **{k: f"{x:.3g}" for k, x in found.items()}}
            )
            if not all(bool(jnp.isfinite(g)) for g in gradient.values()):
                reason = "nonfinite"
                break
            updates, outer = optimizer.update(gradient, outer, free)
            free = apply_updates(free, updates)
    best = {name: float(f"{float(_to_number(x, name in decays)):.6g}") for name, x in free.items()}
    return Tuned(tx.replace(**best), params, state, history, reason)


@Programs
def _turn(reads: Reads, form: Any, every: int, decays: frozenset[str]) -> Callable:
    """(params, state, loss, gradient of it) after a turn with these free numbers."""
    loss_fn = reads.functions[0]
    step = training_step(loss_fn, False)

    @jax.jit
    def turn(tx, free, params, state, batches):
        def after(free):
            numbers = {name: _to_number(x, name in decays) for name, x in free.items()}
            varied = tx.replace(**numbers)

            def one(carry, batch):
                params, state, *_ = step(varied, *carry, batch)
                return (params, state), None

            first = jax.tree.map(lambda x: x[:every], batches)
            (p, s), _ = jax.lax.scan(jax.checkpoint(one), (params, state), first)
            last = jax.tree.map(lambda x: x[every], batches)
            return loss_fn(varied.evaluate_at(s, p), *last), (p, s)

        (value, (p, s)), gradient = jax.value_and_grad(after, has_aux=True)(free)
        return p, s, value, gradient

    return turn


def _take(stream: Iterator, n: int) -> Any:
    """n batches, stacked; None where there are fewer."""
    taken = list(itertools.islice(stream, n))
    return None if len(taken) < n else jax.tree.map(lambda *xs: np.stack(xs), *taken)


def _as_tuple(batch: Any) -> tuple:
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def _is_decay(name: str, x: float) -> bool:
    """A number between 0 and 1 by its meaning: b1, b2, decay, momentum."""
    end = name.split(".")[-1]
    return x < 1 and (end in ("decay", "momentum") or (end[:1] == "b" and end[1:].isdigit()))


def _to_free(x: jax.Array, decay: bool) -> jax.Array:
    return jnp.log(x / (1 - x)) if decay else jnp.log(x)


def _to_number(x: jax.Array, decay: bool) -> jax.Array:
    return jax.nn.sigmoid(x) if decay else jnp.exp(x)
