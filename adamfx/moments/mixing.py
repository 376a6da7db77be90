"""Corrections that mix something else into a moment: the gradient, a slower average; and other divisions.

They follow `scale_by_moments`, after `bias_correct` unless they say otherwise.
"""

from __future__ import annotations

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import safe_divide, safe_root, square
from adamfx.moments.corrections import needs_side
from adamfx.moments.estimators import ema
from adamfx.moments.scale_by_moments import rates_of
from adamfx.schedules import Decay, Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.arguments import Mask
from adamfx.values.constructor import Dynamic, Exact


@block
def quasi_hyperbolic(nu1: Exact = 0.7, nu2: Exact = 1.0):
    """m <- (1 - nu1) g + nu1 m, v <- (1 - nu2) g^2 + nu2 v. Ma & Yarats 2019.

    Args:
      nu1, nu2: in [0, 1]; 1 leaves that moment as it is, 0 puts the gradient in its place.
    """
    checks.number("quasi_hyperbolic", "nu1", nu1, low=0, high=1)
    checks.number("quasi_hyperbolic", "nu2", nu2, low=0, high=1)

    def leaf(r, here):
        g = r.seen
        if r.first is not None:
            r = r.replace(first=r.first._replace(value=g + nu1 * (r.first.value - g)))
        if r.second is not None:
            x = square(g)
            r = r.replace(second=r.second._replace(value=x + nu2 * (r.second.value - x)))
        return r

    return leafwise(leaf, moments="corrects", of_matrices=True)


@block
def add_gradient(alpha: Rate):
    """m <- m + alpha g. Morwani et al. 2025 (simplified AdEMAMix, after a trace).

    Args:
      alpha: >= 0, or a schedule.
    """
    checks.number("add_gradient", "alpha", alpha, low=0)

    def leaf(r, here):
        m = needs_side("add_gradient", r.first, "first moment")
        return r.replace(first=m._replace(value=m.value + here.shared * r.seen))

    shared = lambda step: value_at(alpha, step.count)  # noqa: E731
    return leafwise(leaf, shared=shared, moments="corrects", of_matrices=True)


@block
def add_slow_average(b3: Decay = 0.9999, alpha: Rate = 5.0):
    """s <- b3 s + (1 - b3) g, m <- m + alpha s, not corrected. Pagliardini et al. 2024 (AdEMAMix).

    Remembers `mu_slow`, s.

    Args:
      b3: in [0, 1), or a schedule; 0.9999 remembers ten thousand gradients.
      alpha: >= 0, or a schedule.
    """
    checks.decay("add_slow_average", b3, "b3")
    checks.number("add_slow_average", "alpha", alpha, low=0)
    average = ema(b3).meaning

    def shared(step):
        return rates_of(average, step.count, None, lags=False)[0], value_at(alpha, step.count)

    def leaf(r, here):
        m, (rates, a) = needs_side("add_slow_average", r.first, "first moment"), here.shared
        s = average.update(here.memory.mu_slow, r.gradient, rates)
        return r.replace(first=m._replace(value=m.value + a * r.frame.into(s))), {"mu_slow": s}

    init = lambda p: {"mu_slow": jnp.zeros_like(p)}  # noqa: E731
    return leafwise(leaf, init=init, shared=shared, moments="corrects")


@block
def arctan2(a: Dynamic = 1.0, b: Exact = 1.0):
    """u <- a atan2(m, b sqrt(v)): a division without eps, and bounded. Everett et al. 2024 (Adam-atan2).

    a = 4 / pi makes |m| = sqrt(v) move as Adam does. It divides, so no correction may follow it.
    """
    checks.number("arctan2", "a", a, low=0)
    checks.number("arctan2", "b", b, low=0)

    def leaf(r, here):
        v = needs_side("arctan2", r.second, "second moment")
        m = r.direction if r.first is None else r.first.value
        checks.ordered("arctan2", m)
        root = safe_root(v.value)
        still = (m == 0) & (root == 0)  # its derivative is NaN there
        u = jnp.where(still, 0, jnp.arctan2(m, b * jnp.where(still, 1, root)))
        return r.replace(direction=a * u, first=None, second=None)

    return leafwise(leaf, moments="corrects", of_matrices=True)


@block
def stabilize(eps: Exact = 1e-6, threshold: Exact = 1.0):
    """m <- m / max(1, RMS(g / max(sqrt(v), eps)) / threshold), RMS over the leaf.

    A gradient much larger than v has seen takes a smaller step. Wortsman et al. 2023, algorithm 2
    (StableAdamW).

    Args:
      eps: > 0.
      threshold: > 0.
    """
    checks.number("stabilize", "eps", eps, low=0)
    checks.number("stabilize", "threshold", threshold, low=0)

    def leaf(r, here):
        v = needs_side("stabilize", r.second, "second moment")
        x = safe_divide(r.seen, jnp.maximum(safe_root(v.value), eps))
        factor = 1 / jnp.maximum(1, safe_root(jnp.mean(square(x))) / threshold)
        if r.first is None:
            return r.replace(direction=factor * r.direction)
        return r.replace(first=r.first._replace(value=factor * r.first.value))

    return leafwise(leaf, moments="corrects")


@block
def undivided(mask: Mask = None):
    """u <- m: the second moment is dropped, where the mask is True. Needs params for a mask.

    Args:
      mask: a tree of bools, a callable of the parameters that returns one, or None for everywhere.
    """
    return leafwise(lambda r, here: r.replace(second=None), moments="corrects", mask=mask)
