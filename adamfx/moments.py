"""The moment algebra: estimators, `scale_by_moments`, and the corrections that follow it.

Notation of the bodies: g gradient, s a statistic (m of g, v of g^2), b its decay, w its mass (the
sum of the weights given out so far), t = count + 1 the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from adamfx import checks
from adamfx.record import DENOMINATORS, Denominator, Moments, Rates, Side, quotient, safe_divide
from adamfx.schedules import Decay, value_at
from adamfx.transformation import block, leafwise
from adamfx.trees import real_dtype
from adamfx.values import Exact, Value, constructor

Array = Any


# ---- statistics ----------------------------------------------------------------------------------


class Statistic(NamedTuple):
    """What an estimator reads: a function of the gradient g and the new first moment m."""

    of: Callable[[Array, Array], Array]
    degree: int  # in g; the division takes the square root of degree two
    is_real: bool = True
    per_leaf: bool = False  # one number for the whole array


def _square(g: Array) -> Array:
    return (g * g.conj()).real if jnp.iscomplexobj(g) else g * g


STATISTICS = {
    "value": Statistic(lambda g, m: g, degree=1, is_real=False),
    "square": Statistic(lambda g, m: _square(g), degree=2),
    "abs": Statistic(lambda g, m: jnp.abs(g), degree=1),
    "deviation": Statistic(lambda g, m: _square(g - m), degree=2),
    "norm_square": Statistic(lambda g, m: jnp.sum(_square(g)), degree=2, per_leaf=True),
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


# ---- mass ----------------------------------------------------------------------------------------


def _log_decay(gain: Array) -> Array:
    """log b from the gain 1 - b, and -1000 for b = 0, where the mass is one all the same."""
    if isinstance(gain, float):
        return math.log1p(-gain) if gain < 1 else -1000.0
    below = gain < 1
    return jnp.where(below, jnp.log1p(-jnp.where(below, gain, 0)), -1000.0)


def _grow(log_product: Array, gain: Array) -> Array:
    """Adds log b to (sum of log b, its rounding error), by Kahan's compensated summation.

    A plain float32 sum, or product, is wrong by 1e-6 to 5e-6 after 1,000 steps.
    """
    s, error = log_product
    y = jnp.asarray(_log_decay(gain), s.dtype) - error
    grown = s + y
    return jnp.stack([grown, (grown - s) - y])


def _mass(log_product: Array) -> Array:
    """w = 1 - prod b: the sum of the weights that an average from zero has given out so far."""
    return -jnp.expm1(log_product[0])


def _rates(
    r: Recursion, count: Array, log_product: Array | None, lags: bool
) -> tuple[Rates, Array]:
    """The scalars of one side at this step, and the new log of the product of its decays."""
    b, next_b = value_at(r.decay, count), value_at(r.decay, count + 1)
    gain = 1 - b if r.gain is None else r.gain(count, 1 - b)
    if log_product is None:
        return Rates(b, gain, 1.0, next_b, 1.0), None
    grown = _grow(log_product, 1 - b)
    if lags:
        return Rates(b, gain, _mass(log_product), b, _mass(grown)), grown
    return Rates(b, gain, _mass(grown), next_b, _mass(_grow(grown, 1 - next_b))), grown


# ---- scale_by_moments ----------------------------------------------------------------------------


def _is_float(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.inexact)
    except TypeError:
        return False


def _plain(side: Any) -> Any:
    """`ema(b)` with nothing else said is written b."""
    if isinstance(side, Estimator) and side == ema(side.arguments.get("decay", 0.0)):
        return side.arguments["decay"]
    return side


def _as_recursion(side: Any, of: str) -> Recursion | None:
    if side is None:
        return None
    r = (side if isinstance(side, Estimator) else ema(side)).meaning
    return r._replace(of=r.of or of)


@block
def scale_by_moments(
    b1: Decay | Estimator | None,
    b2: Decay | Estimator | None,
    *,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    where: str = "out",
    lag: str | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
):
    """The first moment over the root of the second: u = m / (sqrt(v + eps_root) + eps).

    m is what b1 makes of g, v what b2 makes of |g|^2. Without b1 the numerator is g; without b2
    there is no division. Nothing is corrected: that is a block of its own, `bias_correct`.
    Kingma & Ba 2015, algorithm 1.

    Args:
      b1, b2: each a number in [0, 1) or a schedule of one (short for `ema`), an estimator, or None.
      eps: >= 0, added to the root.
      eps_root: >= 0, added under the root.
      where: "out", u = m / (sqrt(v) + eps); "in", m / sqrt(v + eps); "hat", eps is added before v is
        bias-corrected (the paper's second form); "floor", m / max(sqrt(v), eps).
      lag: "first" or "second": that side is used as it was before this step.
      mu_dtype, nu_dtype: how the moments are stored; None: as the parameter, float32 at least.

    Remembers `mu`, `nu` (like the parameter; real for complex parameters; a scalar per leaf for
    "norm_square") and `mu_log_product`, `nu_log_product`, the log of the product of the decays so
    far with its rounding error, from which the mass is computed.
    """
    name = "scale_by_moments"
    for n, b in (("b1", b1), ("b2", b2)):
        if b is not None and not isinstance(b, Estimator):
            checks.decay(name, b, n)
    for n, dtype in (("mu_dtype", mu_dtype), ("nu_dtype", nu_dtype)):
        if dtype is not None and not _is_float(dtype):
            raise ValueError(
                f"{name}: {n} must be a floating dtype such as 'bfloat16', got {dtype!r}"
            )
    checks.number(name, "eps", eps, low=0)
    checks.number(name, "eps_root", eps_root, low=0)
    checks.choice(name, "where", where, tuple(DENOMINATORS))
    checks.choice(name, "lag", lag, (None, "first", "second"))
    if _plain(b1) is not b1 or _plain(b2) is not b2:
        options = {"where": where, "lag": lag, "mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
        return scale_by_moments(_plain(b1), _plain(b2), eps=eps, eps_root=eps_root, **options)
    sides = {"mu": _as_recursion(b1, "value"), "nu": _as_recursion(b2, "square")}
    sides = {n: r for n, r in sides.items() if r is not None}
    if not sides:
        raise ValueError(f"{name}: b1 and b2 are both None; give at least one decay or estimator")
    dtypes = {"mu": mu_dtype, "nu": nu_dtype}
    lags = {"mu": lag == "first", "nu": lag == "second"}

    def init(p):
        def start(n, r):
            x = STATISTICS[r.of]
            shape = () if x.per_leaf else p.shape
            dtype = dtypes[n] or (real_dtype(p.dtype) if x.is_real else p.dtype)
            if jnp.iscomplexobj(p) and not x.is_real and not jnp.issubdtype(dtype, p.dtype):
                raise ValueError(f"{name}: {n}_dtype {dtype} cannot hold the complex moment {n}")
            return jnp.full(shape, r.initial, dtype)

        return {n: start(n, r) for n, r in sides.items()}

    def init_shared():
        return {f"{n}_log_product": jnp.zeros(2) for n, r in sides.items() if r.weighs}

    def shared(step):
        rates, memory = {}, {}
        for n, r in sides.items():
            old = getattr(step.memory, f"{n}_log_product") if r.weighs else None
            rates[n], new = _rates(r, step.count, old, lags[n])
            if r.weighs:
                memory[f"{n}_log_product"] = new
        return (rates.get("mu"), rates.get("nu")), memory

    def leaf(g, here):
        new, used = {}, {}
        for (n, r), rates in zip(sides.items(), filter(None, here.shared), strict=True):
            s = getattr(here.memory, n)
            x = STATISTICS[r.of].of(g, new.get("mu", g))
            new[n] = r.update(s, x, rates)
            used[n] = Side(s if lags[n] else new[n], rates)
        root = "nu" in sides and STATISTICS[sides["nu"].of].degree == 2
        divide = Denominator(eps, eps_root, where, root)
        return Moments(g, g, used.get("mu"), used.get("nu"), divide), new

    return leafwise(leaf, init=init, shared=shared, init_shared=init_shared, moments="opens")


# ---- corrections ---------------------------------------------------------------------------------


def _needs(name: str, side: Side | None, which: str) -> Side:
    if side is None:
        raise ValueError(
            f"{name}: nothing to correct; the scale_by_moments before it has no {which}"
        )
    return side


@block
def bias_correct(side: str | None = None):
    """Divides each moment by its mass: m_hat = m / w1, v_hat = v / w2; w = 1 - b^t for a constant b.

    The mass is the sum of the weights that the average has given out, so the correction is exact
    for scheduled decays. Sums, traces and maxima have mass one. With `where="hat"`, eps is divided
    along with the root it was added to. Kingma & Ba 2015, section 3.

    Args:
      side: "first" or "second" for that moment alone; None for both.
    """
    checks.choice("bias_correct", "side", side, (None, "first", "second"))

    def corrected(s):
        if s.corrected:
            raise ValueError(
                "bias_correct: the moment is corrected already; leave one of the two out"
            )
        w = s.rates.mass
        w = jnp.where(w == 0, 1, w)  # a lagging moment weighs nothing at the first step
        return s._replace(value=s.value / w, corrected=True)

    def leaf(r, here):
        if side is not None:
            _needs("bias_correct", getattr(r, side), f"{side} moment")
        if r.first is not None and side != "second":
            r = r.replace(first=corrected(r.first))
        if r.second is not None and side != "first":
            if r.denominator.where == "hat":
                hat = safe_divide(r.denominator.eps, jnp.sqrt(r.second.rates.mass))
                r = r.replace(denominator=r.denominator._replace(eps=hat))
            r = r.replace(second=corrected(r.second))
        return r

    return leafwise(leaf, moments="corrects")


@block
def nesterov(decay: Decay | None = None):
    """Looks ahead: the first moment's own recursion once more, on the same gradient.

    Uncorrected, b m + gain g: Nesterov's momentum for a trace. After bias_correct, Dozat's form
    with the mass of the next step: b' m / w_{t+1} + (1 - b) g / w_t. Nesterov 1983; Dozat 2016.

    Args:
      decay: another decay than the moment's, with a mass of its own (torch's NAdam; Lion with its
        b1). None: the moment's.
    """
    if decay is not None:
        checks.decay("nesterov", decay)

    def init_shared():
        return {"log_product": jnp.zeros(2)}

    def shared(step):
        own = Recursion(lambda s, x, r: s, decay, weighs=True)
        rates, grown = _rates(own, step.count, step.memory.log_product, lags=False)
        return rates, {"log_product": grown}

    def leaf(r, here):
        m, rates, corrected = _needs("nesterov", r.first, "first moment")
        of_m, of_g = (rates, rates) if decay is None else (here.shared, here.shared)
        a, c = of_m.next_decay, of_g.gain
        if corrected:
            a, c = a * rates.mass / of_m.next_mass, c / of_g.mass
        return r.replace(first=Side(a * m + c * r.gradient, rates, corrected))

    if decay is None:
        return leafwise(leaf, moments="corrects")
    return leafwise(leaf, shared=shared, init_shared=init_shared, moments="corrects")


@block
def running_max():
    """v <- the largest second moment so far. Before bias_correct torch's AMSGrad, after it optax's.

    Remembers `nu_max`. Reddi et al. 2018, algorithm 2.
    """

    def init(p):
        return {"nu_max": jnp.zeros(p.shape, real_dtype(p.dtype))}

    def leaf(r, here):
        second = _needs("running_max", r.second, "second moment")
        v = jnp.maximum(here.memory.nu_max, second.value)
        return r.replace(second=second._replace(value=v)), {"nu_max": v}

    return leafwise(leaf, init=init, moments="corrects")


@block
def center():
    """v <- v - |m|^2, the variance; the numerator is the gradient again. Graves 2013, eq. 40."""

    def leaf(r, here):
        m = _needs("center", r.first, "first moment").value
        second = _needs("center", r.second, "second moment")
        v = jnp.maximum(second.value - _square(m), 0)  # rounding must not make it negative
        return r.replace(direction=r.gradient, first=None, second=second._replace(value=v))

    return leafwise(leaf, moments="corrects")


@block
def rectify(threshold: Exact = 5.0):
    """RAdam: u = r_t m / sqrt(v) where the variance of v is tractable, else u = m.

    rho_inf = 2/(1 - b2) - 1,  rho_t = 2 c_t - 1,  and where rho_t >= threshold
    r_t = sqrt((rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t)).

    c_t is the mean age of the gradients in v, 1 for the newest. The recursion
    c_t = 1 + (1 - (1 - b2)/w_t) c_{t-1} gives the paper's rho_inf - 2 t b^t/(1 - b^t) without its
    cancellation (5e-5 in float32), and holds for scheduled decays. Liu et al. 2020, algorithm 2.

    Remembers `age`, c_t. Follows bias_correct; it divides, so no correction may follow it.
    """
    checks.number("rectify", "threshold", threshold, low=4)  # r_t is the root of rho_t - 4

    def init_shared():
        return {"age": jnp.zeros(())}

    def shared(step):
        b2 = _needs("rectify", step.rates[1] and Side(None, step.rates[1]), "second moment").rates
        c = 1 + (1 - b2.gain / b2.mass) * step.memory.age
        rho, rho_inf = 2 * c - 1, 2 / b2.gain - 1
        tractable = rho >= threshold
        rho, rho_inf = jnp.where(tractable, rho, 5.0), jnp.where(tractable, rho_inf, 5.0)
        r = jnp.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        return (r, tractable), {"age": c}

    def leaf(r, here):
        factor, tractable = here.shared
        m = r.direction if r.first is None else r.first.value
        u = jnp.where(tractable, factor * quotient(r), m)
        return r.replace(direction=u, first=None, second=None)

    return leafwise(leaf, shared=shared, init_shared=init_shared, moments="corrects")
