"""Statistics: what of the gradient is averaged, each written for one array.

    @fx.statistic
    def cube():
        return fx.Reading(lambda g, at: jnp.abs(g) ** 3, degree=3)

    fx.scale_by_moments(0.9, fx.ema(0.999, of=cube()))

Those without arguments that come with the library are known by a word, `of="square"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import adjoint, square
from adamfx.values.constructor import Exact, P, constructor
from adamfx.values.value import Value

Array = Any


class At(NamedTuple):
    """What a statistic may read besides the gradient; arrays of the same leaf."""

    m: Array  # the first moment, with this gradient
    m_before: Array  # the first moment, without it
    extra: Any = None  # the extra arguments that the statistic needs, by name
    gradient: Any = None  # the gradient, as the moments before these saw it


class Reading(NamedTuple):
    """The meaning of a statistic."""

    of: Callable[[Array, At], Array]  # (g, at) -> x, of any shape
    degree: int = 2  # in g; the division takes the root of this degree
    is_real: bool = True  # whether x is real for complex g
    needs: tuple[str, ...] = ()  # extra arguments, trees like the parameters: at.extra.name


class Statistic(Value):
    """What of the gradient is averaged, as a value."""

    __slots__ = ()
    example = "a statistic such as mean_square(-2)"
    means = (Reading,)


def statistic(function: Callable[P, Any]) -> Callable[P, Statistic]:
    """Decorator: makes a constructor of statistic values from a plain function.

    The function returns a `Reading`; its parameters are declared as those of a block.
    """
    return _construct(function)


_construct = constructor(Statistic)


WORDS = {
    "value": Reading(lambda g, at: g, degree=1, is_real=False),
    "square": Reading(lambda g, at: square(g)),
    "abs": Reading(lambda g, at: jnp.abs(g), degree=1),
    "deviation": Reading(lambda g, at: square(g - at.m)),
    "innovation": Reading(lambda g, at: square(g - at.m_before)),
    "norm_square": Reading(lambda g, at: jnp.sum(square(g))),
    "left": Reading(lambda g, at: g @ adjoint(g), is_real=False),
    "right": Reading(lambda g, at: adjoint(g) @ g, is_real=False),
}


@statistic
def mean_square(axes: int | Sequence[int] | None = None):
    """x <- mean(g^2, axes), the mean over these axes, each kept with size one.

    `mean_square(-2)` is one number per output of a dense kernel (NorMuon, Adam-mini). A leaf that has none
    of these axes, such as a bias, has one number.

    Args:
      axes: an int or several; None: of the whole leaf.
    """
    wanted = axes if axes is None else (axes,) if isinstance(axes, int) else tuple(axes)

    def of(g, at):
        over = [i for i in range(g.ndim) if wanted and (i in wanted or i - g.ndim in wanted)]
        return jnp.mean(square(g), tuple(over) or None, keepdims=True)

    return Reading(of)


@statistic
def given(name: str, degree: int = 2, scale: Exact = 1.0):
    """x <- scale name: an extra argument of `update`, a tree like the parameters, as it is given.

    `given("hessian", degree=1)` averages what `tx.update(..., hessian=tree)` says (Sophia).

    Args:
      name: of the extra argument.
      degree: 1 or 2; the division takes the square root of degree 2.
      scale: a factor.
    """
    checks.number("given", "scale", scale)
    return Reading(lambda g, at: scale * getattr(at.extra, name), degree, needs=(name,))


@statistic
def plus_eps(of: Any = "square", eps: Exact = 1e-30):
    """The statistic plus eps, which is averaged with it: Adafactor, CAME.

    Args:
      of: a word or a statistic, as in `ema`.
      eps: >= 0; then x <- x + eps.
    """
    check("plus_eps", of)
    checks.number("plus_eps", "eps", eps, low=0)
    x = reading(of)
    return x._replace(of=lambda g, at: x.of(g, at) + eps)


def reading(of: Any) -> Reading:
    """The meaning of what `of` says: a word or a statistic."""
    return of.meaning if isinstance(of, Statistic) else WORDS[of]


def check(name: str, of: Any) -> None:
    """Raises unless `of` may stand for a statistic."""
    if not isinstance(of, Statistic):
        checks.choice(name, "of", of, (None, *WORDS))


def shape_of(x: Reading, p: Array) -> tuple[int, ...]:
    """The shape of the statistic for gradients of the shape of `p`."""

    def read(g: Array) -> Array:
        extra = _Same(g)
        return x.of(g, At(g, g, extra))

    return jax.eval_shape(read, jax.ShapeDtypeStruct(p.shape, p.dtype)).shape


class _Same:
    """Any extra argument, of the shape of the gradient."""

    def __init__(self, g: Array):
        self._g = g

    def __getattr__(self, name: str) -> Array:
        return self._g
