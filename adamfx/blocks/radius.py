"""Words about the norm of a parameter: how far an update may turn it, and what becomes of its length.

Norms are those of each matrix, the last two axes; leading axes are a stack. A vector is one matrix.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import agree, dot, safe_divide
from adamfx.engine.norms import norm_over
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Dynamic, Exact


def matrix_axes(x) -> tuple[int, ...]:
    """The last two axes, or all of a vector."""
    return tuple(range(-min(x.ndim, 2), 0))


@block
def uw_floor(ratio: Dynamic = 0.35, per_row: bool = False):
    """u <- u max(1, ratio |p| / |u|): no matrix moves by less than this part of its own norm.

    Needs params. A zero u or p leaves u as it is. From the modded-nanogpt record of 2026.

    Args:
      ratio: >= 0.
      per_row: norms of the weights of each output, over the axis -2, rather than of the matrix. True: u <- u
        max(1, ratio norm(p, -2) / norm(u, -2)).
    """
    checks.number("uw_floor", "ratio", ratio, low=0)

    def leaf(u, here):
        over = (-2,) if per_row and u.ndim >= 2 else matrix_axes(u)
        floor = safe_divide(ratio * norm_over(here.param, over), norm_over(u, over))
        return u * jnp.maximum(1, floor)

    return leafwise(leaf, needs_params=True)


@block
def hyperball(learning_rate: Rate, eps: Exact = 1e-10):
    """q <- p - alpha u |p| / max(|u|, eps), p' <- |p| q / |q|: alpha is the angle of the step.

    In place of `scale_by_lr`, as the last word: p stays on the sphere where it started, without weight
    decay. Needs params. A zero p stays zero. Remembers `learning_rate`, a readout. AdamH, MuonH.

    Args:
      learning_rate: alpha >= 0, or a schedule.
      eps: > 0, the least |u|.
    """
    checks.number("hyperball", "eps", eps, low=0)

    def leaf(u, here):
        p, over = here.param, matrix_axes(u)
        radius = norm_over(p, over)
        q = p - here.shared * u * safe_divide(radius, jnp.maximum(norm_over(u, over), eps))
        return q * safe_divide(radius, norm_over(q, over)) - p

    return _steps("hyperball", learning_rate, leaf)


@block
def damp_outward(outward: Dynamic = 0.5):
    """u <- u + (outward - 1) min(<u, p>, 0) p / |p|^2: less of what would lengthen p.

    Needs params. The tangential part turns p and does not lengthen it. A zero p changes nothing.

    Args:
      outward: in [0, 1], what remains of the outward component.
    """
    checks.number("damp_outward", "outward", outward, low=0, high=1)
    return leafwise(lambda u, here: _damped(u, here.param, outward), needs_params=True)


def _damped(u, p, outward):
    over = matrix_axes(u)
    unit = safe_divide(p, jnp.broadcast_to(norm_over(p, over), p.shape))
    along = dot(u, unit, over)
    return u + jnp.where(along < 0, (outward - 1) * along, 0) * unit


@block
def radial_brake(learning_rate: Rate, outward: Dynamic = 0.5, cautious_decay: Dynamic = 0.0):
    """A step that changes the length of p, to first order, by what it says, and by nothing else:

        u <- u + (outward - 1) min(<u, p>, 0) p / |p|^2
        q <- p - alpha u
        r <- max(|p| - alpha <u, p> / |p|, 0)
        p' <- r q / |q| (1 - alpha cautious_decay [u p > 0])

    First u is damped as by `damp_outward`; at last p' shrinks where u and p have one sign. In place of
    `scale_by_lr`, as the last word. Needs params. A zero p stays zero. Remembers `learning_rate`, a readout.
    From the modded-nanogpt record of 2026.

    Args:
      learning_rate: alpha >= 0, or a schedule.
      outward: in [0, 1], what remains of the outward component.
      cautious_decay: >= 0.
    """
    checks.number("radial_brake", "outward", outward, low=0, high=1)
    checks.number("radial_brake", "cautious_decay", cautious_decay, low=0)

    def leaf(u, here):
        p, alpha, over = here.param, here.shared, matrix_axes(u)
        u = _damped(u, p, outward)
        radius = norm_over(p, over)
        change = safe_divide(dot(u, p, over), radius)
        q = p - alpha * u
        target = jnp.where(radius == 0, 0, jnp.maximum(radius - alpha * change, 0))
        shrink = jnp.where(agree(u, p), 1 - alpha * cautious_decay, 1)
        return q * safe_divide(target, norm_over(q, over)) * shrink - p

    return _steps("radial_brake", learning_rate, leaf)


@block
def contract(learning_rate: Rate):
    """u <- (p + u) / sqrt(1 + alpha^2) - p: takes back what a perpendicular step of alpha |p| adds to |p|.

    Stands after `scale_by_lr(alpha)`. Needs params. Bernstein et al. 2020, algorithm 1 (Fromage).

    Args:
      learning_rate: alpha >= 0, or a schedule.
    """

    def leaf(u, here):  # 1/r - 1 = -alpha^2 / (r (1 + r)), without a difference of two like numbers
        r = jnp.sqrt(1 + here.shared * here.shared)
        return (u - here.param * (here.shared * here.shared / (1 + r))) / r

    return _steps("contract", learning_rate, leaf)


def _steps(name: str, learning_rate: Rate, leaf: Any) -> Any:
    """A leafwise block that reads a learning rate, and tells it as `scale_by_lr` does."""
    checks.number(name, "learning_rate", learning_rate, low=0)

    def init_shared():
        start = jnp.zeros((), jnp.int32) if callable(learning_rate) else None
        return {"learning_rate": value_at(learning_rate, start)}

    def shared(step):
        rate = jnp.asarray(value_at(learning_rate, step.count))
        return rate, {"learning_rate": rate}

    return leafwise(leaf, shared=shared, init_shared=init_shared, needs_params=True)
