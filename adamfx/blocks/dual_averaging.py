"""`scale_by_madgrad`: dual averaging from where the parameters started."""

from __future__ import annotations

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import safe_divide, safe_power, square
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Exact


@block
def scale_by_madgrad(learning_rate: Rate, momentum: Exact = 0.9, eps: Exact = 1e-6):
    """Dual averaging, in which later gradients weigh more; g <- u is what comes in:

        l <- (alpha + eps) sqrt(t)
        s <- s + l g
        v <- v + l g^2
        z <- p_0 - s / (cbrt(v) + eps)
        p' <- momentum p + (1 - momentum) z

    The update is p' - p, the learning rate and the sign included. Defazio & Jelassi 2021, algorithm 1.

    Args:
      learning_rate: alpha >= 0, or a schedule.
      momentum: in [0, 1), the part of the way to z that is not gone.
      eps: > 0, added to the root and, as in the authors' code, to alpha.

    Needs params. Remembers `start`, p_0, `total`, s, and `nu`, v.
    """
    checks.number("scale_by_madgrad", "learning_rate", learning_rate, low=0)
    checks.decay("scale_by_madgrad", momentum, "momentum")
    checks.number("scale_by_madgrad", "eps", eps, low=0)

    def init(p):
        return {"start": p, "total": jnp.zeros_like(p), "nu": jnp.zeros_like(p.real)}

    def shared(step):
        t = (step.count + 1).astype(jnp.result_type(float))
        return (value_at(learning_rate, step.count) + eps) * jnp.sqrt(t)

    def leaf(g, here):
        old, weight = here.memory, here.shared
        s, v = old.total + weight * g, old.nu + weight * square(g)
        z = old.start - safe_divide(s, safe_power(v, 1 / 3) + eps)
        return (1 - momentum) * (z - here.param), {"start": old.start, "total": s, "nu": v}

    return leafwise(leaf, init=init, shared=shared, needs_params=True)
