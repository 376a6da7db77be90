"""The same function on every row of a table, traced once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer


def each(function: Callable, *columns: list) -> list:
    """[function(*row) for row in zip(*columns)], in a program traced once per kind of row.

    Rows of one structure, shape and dtype call one inner function, and many of them call a function
    of several rows: a thousand leaves take about sixty calls. XLA inlines both. Outside a trace, and
    for the only row of its kind, the function itself is called.
    """
    rows = list(zip(*columns, strict=True))
    flat = [jax.tree.flatten(row) for row in rows]
    if not any(isinstance(x, Tracer) for leaves, _ in flat for x in leaves):
        return [function(*row) for row in rows]
    kinds: dict[Any, list[int]] = {}
    for j, (leaves, structure) in enumerate(flat):
        kinds.setdefault((structure, tuple(map(jax.typeof, leaves))), []).append(j)
    out: list = [None] * len(rows)
    for (structure, _), members in kinds.items():
        if len(members) == 1:
            out[members[0]] = function(*rows[members[0]])
            continue
        many, size = _several(function, structure), max(math.isqrt(len(members)), 1)
        for i in range(0, len(members), size):
            chosen = members[i : i + size]
            results = many([flat[j][0] for j in chosen])
            for j, result in zip(chosen, results, strict=True):
                out[j] = result
    return out


def _several(function: Callable, structure: Any) -> Callable:
    @jax.jit
    def one(*leaves: Any) -> Any:
        return function(*structure.unflatten(leaves))

    @jax.jit
    def several(rows: list) -> list:
        return [one(*leaves) for leaves in rows]

    def of(rows: list) -> list:
        return several(rows) if len(rows) > 1 else [one(*rows[0])]

    return of
