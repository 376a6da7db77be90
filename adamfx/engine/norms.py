"""2-norms that neither overflow nor vanish, all those of a step in one reduction."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from adamfx.engine import trees
from adamfx.engine.each import each
from adamfx.engine.record import safe_divide


def global_norm(tree: Any) -> jax.Array:
    """sqrt(sum |x|^2) over all trained leaves of a tree: a scalar, float32 at least.

    Accumulated in float32 at least; computed again from rescaled numbers only where the plain sum
    overflows or vanishes, so 1,000 bf16 leaves and float16 gradients of 300 are no trouble.
    """
    return norm([x for x in trees.flatten(tree)[0] if trees.is_trained(x)])


def norm(arrays: list) -> jax.Array:
    """The 2-norm of a list of arrays as one vector; 0 for none. Its derivative at 0 is 0."""
    return norms([arrays])[0]


def norms(groups: list[list]) -> list[jax.Array]:
    """The norm of each list of arrays, in the widest dtype of the list, float32 at least."""
    dtypes = [
        trees.at_least_float32(*{trees.real_dtype(trees.dtype_of(x)) for x in group})
        for group in groups
    ]
    parts = [
        [part for x in group for part in _real_parts(jnp.asarray(x), dtype)]
        for group, dtype in zip(groups, dtypes, strict=True)
    ]
    found = iter(_norms([group for group in parts if group]))
    return [
        next(found) if group else jnp.zeros((), dtype)
        for group, dtype in zip(parts, dtypes, strict=True)
    ]


@jax.jit
def _norms(groups: list[list]) -> list:
    return _safe_norms(groups) if groups else []


@jax.custom_jvp
def _safe_norms(groups: list[list]) -> list:
    """By the plain sums of squares; where one of them left the range, once more from scaled numbers."""
    totals = each(_total, groups)
    safe = jnp.all(jax.lax.concatenate(each(lambda t: _in_range(t).reshape(1), totals), 0))

    def plain(totals: list, groups: list[list]) -> list:
        return each(jnp.sqrt, totals)

    def scaled(totals: list, groups: list[list]) -> list:
        return each(_scaled_norm, totals, groups)

    return jax.lax.cond(safe, plain, scaled, totals, groups)


def _total(xs: list) -> jax.Array:
    return _sum(each(_sum_of_squares, xs))


def _scaled_norm(total: jax.Array, xs: list) -> jax.Array:
    c = _scale(total)
    return jnp.sqrt(_sum(each(_sum_of_squares, xs, [c] * len(xs)))) / c


@_safe_norms.defjvp
def _safe_norms_jvp(primals: tuple, tangents: tuple) -> tuple[list, list]:
    """d|x| = (c x / c|x|) dx, and 0 at 0; scaled by c, so that squares of |x| stay in range too."""
    found = _safe_norms(*primals)
    return found, each(_derivative, found, *primals, *tangents)


def _derivative(size: jax.Array, xs: list, dxs: list) -> jax.Array:
    c = jax.lax.stop_gradient(_scale(size * size))
    terms = zip(xs, dxs, strict=True)
    return _sum(jnp.sum(safe_divide(x * c, size * c) * dx) for x, dx in terms)


def _in_range(total: jax.Array) -> jax.Array:
    """Whether a sum of squares has neither overflowed nor lost digits to underflow."""
    return (total > jnp.finfo(total.dtype).tiny * 1e8) & (total < jnp.inf)


def _scale(total: jax.Array) -> jax.Array:
    """1, or the power of two that brings numbers near one whose squares overflow or vanish."""
    e = jnp.finfo(total.dtype).maxexp * 3 // 4
    down, up = (total.dtype.type(2.0**n) for n in (-e, e))
    return jnp.where(_in_range(total), total.dtype.type(1), jnp.where(total > 1, down, up))


def _sum_of_squares(x: jax.Array, scale: Any = None) -> jax.Array:
    x = x if scale is None else x * scale
    return jnp.sum(x * x)


def _sum(scalars: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jax.lax.add, scalars)  # Python's sum traces more slowly


def _real_parts(x: jax.Array, dtype: Any) -> list[jax.Array]:
    parts = [x.real, x.imag] if jnp.iscomplexobj(x) else [x]
    return [part.astype(dtype) for part in parts]
