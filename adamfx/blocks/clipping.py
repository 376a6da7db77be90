"""Clipping: by value, by the norm of each leaf, by the norm of the whole tree."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.norms import norm, norm_over
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Exact


@block
def clip(max_delta: Rate):
    """u <- max(-max_delta, min(u, max_delta)), elementwise.

    Args:
      max_delta: >= 0, or a schedule.
    """
    checks.number("clip", "max_delta", max_delta, low=0)

    def leaf(u, here):
        checks.ordered("clip", u)
        return jnp.clip(u, -here.shared, here.shared)

    return leafwise(leaf, shared=lambda step: value_at(max_delta, step.count))


@block
def clip_by_norm(max_norm: Rate):
    """u <- u min(1, max_norm / |u|) for each leaf by its own norm.

    Args:
      max_norm: > 0, or a schedule.
    """
    checks.number("clip_by_norm", "max_norm", max_norm, low=0)

    def norms(u, here):
        return {"u": u}

    def leaf(u, here):
        return u * _factor(here.shared, here.norms.u)

    return leafwise(leaf, norms=norms, shared=lambda step: value_at(max_norm, step.count))


@block
def clip_by_global_norm(max_norm: Rate):
    """u <- u min(1, max_norm / |u|_all), |u|_all the norm over all leaves.

    The norm is one reduction; the factor is multiplied in by the leafwise run that follows, without
    a pass of its own. Pascanu et al. 2013, algorithm 1.

    Args:
      max_norm: > 0, or a schedule.
    """
    checks.number("clip_by_global_norm", "max_norm", max_norm, low=0)

    def shared(step):
        return _factor(value_at(max_norm, step.count), norm(step.updates))

    return leafwise(lambda u, here: here.shared * u, shared=shared, whole_tree=True)


@block
def clip_by_block_rms(threshold: Rate):
    """u <- u / max(1, RMS(u) / threshold) for each leaf. Shazeer & Stern 2018, section 6 (Adafactor).

    Args:
      threshold: > 0, or a schedule.
    """
    checks.number("clip_by_block_rms", "threshold", threshold, low=0)

    def norms(u, here):
        return {"u": u}

    def leaf(u, here):
        return u * _factor(here.shared, here.norms.u / math.sqrt(max(u.size, 1)))

    return leafwise(leaf, norms=norms, shared=lambda step: value_at(threshold, step.count))


@block
def clip_update_norm(clipping: Rate, eps: Exact = 1e-3):
    """u <- u min(1, clipping max(|p|, eps) / |u|) for each leaf: no step above this part of the parameter.

    Needs params.

    Args:
      clipping: > 0, or a schedule.
      eps: > 0, the least |p|.
    """
    checks.number("clip_update_norm", "clipping", clipping, low=0)
    checks.number("clip_update_norm", "eps", eps, low=0)

    def norms(u, here):
        return {"u": u, "p": here.param}

    def leaf(u, here):
        return u * _factor(here.shared * jnp.maximum(here.norms.p, eps), here.norms.u)

    shared = lambda step: value_at(clipping, step.count)  # noqa: E731
    return leafwise(leaf, norms=norms, shared=shared, needs_params=True)


@block
def adaptive_grad_clip(
    clipping: Rate, eps: Exact = 1e-3, axis: int | tuple[int, ...] | None = None
):
    """u <- u min(1, clipping max(norm_unit(p), eps) / norm_unit(u)), a unit being the weights of one output.

    Needs params. Norms are over the whole leaf where it has at most one axis longer than 1; else over axis 0
    of two or three axes, over all but the last of more, as in optax. Brock et al. 2021, eq. 3.

    Args:
      clipping: > 0, or a schedule; 0.01 to 0.16 in the paper.
      eps: > 0, the least |p|, so that zero weights may grow.
      axis: the axes of a norm, an int or a tuple of ints, in place of that choice: u <- u min(1, clipping
        max(norm(p, axis), eps) / norm(u, axis)).
    """
    checks.number("adaptive_grad_clip", "clipping", clipping, low=0)
    checks.number("adaptive_grad_clip", "eps", eps, low=0)

    def leaf(u, here):
        over = _unit(u.shape) if axis is None else axis
        limit = here.shared * jnp.maximum(norm_over(here.param, over), eps)
        return u * _factor(limit, norm_over(u, over))

    shared = lambda step: value_at(clipping, step.count)  # noqa: E731
    return leafwise(leaf, shared=shared, needs_params=True)


def _unit(shape: tuple[int, ...]) -> tuple[int, ...]:
    if sum(n > 1 for n in shape) <= 1:
        return tuple(range(len(shape)))
    return (0,) if len(shape) <= 3 else tuple(range(len(shape) - 1))


def _factor(max_norm: Any, size: jax.Array) -> jax.Array:
    """min(1, max_norm / size), and no less than the smallest number that is not flushed to 0.

    That a division comes so late matters: XLA copies cheap scalar operations, and with them the
    whole sum over the leaves, into the loop of every leaf, but no division.
    """
    tiny = jnp.finfo(size.dtype).tiny
    return jnp.maximum(max_norm / jnp.maximum(size, jnp.maximum(max_norm, tiny)), tiny)
