"""What blocks remember, by name."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any


class Memory:
    """What a block remembers, by name: `state["scale_by_moments"].mu`.

    `remember(mu=..., nu=...)` makes one: a named tuple, which JAX, Flax and Orbax know.
    """

    __slots__ = ()
    _fields: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no {name!r} here; this block remembers {', '.join(self._fields)}")

    def __reduce__(self):
        return _remember, (self._fields, tuple(getattr(self, name) for name in self._fields))


TYPES: dict[tuple[str, ...], Any] = {}


def _memory_type(names: tuple[str, ...]) -> Any:
    if names not in TYPES:
        bases = (Memory, collections.namedtuple("Memory", names))
        made = type("Memory", bases, {"__slots__": ()})
        return TYPES.setdefault(names, made)  # of two threads, one wins
    return TYPES[names]


def _remember(names: tuple[str, ...], values: Iterable) -> Memory:
    return _memory_type(names)(*values)


def remember(**fields: Any) -> Any:
    """A Memory with these fields."""
    return _remember(tuple(fields), tuple(fields.values()))


def is_memory(x: Any) -> bool:
    """Whether it is what one block remembers."""
    return isinstance(x, Memory)
