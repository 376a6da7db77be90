"""Runs a sentence of blocks over the table of leaves: how it starts, one step, and its two points.

A sentence is a list of (key, block). Stretches of leafwise blocks run as one function of one array;
a treewise block runs on the whole table, and runs what it wraps by the same functions as are here.
The state is what the blocks remember, by key, with one step counter (engine/packed.py).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine import host, trees
from adamfx.engine.control import count_up
from adamfx.engine.each import each
from adamfx.engine.leaves import Leaves
from adamfx.engine.memory import remember
from adamfx.engine.packed import as_given, is_state, kind_of, packed
from adamfx.engine.placement import Along, anchor, follow, replicate
from adamfx.engine.stretch import run_stretch, stretches
from adamfx.engine.words import Here, Step, check_needs
from adamfx.engine.working import ADVICE, Working, like, scalar, scalar_dtype, working
from adamfx.values.value import Value

Array = Any
State = Any  # packed, or a dict by name
Blocks = Sequence[tuple[str, Value]]


# ---- the start -----------------------------------------------------------------------------------


def start(blocks: Blocks, leaves: Leaves) -> State:
    """The state of a sentence for these parameters: {"count": 0, key: what the block remembers}."""
    first = anchor(leaves.params or [])
    state: dict[str, Any] = {"count": np.zeros((), np.int32)}
    scalars: dict[str, Any] = {"count": ["count"]}
    ready = working(blocks, leaves)
    _remember_leaves([b for b in ready if b.spec.init], leaves)
    for block in ready:
        seen: list = []
        for name, x in block.starts.items():
            x = scalar(x, block.dtype)
            one = kind_of(x, block.dtype)  # it goes into the vector, which is placed as a whole
            block.scalars[name] = x if one else replicate(first, _apart(x, seen))
        if not block.is_leafwise:
            made = _carried_at_the_start(block, leaves)
            if block.spec.bare:
                seen = list(leaves.params or [])
                block.given = jax.tree.map(lambda x, s=seen: _apart(x, s), made)
            else:
                block.carried = made
        own = block.save(leaves)
        if jax.tree.leaves(own) or (
            getattr(own, "_fields", ()) and not getattr(block.spec, "bare", 0)
        ):
            state[block.key] = own
            scalars[block.key] = block.starts
    return packed(state, scalars, scalar_dtype(leaves), functools.partial(replicate, first))


def _carried_at_the_start(block: Working, leaves: Leaves) -> Any:
    if block.spec.start:
        return block.spec.start(leaves)
    return {name: start(tx.blocks, leaves) for name, tx in block.spec.inside.items()}


def _remember_leaves(blocks: list[Working], leaves: Leaves) -> None:
    """What each block remembers of each leaf at the start, placed where its parameter is."""
    for x in leaves.params or []:
        for block in blocks:
            block.spec_for(trees.real_dtype(trees.at_least_float32(x.dtype)))

    def one(p: Array) -> list[dict[str, Array]]:
        seen: list = [p]
        return [
            {
                n: follow(p, _apart(x.array, seen), x.axes)
                if isinstance(x, Along)
                else follow(p, _apart(x, seen))
                for n, x in block.remember_leaf(p).items()
            }
            for block in blocks
        ]

    for block in blocks if not leaves.params else ():
        block.begin_columns(leaves)
    for j, memories in enumerate(each(one, leaves.params or [])):
        for block, memory in zip(blocks, memories, strict=True):
            for name, x in memory.items():
                block.columns.setdefault(name, [None] * len(leaves))[j] = x


def _apart(x: Any, seen: list) -> Array:
    """`x`, a copy of its own where it was seen before: arrays of a state are donated one by one."""
    x = x if isinstance(x, (jax.Array, np.ndarray)) else jnp.asarray(x)
    x = x.copy() if any(x is y for y in seen) else x
    seen.append(x)
    return x


# ---- one step ------------------------------------------------------------------------------------


def run(
    blocks: Blocks, leaves: Leaves, state: State, extra: Mapping[str, Any]
) -> tuple[Leaves, State]:
    """One step of a sentence on the table of leaves: nothing is rounded, `dtypes` say to what it will be.

    Where `leaves.applies`, the last block may end the run by itself (`moved`).
    """
    where = leaves.layout.where
    ready, given = working(blocks, leaves), state
    check_is_state(where, given)
    state = {**given}
    _check_state(where, ready, state)
    for block in ready:
        block.load(state.get(block.key), leaves)
    dead = [any(rows) for rows in zip(*(block.dead(leaves) for block in ready), strict=True)]
    whole, wanted, final = leaves, leaves.applies, leaves.final
    if any(dead):  # frozen when the state was made, so frozen now
        alive = [not d for d in dead]
        leaves = leaves.only(alive)
        wanted = False
        for block in ready:
            block.only(alive)
    seen = leaves.gradients
    leaves = leaves.replace(gradients=leaves.updates, applies=False)
    rates: Any = (None, None)
    groups = stretches(ready, leaves)
    for i, blocks_together in enumerate(groups):
        if blocks_together[0].is_leafwise:
            leaves, rates = run_stretch(blocks_together, leaves, state["count"], rates, extra)
        else:
            last = i == len(groups) - 1
            leaves = leaves.replace(applies=wanted and last, final=final and last)
            leaves = _run_treewise(blocks_together[0], leaves, state["count"], extra)
            rates = (None, None)
    new = {block.key: block.save(leaves) for block in ready if block.key in state}
    leaves = leaves.replace(gradients=seen, applies=whole.applies, final=final)
    if any(dead):
        still = [jnp.zeros_like(u) if d else u for u, d in zip(whole.updates, dead, strict=True)]
        leaves = whole.replace(updates=still).put(leaves)
    return leaves, as_given(given, {**state, **new, "count": count_up(state["count"])})


def _check_state(where: str, blocks: list[Working], given: Any) -> None:
    """Raises TypeError or ValueError unless the state may be one of these blocks."""
    keys = {block.key for block in blocks}
    for block in blocks:
        missing = block.key not in given
        if missing and (block.starts or (not block.is_leafwise and not block.spec.bare)):
            if not block.is_leafwise and not block.starts and not block.spec.inside:
                continue
            raise ValueError(
                f"{where}: the state has no {block.key!r}, it has {sorted(given)}; {ADVICE}"
            )
    unknown = sorted(set(given) - keys - {"count"})
    if unknown:
        raise ValueError(
            f"{where}: the state holds {unknown}, which no block of this transformation remembers; {ADVICE}"
        )


def check_is_state(where: str, given: Any) -> None:
    """Raises TypeError unless this looks like a state."""
    if not is_state(given):
        raise TypeError(
            f"{where}: the state must be a dict with 'count', got {type(given).__name__}; {ADVICE}"
        )
    (count,) = jax.tree.leaves(given["count"]) or [None]
    is_number = hasattr(count, "dtype") or isinstance(count, (int, float))
    if not is_number or np.shape(count) or not jnp.issubdtype(trees.dtype_of(count), jnp.integer):
        raise TypeError(
            f"{where}: the state's count must be a whole number, got {count!r}; {ADVICE}"
        )


def _run_treewise(block: Working, leaves: Leaves, count: Array, extra: Mapping[str, Any]) -> Leaves:
    spec: Any = block.spec
    check_needs(block.key, spec.needs, leaves, extra)
    step = Step(count, remember(**block.scalars), extra=extra, key=block.key)
    memory, on_host = _memory(block, leaves), leaves.on_host
    if on_host and not spec.hands_on:
        memory, leaves = host.fetched(memory), leaves.replace(on_host=False)
    if spec.rest:
        block.rest = lambda x: spec.rest(memory, host.fetched(x))
    out = spec.run(leaves, memory, step)
    if type(out) is not tuple or len(out) != 2 or not isinstance(out[0], Leaves):
        raise TypeError(f"{block.key}: run must return (leaves, what it remembers), got {out!r}")
    new, found = out
    if on_host and not spec.hands_on:
        new, found = new.replace(on_host=True), host.rested(found)
    if new.layout.rows != leaves.layout.rows:
        raise ValueError(f"{block.key}: run returned other rows of the table than it was given")
    if new.moved is None:
        for j, (u, old) in enumerate(zip(new.shapes(), leaves.shapes(), strict=True)):
            if u != old:
                raise ValueError(
                    f"{block.key}: its update turned {leaves.layout.paths()[j]} of shape {old} into {u}"
                )
    if spec.bare:
        block.given = found
        return new
    found = found._asdict() if hasattr(found, "_asdict") else found
    wanted = {*block.columns, *block.scalars, *block.carried}
    if not isinstance(found, Mapping) or set(found) != wanted:
        names = sorted(found) if isinstance(found, Mapping) else repr(found)
        raise ValueError(f"{block.key}: run remembers {names}, its init made {sorted(wanted)}")
    for name, column in block.columns.items():
        pairs = zip(found[name], column, strict=True)
        block.columns[name] = [
            None if old is None else like(block.key, "run", name, x, old) for x, old in pairs
        ]
    block.scalars = {n: like(block.key, "run", n, found[n], x) for n, x in block.scalars.items()}
    block.carried = {n: found[n] for n in block.carried}
    return new


def _memory(block: Working, leaves: Leaves) -> Any:
    if not block.spec.bare:
        return remember(**block.columns, **block.scalars, **block.carried)
    if block.given is None:  # it remembers nothing: its empty state is made anew
        made = block.spec.stateless(leaves) if block.spec.stateless else None
        if jax.tree.leaves(made):
            raise ValueError(f"{leaves.layout.where}: the state has no {block.key!r}; {ADVICE}")
        return made
    return block.given


# ---- the two points ------------------------------------------------------------------------------


def has_point(which: str, blocks: Blocks) -> bool:
    """Whether any block, or one inside it, defines `gradient_at` or `evaluate_at`."""
    for _, value in blocks:
        spec: Any = value.meaning
        if getattr(spec, which):
            return True
        for tx in getattr(spec, "inside", {}).values():
            if has_point(which, tx.blocks):
                return True
    return False


def point(which: str, blocks: Blocks, leaves: Leaves, state: State) -> Leaves:
    """The table whose `params` are where this sentence wants the gradient, or the model to be used."""
    if not has_point(which, blocks):
        return leaves
    check_is_state(which, state)
    ready, state = working(blocks, leaves), {**state}
    _check_state(which, ready, state)
    for block in ready:
        spec: Any = block.spec
        block.load(state.get(block.key), leaves)
        own = getattr(spec, which)
        if block.is_leafwise:
            if own:
                leaves = _leaf_point(own, block, leaves, state["count"])
            continue
        memory = _memory(block, leaves)

        def inner(tx: Any, part: Leaves, held: State) -> Leaves:
            return point(which, tx.blocks, part, held)

        if spec.through:
            leaves = spec.through(leaves, memory, inner)
        else:
            for name, tx in spec.inside.items():
                leaves = inner(tx, leaves, getattr(memory, name))
        if own:
            step = Step(state["count"], remember(**block.scalars))
            leaves = leaves.replace(params=own(leaves, memory, step))
    return leaves


def _leaf_point(own: Any, block: Working, leaves: Leaves, count: Array) -> Leaves:
    step = Step(count, remember(**block.scalars))

    def one(p: Array, to: Any, memory: dict) -> Array:
        wide = p.astype(trees.at_least_float32(p.dtype))
        here = Here(block.name, wide, wide, remember(**memory), p.dtype, shared=step)
        return own(wide, here)

    memories = [block.memory(j) for j in range(len(leaves))]
    params = leaves.params or []
    return leaves.replace(params=each(one, params, [None] * len(params), memories))
