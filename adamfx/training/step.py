"""One compiled training step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.forked import check_computes
from adamfx.engine.sentence import check_is_state
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import checked

Tree = Any
State = Any


def training_step(loss_fn: Callable, has_aux: bool, who: str = "fit") -> Callable:
    """`step(tx, params, state, batch) -> (params, state, what loss_fn returned, gradients)`.

    The gradient is taken where `tx` wants it. Blocks that read them get the loss there (`value`), its
    gradient (`grad`), and both as functions of the parameters for this batch (`value_fn`, `grad_fn`).
    """

    def loss(p: Tree, *batch: Any) -> Any:
        more = f", params and what one of batches holds, {len(batch)}"
        found = checks.call(who, "loss_fn", loss_fn, p, *batch, more=more)
        checks.loss(who, "loss_fn", found, has_aux)
        if has_aux:
            trees.check_leaves(who, "aux that loss_fn returned", found[1])
        return found

    by_jax = jax.value_and_grad(loss, has_aux=has_aux, allow_int=True)

    def gradient(p: Tree, *batch: Any) -> tuple[Any, Tree]:
        out, grads = by_jax(p, *batch)
        return out, trees.uphill(grads)

    def step(tx: Any, params: Tree, state: State, batch: tuple) -> tuple[Tree, State, Any, Tree]:
        def value_fn(p: Tree) -> Any:
            found = loss(p, *batch)
            return found[0] if has_aux else found

        def grad_fn(p: Tree) -> Tree:
            return gradient(p, *batch)[1]

        out, grads = gradient(tx.gradient_at(state, params), *batch)
        about = {"value": out[0] if has_aux else out, "grad": grads}
        about |= {"value_fn": value_fn, "grad_fn": grad_fn}
        try:
            params, state = tx.step(grads, state, params, **about)
        except (TypeError, ValueError) as error:
            if type(error) in (TypeError, ValueError) and str(error).startswith("step:"):
                error.args = (f"{who}: {error}",)
            raise
        return params, state, out, grads

    return step


@checked
def make_step(loss_fn: Callable, has_aux: bool = False, donate: bool = False) -> Callable:
    """A compiled `step(tx, params, state, *batch) -> (params, state, loss)`.

    The transformation is an argument: another learning rate compiles nothing.

    Args:
      loss_fn: `loss_fn(params, *batch)`, a scalar; with has_aux `(scalar, aux)`.
      has_aux: whether it returns more than the loss; then `step` returns `(loss, aux)` for `loss`.
      donate: whether params and state give their memory to the new ones and are gone afterwards.

    The gradient is taken at `tx.gradient_at(state, params)`, and conjugated where it is complex. Blocks get
    `value`, `grad`, `value_fn` and `grad_fn` as extra arguments of update.
    """
    one = training_step(loss_fn, has_aux, "make_step")

    @functools.partial(jax.jit, donate_argnums=(1, 2) if donate else ())
    def compiled(tx, params, state, *batch):
        return one(tx, params, state, batch)[:3]

    @functools.wraps(compiled)
    def step(tx: Any, params: Tree, state: State, *batch: Any) -> tuple[Tree, State, Any]:
        check_computes("make_step", tx, params, state, batch)
        tx = GradientTransformation.given("step", "tx", tx)
        try:
            return compiled(tx, params, state, *batch)
        except TypeError:
            trees.check_leaves("step", "params", params)
            trees.check_leaves("step", "batch", batch)
            check_is_state("step", state)
            raise

    return step
