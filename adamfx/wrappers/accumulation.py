"""One step for several gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.control import count_up, once, zeros_or
from adamfx.engine.placement import is_unreduced, summands, summed, wide_zeros, zeros_as_summed
from adamfx.schedules import ScheduleFunction, value_at
from adamfx.transformation import block, treewise
from adamfx.values.constructor import Inner

ONE_BATCH = (
    "the loss and gradient that it evaluates are those of the last batch, while those at the parameters are "
    "means over all; sam(accumulate(...)) works, and for a line search the batches have to be one"
)


def _compares(word: Any) -> bool:
    """Whether a word holds a loss or gradient elsewhere against that at the parameters."""
    needs = set(word.meaning.needs)
    return "grad_fn" in needs or {"value", "value_fn"} <= needs


@block
def accumulate(transformation: Inner, every: int | ScheduleFunction | jax.Array):
    """The mean of `every` gradients goes to the transformation; between, the updates are zero.

    Equal to one large batch where the loss is a mean over the batch. The transformation runs, and
    counts, only when it emits. Blocks behind this one in a chain see the zero updates, so a whole
    optimizer belongs inside: `accumulate(adamw(1e-3), 8)`. optax's counterpart is MultiSteps. A `value`
    given to update reaches the transformation as the mean loss of the window, `grad` as the mean gradient.

    A window whose sum is not finite, or whose square is not, is left out, whole, and counted; the next one
    begins anew. It is asked once per window, so that nothing but a sum is made of a single gradient.
    `skip_nonfinite(accumulate(tx, every))` leaves out single gradients instead. Only leaves with a gradient
    in the last micro-step of a window are updated; what earlier micro-steps contributed to the others is
    dropped.

    Args:
      transformation: what runs on the mean.
      every: how many gradients, >= 1; or a schedule of the emitted steps, rounded.

    Remembers `inner`; `acc_grads`, the sum so far, float32 at least (the last one where mini_step is 0);
    `mini_step`, how many it holds; `dropped`, how many windows were left out; `acc_value`, the sum of the
    losses, where something inside reads `value`. Raises ValueError around `sam`, `asam` and line searches.
    """
    if not callable(every) and not isinstance(every, jax.Array):
        every = checks.steps("accumulate", "every", every, 1)
    tx = transformation
    checks.holds_none("accumulate", tx, _compares, ONE_BATCH)
    reads_value = tx.reads("value")

    def init(p):
        return {"acc_grads": summands(p, wide_zeros(p))}

    def init_shared():
        zero = np.zeros((), np.int32)
        value = {"acc_value": 0.0} if reads_value else {}
        return {"mini_step": zero, "dropped": zero, **value}

    def run(leaves, memory, step):
        k = jnp.asarray(value_at(every, memory.inner["count"]))
        n = memory.mini_step + 1
        full = n >= jnp.round(k).astype(jnp.int32)
        # Where a window begins, the sum was not emptied before: that would be a pass.
        begins = once(memory.mini_step == 0, step.count)

        def add(total, g):
            if is_unreduced(g):  # of which no select is defined
                total = jax.lax.cond(begins, jnp.zeros_like, lambda x: x, total)
                return total + g.astype(total.dtype)
            return jnp.where(begins, 0, total) + g.astype(total.dtype)

        def whole(xs):
            """The sums over the devices, made once per window."""
            if not any(map(is_unreduced, xs)):
                return xs
            made, zeros = (lambda xs, f=f: [f(x) for x in xs] for f in (summed, zeros_as_summed))
            return jax.lax.cond(full, made, zeros, xs)

        def mean(leaves, total, n):
            kinds = {trees.real_dtype(x.dtype) for x in total}
            share = 1 / n.astype(trees.at_least_float32(*kinds))
            return leaves.replace(updates=leaves.each(lambda x: x * share.astype(x.dtype), total))

        new = {"mini_step": jnp.where(full, 0, count_up(memory.mini_step))}
        if reads_value:
            new["acc_value"] = memory.acc_value
        if reads_value and step.extra.get("value") is not None:
            value = jnp.asarray(step.extra["value"])
            new["acc_value"] = add(memory.acc_value, value)
            average = (new["acc_value"] / n.astype(new["acc_value"].dtype)).astype(value.dtype)
            step = step._replace(extra={**step.extra, "value": average})
        total = leaves.each(add, memory.acc_grads, leaves.updates)
        sums = whole(total)
        table = leaves.replace(updates=sums)
        bad, _ = zeros_or(full, _is_bad, lambda: jnp.asarray(False), (), sums)
        out, inner = tx.run_if(full & ~bad, table, memory.inner, step, mean, sums, n)
        new |= {"inner": inner, "acc_grads": total}
        return out, new | {"dropped": count_up(memory.dropped, bad)}

    def rest(memory, total):
        return jnp.where(memory.mini_step == 0, 0, total)

    return treewise(run, tx, init=init, init_shared=init_shared)._replace(rest=rest, adds=True)


def _is_bad(_: tuple, total: list) -> tuple:
    return ~trees.finite(total), ()
