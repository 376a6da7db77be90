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
    return _norm(parts) if parts else jnp.zeros((), dtype)


@jax.custom_jvp
def _norm(parts: list) -> jax.Array:
    """sqrt(sum x^2): of x as it is and, only where that overflows or vanishes, of x times 2^-+e.

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

    start = (jnp.asarray(True), jnp.ones((), dtype), jnp.zeros((), dtype))
    _, scale, total = jax.lax.while_loop(lambda state: state[0], turn, start)
    return jnp.sqrt(total) / scale


@_norm.defjvp
def _norm_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """d|x| = x dx / |x|, and 0 at 0."""
    size = _norm(*primals)
    pairs = zip(*primals, *tangents, strict=True)
    return size, _sum(jnp.sum(safe_divide(x, size) * dx) for x, dx in pairs)


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
