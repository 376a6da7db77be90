"""2-norms that neither overflow nor vanish."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine import trees
from adamfx.engine.arithmetic import safe_divide
from adamfx.engine.each import each, parts

if hasattr(jax, "enable_x64"):
    enable_x64: Any = jax.enable_x64
else:  # before JAX 0.8
    enable_x64 = importlib.import_module("jax.experimental").enable_x64


def global_norm(tree: Any) -> jax.Array:
    """sqrt(sum |x|^2) over all trained leaves of a tree: a scalar, float32 at least.

    Nothing overflows or vanishes on the way: squares are summed in float64, and on devices without one
    from rescaled numbers (norms from 1e-32 to 1e36), so 1,000 bf16 leaves and float16 gradients of 300 are
    no trouble.
    """
    trees.check_leaves("global_norm", "tree", tree)
    return norm([x for x in trees.flatten(tree)[0] if trees.is_trained(x)])


def norm(arrays: list) -> jax.Array:
    """The 2-norm of a list of arrays as one vector; 0 for none. Its derivative at 0 is 0."""
    return norms([arrays])[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def norm_over(x: jax.Array, axes: Any = None) -> jax.Array:
    """The norm over these axes of one array, kept with size one; over all of them (a scalar) for None.

    For the arithmetic of one leaf. By two sums, which pass over the array once, and over the chips that
    share it; 0 for zeros, as is the derivative there.
    """
    size = jnp.abs(x) if jnp.iscomplexobj(x) else x

    def total(c: jax.Array) -> jax.Array:
        y = _scaled(size, c)
        return _sum_over(y * y, axes)

    return _by_two_sums(size.dtype, total)


@norm_over.defjvp
def _norm_over_jvp(axes: Any, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    size = norm_over(x, axes)
    c = _scale_of(size)
    return size, _sum_over((safe_divide(x * c, size * c).conj() * dx).real, axes)


def _sum_over(x: jax.Array, axes: Any) -> jax.Array:
    return jnp.sum(x, axes, keepdims=axes is not None)


def norms(groups: list[list]) -> list[jax.Array]:
    """The norm of each list of arrays, in the widest dtype of the list, float32 at least."""
    dtypes = [
        trees.at_least_float32(*{trees.real_dtype(trees.dtype_of(x)) for x in group})
        for group in groups
    ]
    parts = [
        [part for x in group for part in _real_parts(x, dtype)]
        for group, dtype in zip(groups, dtypes, strict=True)
    ]
    filled = [group for group in parts if group]
    found = iter(_each(filled) if trees.is_traced(filled) else _compiled(filled))
    return [
        next(found) if group else jnp.zeros((), dtype)
        for group, dtype in zip(parts, dtypes, strict=True)
    ]


def _each(groups: list[list]) -> list:
    return each(_norm, groups)


_compiled = jax.jit(_each)


@jax.custom_jvp
def _norm(xs: list) -> jax.Array:
    if xs[0].dtype == np.float64:
        return _in_own_dtype(xs)
    wide = dict.fromkeys(("cpu", "cuda", "rocm"), _in_float64)
    return jax.lax.platform_dependent(xs, **wide, default=_in_own_dtype)


@_norm.defjvp
def _norm_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """d|x| = (c x / c|x|) dx, and 0 at 0; scaled by c, so that squares of |x| stay in range too."""
    (xs,), (dxs,) = primals, tangents
    size = _norm(xs)
    c = _scale_of(size)
    terms = zip(xs, dxs, strict=True)
    found = [jnp.sum(safe_divide(x * c, size * c) * dx) for x, dx in terms]
    return size, functools.reduce(jax.lax.add, found)


def _in_float64(xs: list) -> jax.Array:
    """Squares of float32 neither overflow nor vanish there: one sum, and the cast is fused into it."""
    with enable_x64(True):
        total = _sum_of_squares(xs, lambda x: x.astype(np.float64))
        return jnp.sqrt(total).astype(xs[0].dtype)


def _in_own_dtype(xs: list) -> jax.Array:
    """For float64, and for TPUs, whose float64 has the exponents of float32."""
    return _by_two_sums(xs[0].dtype, lambda c: _sum_of_squares(xs, lambda x: _scaled(x, c)))


def _by_two_sums(dtype: Any, total: Callable) -> jax.Array:
    """The root of total(c) / c: of numbers scaled up, and where that overflows, of numbers scaled down.

    Blue (1978) has a third sum, unscaled, for each digit from the smallest number to the largest. These two
    meet in the middle, and from 1e-32 to 1e36 (float64: 1e-295 to 1e303) no digit is lost.
    """
    up, down = (jax.lax.optimization_barrier(jnp.asarray(c)) for c in _scales(dtype))
    of_small, of_large = total(up), total(down)
    return jnp.where(of_small < jnp.inf, jnp.sqrt(of_small) / up, jnp.sqrt(of_large) / down)


def _scaled(x: jax.Array, c: jax.Array) -> jax.Array:
    """c x + 0, the zero hidden from the compiler.

    For of (c x)(c x), where x is one number or a constant, it makes (c c)(x x), infinity times 0; of
    (a / b) / c it makes a / (b c), 0 / 0.
    """
    return x * c + jax.lax.optimization_barrier(jnp.zeros((), x.dtype))


def _sum_of_squares(xs: list, seen_as: Callable) -> jax.Array:
    def square(x: jax.Array) -> jax.Array:
        return seen_as(x) * seen_as(x)

    return functools.reduce(jax.lax.add, parts(square, jax.lax.add, jnp.sum, xs))


def _scale_of(size: jax.Array) -> jax.Array:
    """The scale by which squares of numbers near `size` stay in range."""
    up, down = _scales(size.dtype)
    return jnp.where(size < 1, up, down)


def _scales(dtype: Any) -> list:
    """The powers of two whose ranges of squares, without the digits lost near the smallest, just overlap."""
    info = jnp.finfo(dtype)
    e = (info.maxexp - info.minexp - info.nmant) // 4 - 1
    return [dtype.type(2.0**n) for n in (e, -e)]


def _real_parts(x: Any, dtype: Any) -> list[jax.Array]:
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    parts = [x.real, x.imag] if jnp.iscomplexobj(x) else [x]
    return [part if part.dtype == dtype else part.astype(dtype) for part in parts]
