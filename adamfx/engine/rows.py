"""The rows of a stretch: what the function of one leaf is called with, and which of them are alike for it."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamfx.engine import trees
from adamfx.engine.each import each
from adamfx.engine.leaves import Leaves
from adamfx.engine.memory import remember
from adamfx.engine.norms import norms
from adamfx.engine.words import Here, Step, check_needs
from adamfx.engine.working import Working

Array = Any


class Row(NamedTuple):
    """What of one leaf goes into the function; memories and `given` are of the blocks that act on it."""

    update: Array
    gradient: Array
    param: Any  # None where no block asks for it
    memories: list[dict[str, Array]]
    sizes: Any  # the norms that the first block asked for, by name
    given: list[tuple[dict, Any]]  # what the names `per_leaf` of a block hold, and its random key


class Kind(NamedTuple):
    """What rows have in common for which the function is traced once."""

    own: tuple  # of each block: what its mask, or its `each`, says; False where it does not act
    dtype: Any  # of the arithmetic
    to: Any  # to which the update will be rounded

    @property
    def real(self) -> Any:
        return trees.real_dtype(self.dtype)

    def acting(self, of_blocks: Sequence) -> list:
        """Of a list with one entry per block, those of the blocks that act."""
        return [x for x, own in zip(of_blocks, self.own, strict=True) if own is not False]


class Own:
    """What `each` says of a leaf, however false it may look; equal where one function serves both."""

    def __init__(self, value: Any):
        self.value = value
        try:
            hash(value)
            self._key: Any = (type(value), value)
        except TypeError:
            self._key = repr(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Rows:
    """The rows of these blocks and this table of leaves."""

    def __init__(self, blocks: list[Working], leaves: Leaves, extra: Mapping[str, Any]):
        for block in blocks:
            check_needs(block.key, block.spec.needs, leaves, extra)
        self.blocks, self.leaves = blocks, leaves
        owns = zip(*(_own(block, leaves) for block in blocks), strict=True)
        self.kinds = [Kind(*x) for x in zip(owns, leaves.wide(), leaves.dtypes, strict=True)]
        self._given = [_given(block, leaves, extra) for block in blocks]
        for real in {kind.real for kind in set(self.kinds)}:
            for block in blocks:
                block.spec_for(real)  # here, not inside of a function of one leaf

    def of(self, sizes: list | None = None) -> list[Row]:
        """One for each leaf."""
        every = [*range(len(self.blocks))]
        return [self._row(j, every, sizes) for j in range(len(self.kinds))]

    def _row(self, j: int, numbers: list[int], sizes: list | None = None) -> Row:
        """What the blocks of these numbers see of leaf j."""
        leaves, blocks, own = self.leaves, self.blocks, self.kinds[j].own
        acting = [i for i in numbers if own[i] is not False]
        needs = any("params" in blocks[i].spec.needs for i in acting)
        return Row(
            leaves.updates[j],
            leaves.gradients[j],
            leaves.params[j] if needs and leaves.params is not None else None,
            [blocks[i].memory(j) for i in acting],
            sizes[j] if sizes and own[0] is not False else None,
            [self._given[i][j] for i in acting],
        )

    # ---- what a block asks of all leaves first ----

    def sums(self, i: int, step: Step) -> Any:
        """What `sums` of block i gives, added over the leaves."""
        dtype = self.blocks[i].wide
        parts = [x for x in self._ask(i, "sums", step) if x]
        if not parts:
            return _NoSums(dtype)

        def total(name: str) -> Array:
            return functools.reduce(jax.lax.add, [p[name].astype(dtype) for p in parts])

        return remember(**{name: total(name) for name in parts[0]})

    def norms(self, i: int, step: Step) -> list[dict[str, Array]]:
        """The norms of what `norms` of block i gives of each leaf."""
        parts = self._ask(i, "norms", step)
        found = iter(norms([[x] for part in parts for x in part.values()]))
        return [{n: next(found) for n in part} for part in parts]

    def _ask(self, i: int, function: str, step: Step) -> list[dict[str, Array]]:
        """What this function of block i returns for each row on which the block acts; else {}."""
        block = self.blocks[i]
        found: list[dict] = [{} for _ in self.kinds]
        for kind, members in alike(self.kinds):
            if kind.own[i] is False:
                continue
            at = trees.cast_floats(step, kind.real)
            ask = getattr(block.spec_for(kind.real), function)

            def one(*of_row: Any, kind: Kind = kind, at: Any = at, ask: Callable = ask) -> dict:
                row = widened(Row(*of_row), kind.dtype)
                here = here_of(
                    block, kind, kind.own[i], row, row.memories[0], row.given[0], shared=at
                )
                made = ask(row.update, here)
                if not isinstance(made, dict):
                    raise TypeError(
                        f"{block.key}: {function} must return {{name: array}}, got {made!r}"
                    )
                return made

            results = each(one, *columns([self._row(j, [i]) for j in members]))
            for j, made in zip(members, results, strict=True):
                found[j] = made
        return found


class _NoSums:
    """The sums over no leaves: zero, whatever their name."""

    def __init__(self, dtype: Any):
        self._zero = jnp.zeros((), dtype)

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._zero

    def _asdict(self) -> Any:
        return collections.defaultdict(lambda: self._zero)


def alike(kinds: Sequence) -> list[tuple[Any, list[int]]]:
    """Each kind once, with the numbers of those that are of it."""
    found: dict[Any, list[int]] = {}
    for j, kind in enumerate(kinds):
        found.setdefault(kind, []).append(j)
    return [*found.items()]


def columns(rows: list[Row]) -> list[list]:
    return [list(column) for column in zip(*rows, strict=True)]


def widened(row: Row, dtype: Any) -> Row:
    """The row, with update, gradient and parameter as the arithmetic wants them."""
    u, g, p = (None if x is None else x.astype(dtype) for x in row[:3])
    return row._replace(update=u, gradient=g, param=p)


def here_of(
    block: Working,
    kind: Kind,
    own: Any,
    row: Row,
    memory: dict,
    given: tuple[dict, Any],
    **more: Any,
) -> Here:
    """What a function of this block may read of a widened row, of which `memory` and `given` are its own."""
    extra, key = given
    return Here(
        block.name,
        row.param if "params" in block.spec.needs else None,
        row.gradient,
        _as_remembered(memory, kind),
        kind.to,
        own.value if isinstance(own, Own) else own,
        extra=_as_remembered(extra, kind) if extra else None,
        key=key,
        **more,
    )


def _as_remembered(arrays: Mapping[str, Array], kind: Kind) -> Any:
    """By name, as the arithmetic wants them: floats in its dtype, anything else as it is."""

    def wide(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return x.astype(kind.dtype if jnp.iscomplexobj(x) else kind.real)

    return remember(**{name: wide(x) for name, x in arrays.items()})


def _own(block: Working, leaves: Leaves) -> list:
    """What `each`, or the mask, says of each row; False where the block does not act."""
    spec = block.spec
    if spec.mask is None or spec.mask is True:
        acts = [True] * len(leaves)
    else:
        check_needs(block.key, ("params",), leaves, {})
        mask = trees.evaluate_mask(block.key, spec.mask, leaves.param_tree())
        acts = leaves.layout.pick(mask)
    if spec.each is None:
        return acts
    check_needs(block.key, ("params",), leaves, {})
    found = trees.spread(block.key, "tree of facts", spec.each, leaves.param_tree())
    return [a and Own(x) for a, x in zip(acts, leaves.layout.pick(found), strict=True)]


def _given(block: Working, leaves: Leaves, extra: Mapping[str, Any]) -> list[tuple[dict, Any]]:
    """For each row: what its `per_leaf` names hold, and a random key of this step."""
    spec, layout = block.spec, leaves.layout
    found = {n: layout.column(n, extra[n], n) for n in spec.per_leaf}
    keys: list = [None] * len(leaves)
    if spec.seed is not None:
        key = block.draw()
        keys = [jax.random.fold_in(key, j) for j in layout.rows]
        if spec.of_matrices:
            stacks = [u.shape[:-2] for u in leaves.updates]
            keys = [jax.random.split(k, s) if s else k for k, s in zip(keys, stacks, strict=True)]
    return [({n: c[j] for n, c in found.items()}, key) for j, key in enumerate(keys)]
