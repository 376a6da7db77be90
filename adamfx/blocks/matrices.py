"""Words about matrices: orthogonalizing, scaling by the shape, rows and columns of one length.

The last two axes are the matrix, (rows, columns) = (inputs, outputs) of a dense kernel; leading axes are a
stack of matrices. What is no matrix passes as it came. For kernels of another form there is `view`.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from adamfx import checks
from adamfx.blocks.radius import matrix_axes
from adamfx.engine.arithmetic import adjoint, dot, safe_divide, safe_root
from adamfx.engine.chips import each_matrix
from adamfx.engine.norms import norm_over
from adamfx.transformation import block, leafwise, treewise
from adamfx.values.arguments import Floating
from adamfx.values.constructor import Dynamic, Exact

Array = Any
JORDAN = (3.4445, -4.7750, 2.0315)
STABLE = (2.0, -1.5, 0.5)

# (a, b, c) of each turn of X <- a X + (b A + c A^2) X, A = X X^T, by the name of their source.
NEWTON_SCHULZ = {
    "jordan": (JORDAN,) * 5,  # Jordan et al. 2024
    "dion": (  # microsoft/dion; a preset of optax
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (  # Amsel et al. 2025
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    "deepseek": (JORDAN,) * 8 + (STABLE,) * 2,  # DeepSeek-V4
    "record": (STABLE,) * 12,  # the modded-nanogpt record of 2026
}


def _schatten(x: Array) -> Array:
    """(sum of sigma^4)^(1/4) of each matrix, from the smaller Gram matrix."""
    x = x if x.shape[-2] <= x.shape[-1] else adjoint(x)
    return safe_root(norm_over(x @ adjoint(x), (-2, -1)))


def _row_sums(x: Array) -> Array:
    """Of each row, the root of the sum of |A|."""
    return safe_root(jnp.sum(jnp.abs(x @ adjoint(x)), -1, keepdims=True))


NORMS = {
    "frobenius": lambda x: norm_over(x, (-2, -1)),
    "spectral": lambda x: jnp.linalg.norm(x, 2, (-2, -1), keepdims=True),
    "schatten": _schatten,
    "aol": _row_sums,
}
FLOORED = ("schatten", "aol")  # eps is the least norm, not added to it


@block
def orthogonalize(
    coefficients: Any = "jordan",
    *,
    first: str = "frobenius",
    eps: Exact = 1e-7,
    margin: Exact = 1.0,
    dtype: Floating = None,
    adaptive: bool = False,
):
    """About U V^T of u = U S V^T: every singular value goes near one. The word of Muon.

        X <- u / (margin |u| + eps)
        X <- a X + b X @ X^T @ X + c X @ X^T @ X @ X^T @ X for each (a, b, c) of NEWTON_SCHULZ[coefficients]
        u <- X

    by Newton & Schulz, with X X^T on the smaller side. Jordan et al. 2024. Remembers nothing.

    Args:
      coefficients: "jordan", "dion", "polar_express" (its authors take margin=1.02, eps=1e-6), "deepseek",
        "record", or triples (a, b, c), one for each turn.
      first: the norm that divides u: "frobenius"; the largest singular value, "spectral": X <- u / (margin
        norm_spectral(u) + eps); (sum of S^4)^(1/4), "schatten": X <- u / max(sqrt(|u @ u^T|), eps); of each
        row i the root of sum_j |A_ij|, "aol": X <- u / max(norm_aol(u), eps), as Boissin et al. 2025.
      eps: >= 0.
      margin: > 0.
      dtype: of the iteration, such as "bfloat16"; None: that of the update.
      adaptive: times the dual norm of u (Bernstein & Newhouse 2024), as in optax. True: u <- <u, X> X.
    """
    name = "orthogonalize"
    turns = NEWTON_SCHULZ.get(coefficients) if isinstance(coefficients, str) else coefficients
    try:
        turns = tuple((float(a), float(b), float(c)) for a, b, c in turns or ())
    except (TypeError, ValueError):
        turns = ()
    if not turns:
        raise ValueError(
            f"{name}: coefficients must be one of {', '.join(map(repr, NEWTON_SCHULZ))}, or triples of "
            f"numbers (a, b, c), got {coefficients!r}"
        )
    checks.choice(name, "first", first, tuple(NORMS))
    checks.number(name, "eps", eps, low=0)
    checks.number(name, "margin", margin, low=0)
    checks.floating(name, "dtype", dtype)

    def wide_side_last(u):
        return adjoint(u) if u.shape[-2] > u.shape[-1] else u

    def direction(u):
        size = NORMS[first](u)
        size = jnp.maximum(size, eps) if first in FLOORED else margin * size + eps
        x = safe_divide(u, jnp.broadcast_to(size, u.shape)).astype(dtype or u.dtype)
        for a, b, c in turns:
            A = x @ adjoint(x)
            x = a * x + (b * A + c * (A @ A)) @ x
        x = x.astype(u.dtype)
        if adaptive:
            x = x * dot(u, x, (-2, -1))
        return x

    def run(leaves, memory, step):
        updates = [u.astype(d) for u, d in zip(leaves.updates, leaves.wide(), strict=True)]
        at = [j for j, u in enumerate(updates) if u.ndim >= 2]
        turned = each_matrix(direction, [wide_side_last(updates[j]) for j in at])
        for j, x in zip(at, turned, strict=True):
            updates[j] = x if x.shape == updates[j].shape else adjoint(x)
        return leaves.replace(updates=updates), memory

    return treewise(run)


SHAPES = {
    "fan": lambda inputs, outputs: math.sqrt(max(1, outputs / inputs)),
    "max": lambda inputs, outputs: math.sqrt(max(inputs, outputs)),
    "ratio": lambda inputs, outputs: math.sqrt(outputs / inputs),
    "inputs": lambda inputs, outputs: 1 / inputs,
}


@block
def scale_by_shape(by: str = "fan", factor: Dynamic = 1.0, outputs: int = -1):
    """x <- size(u, outputs) / size(u, -3 - outputs), outputs over inputs; u <- factor sqrt(max(1, x)) u.

    Args:
      by: "fan", as above (Jordan, torch, optax); the longer side, "max": u <- factor sqrt(max(size(u, -1),
        size(u, -2))) u, which with factor 0.2 has the RMS of Adam's updates (Moonlight, Keras); "ratio": u <-
        factor sqrt(x) u; "inputs": u <- factor / size(u, -3 - outputs) u (Scion).
      factor: >= 0.
      outputs: the axis of the outputs, -1 or -2; -2 for kernels as torch has them.
    """
    checks.choice("scale_by_shape", "by", by, tuple(SHAPES))
    checks.number("scale_by_shape", "factor", factor, low=0)
    checks.choice("scale_by_shape", "outputs", outputs, (-1, -2))

    def leaf(u, here):
        if u.ndim < 2 or u.size == 0:
            return u
        return u * (factor * SHAPES[by](u.shape[-3 - outputs], u.shape[outputs]))

    return leafwise(leaf)


@block
def normalize_over(axis: int | None = None, rms: bool = False, eps: Exact = 0.0):
    """u <- u / (norm(u, axis) + eps), the norm over this axis; a zero u stays zero.

    Args:
      axis: -1: each row, all weights that leave an input; -2: each column, all that enter an output; None:
        each matrix. A vector is normalized as a whole.
      rms: divides by the root of the mean square rather than by the norm. True: u <- u / (RMS(u, axis) +
        eps).
      eps: >= 0.
    """
    checks.choice("normalize_over", "axis", axis, (None, -1, -2))
    checks.number("normalize_over", "eps", eps, low=0)

    def leaf(u, here):
        over = matrix_axes(u) if axis is None or u.ndim < 2 else (axis,)
        size = norm_over(u, over)
        size = size / math.sqrt(math.prod(u.shape[a] for a in over) or 1) if rms else size
        return safe_divide(u, jnp.broadcast_to(size + eps, u.shape))

    return leafwise(leaf)


def normalize_rows(eps: Exact = 0.0):
    """Each row, all weights that leave an input, over its norm + eps."""
    return normalize_over(-1, eps=eps)


def normalize_columns(eps: Exact = 0.0):
    """Each column, all weights that enter an output, over its norm + eps."""
    return normalize_over(-2, eps=eps)
