"""What becomes of gradients that are not finite."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.control import count_up
from adamfx.engine.packed import memories
from adamfx.transformation import block, treewise
from adamfx.values.constructor import Inner

Tree = Any


@block
def skip_nonfinite(transformation: Inner, max_consecutive_errors: int = 10):
    """A gradient that is not finite moves nothing: zero update, and `inner` bit for bit unchanged.

    A finite gradient whose square overflows (beyond 1.8e19 in float32) counts as not finite: it
    would leave infinity in a second moment for good. Nothing is ever applied against this rule,
    however many come in a row; then `too_many` says so, `check_finite(state)` raises, and `fit` stops.

    Args:
      transformation: what runs on finite gradients.
      max_consecutive_errors: how many in a row are not yet too many, >= 0.

    Remembers `inner`, `notfinite_count` (in a row), `total_notfinite`, `last_finite`, `too_many`.
    """
    allowed = checks.steps("skip_nonfinite", "max_consecutive_errors", max_consecutive_errors)
    tx = transformation

    def init_shared():
        zero, yes = np.zeros((), np.int32), np.asarray(True)
        counters = {"notfinite_count": zero, "total_notfinite": zero}
        return {**counters, "last_finite": yes, "too_many": ~yes}

    def run(leaves, memory, step):
        ok = trees.finite(leaves.updates)
        out, inner = tx.run_if(ok, leaves, memory.inner, step)
        count = jnp.where(ok, 0, count_up(memory.notfinite_count))
        return out, {
            "inner": inner,
            "notfinite_count": count,
            "total_notfinite": count_up(memory.total_notfinite, ~ok),
            "last_finite": ok,
            "too_many": count > allowed,
        }

    return treewise(run, tx, init_shared=init_shared)


def check_finite(state: Tree) -> None:
    """Raises FloatingPointError if some skip_nonfinite in this state has had too many in a row.

    For loops of your own, outside jit, as often as you like to wait for the device.
    """
    for memory in memories(state, "too_many"):
        if np.any(trees.the_array(memory.too_many)):  # of one run, or of many under vmap
            counts = (memory.notfinite_count, memory.total_notfinite)
            in_a_row, in_all = (np.max(trees.the_array(x)) for x in counts)
            raise FloatingPointError(
                f"the last {in_a_row} gradients were not finite, {in_all} in all; parameters and moments are "
                "those of the last finite one. Lower the learning rate or clip, or look at the data of "
                "these steps"
            )
