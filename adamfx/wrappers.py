"""Wrappers: when the transformation inside runs, and what becomes of its update.

Each holds a whole transformation and remembers the state of it as `inner`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks, sentence, trees
from adamfx.combine import as_transformation
from adamfx.schedules import value_at
from adamfx.transformation import GradientTransformation, block
from adamfx.values import Dynamic

Tree = Any


@block
def accumulate(transformation: Any, every: Any):
    """The mean of `every` gradients goes to the transformation; between, the updates are zero.

    Equal to one large batch where the loss is a mean over the batch. The transformation runs, and
    counts, only when it emits. Blocks behind this one in a chain see the zero updates, so a whole
    optimizer belongs inside: `accumulate(adamw(1e-3), 8)`. optax's counterpart is MultiSteps.

    A gradient that is not finite, or whose square is not, is left out, whole, and counted: the mean is
    always one of `every` finite gradients. The gradient at the end of a window says which leaves move: a
    leaf that is None there is left alone, with what came for it before.

    Args:
      transformation: what runs on the mean.
      every: how many gradients, >= 1; or a schedule of the emitted steps, rounded.

    Remembers `inner`; `acc_grads`, the sum so far, float32 at least (the last one where mini_step is 0);
    `mini_step`, how many it holds; `dropped`, how many were left out in all.
    """
    if not callable(every) and not isinstance(every, jax.Array):
        checks.steps("accumulate", "every", every, 1)
    tx = as_transformation(transformation)

    def init(params):
        return sentence.remember(
            inner=tx.init(params),
            acc_grads=trees.map_trained(trees.wide_zeros, params),
            **_counters(params, "mini_step", "dropped"),
        )

    def run(finish, updates, state, params, extra):
        checks.remembered_like("accumulate", "acc_grads", state.acc_grads, updates)
        k = jnp.asarray(value_at(every, state.inner["count"]))
        ok, n = trees.finite(updates), state.mini_step + 1
        full = ok & (n >= jnp.round(k).astype(jnp.int32))

        def add(total, g):
            if total is None:
                return None
            total = jnp.where(state.mini_step == 0, 0, total)  # not emptied before: that is a pass
            return total if g is None else jnp.where(ok, total + g.astype(total.dtype), total)

        def mean(updates, total, n):
            def of(total, g):
                return None if g is None else (total / n.astype(total.dtype)).astype(g.dtype)

            return jax.tree.map(of, total, updates, is_leaf=trees.is_none)

        total = jax.tree.map(add, state.acc_grads, updates, is_leaf=trees.is_none)
        out, inner = _run_if(
            full, finish, tx, mean, (updates, total, n), updates, state.inner, params, extra
        )
        return out, sentence.remember(
            inner=inner,
            acc_grads=total,
            mini_step=jnp.where(full, 0, state.mini_step + ok.astype(jnp.int32)),
            dropped=state.dropped + (~ok).astype(jnp.int32),
        )

    return sentence.wrapper(init, run)


@block
def skip_nonfinite(transformation: Any, max_consecutive_errors: int = 10):
    """A gradient that is not finite moves nothing: zero update, and `inner` bit for bit unchanged.

    A finite gradient whose square overflows (beyond 1.8e19 in float32) counts as not finite: it
    would leave infinity in a second moment for good. Nothing is ever applied against this rule,
    however many come in a row; then `too_many` says so, `check_finite(state)` raises, and `fit` stops.

    Args:
      transformation: what runs on finite gradients.
      max_consecutive_errors: how many in a row are not yet too many, >= 0.

    Remembers `inner`, `notfinite_count` (in a row), `total_notfinite`, `last_finite`, `too_many`.
    """
    checks.steps("skip_nonfinite", "max_consecutive_errors", max_consecutive_errors)
    tx = as_transformation(transformation)

    def init(params):
        counters = _counters(params, "notfinite_count", "total_notfinite")
        yes, no = (sentence.replicate(trees.anchor(params), jnp.asarray(x)) for x in (True, False))
        return sentence.remember(inner=tx.init(params), **counters, last_finite=yes, too_many=no)

    def run(finish, updates, state, params, extra):
        ok = trees.finite(updates)
        out, inner = _run_if(
            ok, finish, tx, lambda u: u, (updates,), updates, state.inner, params, extra
        )
        count = jnp.where(ok, 0, state.notfinite_count + 1)
        return out, sentence.remember(
            inner=inner,
            notfinite_count=count,
            total_notfinite=state.total_notfinite + (~ok).astype(jnp.int32),
            last_finite=ok,
            too_many=count > max_consecutive_errors,
        )

    return sentence.wrapper(init, run)


def apply_if_finite(inner: Any, max_consecutive_errors: int) -> GradientTransformation:
    """optax's name for `skip_nonfinite`. optax applies the NaN after that many; this never does."""
    return skip_nonfinite(inner, max_consecutive_errors)


