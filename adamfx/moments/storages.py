"""Storages: how a running statistic is kept between two steps, each written for one array.

@fx.storage
def half():
    return fx.Form(
        write=lambda x, key: {"": x.astype("bfloat16")},
        read=lambda parts, like: parts[""].astype(like.dtype),
    )

fx.scale_by_moments(fx.ema(0.9, storage=half()), 0.999)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.record import safe_divide
from adamfx.values.constructor import P, constructor
from adamfx.values.value import Value

Array = Any
Parts = dict[str, Array]  # arrays by the end of their name: "rows" is kept as nu_rows, "" as nu


class Form(NamedTuple):
    """The meaning of a storage."""

    write: Callable[[Array, Any], Parts]  # (x, key) -> what is kept
    read: Callable[[Parts, Array], Array]  # (parts, something of the shape and dtype of x) -> x
    is_linear: bool = (
        False  # write(a x + b y) = a write(x) + b write(y): averages run on what is kept
    )
    divides_by_stored: bool = (
        False  # whether the division sees what was kept, not what was computed
    )
    is_random: bool = False  # whether `write` uses its key


class Storage(Value):
    """How a running statistic is kept, as a value."""

    __slots__ = ()


def storage(function: Callable[P, Any]) -> Callable[P, Storage]:
    """Decorator: makes a constructor of storage values from a plain function.

    The function returns a `Form`; its parameters are declared as those of a block.
    """
    return _construct(function)


_construct = constructor(Storage)


@storage
def cast(dtype: Any):
    """In this dtype, rounded to the nearest: what mu_dtype and nu_dtype are short for."""
    checks.floating("cast", "dtype", dtype)
    return Form(lambda x, key: {"": x.astype(dtype)}, lambda parts, like: parts[""])


@storage
def cast_stochastically(dtype: Any):
    """In this dtype, rounded to one of the two neighbours, in the mean to the number itself.

    A second moment in bfloat16 with b2 = 0.999 stands still under rounding to the nearest: its steps are
    below half a unit in the last place. Gupta et al. 2015.
    """
    checks.floating("cast_stochastically", "dtype", dtype)
    to = jnp.dtype(dtype)

    def write(x, key):
        if (
            key is None or jnp.finfo(to).bits >= jnp.finfo(x.dtype).bits
        ):  # at the start there is no key
            return {"": x.astype(to)}
        return {"": round_between(to, x, jax.random.uniform(key, x.shape, x.dtype)).astype(to)}

    return Form(write, lambda parts, like: parts[""], is_random=True)


@storage
def factored(min_dim_size: int = 128):
    """A matrix as the outer product of its row means and column means over the mean of all.

    v = r c / mean(r). Over the two largest axes of a leaf, where both have `min_dim_size` at least; other
    leaves are kept whole. Rows and columns, nothing of the size of the leaf. The division sees what is
    kept. Shazeer & Stern 2018, algorithm 2 (Adafactor).
    """
    min_dim_size = checks.steps("factored", "min_dim_size", min_dim_size, 1)

    def axes(shape):
        order = np.argsort(shape, kind="stable")
        fits = len(shape) > 1 and shape[order[-2]] >= min_dim_size
        return (int(order[-2]), int(order[-1])) if fits else None

    def write(x, key):
        two = axes(x.shape)
        if two is None:
            return {"": x}
        return {
            "rows": jnp.mean(x, two[1], keepdims=True),
            "columns": jnp.mean(x, two[0], keepdims=True),
        }

    def read(parts, like):
        if "" in parts:
            return parts[""]
        r, c = parts["rows"], parts["columns"]
        row_axis = np.argsort(like.shape, kind="stable")[-2]
        return safe_divide(r, jnp.mean(r, int(row_axis), keepdims=True)) * c

    return Form(write, read, is_linear=True, divides_by_stored=True)


@storage
def cover():
    """The largest value of each row, each column, and so on; read as the least of those that cover it.

    Anil et al. 2019, SM3-II: `total(storage=cover())` is its accumulator. Vectors are kept whole.
    """

    def write(x, key):
        if x.ndim < 2:
            return {"": x}
        others = [tuple(j for j in range(x.ndim) if j != i) for i in range(x.ndim)]
        most = jnp.max if x.size else jnp.sum  # of nothing, zero
        return {f"axis{i}": most(x, over, keepdims=True) for i, over in enumerate(others)}

    def read(parts, like):
        covers = [jnp.broadcast_to(x, like.shape) for x in parts.values()]
        return functools.reduce(jnp.minimum, covers)

    return Form(write, read)


WHOLE = Form(lambda x, key: {"": x}, lambda parts, like: parts[""])


def round_between(to: Any, x: Array, r: Array) -> Array:
    """A neighbour of `x` among the numbers of a dtype, still in the dtype of `x`; r uniform in [0, 1)."""
    to, wide = jnp.finfo(to), jnp.finfo(x.dtype)
    # Spacing of the numbers of one exponent: 2^(e - nmant), and that of the smallest below.
    exponent = jnp.maximum(jnp.frexp(x)[1] - 1, max(to.minexp, wide.minexp + to.nmant))
    spacing = jnp.ldexp(jnp.ones((), x.dtype), exponent - to.nmant)
    return jnp.copysign(jnp.floor(jnp.abs(x) / spacing + r) * spacing, x)
