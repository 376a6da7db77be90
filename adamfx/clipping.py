"""Clipping: by value, by the norm of each leaf, by the norm of the whole tree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adamfx import checks, trees
from adamfx.record import safe_root
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise


def global_norm(tree: Any) -> jax.Array:
    """sqrt(sum |x|^2) over all trained leaves of a tree: a scalar, float32 at least.

    Accumulated in float32 at least; rescaled by the largest entry only where the plain sum
    overflows or vanishes, so 1,000 bf16 leaves and float16 gradients of 300 are no trouble.
    """
    return norm([x for x in trees.flatten(tree)[0] if trees.is_trained(x)])


def norm(leaves: list) -> jax.Array:
    """The 2-norm of a list of arrays as one vector; 0 for none. Its derivative at 0 is 0."""
    dtype = trees.at_least_float32(*{trees.real_dtype(trees.dtype_of(x)) for x in leaves})
    parts = [part for x in leaves for part in _real_parts(jnp.asarray(x), dtype)]
    if not parts:
        return jnp.zeros((), dtype)
    plain = sum(jnp.sum(x * x) for x in parts)

    def rescaled(parts):
        c = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in parts]))
        c = jax.lax.stop_gradient(c)  # cancels out of the formula
        usable = jnp.isfinite(c) & (c > 0)
        tiny = jnp.finfo(dtype).tiny  # below it numbers are flushed to 0
        inverse = jnp.maximum(1 / jnp.where(usable, jnp.maximum(c, tiny), 1), tiny)  # see _factor
        s = safe_root(sum(jnp.sum((x * inverse) ** 2) for x in parts)) / inverse
        return jnp.where(usable, s, c)

    # Below about 1e-30 in float32 squares lose digits to underflow; above the largest they overflow.
    ordinary = jnp.isfinite(plain) & (plain > jnp.finfo(dtype).tiny * 1e8)
    return jax.lax.cond(ordinary, lambda parts: safe_root(plain), rescaled, parts)


def _real_parts(x: jax.Array, dtype: Any) -> list[jax.Array]:
    parts = [x.real, x.imag] if jnp.iscomplexobj(x) else [x]
    return [part.astype(dtype) for part in parts]


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

    def leaf(u, here):
        return u * _factor(here.shared, norm([u]))

    return leafwise(leaf, shared=lambda step: value_at(max_norm, step.count))


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
