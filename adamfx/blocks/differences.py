"""Words that compare the gradient, or the update, with those before it."""

from __future__ import annotations

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import safe_divide
from adamfx.engine.norms import norm_over
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Dynamic, Exact


def _first(step):
    """Whether nothing came before."""
    return step.count == 0


@block
def mars(gamma: Dynamic = 0.025, b1: Exact = 0.95, max_norm: Dynamic = 1.0):
    """c <- u + gamma b1 / (1 - b1) (u - u_prev), u <- c min(1, max_norm / |c|) by the norm of the leaf.

    Variance reduction in front of any optimizer: `chain(mars(), adamw(3e-3, 0.95, 0.99))`. The first
    gradient is its own predecessor, u_0 <- u. Remembers `previous`, u. Yuan et al. 2024, approximate form.

    Args:
      gamma: >= 0, the strength.
      b1: in [0, 1), the decay of the first moment that follows.
      max_norm: > 0.
    """
    checks.number("mars", "gamma", gamma, low=0)
    checks.decay("mars", b1, "b1")
    checks.number("mars", "max_norm", max_norm, low=0)

    def leaf(g, here):
        before = jnp.where(here.shared, g, here.memory.previous)
        c = g + gamma * b1 / (1 - b1) * (g - before)
        size = norm_over(c)
        return c * safe_divide(max_norm, jnp.maximum(size, max_norm)), {"previous": g}

    return leafwise(leaf, init=_previous, shared=_first)


@block
def grokfast(decay: Exact = 0.98, strength: Dynamic = 2.0):
    """s <- decay s + (1 - decay) u, u <- u + strength s, with the average starting at the first, s_0 <- u.

    In front of an optimizer it amplifies what changes slowly. Remembers `slow`, s. Lee et al. 2024.

    Args:
      decay: in [0, 1), of the average.
      strength: >= 0, their lambda.
    """
    checks.decay("grokfast", decay)
    checks.number("grokfast", "strength", strength, low=0)

    def leaf(u, here):
        old = jnp.where(here.shared, u, here.memory.slow)
        s = old + (1 - decay) * (u - old)
        return u + strength * s, {"slow": s}

    return leafwise(leaf, init=lambda p: {"slow": jnp.zeros_like(p)}, shared=_first)


@block
def scale_by_optimistic_gradient(alpha: Rate = 1.0, beta: Rate = 1.0):
    """u <- (alpha + beta) u - beta u_prev; the first update is its own predecessor, u_0 <- u.

    Remembers `previous`, u. Daskalakis et al. 2018; Mokhtari et al. 2020.

    Args:
      alpha, beta: numbers or schedules.
    """
    checks.number("scale_by_optimistic_gradient", "alpha", alpha)
    checks.number("scale_by_optimistic_gradient", "beta", beta)

    def shared(step):
        return value_at(alpha, step.count), value_at(beta, step.count), _first(step)

    def leaf(u, here):
        a, b, first = here.shared
        before = jnp.where(first, u, here.memory.previous)
        return (a + b) * u - b * before, {"previous": u}

    return leafwise(leaf, init=_previous, shared=shared)


def _previous(p):
    return {"previous": jnp.zeros_like(p)}
