"""The same function on every row of a table, traced once; and one number of many arrays."""

from __future__ import annotations

import functools
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


SMALL, TOGETHER = 4096, 16


def parts(function: Callable, join: Callable, reduce: Callable, arrays: list) -> list:
    """reduce(function(x)) of the arrays, joined already where a few of them are taken together.

    Small vectors of one kind, which real models have by the hundred, are joined number by number first:
    one loop for sixteen of them, where each of its own would take the compiler as long as they do. Larger
    arrays, and matrices, may lie on devices in different ways.
    """
    groups: list[list] = []
    open_: dict[Any, list] = {}
    for x in arrays:
        kind = jax.typeof(x) if x.ndim == 1 and x.size <= SMALL else None
        group = open_.get(kind)
        if kind is None or group is None or len(group) == TOGETHER:
            group = open_[kind] = []
            groups.append(group)
        group.append(x)
    return each(lambda xs: reduce(functools.reduce(join, map(function, xs))), groups)
