"""Hyperparameters by descent: the gradient of what comes after some steps, through these steps.

found = tune(loss_fn, ["learning_rate", "b1"], tx, params, batches, optimizer=adam(0.1), every=20)
"""

from __future__ import annotations

import itertools
import os
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
from adamfx.training.members import is_decay
from adamfx.training.orbax import Checkpoints, opened
from adamfx.training.run import copied
from adamfx.training.step import training_step
from adamfx.training.stream import Stream, as_batch
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
    reason: str  # "end of batches", "turns", "interrupted", "nonfinite"; of an error "failed"


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
    checkpoints: Checkpoints | str | os.PathLike | None = None,
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
      checkpoints: a folder, or `Checkpoints` (whose `every` counts turns), from which the same call goes on;
        batches that were trained on before are passed over. Needs Orbax.

    Ctrl-C ends it after the turn; what the batches raise carries what was complete as `error.result`.
    Raises ValueError for a hyperparameter that is not a positive number, or batches of several shapes.
    """
    check(tune, locals())
    every = checks.steps("tune", "every", every, 1)
    epochs = checks.steps("tune", "epochs", epochs, 1)
    turns = None if turns is None else checks.steps("tune", "turns", turns)
    trees.check_leaves("tune", "params", params)
    tx = GradientTransformation.given("tune", "tx", tx)
    optimizer = GradientTransformation.given("tune", "optimizer", optimizer)
    at = {match_name(n, list(tx.hyperparams), "tune"): n for n in names}
    numbers = {full: tx.hyperparams[full] for full in at}
    for full, x in numbers.items():
        if isinstance(x, bool) or not isinstance(x, (int, float)) or x <= 0:
            raise ValueError(f"tune: {full} must be a number > 0 to be tuned, it is {x!r}")
    decays = frozenset(n for n, x in numbers.items() if is_decay(n, x))
    free = {n: _to_free(jnp.asarray(x, float), n in decays) for n, x in numbers.items()}
    reads = Reads(loss_fn, *tx.form.functions, *optimizer.form.functions)
    turn, mark = _turn(reads, tx.form, every, decays)
    stream = map(as_batch, Stream(batches, epochs))
    params = copied(params)
    state, outer = tx.init(params), optimizer.init(free)
    start, history = (params, state), History()

    def result(reason: str) -> Tuned:
        last = {n: float(f"{float(_to_number(x, n in decays)):.6g}") for n, x in free.items()}
        return Tuned(tx.replace(**last), params, state, history, reason)

    def turns_left(kept: Checkpoints | None, interrupts: Interrupts, bar: Bar) -> str:
        """Why they end."""
        nonlocal params, state, free, outer, history
        while turns is None or history.rows < turns:
            taken = interrupts.leavable(_take, stream, every + 1)
            if interrupts.pressed or taken is LEFT:
                return "interrupted"
            if taken is None:
                return "end of batches"
            begun = start if restart else (params, state)
            with reading(mark):
                params, state, value, gradient = turn(tx, free, *begun, taken)
            found = {at[n]: float(_to_number(x, n in decays)) for n, x in free.items()}
            row = {"step": history.rows + 1, "loss": float(value), **found}
            history.extend({name: np.array([x]) for name, x in row.items()})
            bar.update(1, {name: f"{x:.3g}" for name, x in row.items() if name != "step"})
            if not all(bool(jnp.isfinite(g)) for g in gradient.values()):
                return "nonfinite"
            updates, outer = optimizer.update(gradient, outer, free)
            free = apply_updates(free, updates)
            if kept is not None and kept.every and history.rows % kept.every == 0:
                kept.save(history.rows, all_of_it())
        return "turns"

    def all_of_it() -> dict:
        run = {"params": params, "state": state, "history": history}
        return {**run, "free": free, "outer": outer}

    try:
        with Interrupts() as interrupts, opened(checkpoints) as kept, Bar(progress, turns) as bar:
            if kept is not None and kept.latest is not None:
                there = kept.restore(all_of_it())
                params, state, history = there["params"], there["state"], there["history"]
                free, outer = there["free"], there["outer"]
                for _ in itertools.islice(stream, kept.latest * (every + 1)):
                    pass
            try:
                reason = turns_left(kept, interrupts, bar)
            finally:  # whatever has ended them
                if kept is not None and history.rows and kept.latest != history.rows:
                    kept.save(history.rows, all_of_it())
    except BaseException as error:
        error.result = result("failed")  # type: ignore[attr-defined]
        raise
    return result(reason)


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
    shapes = {str(jax.tree.map(np.shape, batch)) for batch in taken}
    if len(shapes) > 1:
        raise ValueError(
            f"tune: the batches of a turn must have one shape, got {' and '.join(sorted(shapes))}; drop the "
            "smaller one"
        )
    return None if len(taken) < n else jax.tree.map(lambda *xs: np.stack(xs), *taken)


def _to_free(x: jax.Array, decay: bool) -> jax.Array:
    return jnp.log(x / (1 - x)) if decay else jnp.log(x)


def _to_number(x: jax.Array, decay: bool) -> jax.Array:
    return jax.nn.sigmoid(x) if decay else jnp.exp(x)
