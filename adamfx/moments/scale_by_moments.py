"""`scale_by_moments`: two statistics of one gradient, and the mass that corrections divide by.

Notation: g gradient, m the first moment, v the second, b a decay, w a mass, t = count + 1 the step.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.record import DENOMINATORS, Denominator, Moments, Rates, Side
from adamfx.engine.trees import real_dtype
from adamfx.moments.estimators import STATISTICS, Estimator, Recursion, ema
from adamfx.schedules import Decay, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Exact

Array = Any


# ---- mass ----------------------------------------------------------------------------------------


NO_DECAY = 1e-30  # 1 - 1e-30 is 1 in any float; its steps sum up without overflow


def _log_decay(gain: Array) -> Array:
    """log b from the gain 1 - b. For b = 0 that of NO_DECAY, with its slope: the mass is one all the same,
    and its derivative that of b."""
    if isinstance(gain, float):
        return math.log1p(-gain) if gain < 1 else math.log(NO_DECAY)
    below = gain < 1
    at_zero = math.log(NO_DECAY) + (1 - gain) / NO_DECAY
    return jnp.where(below, jnp.log1p(-jnp.where(below, gain, 0)), at_zero)


def _grow(log_product: Array, gain: Array) -> Array:
    """Adds log b to (sum of log b, its rounding error), by Kahan's compensated summation.

    A plain float32 sum, or product, is wrong by 1e-6 to 5e-6 after 1,000 steps.
    """
    s, error = log_product
    y = jnp.asarray(_log_decay(gain), s.dtype) - error
    grown = s + y
    return jnp.stack([grown, (grown - s) - y])


def mass(log_product: Array) -> Array:
    """w = 1 - prod b: the sum of the weights that an average from zero has given out so far."""
    return _one_minus_exp(log_product[0])


@jax.custom_jvp
def _one_minus_exp(x: Array) -> Array:
    return -jnp.expm1(x)


@_one_minus_exp.defjvp
def _one_minus_exp_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """JAX takes the derivative of expm1 from its value, which near -1 has forgotten exp(x)."""
    (x,) = primals
    return _one_minus_exp(x), -jnp.exp(x) * tangents[0]


def rates_of(
    r: Recursion, count: Array, log_product: Array | None, lags: bool
) -> tuple[Rates, Array]:
    """The scalars of one side at this step, and the new log of the product of its decays."""
    b, next_b = value_at(r.decay, count), value_at(r.decay, count + 1)
    gain = 1 - b if r.gain is None else r.gain(count, 1 - b)
    if log_product is None:
        return Rates(b, gain, 1.0, next_b, 1.0), None
    grown = _grow(log_product, 1 - b)
    if lags:
        return Rates(b, gain, mass(log_product), b, mass(grown)), grown
    return Rates(b, gain, mass(grown), next_b, mass(_grow(grown, 1 - next_b))), grown


# ---- scale_by_moments ----------------------------------------------------------------------------


def _plain(side: Any) -> Any:
    """`ema(b)` with nothing else said is written b."""
    if isinstance(side, Estimator) and side == ema(side.arguments.get("decay", 0.0)):
        return side.arguments["decay"]
    return side


def as_recursion(side: Any, of: str) -> Recursion | None:
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
        checks.floating(name, n, dtype)
    checks.number(name, "eps", eps, low=0)
    checks.number(name, "eps_root", eps_root, low=0)
    checks.choice(name, "where", where, tuple(DENOMINATORS))
    checks.choice(name, "lag", lag, (None, "first", "second"))
    if _plain(b1) is not b1 or _plain(b2) is not b2:
        options = {"where": where, "lag": lag, "mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
        return scale_by_moments(_plain(b1), _plain(b2), eps=eps, eps_root=eps_root, **options)
    sides = {"mu": as_recursion(b1, "value"), "nu": as_recursion(b2, "square")}
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
            is_zero = isinstance(r.initial, float) and r.initial == 0
            return jnp.zeros(shape, dtype) if is_zero else jnp.full(shape, r.initial, dtype)

        return {n: start(n, r) for n, r in sides.items()}

    def init_shared():
        return {f"{n}_log_product": np.zeros(2) for n, r in sides.items() if r.weighs}

    def shared(step):
        rates, memory = {}, {}
        for n, r in sides.items():
            old = getattr(step.memory, f"{n}_log_product") if r.weighs else None
            rates[n], new = rates_of(r, step.count, old, lags[n])
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
