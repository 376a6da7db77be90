"""Clipping: by value, by the norm of each leaf, by the norm of the whole tree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.norms import norm
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise


@block
def clip(max_delta: Rate):
    """u <- u held within [-max_delta, max_delta], elementwise.

    Args:
      max_delta: >= 0, or a schedule.
    """
    checks.number("clip", "max_delta", max_delta, low=0)

    def leaf(u, here):
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
    """u <- u min(1, max_norm / |u|), |u| the norm over all leaves.

    The norm is one reduction; the factor is multiplied in by the leafwise run that follows, without
    a pass of its own. Pascanu et al. 2013, algorithm 1.

    Args:
      max_norm: > 0, or a schedule.
    """
    checks.number("clip_by_global_norm", "max_norm", max_norm, low=0)

    def shared(step):
        return _factor(value_at(max_norm, step.count), norm(step.updates))

    return leafwise(lambda u, here: here.shared * u, shared=shared, whole_tree=True)


def _factor(max_norm: Any, size: jax.Array) -> jax.Array:
    """min(1, max_norm / size), and no less than the smallest number that is not flushed to 0.

    That a division comes so late matters: XLA copies cheap scalar operations, and with them the
    whole sum over the leaves, into the loop of every leaf, but no division.
    """
    tiny = jnp.finfo(size.dtype).tiny
    return jnp.maximum(max_norm / jnp.maximum(size, jnp.maximum(max_norm, tiny)), tiny)
