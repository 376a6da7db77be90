"""What follows from the number of steps: masses, rates, counters of wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine.memory import remember
from adamfx.engine.words import Leafwise, Step
from adamfx.interop.level import Wrapped
from adamfx.interop.words import blocks_of
from adamfx.schedules import value_at
from adamfx.transformation import GradientTransformation


def steps_outside(tx: GradientTransformation, wrapped: Wrapped, n: int) -> int:
    """The steps of the whole after n of what is inside, where the other library counts only these."""
    if wrapped.name == "skip_nonfinite":
        return n + int(wrapped.own["total_notfinite (skip_nonfinite)"].tree.value)
    if wrapped.name != "accumulate":
        return n
    every = next(b for b in blocks_of(tx) if b.name == "accumulate").arguments["every"]
    sizes = jax.vmap(lambda i: jnp.round(value_at(every, i)))(jnp.arange(n))
    full = int(np.asarray(sizes).astype(int).sum())
    return full + int(wrapped.own["mini_step (accumulate)"].tree.value)


def replaced(memory: Any, changes: dict[str, Any]) -> Any:
    return remember(**{**memory._asdict(), **changes}) if changes else memory


def by_steps(spec: Leafwise) -> set[str]:
    """The names of what a block remembers once that follows from the number of steps."""
    names = set(spec.init_shared()) if spec.init_shared else set()
    if spec.whole_tree or not set(spec.needs) <= {"params"}:
        return set()
    return names if spec.sums is None else {n for n in names if n.endswith("log_product")}


class _NoSums:
    """The sums over leaves that are not there; masses do not read them."""

    def __getattr__(self, name: str) -> Any:
        return jnp.zeros(())


def replayed(tx: GradientTransformation, state: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The state with what is computed once per step as it is after `count` steps."""
    blocks = [(k, v.meaning) for k, v in tx.blocks if isinstance(v.meaning, Leafwise)]
    names = {key: by_steps(spec) for key, spec in blocks}
    blocks = [(key, spec) for key, spec in blocks if names[key] or spec.moments == "opens"]
    shared = {k: s.shared for k, s in blocks if s.shared is not None and not s.whole_tree}
    blocks = [(key, spec) for key, spec in blocks if key in shared]
    held = {key: {n: getattr(state[key], n) for n in names[key]} for key, _ in blocks if names[key]}

    def step(t, held, rest):
        rates: tuple = (None, None)
        for key, spec in blocks:
            own = replaced(rest[key], held[key]) if key in held else remember()
            result = shared[key](Step(t.astype(jnp.int32), own, rates, sums=_NoSums()))
            if key in held:
                result, new = result
                held = held | {key: {n: jnp.asarray(new[n], x.dtype) for n, x in held[key].items()}}
            rates = result if spec.moments == "opens" else rates
        return held

    def run(held, rest):
        return jax.lax.fori_loop(0, count, lambda t, held: step(t, held, rest), held)

    rest = {key: state[key] for key in held}
    done = jax.jit(run)(held, rest)
    new = {key: replaced(state[key], values) for key, values in done.items()}
    return {**state, **new, "count": jnp.asarray(count, jnp.int32) + 0 * state["count"]}
