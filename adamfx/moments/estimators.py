"""Estimators: running statistics of the gradient, each written for one array.

Notation: x the newest value of the statistic, s its running estimate, b the decay, w the mass (the
sum of the weights given out so far), t = count + 1 the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.record import Rates
from adamfx.schedules import Decay
from adamfx.values.constructor import Exact, constructor
from adamfx.values.value import Value

Array = Any


# ---- statistics ----------------------------------------------------------------------------------


class Statistic(NamedTuple):
    """What an estimator reads: a function of the gradient g and the new first moment m."""

    of: Callable[[Array, Array], Array]
    degree: int  # in g; the division takes the square root of degree two
    is_real: bool = True
    per_leaf: bool = False  # one number for the whole array


def square(g: Array) -> Array:
    """|g|^2, real."""
    return (g * g.conj()).real if jnp.iscomplexobj(g) else g * g


STATISTICS = {
    "value": Statistic(lambda g, m: g, degree=1, is_real=False),
    "square": Statistic(lambda g, m: square(g), degree=2),
    "abs": Statistic(lambda g, m: jnp.abs(g), degree=1),
    "deviation": Statistic(lambda g, m: square(g - m), degree=2),
    "norm_square": Statistic(lambda g, m: jnp.sum(square(g)), degree=2, per_leaf=True),
}


# ---- estimators ----------------------------------------------------------------------------------


class Recursion(NamedTuple):
    """The meaning of an estimator, for one array."""

    update: Callable[[Array, Array, Rates], Array]  # (s, x, rates) -> s
    decay: Any = 0.0  # number, array or schedule
    gain: Callable[[Array, Array], Array] | None = (
        None  # (count, 1 - b) -> weight of x; None: 1 - b
    )
    of: Any = None  # a key of STATISTICS; None: the side's own
    initial: Any = 0.0
    weighs: bool = False  # mass 1 - prod b; else the mass is 1


class Estimator(Value):
    """A running statistic of the gradient, as a value."""

    __slots__ = ()


estimator = constructor(Estimator)


def _first_whole(first_whole: bool) -> Callable:
    return lambda count, gain: jnp.where(count == 0, 1.0, gain) if first_whole else gain


def _reads(name: str, of: str | None) -> None:
    checks.choice(name, "of", of, (None, *STATISTICS))


@estimator
def ema(
    decay: Decay,
    *,
    of: str | None = None,
    first_whole: bool = False,
    initial: Exact = 0.0,
    eps: Exact = 0.0,
):
    """Exponential moving average: s <- s + (1 - b)(x - s) + eps, mass w <- b w + (1 - b).

    The form s + (1 - b)(x - s) keeps float32 to its last digits where b s + (1 - b) x drifts.

    Args:
      decay: b in [0, 1); a number, an array, or a schedule.
      of: the statistic x: "value" g, "square" |g|^2, "abs" |g|, "deviation" |g - m|^2 from the new
        first moment, "norm_square" the sum of |g|^2 over the leaf. None: g on the left of
        scale_by_moments, |g|^2 on the right.
      first_whole: the first x enters with weight one; then the mass is one from the start.
      initial: s before the first step (not part of the mass).
      eps: added to s at every step (AdaBelief).
    """
    checks.decay("ema", decay)
    _reads("ema", of)
    checks.number("ema", "eps", eps, low=0)

    def update(s, x, r):
        return s + (r.gain * (x - s) + eps)  # one rounding of s per step

    return Recursion(update, decay, _first_whole(first_whole), of, initial, weighs=not first_whole)


@estimator
def trace(
    decay: Decay, dampening: Exact = 0.0, *, of: str | None = None, first_whole: bool = False
):
    """Momentum: s <- b s + (1 - dampening) x. Never corrected. Polyak 1964.

    `first_whole` gives the first x the weight one whatever the dampening, as torch does.
    """
    checks.decay("trace", decay)
    checks.number("trace", "dampening", dampening, low=0, high=1)
    _reads("trace", of)

    def update(s, x, r):
        return r.decay * s + r.gain * x

    def gain(count, _):
        return _first_whole(first_whole)(count, 1 - dampening)

    return Recursion(update, decay, gain, of)


@estimator
def total(initial: Exact = 0.0, *, of: str | None = None):
    """Sum: s <- s + x, from `initial`. Duchi et al. 2011 (AdaGrad)."""
    checks.number("total", "initial", initial, low=0)
    _reads("total", of)
    return Recursion(lambda s, x, r: s + x, 1.0, lambda count, _: 1.0, of, initial)


@estimator
def mean(*, of: str | None = None):
    """Plain mean of all values: s <- s + (x - s) / t. Polyak & Juditsky 1992."""
    _reads("mean", of)

    def gain(count, _):
        return 1 / (count + 1).astype(jnp.result_type(float))

    return Recursion(lambda s, x, r: s + r.gain * (x - s), 0.0, gain, of)


@estimator
def decayed_max(decay: Decay, *, of: str = "abs", eps: Exact = 0.0):
    """Decaying maximum: s <- max(b s, x + eps), x = |g|. Kingma & Ba 2015, algorithm 2 (AdaMax)."""
    checks.decay("decayed_max", decay)
    checks.number("decayed_max", "eps", eps, low=0)
    _reads("decayed_max", of)

    def update(s, x, r):
        return jnp.maximum(s - r.gain * s, x + eps)  # b s, with the rounding of 1 - b, not of b

    return Recursion(update, decay, None, of)


@estimator
def yogi_ema(decay: Decay, *, of: str | None = None, initial: Exact = 1e-6):
    """s <- s - (1 - b) sign(s - x) x; mass 1 - prod b by convention. Zaheer et al. 2018, eq. 5."""
    checks.decay("yogi_ema", decay)
    _reads("yogi_ema", of)

    def update(s, x, r):
        return s - r.gain * jnp.sign(s - x) * x

    return Recursion(update, decay, None, of, initial, weighs=True)
