"""`scale_by_rprop`: a step size of its own for every number."""

from __future__ import annotations

import jax.numpy as jnp

from adamfx import checks
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Dynamic, Exact


@block
def scale_by_rprop(
    learning_rate: Dynamic,
    eta_minus: Exact = 0.5,
    eta_plus: Exact = 1.2,
    min_step_size: Exact = 1e-6,
    max_step_size: Exact = 50.0,
):
    """A sign s times a step d, which grows while the sign stays, and shrinks where it turns:

        c <- sign(u) s
        f <- eta_plus [c > 0] + eta_minus [c < 0]
        d <- [c = 0] d + [f > 0] max(min_step_size, min(max_step_size, f d))
        s <- [c >= 0] sign(u)
        u <- s d

    A gradient that has turned counts as 0, now and as the next one's predecessor. Riedmiller & Braun
    1993, in the form of Igel & Huesken 2003 (iRprop-).

    Args:
      learning_rate: > 0, the first step, d_0 <- learning_rate.
      eta_minus, eta_plus: in (0, 1) and above 1.
      min_step_size, max_step_size: the bounds of a step.

    Remembers `step_size` and `sign`, that of the last gradient.
    """
    checks.number("scale_by_rprop", "learning_rate", learning_rate, low=0)
    checks.number("scale_by_rprop", "eta_minus", eta_minus, low=0, high=1)
    checks.number("scale_by_rprop", "eta_plus", eta_plus, low=1)
    checks.number("scale_by_rprop", "min_step_size", min_step_size, low=0)
    checks.number("scale_by_rprop", "max_step_size", max_step_size, low=0)

    def init(p):
        return {"step_size": jnp.full_like(p, learning_rate), "sign": jnp.zeros_like(p)}

    def leaf(g, here):
        checks.ordered("scale_by_rprop", g)
        step, s = here.memory.step_size, jnp.sign(g)
        same = s * here.memory.sign
        factor = jnp.where(same > 0, eta_plus, eta_minus)
        moved = jnp.clip(step * factor, min_step_size, max_step_size)
        step, s = jnp.where(same == 0, step, moved), jnp.where(same < 0, 0, s)
        return s * step, {"step_size": step, "sign": s}

    return leafwise(leaf, init=init)
