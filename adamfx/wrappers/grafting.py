"""The direction of one transformation with the size of another."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from adamfx import checks
from adamfx.blocks.radius import matrix_axes
from adamfx.engine.arithmetic import safe_divide
from adamfx.engine.norms import norm_over
from adamfx.transformation import block, identity, treewise
from adamfx.values.constructor import Exact, Inner


@block
def graft(direction: Inner, magnitude: Inner = None, eps: Exact = 0.0):
    """u <- direction |magnitude| / (|direction| + eps), of what the two make of one and the same gradient.

    Norms are those of each matrix, the last two axes, or of a vector; 0 where d is 0. Agarwal et al. 2020.

        graft(whiten(), scale_by_moments(None, ema(0.99)))      # Shampoo's direction, RMSProp's size

    Args:
      direction: the transformation whose direction is kept.
      magnitude: the one whose size is kept; None: that of what comes in, u <- direction |u| / (|direction| +
        eps).
      eps: >= 0.

    Remembers `direction` and `magnitude`, the states of the two.
    """
    checks.number("graft", "eps", eps, low=0)
    inside = {"direction": direction, "magnitude": identity() if magnitude is None else magnitude}

    def joined(d: Any, m: Any) -> Any:
        ratio = safe_divide(norm_over(m, matrix_axes(m)), norm_over(d, matrix_axes(d)) + eps)
        return d * jnp.broadcast_to(ratio, d.shape)

    def run(leaves, memory, step):
        made, new = {}, {}
        for name, tx in inside.items():
            out, new[name] = tx.run(leaves, getattr(memory, name), step)
            made[name] = out.updates
        updates = leaves.each(joined, made["direction"], made["magnitude"])
        return leaves.replace(updates=updates), new

    return treewise(run, inside)
