"""One entry of a state by name: read it, or set it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from adamfx.checks import shown
from adamfx.combine import LIVE
from adamfx.engine import trees
from adamfx.engine.memory import is_memory
from adamfx.engine.packed import State, as_given, goes_on
from adamfx.values.value import match_name


def get(state: Any, name: str) -> Any:
    """One entry of a state: `get(state, "count")`, `get(state, "scale_by_moments.mu")`, `get(state, "mu")`.

    Args:
      state: of a transformation, or a tuple, list or dict of such states.
      name: the dotted path of the entry, or any unambiguous end of it. A wrapper's name stands before
        those inside, a group's label too: "partition.embed.scale_by_lr.learning_rate". "count" alone is
        that of the whole.

    Raises KeyError for an unknown or ambiguous name, listing the known ones.
    """
    known = dict(entries(_checked("get", state), ""))
    return known[match_name(name, list(known), "get", "entry of this state")]


def set(state: Any, **changes: Any) -> Any:
    """The state with entries changed, by the names of `get`: `set(state, count=0)`.

    Dtypes, shapes and structure stay, so nothing is compiled again. Raises KeyError for an unknown name,
    ValueError for a value of another shape or structure.
    """
    known = [name for name, _ in entries(_checked("set", state), "")]
    exact = {match_name(n, known, "set", "entry of this state"): x for n, x in changes.items()}
    return _changed(state, "", exact)


def _checked(who: str, state: Any) -> Any:
    if not (isinstance(state, (dict, State, tuple, list)) or is_memory(state)):
        raise TypeError(
            f"{who}: state must be that of a transformation, or a tuple, list or dict of such, got "
            f"{shown(state)}"
        )
    return state


def _inside(x: Any, prefix: str) -> Iterator[tuple[Any, Any, str]]:
    """(key, part, its name) of a state, a memory, or a container of states; the name of `inner` is none."""
    if is_memory(x):
        for name in x._fields:
            yield name, getattr(x, name), prefix if name == "inner" else f"{prefix}.{name}"
        return
    pairs = x.items() if isinstance(x, (dict, State)) else enumerate(x)
    for key, part in pairs:
        if key != LIVE:
            yield key, part, f"{prefix}.{key}" if prefix else str(key)


def entries(x: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, what stands there) of all that a state holds, but for live hyperparameters."""
    for _, part, name in _inside(x, prefix):
        if goes_on(part):
            yield from entries(part, name)
        elif jax.tree.leaves(part):
            yield name, part


def _changed(x: Any, prefix: str, changes: dict[str, Any]) -> Any:
    new = {}
    for key, part, name in _inside(x, prefix):
        if name in changes and not goes_on(part):
            new[key] = _like(name, part, changes[name])
        else:
            new[key] = _changed(part, name, changes) if goes_on(part) else part
    if is_memory(x):
        return x._replace(**new)
    if isinstance(x, (dict, State)):
        return as_given(x, {**x, **new})
    values = new.values()
    return type(x)(*values) if hasattr(x, "_fields") else type(x)(values)


def _like(name: str, old: Any, new: Any) -> Any:
    difference = trees.same_structure(new, old)
    if difference:
        raise ValueError(f"set: {name} is another tree in the state: {difference}")

    def one(old: Any, new: Any) -> Any:
        return None if old is None else trees.as_like("set", name, new, old)

    return jax.tree.map(one, old, new, is_leaf=trees.is_none)
