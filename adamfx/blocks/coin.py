"""COCOB: every parameter bets on its gradient."""

from __future__ import annotations

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import safe_divide
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Dynamic, Exact


@block
def scale_by_cocob(alpha: Dynamic = 100.0, eps: Exact = 1e-8):
    """Every number bets on its gradient, g <- u. The whole step, to be added:

        L <- max(L, abs(g))
        G <- G + abs(g)
        R <- max(R - g (p - p_0), 0)
        C <- C - g
        p' <- p_0 + C (L + R) / (L max(G + L, alpha L))

    A factor of the gradient changes almost nothing. Needs params. Orabona & Tommasi 2017, algorithm 2.

    Args:
      alpha: > 0, the part of L that the first bets are held to.
      eps: > 0, L at the start, L_0 <- eps.

    Remembers `start`, `largest`, `total`, `reward`, `bets`.
    """
    checks.number("scale_by_cocob", "alpha", alpha, low=0)
    checks.number("scale_by_cocob", "eps", eps, low=0)

    def init(p):
        z = jnp.zeros_like(p)
        return {"start": p, "largest": jnp.full_like(p, eps), "total": z, "reward": z, "bets": z}

    def leaf(g, here):
        checks.ordered("scale_by_cocob", g)
        old, p = here.memory, here.param
        L = jnp.maximum(old.largest, jnp.abs(g))
        G = old.total + jnp.abs(g)
        R = jnp.maximum(old.reward - g * (p - old.start), 0)
        C = old.bets - g
        new = old.start + safe_divide(C, L * jnp.maximum(G + L, alpha * L)) * (L + R)
        return new - p, {"start": old.start, "largest": L, "total": G, "reward": R, "bets": C}

    return leafwise(leaf, init=init, needs_params=True)
