"""What becomes of gradients that are not finite, and of steps far from the usual ones."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.control import count_up
from adamfx.engine.norms import norm
from adamfx.engine.packed import memories
from adamfx.transformation import block, treewise
from adamfx.values.constructor import Dynamic, Inner

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


@block
def skip_spikes(transformation: Inner, window: int = 128, factor: Dynamic = 6.0):
    """A step whose loss or gradient norm lies far above the last ones moves nothing. OLMo 2.

    x is a spike where x - mean > factor * std, mean and standard deviation (Bessel's) of the last `window`
    values, skipped ones among them; nothing is judged before there are so many. What is not finite is
    skipped always, and enters no window. Needs `value=`, the loss.

    Args:
      transformation: what runs on the other gradients.
      window: how many values, >= 2.
      factor: >= 0.

    Remembers `inner`, `losses` and `norms`, (window,), `seen`, `total_skipped`, `last_applied`.
    """
    size = checks.steps("skip_spikes", "window", window, 2)
    checks.number("skip_spikes", "factor", factor, low=0)
    tx = transformation

    def init_shared():
        zero = np.zeros((), np.int32)
        windows = {"losses": np.zeros(size), "norms": np.zeros(size)}
        return windows | {"seen": zero, "total_skipped": zero, "last_applied": np.asarray(True)}

    def is_usual(x, past):
        mean = jnp.mean(past)
        deviation = jnp.sqrt(jnp.sum((past - mean) ** 2) / (size - 1))
        return x - mean <= factor * deviation

    def run(leaves, memory, step):
        dtype = memory.losses.dtype
        found = {
            "losses": jnp.asarray(step.extra["value"]).astype(dtype),
            "norms": norm(leaves.updates).astype(dtype),
        }
        pasts = {n: getattr(memory, n) for n in found}
        finite = jnp.isfinite(found["losses"]) & jnp.isfinite(found["norms"])
        usual = is_usual(found["losses"], pasts["losses"]) & is_usual(
            found["norms"], pasts["norms"]
        )
        ok = finite & ((memory.seen < size) | usual)
        out, inner = tx.run_if(ok, leaves, memory.inner, step)
        at = memory.seen % size  # where the oldest stands
        new = {n: jnp.where(finite, past.at[at].set(found[n]), past) for n, past in pasts.items()}
        # Beyond two windows only the remainder matters.
        seen = jnp.where(memory.seen + 1 >= 2 * size, size, memory.seen + 1)
        new["seen"] = jnp.where(finite, seen, memory.seen)
        skipped = count_up(memory.total_skipped, ~ok)
        return out, new | {"inner": inner, "total_skipped": skipped, "last_applied": ok}

    return treewise(run, tx, init_shared=init_shared, needs=("value",))


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
