"""Arithmetic that blocks share: what is safe at zero, and squares and products of complex numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = Any


def safe_divide(x: Array, y: Array) -> Array:
    """x / y, and 0 for a finite x where y is 0, as is the derivative there. NaN stays NaN."""
    return x / jnp.where(y == 0, jnp.inf, y)


@jax.custom_jvp
def safe_root(x: Array) -> Array:
    """sqrt(x) for x >= 0, with 0 for the derivative at 0."""
    return jnp.sqrt(x)


@safe_root.defjvp
def _safe_root_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y = safe_root(*primals)
    return y, safe_divide(0.5, y) * tangents[0]


def safe_power(x: Array, p: Any) -> Array:
    """x^p for x >= 0, with 0 for the derivative at 0."""
    if isinstance(p, (int, float)) and p == 1:
        return x
    return jnp.where(x == 0, 0, jnp.where(x == 0, 1, x) ** p)


def square(x: Array) -> Array:
    """|x|^2, real."""
    return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x


def dot(x: Array, y: Array, axes: Any = None) -> Array:
    """<x, y> over all axes, or over these, each kept with size one: real, complex numbers being pairs."""
    return jnp.sum((x.conj() * y).real, axes, keepdims=axes is not None)


def agree(x: Array, y: Array) -> Array:
    """Where x y > 0, complex numbers being pairs again. Of signs, since the product could vanish."""
    return (jnp.sign(x).conj() * jnp.sign(y)).real > 0


def normal(key: Array, shape: tuple, dtype: Any) -> Array:
    """Numbers of variance 1, of complex ones each part; those of jax.random have 1/2 there."""
    x = jax.random.normal(key, shape, dtype)
    return jnp.sqrt(2).astype(x.real.dtype) * x if jnp.iscomplexobj(x) else x


def adjoint(x: Array) -> Array:
    """The conjugate transpose of each matrix."""
    return jnp.swapaxes(x, -1, -2).conj()
