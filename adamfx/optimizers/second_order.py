"""Optimizers for a loss without noise: L-BFGS, nonlinear conjugate gradients, and descent by Armijo's rule.

`fit(loss, lbfgs(), params, [batch] * 100)`, or in a loop of one's own, also for models of nnx or Equinox:

    value_and_grad = value_and_grad_from_state(loss)
    value, grad = value_and_grad(params, state=state)
    params, state = tx.step(grad, state, params, value=value, grad=grad, value_fn=loss)
"""

from __future__ import annotations

from adamfx.blocks.linesearch import scale_by_backtracking_linesearch, scale_by_zoom_linesearch
from adamfx.blocks.quasi_newton import scale_by_conjugate_gradient, scale_by_lbfgs
from adamfx.blocks.scaling import scale, scale_by_lr
from adamfx.combine import chain
from adamfx.schedules import Rate
from adamfx.transformation import GradientTransformation, identity
from adamfx.values.arguments import checked
from adamfx.values.constructor import Exact

ZOOM = scale_by_zoom_linesearch(30, initial_guess_strategy="one")
EXACT_ZOOM = scale_by_zoom_linesearch(30, curv_rtol=0.1)


@checked
def lbfgs(
    learning_rate: Rate | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: GradientTransformation | None = ZOOM,
) -> GradientTransformation:
    """The quasi-Newton method of Liu & Nocedal 1989, with a line search.

    Args:
      learning_rate: a factor before the line search; None: 1.
      memory_size: pairs of differences that are kept.
      scale_init_precond: as in `scale_by_lbfgs`.
      linesearch: how far to go; None: by the learning rate alone.
    """
    return chain(
        scale_by_lbfgs(memory_size, scale_init_precond),
        scale(-1.0) if learning_rate is None else scale_by_lr(learning_rate),
        identity() if linesearch is None else linesearch,
    )


@checked
def nonlinear_cg(
    method: str = "polak_ribiere",
    restart_every: int | None = None,
    linesearch: GradientTransformation = EXACT_ZOOM,
) -> GradientTransformation:
    """Nonlinear conjugate gradients, with a line search. Nocedal & Wright 2006, section 5.2."""
    return chain(scale_by_conjugate_gradient(method, restart_every), scale(-1.0), linesearch)


@checked
def armijo_sgd(
    max_learning_rate: Exact = 1.0,
    max_backtracking_steps: int = 30,
    slope_rtol: Exact = 1e-4,
    decrease_factor: Exact = 0.8,
    increase_factor: Exact = 1.5,
) -> GradientTransformation:
    """Gradient descent whose rate is backtracked in every step. Armijo 1966; Vaswani et al. 2019."""
    search = scale_by_backtracking_linesearch(
        max_backtracking_steps, slope_rtol, decrease_factor, increase_factor, max_learning_rate
    )
    return chain(scale(-1.0), search)
