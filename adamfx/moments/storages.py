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
from adamfx.engine.arithmetic import safe_divide, safe_root
from adamfx.engine.placement import in_whole_parts, lying_as
from adamfx.values.arguments import Floating
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
    example = "a storage such as int8() or cast('bfloat16')"
    means = (Form,)


def storage(function: Callable[P, Any]) -> Callable[P, Storage]:
    """Decorator: makes a constructor of storage values from a plain function.

    The function returns a `Form`; its parameters are declared as those of a block.
    """
    return _construct(function)


_construct = constructor(Storage)


def _of_real(write: Callable[[Array, Any], Parts]) -> Callable[[Array, Any], Parts]:
    """The same of real arrays; complex ones are kept as they are."""
    return lambda x, key: {"": x} if jnp.iscomplexobj(x) else write(x, key)


@storage
def cast(dtype: Floating):
    """In this dtype, rounded to the nearest: what mu_dtype and nu_dtype are short for. Complex ones stay."""
    checks.floating("cast", "dtype", dtype)
    return Form(_of_real(lambda x, key: {"": x.astype(dtype)}), lambda parts, like: parts[""])


@storage
def cast_stochastically(dtype: Floating):
    """In this dtype, rounded to one of the two neighbours, in the mean to the number itself.

    A second moment in bfloat16 with b2 = 0.999 stands still under rounding to the nearest: its steps are
    below half a unit in the last place. Complex numbers are kept as they are. Gupta et al. 2015.
    """
    checks.floating("cast_stochastically", "dtype", dtype)
    to = jnp.dtype(dtype)

    def write(x, key):
        if (
            key is None or jnp.finfo(to).bits >= jnp.finfo(x.dtype).bits
        ):  # at the start there is no key
            return {"": x.astype(to)}
        return {"": round_between(to, x, jax.random.uniform(key, x.shape, x.dtype)).astype(to)}

    return Form(_of_real(write), lambda parts, like: parts[""], is_random=True)


@storage
def factored(min_dim_size: int = 128):
    """A matrix as the outer product of its row means and column means over the mean of all.

    What is read is y <- factored(s, min_dim_size), r c / mean(r) of the rows r and columns c. Over the two
    largest axes of a leaf, where both have `min_dim_size` at least; other leaves are kept whole. Rows and
    columns, nothing of the size of the leaf. The division sees what is kept. Shazeer & Stern 2018,
    algorithm 2 (Adafactor).
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
    """The largest value of each row, each column, and so on; s_prev <- cover(s_prev) is the least of them.

    Anil et al. 2019, SM3-II: `total(storage=cover())` is its accumulator. Vectors are kept whole, and complex
    numbers, which have no largest one.
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

    return Form(_of_real(write), read)


def _eight_bits(name: str, block: int, min_size: int, stochastic: bool, signed: bool) -> Form:
    """Codes of one byte, and for each block along the last axis the scale that its largest number has."""
    block = checks.steps(name, "block", block, 1)
    min_size = checks.steps(name, "min_size", min_size)
    most, dtype = (127, jnp.int8) if signed else (255, jnp.uint8)

    def by_blocks(x):
        b = _divisor(x.shape[-1], block)
        return in_whole_parts(x, b).reshape(*x.shape[:-1], x.shape[-1] // b, b)

    def write(x, key):
        if x.ndim == 0 or x.size < max(min_size, 1):
            return {"": x}
        y = by_blocks(x if signed else safe_root(jnp.maximum(x, 0)))
        s = jnp.max(jnp.abs(y), -1, keepdims=True)
        y = safe_divide(y, jnp.broadcast_to(s, y.shape))
        y = most * (2 * y / (1 + jnp.abs(y)) if signed else y)
        if stochastic and key is not None:
            codes = jnp.floor(y + jax.random.uniform(key, y.shape, y.dtype))
        else:
            codes = jnp.round(y)
        if not signed:  # a divisor that is not zero stays so
            codes = jnp.where((codes == 0) & (y > 0), 1, codes)
        codes = jnp.clip(codes, -most, most).astype(dtype)
        return {"codes": lying_as(codes.reshape(x.shape), x), "scales": s[..., 0]}

    def read(parts, like):
        if "" in parts:
            return parts[""]
        s = parts["scales"].astype(like.dtype)
        y = by_blocks(parts["codes"]).astype(s.dtype) / most
        y = y / (2 - jnp.abs(y)) if signed else y
        x = y * s[..., None]
        return lying_as((x if signed else x * x).reshape(like.shape), parts["codes"])

    return Form(_of_real(write), read, is_random=stochastic)


def _divisor(n: int, block: int) -> int:
    """The largest divisor of n that is no larger than block; n itself where that would be tiny."""
    found = next(b for b in range(min(n, block), 0, -1) if n % b == 0)
    return found if found * 8 >= min(n, block) else n


@storage
def int8(block: int = 128, *, min_size: int = 4096, stochastic: bool = False):
    """Numbers of either sign in a byte each: round(127 y), y = 2x / (1 + |x|), x = m / max |m| of a block.

    Blocks lie along the last axis; small numbers of a block are finer than large ones. For first moments and
    momenta. 1.03 bytes per number with blocks of 128. After FlashOptim, 2026.

    Args:
      block: numbers with one scale, >= 1. Where it does not divide the last axis, the largest smaller divisor
        is taken. Let it divide what one device has of that axis, too: since a state is to fit every mesh,
        this is not looked at, and a block that straddles two devices is gathered in each step.
      min_size: smaller leaves are kept as they are, and so are complex ones.
      stochastic: codes are rounded to one of two neighbours, in the mean to themselves; since they are
        companded, a thousandth of a block's largest number is read .1 to .3 % too large in the mean. For long
        runs: to the nearest, what a step adds is lost where it is less than half a code.
    """
    return _eight_bits("int8", block, min_size, stochastic, signed=True)


@storage
def uint8(block: int = 128, *, min_size: int = 4096, stochastic: bool = False):
    """Numbers >= 0 in a byte each: round(255 sqrt(v / max v)), the largest of a block. For second moments.

    What is not zero is kept as one unit at least, for it divides. Arguments as those of `int8`.
    """
    return _eight_bits("uint8", block, min_size, stochastic, signed=False)


WHOLE = Form(lambda x, key: {"": x}, lambda parts, like: parts[""])


def round_between(to: Any, x: Array, r: Array) -> Array:
    """A neighbour of `x` among the numbers of a dtype, still in the dtype of `x`; r uniform in [0, 1)."""
    to, wide = jnp.finfo(to), jnp.finfo(x.dtype)
    # Spacing of the numbers of one exponent: 2^(e - nmant), and that of the smallest below.
    exponent = jnp.maximum(jnp.frexp(x)[1] - 1, max(to.minexp, wide.minexp + to.nmant))
    spacing = jnp.ldexp(jnp.ones((), x.dtype), exponent - to.nmant)
    return jnp.copysign(jnp.floor(jnp.abs(x) / spacing + r) * spacing, x)
