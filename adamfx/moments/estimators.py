"""Estimators: running statistics of the gradient, each written for one array.

An estimator is a statistic (what of the gradient: moments/statistics.py), a recursion (how it is averaged:
this file) and a storage (how the result is kept: moments/storages.py).

    @fx.estimator
    def half_life(steps: fx.Exact):
        return fx.Recursion(lambda s, x, r: s + r.gain * (x - s), decay=0.5 ** (1 / steps), weighs=True)

Notation: x the newest value of the statistic, s its running estimate, b the decay, w the mass (the
sum of the weights given out so far), t = count + 1 the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.placement import along
from adamfx.engine.record import HERE, Frame, Rates
from adamfx.moments import statistics
from adamfx.moments.storages import Storage
from adamfx.schedules import Decay
from adamfx.values.constructor import Exact, P, constructor
from adamfx.values.value import Value

Array = Any


# ---- estimators ----------------------------------------------------------------------------------


class Recursion(NamedTuple):
    """The meaning of an estimator, for one array."""

    update: Callable[[Array, Array, Rates], Array]  # (s, x, rates) -> s
    decay: Any = 0.0  # number, array or schedule
    gain: Callable[[Array, Array], Array] | None = (
        None  # (count, 1 - b) -> weight of x; None: 1 - b
    )
    of: Any = None  # a statistic, or the word of one; None: the side's own
    initial: Any = 0.0
    weighs: bool = False  # mass 1 - prod b; else the mass is 1
    storage: Storage | None = None  # None: as it is
    is_linear: bool = False  # in s and x, so that it may run on what a linear storage keeps
    adds: Any = 0.0  # the same number to each entry in every step, which another frame would not


class Own(NamedTuple):
    """The meaning of an estimator with a memory of its own form."""

    init: Callable[[Array], dict[str, Any]]  # p -> arrays by the end of their name
    step: Callable  # (memory, g, rates, at) -> (value, memory); At as statistics
    decay: Any = 0.0
    gain: Callable | None = None
    weighs: bool = False
    degree: int = 2  # of the value in g
    prepares: int = 0  # so many first gradients reach this side only, and move nothing
    frame: Callable[[dict], Frame] = lambda memory: HERE  # in which the value divides
    # Before it, of all leaves at once: (memories, gradients, rates, firsts) -> (new values, firsts)
    together: Callable | None = None
    carries: bool = False  # whether `together` turns first moments that lie in the frame with it
    of_matrices: bool = False  # each of a stack by itself, as leafwise(of_matrices=True)


class Estimator(Value):
    """A running statistic of the gradient, as a value."""

    __slots__ = ()
    example = "an estimator such as ema(0.9)"
    means = (Recursion, Own)


def estimator(function: Callable[P, Any]) -> Callable[P, Estimator]:
    """Decorator: makes a constructor of estimator values from a plain function.

    The function returns a `Recursion`, or `Own` for a memory of its own form; its parameters are declared as
    those of a block.
    """
    return _construct(function)


_construct = constructor(Estimator)


def _first_whole(first_whole: bool) -> Callable:
    return lambda count, gain: jnp.where(count == 0, 1.0, gain) if first_whole else gain


def _check(name: str, of: Any, storage: Any) -> None:
    statistics.check(name, of)
    if storage is not None and not isinstance(storage, Storage):
        raise TypeError(
            f"{name}: storage must be one such as factored() or cast('bfloat16'), got {storage!r}"
        )


@estimator
def ema(
    decay: Decay,
    *,
    of: Any = None,
    first_whole: bool = False,
    initial: Exact = 0.0,
    eps: Exact = 0.0,
    storage: Storage | None = None,
):
    """Exponential moving average: s <- b s + (1 - b) x + eps from s_0 <- initial, of mass w <- 1 - prod(b).

    Computed as s + (1 - b)(x - s), which keeps float32 to its last digits where b s + (1 - b) x drifts.

    Args:
      decay: b in [0, 1); a number, an array, or a schedule.
      of: the statistic: "value": x <- g; "square": x <- g^2; "abs": x <- abs(g); "deviation": x <-
        (g - m)^2, from the new first moment; "innovation": x <- (g - m_prev)^2, from the one before;
        "norm_square": x <- |g|^2, the sum of squares over the leaf; "left": x <- g @ g^T; "right": x <-
        g^T @ g; or a statistic such as mean_square(-2). None: g on the left of scale_by_moments, |g|^2 on
        the right.
      first_whole: the first x enters with weight one. True: s <- [t = 1] x + [t > 1] (b s + (1 - b) x) +
        eps, w <- 1.
      initial: s before the first step (not part of the mass).
      eps: added to s at every step (AdaBelief).
      storage: how s is kept: None, as it is; factored(), cover(), cast("bfloat16"), ...
    """
    checks.decay("ema", decay)
    _check("ema", of, storage)
    checks.number("ema", "eps", eps, low=0)

    def update(s, x, r):
        return s + (r.gain * (x - s) + eps)  # one rounding of s per step

    whole = _first_whole(first_whole)
    weighs = not first_whole
    return Recursion(update, decay, whole, of, initial, weighs, storage, is_linear=True, adds=eps)


@estimator
def seldom(decay: Decay, every: int, *, of: Any = None):
    """s <- [mod(n, k) = 0] (b s + (1 - b) x) + [mod(n, k) > 0] s: ema of every k-th x, never corrected.

    Sophia's.

    Args:
      decay: b in [0, 1), or a schedule.
      every: k >= 1.
      of: the statistic, as in `ema`.
    """
    checks.decay("seldom", decay)
    every = checks.steps("seldom", "every", every, 1)
    _check("seldom", of, None)

    def update(s, x, r):
        return jnp.where(r.count % every == 0, s + r.gain * (x - s), s)

    return Recursion(update, decay, of=of)


@estimator
def trace(
    decay: Decay,
    dampening: Exact = 0.0,
    *,
    of: Any = None,
    first_whole: bool = False,
    storage: Storage | None = None,
):
    """Momentum: s <- b s + (1 - dampening) x. Never corrected. Polyak 1964.

    Args:
      decay: b in [0, 1), or a schedule.
      dampening: in [0, 1].
      of: the statistic, as in `ema`.
      first_whole: the first x has weight one whatever the dampening, as in torch. True: s <- b s +
        (1 - dampening [t > 1]) x.
      storage: as in `ema`.
    """
    checks.decay("trace", decay)
    checks.number("trace", "dampening", dampening, low=0, high=1)
    _check("trace", of, storage)

    def update(s, x, r):
        return r.decay * s + r.gain * x

    def gain(count, _):
        return _first_whole(first_whole)(count, 1 - dampening)

    return Recursion(update, decay, gain, of, storage=storage, is_linear=True)


@estimator
def total(initial: Exact = 0.0, *, of: Any = None, storage: Storage | None = None):
    """Sum: s <- s + x, from s_0 <- initial. Duchi et al. 2011 (AdaGrad).

    Args:
      initial: >= 0.
      of: the statistic, as in `ema`.
      storage: as in `ema`.
    """
    checks.number("total", "initial", initial, low=0)
    _check("total", of, storage)

    def gain(count, _):
        return 1.0

    return Recursion(lambda s, x, r: s + x, 1.0, gain, of, initial, storage=storage, is_linear=True)


@estimator
def mean(
    power: Exact = 1.0,
    offset: int = 0,
    *,
    of: Any = None,
    storage: Storage | None = None,
):
    """Mean of all values: s <- s + (x - s) / max(t - offset, 1)^power. Polyak & Juditsky 1992.

    Args:
      power: in (0, 1]; 1 is the plain mean, less forgets: 0.8 is Adafactor's decay, 1 - t^-0.8.
      offset: steps that do not count, >= 0.
      of: the statistic, as in `ema`.
      storage: as in `ema`.
    """
    checks.number("mean", "power", power, low=0, high=1)
    offset = checks.steps("mean", "offset", offset)
    _check("mean", of, storage)

    def gain(count, _):
        t = jnp.maximum(count + 1 - offset, 1)
        return t.astype(jnp.result_type(float)) ** -power

    def update(s, x, r):
        return s + r.gain * (x - s)

    return Recursion(update, 0.0, gain, of, storage=storage, is_linear=True)


@estimator
def decayed_max(decay: Decay, *, of: Any = "abs", eps: Exact = 0.0, storage: Storage | None = None):
    """Decaying maximum: s <- max(b s, x + eps), x = |g|. Kingma & Ba 2015, algorithm 2 (AdaMax).

    Args:
      decay: b in [0, 1), or a schedule.
      of: the statistic, as in `ema`.
      eps: >= 0, within the maximum.
      storage: as in `ema`.
    """
    checks.decay("decayed_max", decay)
    checks.number("decayed_max", "eps", eps, low=0)
    _check("decayed_max", of, storage)

    def update(s, x, r):
        return jnp.maximum(s - r.gain * s, x + eps)  # b s, with the rounding of 1 - b, not of b

    return Recursion(update, decay, None, of, storage=storage)


@estimator
def yogi_ema(
    decay: Decay, *, of: Any = None, initial: Exact = 1e-6, storage: Storage | None = None
):
    """s <- s - (1 - b) sign(s - x) x; its mass by convention w <- 1 - prod(b). Zaheer et al. 2018, eq. 5.

    Args:
      decay: b in [0, 1), or a schedule.
      of: the statistic, as in `ema`.
      initial: where it starts, s_0 <- initial.
      storage: as in `ema`.
    """
    checks.decay("yogi_ema", decay)
    _check("yogi_ema", of, storage)

    def update(s, x, r):
        return s - r.gain * jnp.sign(s - x) * x

    return Recursion(update, decay, None, of, initial, weighs=True, storage=storage)


@estimator
def aggregate(betas: tuple[float, ...] = (0.0, 0.9, 0.99)):
    """The mean of several traces, v_i = b_i v_i + g. Lucas et al. 2019 (AggMo).

    Keeps `traces`, with one more axis in front.

    Args:
      betas: decays in [0, 1), one for each trace.
    """
    for b in betas:
        checks.decay("aggregate", b, "each of betas")

    def init(p):
        axes = (None, *range(p.ndim))
        return {"traces": along(jnp.zeros((len(betas), *p.shape), p.dtype), axes)}

    def step(memory, g, rates, at):
        b = jnp.asarray(betas, g.real.dtype).reshape(-1, *[1] * g.ndim)
        v = b * memory["traces"] + g[None]
        return jnp.mean(v, 0), {"traces": v}

    return Own(init, step, degree=1)
