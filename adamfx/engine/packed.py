"""The state of a sentence: a mapping by block key, whose scalars travel as one array.

A jitted step of a small model takes as long as it has buffers, and a block remembers several scalars.
So the counter and all scalars of the blocks are one vector, floats as they are and whole numbers as
two halves, which floats hold exactly. `state["count"]` and `state["scale_by_lr"].learning_rate` read
them by name. A plain dict of the same names is a state, too, and stays one from step to step.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamfx.engine.memory import is_memory, remember
from adamfx.engine.placement import is_explicit, replicate

Array = Any
SCALARS = "scalars"  # the part of a state that holds them


class Slot(NamedTuple):
    """Where a scalar, or a few numbers, stand in the vector, and what they are."""

    place: int
    kind: str  # "float", "int" in two places each, "bool"
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * (1 + (self.kind == "int"))


class Part(NamedTuple):
    """What is known of one block: all its names in order, the slots of those that are scalars, and
    which part of the state holds the rest; 0 for none."""

    names: tuple[str, ...] | None  # None where it is no Memory
    slots: tuple[tuple[str, Slot], ...]
    place: int = 0


class State(tuple):
    """A state; see the head of this file.

    To JAX, Flax and Orbax it is a named tuple of the vector and of what each block remembers besides;
    to all others a dict that is not changed in place. `{**state}` and `state | {...}` are plain dicts.
    """

    __slots__ = ()
    _fields: tuple[str, ...] = (SCALARS,)
    _parts: dict[str, Part] = {}  # noqa: RUF012  # of a type of states, never changed

    def __new__(cls, *parts: Any, **named: Any) -> State:
        return super().__new__(cls, (*parts, *(named[n] for n in cls._fields[len(parts) :])))

    def __getattr__(self, name: str) -> Any:
        if name in type(self)._fields:
            return tuple.__getitem__(self, self._fields.index(name))
        raise AttributeError(
            f"no {name!r} here; read state['count'], and what a block remembers by its name"
        )

    def __getitem__(self, key: Any) -> Any:
        if key not in self._parts:
            raise KeyError(f"no {key!r} in this state, it has {', '.join(self._parts)}")
        names, slots, place = self._parts[key]
        found = _scalars(slots, tuple.__getitem__(self, 0))
        if key == "count":
            return found["count"]
        rest = tuple.__getitem__(self, place) if place else remember()
        if names is None or not found:
            return rest
        return remember(**{n: found[n] if n in found else getattr(rest, n) for n in names})

    def __setitem__(self, key: str, x: Any) -> None:
        raise TypeError(f"a state is not changed in place; write state = fx.set(state, {key}=...)")

    def __iter__(self) -> Iterator[str]:  # not asked by JAX, which reads the tuple itself
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, key: Any) -> bool:
        return key in self._parts

    def keys(self) -> Any:
        return self._parts.keys()

    def values(self) -> list:
        return [self[key] for key in self._parts]

    def items(self) -> list[tuple[str, Any]]:
        return [(key, self[key]) for key in self._parts]

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self._parts else default

    def __or__(self, other: Mapping) -> dict[str, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping) -> dict[str, Any]:
        return {**other, **self}

    def __repr__(self) -> str:
        return repr({**self})

    def _repr_html_(self) -> str:
        """What is in it as a table, for a notebook."""
        return importlib.import_module("adamfx.notebook.tables").as_html(self)

    def __reduce__(self):
        return _again, (type(self)._fields, self._parts, tuple(tuple.__iter__(self)))

    def like(self, parts: Mapping[str, Any]) -> State:
        """This state with all that it holds replaced, by its own names."""
        found = []
        for key, part in self._parts.items():
            for name, _ in part.slots:
                found.append(parts[key] if key == "count" else getattr(parts[key], name))
        slots = [slot for part in self._parts.values() for _, slot in part.slots]
        old = tuple.__getitem__(self, 0)
        new = pack(found, slots, old.dtype)
        if not isinstance(new, Tracer) and getattr(old, "sharding", None) is not None:
            # Committed to devices only where the old one is: a change would compile the step again.
            new = jax.device_put(new, old.sharding) if getattr(old, "committed", True) else new
        rest = [_rest(parts[key], part) for key, part in self._parts.items() if part.place]
        return type(self)(new, *rest)


TYPES: dict[Any, type[State]] = {}


def _state_type(fields: tuple[str, ...], parts: dict[str, Part]) -> type[State]:
    key = fields, tuple(parts.items())
    if key not in TYPES:
        made = type("State", (State,), {"__slots__": (), "_fields": fields, "_parts": parts})
        return TYPES.setdefault(key, made)  # of two threads, one wins
    return TYPES[key]


def _again(fields: tuple[str, ...], parts: dict[str, Part], values: tuple) -> State:
    return _state_type(fields, parts)(*values)


def packed(
    parts: Mapping[str, Any], scalars: Mapping[str, Any], dtype: Any, place: Callable
) -> State:
    """A new state of parts by key, of which `scalars` names those that the blocks remember once.

    Floats of this dtype, whole numbers of 32 bits and bools go into the vector, which `place` puts on
    its devices; others stay where they are.
    """
    layout: dict[str, Part] = {}
    found, taken, size = [], [], 0
    for key, x in parts.items():
        slots = []
        for name in scalars[key]:
            y = x if key == "count" else getattr(x, name)
            kind = kind_of(y, dtype)
            if kind:
                taken.append(Slot(size, kind, np.shape(y)))
                slots.append((name, taken[-1]))
                found.append(y)
                size += taken[-1].size
        layout[key] = Part(x._fields if is_memory(x) else None, tuple(slots))
    rest = {key: _rest(x, layout[key]) for key, x in parts.items() if key != "count"}
    kept = [
        key for key, x in rest.items() if not is_memory(x) or x._fields or not layout[key].slots
    ]
    for i, key in enumerate(kept):
        layout[key] = layout[key]._replace(place=i + 1)
    fields = [key + "_" * (key == SCALARS or hasattr(State, key)) for key in kept]
    made = _state_type((SCALARS, *fields), layout)
    return made(place(pack(found, taken, dtype)), *(rest[key] for key in kept))


def kind_of(x: Any, dtype: Any) -> str:
    """How a vector of this dtype holds it; "" if it does not."""
    if np.size(x) > 8:
        return ""
    return "float" if x.dtype == dtype else {"int32": "int", "bool": "bool"}.get(str(x.dtype), "")


def _rest(x: Any, part: Part) -> Any:
    """What a block remembers besides its scalars."""
    if part.names is None:
        return x
    taken = {name for name, _ in part.slots}
    return remember(**{n: getattr(x, n) for n in part.names if n not in taken})


def is_state(x: Any) -> bool:
    """Whether it looks like the state of a sentence."""
    return isinstance(x, State) or (isinstance(x, dict) and "count" in x)


def goes_on(x: Any) -> bool:
    """Whether states stand inside, so that `x` itself is no entry."""
    if is_memory(x) or is_state(x):
        return True
    parts = (
        x.values() if isinstance(x, (dict, State)) else x if isinstance(x, (tuple, list)) else ()
    )
    return any(goes_on(part) for part in parts)


def as_given(given: Any, parts: dict[str, Any]) -> Any:
    """The parts as a state of the kind that was given."""
    return given.like(parts) if isinstance(given, State) else parts


def plain(tree: Any) -> Any:
    """The tree with every state in it, also those inside of others, as a dict by name."""

    def one(x: Any) -> Any:
        return plain({**x}) if isinstance(x, State) else x

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, State))


def packed_as(like: Any, tree: Any) -> Any:
    """A tree of `plain`, with packed states where `like` has them."""

    def one(old: Any, new: Any) -> Any:
        if not isinstance(old, State):
            return new
        return old.like({key: packed_as(x, new[key]) for key, x in old.items()})

    states, structure = jax.tree.flatten(like, is_leaf=lambda x: isinstance(x, State))
    return structure.unflatten(map(one, states, structure.flatten_up_to(tree)))


def memories(state: Any, field: str) -> list[Any]:
    """What in a tree of states remembers something of this name, in order, those inside included."""

    def holds(x: Any) -> bool:
        return is_memory(x) and field in x._fields

    found = [x for x in jax.tree.leaves(plain(state), is_leaf=holds) if holds(x)]
    inside = [memories([y for n, y in x._asdict().items() if n != field], field) for x in found]
    return [y for x, xs in zip(found, inside, strict=True) for y in (x, *xs)]


# ---- the vector ----------------------------------------------------------------------------------


def pack(found: list, slots: list[Slot], dtype: Any) -> Array:
    """These scalars as one vector; of stacked states, as one vector each."""
    if all(isinstance(x, (np.ndarray, np.generic)) for x in found):
        return _pack(np, found, slots, dtype)
    if any(isinstance(x, Tracer) for x in found):
        first = next((x for x in found if is_explicit(x)), None)
        if first is not None:  # one mesh for all: vmap over sharded layers joins no others
            found = [x if is_explicit(x) else replicate(first, x) for x in found]
        return _pack(jnp, found, slots, dtype)
    return _pack_here(found, tuple(slots), np.dtype(dtype))


def _pack(xp: Any, found: list, slots: Any, dtype: Any) -> Array:
    columns = []
    for x, slot in zip(found, slots, strict=True):
        x = xp.asarray(x)
        stacked = x.shape[: x.ndim - len(slot.shape)]
        halves = [x >> 16, x & 0xFFFF] if slot.kind == "int" else [x]
        columns += [y.astype(dtype).reshape((*stacked, -1)) for y in halves]
    return xp.concatenate(columns, -1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pack_here(found: list, slots: tuple, dtype: Any) -> Array:
    return _pack(jnp, found, slots, dtype)


def _scalars(slots: Any, vector: Any) -> dict[str, Any]:
    """The scalars in these slots. Where no array stands (a sharding, a mask), that is what each one is."""
    if not slots:
        return {}
    (vector,) = jax.tree.leaves(vector) or [None]  # a variable of Flax nnx holds it
    if isinstance(vector, (Tracer, np.ndarray)):
        return _unpack(slots, vector)
    if isinstance(vector, jax.ShapeDtypeStruct):
        return jax.eval_shape(functools.partial(_unpack, slots), vector)
    if not hasattr(vector, "dtype") or not np.ndim(vector):
        return dict.fromkeys((name for name, _ in slots), vector)
    return _unpack_here(slots, vector)


def _unpack(slots: Any, vector: Any) -> dict[str, Any]:
    out = {}
    for name, slot in slots:
        n = math.prod(slot.shape)
        x = _numbers(vector, slot.place, slot)
        if slot.kind == "int":
            x = (x.astype(np.int32) << 16) | _numbers(vector, slot.place + n, slot).astype(np.int32)
        out[name] = x.astype(bool) if slot.kind == "bool" else x
    return out


def _numbers(vector: Any, i: int, slot: Slot) -> Any:
    end = i + math.prod(slot.shape)
    if isinstance(vector, np.ndarray):
        x = vector[..., i:end]
    else:
        x = jax.lax.slice_in_dim(vector, i, end, axis=-1)
    return x.reshape((*vector.shape[:-1], *slot.shape))


_unpack_here = jax.jit(_unpack, static_argnums=0)
