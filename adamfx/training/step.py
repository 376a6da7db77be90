"""One compiled training step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from adamfx.engine.forked import check_computes
from adamfx.transformation import GradientTransformation

Tree = Any
State = Any


def training_step(loss_fn: Callable, has_aux: bool) -> Callable:
    """`step(tx, params, state, batch) -> (params, state, what loss_fn returned, gradients)`.

    The gradient is taken where `tx` wants it. Blocks that read them get the loss there (`value`), its
    gradient (`grad`), and both as functions of the parameters for this batch (`value_fn`, `grad_fn`).
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=has_aux, allow_int=True)

    def step(tx: Any, params: Tree, state: State, batch: tuple) -> tuple[Tree, State, Any, Tree]:
        def value_fn(p: Tree) -> Any:
            found = loss_fn(p, *batch)
            return found[0] if has_aux else found

        def grad_fn(p: Tree) -> Tree:
            return gradient(p, *batch)[1]

        out, grads = gradient(tx.gradient_at(state, params), *batch)
        about = {"value": out[0] if has_aux else out, "grad": grads}
        about |= {"value_fn": value_fn, "grad_fn": grad_fn}
        params, state = tx.step(grads, state, params, **about)
        return params, state, out, grads

    return step


def make_step(loss_fn: Callable, has_aux: bool = False, donate: bool = False) -> Callable:
    """A compiled `step(tx, params, state, *batch) -> (params, state, loss)`.

    The transformation is an argument: another learning rate compiles nothing.

    Args:
      loss_fn: `loss_fn(params, *batch)`, a scalar; with has_aux `(scalar, aux)`.
      has_aux: whether it returns more than the loss; then `step` returns `(loss, aux)` for `loss`.
      donate: whether params and state give their memory to the new ones and are gone afterwards.

    The gradient is taken at `tx.gradient_at(state, params)`. Blocks get `value`, `grad`, `value_fn` and
    `grad_fn` as extra arguments of update.
    """
    one = training_step(loss_fn, has_aux)

    @functools.partial(jax.jit, donate_argnums=(1, 2) if donate else ())
    def compiled(tx, params, state, *batch):
        return one(tx, params, state, batch)[:3]

    @functools.wraps(compiled)
    def step(tx: Any, params: Tree, state: State, *batch: Any) -> tuple[Tree, State, Any]:
        check_computes("make_step", tx, params, state, batch)
        return compiled(GradientTransformation.as_inner(tx), params, state, *batch)

    return step
