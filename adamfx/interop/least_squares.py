"""Losses that are sums of squares, by the solvers of Optimistix: an adapter, none of them is ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees

Tree = Any
METHODS = {
    "levenberg_marquardt": "LevenbergMarquardt",
    "gauss_newton": "GaussNewton",
    "dogleg": "Dogleg",
}


class Solution(NamedTuple):
    """What `least_squares` returns."""

    params: Tree  # the best that were found
    loss: float  # half the sum of the squares there
    steps: int  # evaluations of the residuals and their derivative
    reason: str  # "converged", "steps", or what Optimistix says


def least_squares(
    residuals: Callable,
    params: Tree,
    batch: Any = None,
    *,
    method: Any = "levenberg_marquardt",
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 256,
) -> Solution:
    """Minimizes half the sum of squares of `residuals(params, batch)`, of all data at once.

        least_squares(lambda p, xy: p["a"] * jnp.exp(p["b"] * xy[0]) - xy[1], start, (x, y))

    Needs Optimistix: pip install 'adamfx[least-squares]'. Nocedal & Wright 2006, chapter 10.

    Args:
      residuals: returns an array, or a tree of arrays, of any shape; differentiable in forward mode.
      params: where to start. Leaves that are no floats stay as they are.
      batch: handed on to `residuals`.
      method: "levenberg_marquardt", "gauss_newton", "dogleg", or a least-squares solver of Optimistix, which
        has tolerances of its own.
      rtol, atol: done where neither parameters nor residuals change by more than atol + rtol |x|; None: the
        root of the spacing of their numbers, 3e-4 in float32.
      max_steps: >= 1.

    Raises ValueError for parameters without a float, and for residuals that are not finite at the start.
    """
    try:
        import optimistix
    except ImportError as error:
        raise ImportError(
            "least_squares: the solvers are Optimistix's; pip install 'adamfx[least-squares]'"
        ) from error
    max_steps = checks.steps("least_squares", "max_steps", max_steps, 1)
    leaves, structure = jax.tree.flatten(params)
    numbers = (jax.Array, np.ndarray, np.generic, float, complex)
    trained = [j for j, x in enumerate(leaves) if isinstance(x, numbers) and trees.is_trained(x)]
    if not trained:
        raise ValueError("least_squares: params hold no array of floats; nothing can be fitted")

    def whole(some: list) -> Tree:
        x = list(leaves)
        for j, y in zip(trained, some, strict=True):
            x[j] = y
        return structure.unflatten(x)

    start = [jnp.asarray(leaves[j]) for j in trained]
    at_start = jax.tree.leaves(residuals(whole(start), batch))
    if not all(np.all(np.isfinite(np.asarray(r))) for r in at_start):
        raise ValueError(
            "least_squares: the residuals are not finite at the start; begin elsewhere, or mend the function"
        )
    if isinstance(method, str):
        checks.choice("least_squares", "method", method, tuple(METHODS))
        spacing = math.sqrt(max(float(jnp.finfo(x.dtype).eps) for x in start))
        tolerances = {
            "rtol": spacing if rtol is None else rtol,
            "atol": spacing if atol is None else atol,
        }
        method = getattr(optimistix, METHODS[method])(**tolerances)
    elif rtol is not None or atol is not None:
        raise ValueError("least_squares: give the tolerances to the solver, not rtol and atol")
    # The solvers of Optimistix mix weak and strong dtypes, and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = optimistix.least_squares(
            lambda some, batch: residuals(whole(some), batch),
            method,
            start,
            args=batch,
            max_steps=max_steps,
            throw=False,
        )
    results = optimistix.RESULTS
    if found.result == results.successful:
        reason = "converged"
    elif found.result == results.nonlinear_max_steps_reached:
        reason = "steps"
    else:
        reason = results[found.result]
    best = whole(list(found.value))
    rest = jax.tree.leaves(residuals(best, batch))
    loss = 0.5 * sum(float(jnp.sum(jnp.abs(r) ** 2)) for r in rest)
    return Solution(best, loss, int(found.stats["num_steps"]), reason)
