"""Memory of any transformation in another storage: 8 bits, bfloat16, rows and columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamfx.engine import trees
from adamfx.engine.memory import is_memory, remember
from adamfx.engine.packed import State, as_given, goes_on, is_state
from adamfx.engine.placement import beside, follow
from adamfx.engine.working import KEYS
from adamfx.moments.storages import Storage
from adamfx.transformation import block, treewise
from adamfx.values.constructor import Inner


@block
def stored(transformation: Inner, **storages: Any):
    """The transformation, with memory of these names kept in these storages between two steps.

        stored(adamw(1e-3), mu=int8(), nu=uint8())               # 2.1 bytes of state per parameter
        stored(accumulate(lion(1e-4), 8), acc_grads=cast("bfloat16"))

    What is kept is read before a step and written after it, leaf by leaf; the arithmetic in between is the
    same. In the state lies what is kept, such as `codes` and `scales`. Put `skip_nonfinite` around it: a step
    that is skipped inside still reads and writes what is kept, which may move it by a rounding.

    Args:
      transformation: what remembers.
      storages: by the name of a memory, wherever a block inside has one.

    Remembers `inner` and, where a storage rounds at random, `key`.
    """
    tx = transformation
    if not storages:
        raise TypeError("stored: name at least one memory, such as mu=int8()")
    for name, x in storages.items():
        if not isinstance(x, Storage):
            raise TypeError(f"stored: {name} must be a storage such as int8(), got {x!r}")
    forms = {name: x.meaning for name, x in storages.items()}
    is_random = any(form.is_random for form in forms.values())

    def read(leaves, inner, like):
        """The state as the transformation knows it; and what is kept of leaves that have no row now."""
        resting = {}

        def leaf(name, at, x, like):
            if is_memory(x) and like is None:
                resting[at] = x
                return x[0]
            if x is None or like is None or not jnp.issubdtype(like.dtype, jnp.inexact):
                return x
            wide = jax.ShapeDtypeStruct(like.shape, trees.at_least_float32(like.dtype))
            parts = x._asdict() if is_memory(x) else {"": x}
            return forms[name].read(parts, wide).astype(like.dtype)

        return _mapped(leaves, inner, like, set(forms), leaf), resting

    def write(leaves, inner, like, key=None, resting=None, place=False):
        def leaf(name, at, x, like):
            if x is None or like is None:
                return (resting or {}).get(at, x)
            own = None if key is None else jax.random.fold_in(key, at)
            wide = x.astype(trees.at_least_float32(x.dtype))
            return _together(forms[name].write(wide, own), x, place)

        return _mapped(leaves, inner, like, set(forms), leaf)

    def start(leaves):
        inner = tx.start(leaves)
        found: set = set()
        _names(inner, found)
        if unknown := sorted(set(forms) - found):
            raise ValueError(
                f"stored: {tx!r} remembers no {', '.join(unknown)}; it remembers {', '.join(sorted(found))}"
            )
        return {"inner": write(leaves, inner, inner, place=True)}

    def init_shared():
        return {"key": jax.random.key_data(jax.random.key(0, impl=KEYS))} if is_random else {}

    def run(leaves, memory, step):
        key, new = None, {}
        if is_random:
            after, key = jax.random.split(jax.random.wrap_key_data(memory.key, impl=KEYS))
            new = {"key": jax.random.key_data(after)}
        like = _as_started(tx, leaves)
        inner, resting = read(leaves, memory.inner, like)
        out, inner = tx.run(leaves, inner, step)
        return out, new | {"inner": write(leaves, inner, like, key, resting)}

    def through(leaves, memory, point):
        inner, _ = read(leaves, memory.inner, _as_started(tx, leaves))
        return leaves.replace(params=point(tx, leaves, inner).params)

    wrapper = treewise(run, tx, init_shared=init_shared if is_random else None)
    return wrapper._replace(start=start, through=through)


def _together(parts: dict, x: Any, place: bool) -> Any:
    """What is kept of an array as one entry of a tree, lying as it does."""
    if place:
        for n, part in parts.items():
            lies = beside(x, part)
            parts[n] = follow(x, part) if lies is part else follow(x, lies.array, lies.axes)
    return parts[""] if set(parts) == {""} else remember(**parts)


def _as_started(tx: Any, leaves: Any) -> Any:
    """The shapes of the state of tx for this table."""

    def start(params):
        return tx.start(leaves.replace(params=params, updates=params, gradients=params))

    like = leaves.params or [
        u.astype(d) for u, d in zip(leaves.updates, leaves.dtypes, strict=True)
    ]
    return jax.eval_shape(start, like)


def _names(x: Any, found: set) -> None:
    """The names of all memory in a state, those inside included."""
    if is_memory(x):
        for name in x._fields:
            if goes_on(part := getattr(x, name)):
                _names(part, found)
            else:
                found.add(name)
    elif isinstance(x, (dict, State)):
        for key, part in x.items():
            if key != "count":
                _names(part, found)
    elif isinstance(x, (tuple, list)):
        for part in x:
            _names(part, found)


def _mapped(leaves: Any, x: Any, like: Any, names: set, change: Callable) -> Any:
    """A state with change(name, its number, array, its entry in `like`) in all memory of these names."""
    structure, seen = leaves.layout.structure, itertools.count()

    def entry(name, part, like):
        columns = (structure.flatten_up_to(tree) for tree in (part, like))
        rows = zip(*columns, strict=True)
        return structure.unflatten([change(name, next(seen), *row) for row in rows])

    def walk(x, like):
        if is_memory(x):
            new = {}
            for n in x._fields:
                two = getattr(x, n), getattr(like, n)
                kept = n in names and not goes_on(two[1])
                new[n] = entry(n, *two) if kept else walk(*two)
            return x._replace(**new)
        if isinstance(x, (dict, State)):
            new = {k: y if k == "count" else walk(y, like[k]) for k, y in x.items()}
            return as_given(x, new) if is_state(x) else new
        if isinstance(x, (tuple, list)) and not hasattr(x, "_fields"):
            return type(x)(walk(y, z) for y, z in zip(x, like, strict=True))
        return x

    return walk(x, like)
