"""Clipping: by value, by the norm of each leaf, by the norm of the whole tree."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from adamfx import checks, trees
from adamfx.record import safe_divide
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
    root, scale = _scaled_norm(parts)
    return root / jax.lax.stop_gradient(scale)


@jax.custom_jvp
def _scaled_norm(parts: list) -> tuple[jax.Array, jax.Array]:
    """(|c x|, c): c = 1 and, only where the squares overflow or vanish, c = 2^-+e.

    A loop, of one turn as a rule, and of two at most: so the sums are compiled once.
    """
    dtype = parts[0].dtype
    e = jnp.finfo(dtype).maxexp * 3 // 4
    enough = jnp.finfo(dtype).tiny * 1e8  # below it, squares have lost digits to underflow

    def turn(state):
        _, scale, _ = state
        total = _sum(_sum_of_squares(x, scale) for x in parts)
        again = (scale == 1) & ~((total > enough) & (total < jnp.inf))
        other = jnp.where(total > 1, dtype.type(2.0**-e), dtype.type(2.0**e))
        return again, jnp.where(again, other, scale), total

    zero = _zero(parts)
    _, scale, total = jax.lax.while_loop(lambda s: s[0], turn, (zero == 0, zero + 1, zero))
    return jnp.sqrt(total), scale


@_scaled_norm.defjvp
def _scaled_norm_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    """d|x| = x dx / |x|, and 0 at 0; all times c, so that squares of |x| stay in range too."""
    root, c = _scaled_norm(*primals)
    pairs = zip(*primals, *tangents, strict=True)
    d = _sum(jnp.sum(safe_divide(x * c, root) * (dx * c)) for x, dx in pairs)
    return (root, c), (d, jnp.zeros_like(c))


def _zero(parts: list) -> jax.Array:
    """0, which in shard_map varies over the axes that the sum of the parts will vary over."""
    if jax.sharding.get_abstract_mesh().manual_axes:
        return _sum(jnp.sum(x.reshape(-1)[:0]) for x in parts)
    return jnp.zeros((), parts[0].dtype)


def _sum(scalars: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jax.lax.add, scalars)  # Python's sum traces more slowly


@jax.jit
def _sum_of_squares(x: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.sum((x * scale) ** 2)


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