def check_finite(state: Tree) -> None:
    """Raises FloatingPointError if some skip_nonfinite in this state has had too many in a row.

    For loops of your own, outside jit, as often as you like to wait for the device.
    """
    for memory in sentence.memories(state, "too_many"):
        if np.any(trees.the_array(memory.too_many)):  # of one run, or of many under vmap
            counts = (memory.notfinite_count, memory.total_notfinite)
            in_a_row, in_all = (np.max(trees.the_array(x)) for x in counts)
            raise FloatingPointError(
                f"the last {in_a_row} gradients were not finite, {in_all} in all; parameters and moments are "
                "those of the last finite one. Lower the learning rate or clip, or look at the data of "
                "these steps"
            )


@block
def lookahead(
    fast_optimizer: Any, sync_period: int, slow_step_size: Dynamic, reset_state: bool = False
):
    """Every k steps s <- s + a (p - s) and p <- s, s the slow parameters. Zhang et al. 2019, alg. 1.

    Needs params. They are ordinary parameters, the fast ones; optax wants pairs of both.

    Args:
      fast_optimizer: the transformation that moves p.
      sync_period: k >= 1.
      slow_step_size: a in [0, 1].
      reset_state: whether the state of the fast optimizer starts anew after each synchronisation.

    Remembers `inner`, `slow` (float32 at least) and `steps_since_sync`.
    """
    checks.steps("lookahead", "sync_period", sync_period, 1)
    checks.number("lookahead", "slow_step_size", slow_step_size, low=0, high=1)
    tx = as_transformation(fast_optimizer)

    def init(params):
        return sentence.remember(
            inner=tx.init(params),
            slow=trees.map_trained(trees.wide_copy, params),
            **_counters(params, "steps_since_sync"),
        )

    def update(updates, state, params=None, **extra):
        checks.given_params("update", "lookahead", params, updates)
        checks.remembered_like("lookahead", "slow", state.slow, updates)
        updates, inner = sentence.run(tx.blocks, updates, state.inner, params, extra, "carry")
        sync = state.steps_since_sync + 1 >= sync_period

        def pull(s, u, p):
            if u is None:
                return s
            a = jnp.asarray(slow_step_size, trees.real_dtype(s.dtype))
            return jnp.where(sync, s + a * (p.astype(s.dtype) + u.astype(s.dtype) - s), s)

        def move(s, u, p):
            return (
                None if u is None else jnp.where(sync, (s - p.astype(s.dtype)).astype(u.dtype), u)
            )

        trio = {"is_leaf": trees.is_none}
        slow = jax.tree.map(pull, state.slow, updates, params, **trio)
        updates = jax.tree.map(move, slow, updates, params, **trio)
        if reset_state:
            moving = jax.tree.map(
                lambda u, p: None if u is None else p, updates, params, is_leaf=trees.is_none
            )
            inner = trees.only_if(sync, _anew, inner, tx, moving)
        steps = jnp.where(sync, 0, state.steps_since_sync + 1)
        return updates, sentence.remember(inner=inner, slow=slow, steps_since_sync=steps)

    return sentence.Pair(init, update)


def _anew(state: Tree, tx: GradientTransformation, params: Tree) -> Tree:
    """The state of `tx` at the start; leaves without a gradient keep theirs."""
    return trees.prefer(tx.init(params), state)


# ---- what they share -----------------------------------------------------------------------------


def _run_if(
    predicate: jax.Array,
    finish: str,
    tx: GradientTransformation,
    gradients: Callable,
    read: tuple,
    updates: Tree,
    inner: Tree,
    params: Tree,
    extra: dict[str, Any],
) -> tuple[Tree, Tree]:
    """(updates or new parameters, state of `tx`) if the predicate holds, else nothing changes.

    `tx` runs on gradients(*read). Arrays reach it as arguments only.
    """
    arrays = {name: x for name, x in extra.items() if trees.is_arrays(x)}
    static = {name: x for name, x in extra.items() if name not in arrays}

    def turn(held, read, params, tx, arrays):
        out, inner = held
        p = out if finish == "step" else params
        return sentence.run(tx.blocks, gradients(*read), inner, p, static | arrays, finish)

    if finish == "step":
        out, params = params, None
    else:
        out = jax.tree.map(jnp.zeros_like, updates)
    return trees.only_if(predicate, turn, (out, inner), read, params, tx, arrays)


def _counters(params: Tree, *names: str) -> dict[str, jax.Array]:
    anchor = trees.anchor(params)
    return {name: sentence.replicate(anchor, jnp.zeros((), jnp.int32)) for name in names}
