"""Corrections: blocks that follow `scale_by_moments` and change its record before the division.

The order of the corrections is the order of the chain: the maximum before or after the bias
correction is another optimizer.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.arithmetic import safe_divide, square
from adamfx.engine.record import HERE, Side, quotient
from adamfx.engine.trees import real_dtype
from adamfx.moments.estimators import Recursion
from adamfx.moments.scale_by_moments import rates_of
from adamfx.schedules import Decay
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Exact


def needs_side(name: str, side: Side | None, which: str) -> Side:
    """The side; raises ValueError, in the name of a correction, where there is none."""
    if side is None:
        raise ValueError(
            f"{name}: nothing to correct; the scale_by_moments before it has no {which}"
        )
    return side


@block
def bias_correct(side: str | None = None):
    """Divides each moment by its mass: m <- m / w1, v <- v / w2 + [w2 = 0]; w = 1 - b^t for a constant b.

    The mass is the sum of the weights that the average has given out, so the correction is exact
    for scheduled decays. Sums, traces and maxima have mass one; at the first step a lagging moment has
    none, adds nothing, and divides by one. With `where="hat"`, the eps added to the root is divided with it:
    e <- e / sqrt(w2). Kingma & Ba 2015, section 3.

    Args:
      side: for one moment alone. "first": m <- m / w1 only; "second": v <- v / w2 + [w2 = 0], e <- e /
        sqrt(w2) only. None for both.
    """
    checks.choice("bias_correct", "side", side, (None, "first", "second"))

    def corrected(s, empty):
        if s.corrected:
            raise ValueError(
                "bias_correct: the moment is corrected already; leave one of the two out"
            )
        w = s.rates.mass
        value = s.value / jnp.where(w == 0, 1, w)
        # A lagging moment weighs nothing at the first step: it adds nothing, and divides by one.
        return s._replace(value=jnp.where(w == 0, empty, value), corrected=True)

    def leaf(r, here):
        if side is not None:
            needs_side("bias_correct", getattr(r, side), f"{side} moment")
        if r.first is not None and side != "second":
            r = r.replace(first=corrected(r.first, 0))
        if r.second is not None and side != "first":
            if r.denominator.where == "hat":
                hat = safe_divide(r.denominator.eps, jnp.sqrt(r.second.rates.mass))
                r = r.replace(denominator=r.denominator._replace(eps=hat))
            r = r.replace(second=corrected(r.second, 1))
        return r

    return leafwise(leaf, moments="corrects", of_matrices=True)


@block
def nesterov(decay: Decay | None = None):
    """Looks ahead, m <- b1_next m + c1 g: the first moment's own recursion once more, on the same gradient.

    b1 and c1 are its decay and its gain, 1 - b1 for an average. Uncorrected, this is Nesterov's momentum
    for a trace. After `bias_correct`, m <- b1_next m w1 / w1_next + c1 g / w1, Dozat's form with the mass of
    the next step. Nesterov 1983; Dozat 2016.

    Args:
      decay: b in [0, 1), another decay than the moment's (torch's NAdam; Lion with its b1), with a mass of
        its own, w <- 1 - prod(b): m <- b m + (1 - b) g; after `bias_correct`, m <- b_next m w1 / w_next +
        (1 - b) g / w. None: the moment's.
    """
    if decay is not None:
        checks.decay("nesterov", decay)

    def init_shared():
        return {"log_product": np.zeros(2)}

    def shared(step):
        own = Recursion(lambda s, x, r: s, decay, weighs=True)
        rates, grown = rates_of(own, step.count, step.memory.log_product, lags=False)
        return rates, {"log_product": grown}

    def leaf(r, here):
        m, rates, corrected = needs_side("nesterov", r.first, "first moment")
        of_m, of_g = (rates, rates) if decay is None else (here.shared, here.shared)
        a, c = of_m.next_decay, of_g.gain
        if corrected:
            a, c = a * rates.mass / of_m.next_mass, c / of_g.mass
        return r.replace(first=Side(a * m + c * r.seen, rates, corrected))

    if decay is None:
        return leafwise(leaf, moments="corrects", of_matrices=True)
    return leafwise(
        leaf, shared=shared, init_shared=init_shared, moments="corrects", of_matrices=True
    )


@block
def running_max():
    """The largest second moment so far: v_max <- max(v_max, v), v <- v_max.

    Before bias_correct it is torch's AMSGrad, after it optax's. Remembers `nu_max`. Reddi et al. 2018,
    algorithm 2.
    """

    def init(p):
        return {"nu_max": jnp.zeros(p.shape, real_dtype(p.dtype))}

    def leaf(r, here):
        second = needs_side("running_max", r.second, "second moment")
        if r.frame is not HERE:
            raise ValueError(
                "running_max: the second moment before it is kept in a basis that changes, where the "
                "largest so far means nothing; leave one of the two out"
            )
        v = jnp.maximum(here.memory.nu_max, second.value)
        return r.replace(second=second._replace(value=v)), {"nu_max": v}

    return leafwise(leaf, init=init, moments="corrects")


@block
def center():
    """v <- max(v - m^2, 0), the variance, and m <- g, the gradient itself. Graves 2013, eq. 40."""

    def leaf(r, here):
        m = needs_side("center", r.first, "first moment").value
        second = needs_side("center", r.second, "second moment")
        v = jnp.maximum(second.value - square(m), 0)  # rounding must not make it negative
        return r.replace(direction=r.seen, first=None, second=second._replace(value=v))

    return leafwise(leaf, moments="corrects")


@block
def rectify(threshold: Exact = 5.0):
    """RAdam: m is divided, and rectified by r, only where the variance of v is tractable:

        a <- 1 + (1 - c2 / w2) a
        rho <- 2 a - 1
        l <- 2 / c2 - 1
        r <- sqrt(max((rho - 4) (rho - 2), 0) l / ((l - 4) (l - 2) rho))
        u <- r u [rho >= threshold] + m [rho < threshold]

    l is the paper's rho_inf, c2 = 1 - b2. a is the mean age of the gradients in v, 1 for the newest; its
    recursion gives the paper's rho = rho_inf - 2 t b^t/(1 - b^t) without its cancellation (5e-5 in float32),
    and holds for scheduled decays. Liu et al. 2020, algorithm 2.

    Args:
      threshold: > 4.

    Remembers `age`, a. Follows bias_correct; it divides, so no correction may follow it.
    """
    checks.number("rectify", "threshold", threshold, low=4)  # r_t is the root of rho_t - 4

    def init_shared():
        return {"age": 0.0}

    def shared(step):
        b2 = needs_side(
            "rectify", step.rates[1] and Side(None, step.rates[1]), "second moment"
        ).rates
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
