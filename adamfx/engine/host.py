"""Memory that rests in the memory of the host, and is fetched where the arithmetic is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

Array = Any
TOGETHER = 2  # leaves whose memory is on the device at a time: one travels, one is worked on


def fetched(tree: Any) -> Any:
    """The tree with every array of it on the device."""
    return jax.tree.map(
        lambda x: jax.device_put(x, jax.memory.Space.Device) if _rests(x) else x, tree
    )


def rested(tree: Any) -> Any:
    """The tree with its arrays on the host, but for those too small to be worth the way."""

    def one(x: Any) -> Any:
        large = hasattr(x, "size") and x.size >= 4096
        return jax.device_put(x, jax.memory.Space.Host) if large and not _rests(x) else x

    return jax.tree.map(one, tree)


def _rests(x: Any) -> bool:
    if isinstance(x, Tracer):
        return getattr(jax.typeof(x), "memory_space", None) == jax.memory.Space.Host
    kind = getattr(getattr(x, "sharding", None), "memory_kind", None)
    return kind == "pinned_host"


class InTurn:
    """`each` of leaf functions (x, g, p, memories, ...) -> (x, g, memories), one leaf behind the other.

    A leaf's memory is fetched when that of the leaf before the last one is back on the host: without that
    XLA fetches everything first, and there is no room won.
    """

    def __init__(self) -> None:
        self.back: list = []  # the memories of the leaves before, on the host

    def __call__(self, function: Callable, *columns: list) -> list:
        rows = list(zip(*columns, strict=True))
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(rows))
        function = jax.jit(function) if traced else function
        out = []
        for x, g, p, memories, *more in rows:
            if traced and len(self.back) >= TOGETHER:
                memories, _ = jax.lax.optimization_barrier((memories, self.back[-TOGETHER]))
            x, g, memories = function(x, g, p, fetched(memories), *more)
            memories = rested(memories)
            self.back.append([m for m in jax.tree.leaves(memories) if _rests(m)])
            out.append((x, g, memories))
        return out
