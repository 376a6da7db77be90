"""Slow parameters that fast ones run ahead of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.control import count_up, only_if
from adamfx.engine.placement import wide_copy
from adamfx.transformation import block, treewise
from adamfx.values.constructor import Dynamic, Inner


@block
def lookahead(
    fast_optimizer: Inner, sync_period: int, slow_step_size: Dynamic, reset_state: bool = False
):
    """Every k steps s' = s + a (p - s) and p' = s', s the slow parameters. Zhang et al. 2019, alg. 1.

    Needs params. They are ordinary parameters, the fast ones; optax wants pairs of both. The model is to
    be used with the slow ones: `tx.evaluate_at(state, params)`.

    Args:
      fast_optimizer: the transformation that moves p.
      sync_period: k >= 1.
      slow_step_size: a in [0, 1].
      reset_state: whether the state of the fast optimizer starts anew after each synchronisation.

    Remembers `inner`, `slow` (float32 at least) and `steps_since_sync`.
    """
    k = checks.steps("lookahead", "sync_period", sync_period, 1)
    checks.number("lookahead", "slow_step_size", slow_step_size, low=0, high=1)
    tx = fast_optimizer
    if not reset_state:  # which makes the copies anew
        checks.holds_no_copies("lookahead", tx)

    def init(p):
        return {"slow": wide_copy(p)}

    def init_shared():
        return {"steps_since_sync": np.zeros((), np.int32)}

    def run(leaves, memory, step):
        leaves, inner = tx.run(leaves, memory.inner, step)
        sync = memory.steps_since_sync + 1 >= k

        def pull(s, u, p):
            a = jnp.asarray(slow_step_size, trees.real_dtype(s.dtype))
            return jnp.where(sync, s + a * (p.astype(s.dtype) + u.astype(s.dtype) - s), s)

        def move(s, u, p):
            return jnp.where(sync, (s - p.astype(s.dtype)).astype(u.dtype), u)

        slow = leaves.each(pull, memory.slow, leaves.updates, leaves.params)
        leaves = leaves.replace(updates=leaves.each(move, slow, leaves.updates, leaves.params))

        def anew(old, tx, slow):
            """The state of `tx` at the start, for the slow parameters as exactly as they are known."""
            new = tx.start(leaves.replace(updates=slow, params=slow))
            found = dict(jax.tree_util.tree_leaves_with_path(new))
            paths, structure = jax.tree_util.tree_flatten_with_path(old)
            return structure.unflatten([found.get(path, x) for path, x in paths])

        if reset_state:
            inner = only_if(sync, anew, inner, tx, slow)
        steps = jnp.where(sync, 0, count_up(memory.steps_since_sync))
        return leaves, {"inner": inner, "slow": slow, "steps_since_sync": steps}

    def evaluate_at(leaves, memory, step):
        return [p if s is None else s for s, p in zip(memory.slow, leaves.params, strict=True)]

    return treewise(
        run, tx, init=init, init_shared=init_shared, needs=("params",), evaluate_at=evaluate_at
    )
