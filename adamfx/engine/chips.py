"""Matrices shared out over the chips: each works on whole ones of its own, and no product crosses a chip."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from adamfx.engine.each import each
from adamfx.engine.placement import (
    check_one_kind,
    in_one_piece,
    is_typed,
    names_of,
    partitions,
    reshard,
    whole,
)

Array = Any
Row = Any  # a tree of arrays with the axes of one stack in front, of which the first is matrices (..., m, n)
FREE = PartitionSpec.UNCONSTRAINED


def each_matrix(function: Callable, *columns: list) -> list:
    """[function(*row) for row in zip(*columns)], of stacks of matrices that it treats all alike.

    A row has stacks (..., m, n) of as many matrices each, and the function makes another one like the first.
    Several chips share it out, as `shared_out` says; a matrix that is alone of its shape is left to the
    compiler.
    """

    def of(rows: list[Row]) -> list:
        if are_several() and number_of(rows) > 1:
            return shared_out(lambda s: [function(*s[0])], [rows], lambda row: row[0])[0]
        alone = in_one_piece(function, lambda *row: row[0])
        return each(alone, *map(list, zip(*rows, strict=True)))

    return _by_kind(of, columns)


def joined(function: Callable, *columns: list) -> list:
    """The same, on every chip, of one stack for all rows with matrices of one shape, which lie whole there.

    What the function makes of a row is a tree of arrays with the axes of the stack in front. (Not shared
    out: in a loop beside other exchanges, the CPU's chips wait for each other in different ones for ever.)
    """

    def of(rows: list[Row]) -> list:
        kind = _Kind(rows, names=())
        return jax.tree.map(whole, kind.split(function(*kind.joined(jax.tree.map(whole, rows)))))

    return _by_kind(of, columns)


def _by_kind(function: Callable[[list[Row]], list], columns: tuple) -> list:
    """The rows that the function makes of those of each kind."""
    rows = list(zip(*columns, strict=True))
    out: list[Any] = [None] * len(rows)
    for members in kinds_of(rows):
        for j, x in zip(members, function([rows[j] for j in members]), strict=True):
            out[j] = x
    return out


def shared_out(
    function: Callable, kinds: list[list[Row]], like: Callable, *read: Any
) -> list[list]:
    """The rows of function([the stack of all matrices of a kind, for each kind], *read).

    Each stack moves once over the chips that `jax.set_mesh` has set, and moves back: 2 bytes over the
    chips for each byte. A number of matrices that the chips do not divide is filled up; where there are
    more chips than matrices, axes of the mesh that are not needed do the same work.

    Args:
      like: `like(row)` is a tree of arrays of a row as which the results lie, and whose shape they have.
    """
    check_one_kind(jax.sharding.get_abstract_mesh())
    of = [_Kind(rows, _axes_for(number_of(rows), _sizes())) for rows in kinds]

    def on_each(work: Callable, given: list, ins: list, outs: list) -> list:
        # Unchecked: what is gathered counts as different on each chip, as does what eigh for a TPU makes.
        specs = (ins, *[PartitionSpec() for _ in read])
        return jax.shard_map(work, in_specs=specs, out_specs=outs, check_vma=False)(given, *read)

    def from_parts(given: list, *read: Any) -> list:
        stacks = [kind.items(rows) for kind, rows in zip(of, given, strict=True)]
        return [kind.parts(y, like) for kind, y in zip(of, function(stacks, *read), strict=True)]

    if not is_typed(jax.tree.leaves(kinds)[0]):
        shares = [PartitionSpec(kind.names) for kind in of]
        found = on_each(function, [kind.handed_over() for kind in of], shares, shares)
        return [kind.handed_back(y) for kind, y in zip(of, found, strict=True)]
    specs = [[kind.specs(x) for kind in of] for x in (lambda row: row, like)]
    found = on_each(from_parts, [kind.laid() for kind in of], *specs)
    return [kind.laid_back(y, like) for kind, y in zip(of, found, strict=True)]


def are_several() -> bool:
    """Whether `jax.set_mesh` has set several chips, and this is not the program of one of them."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.manual_axes and math.prod(mesh.shape.values()) > 1


def kinds_of(rows: Sequence[Row]) -> list[list[int]]:
    """Which rows have matrices of one shape, and are to make one stack.

    Those that lie otherwise make one of their own, if each has enough matrices for all chips; else they
    would first have to move to where the first one lies.
    """
    kinds: dict[Any, dict[str, list[int]]] = {}
    for j, row in enumerate(rows):
        xs, structure = jax.tree.flatten(row)
        shapes = tuple((x.shape[_depth(row) :], x.dtype) for x in xs)
        ways = kinds.setdefault((structure, shapes), {})
        ways.setdefault(str(_lies(xs[0], _depth(row))), []).append(j)
    found: list[list[int]] = []
    for ways in kinds.values():
        least = min(number_of([rows[j] for j in some]) for some in ways.values())
        apart = are_several() and least >= _size(tuple(_sizes()))
        found += ways.values() if apart else [sorted(itertools.chain(*ways.values()))]
    return found


def number_of(rows: Sequence[Row]) -> int:
    """How many matrices they have."""
    return sum(math.prod(jax.tree.leaves(row)[0].shape[:-2]) for row in rows)


class _Kind:
    """Rows that make one stack, to be shared out along the axes `names` of the mesh."""

    def __init__(self, rows: Sequence[Row], names: tuple):
        self.rows, self.names = rows, names

    def joined(self, rows: Sequence[Row]) -> Row:
        """As one stack (n, ...) for each column, filled up with copies of the first matrix."""
        depths = [_depth(row) for row in self.rows]
        missing = -number_of(self.rows) % _size(self.names)

        def of(*xs: Array) -> Array:
            stacks = [
                x.reshape(math.prod(x.shape[:depth]), *x.shape[depth:])
                for x, depth in zip(xs, depths, strict=True)
            ]
            stack = jnp.concatenate(stacks)
            more = jnp.broadcast_to(stack[:1], (missing, *stack.shape[1:]))
            return jnp.concatenate([stack, more]) if missing else stack

        return jax.tree.map(of, *rows)

    def split(self, found: Any) -> list:
        """The rows of a tree of stacks, with their own axes again."""
        out, start = [], 0
        for row in self.rows:
            stack = jax.tree.leaves(row)[0].shape[:-2]
            at = slice(start, start + math.prod(stack))
            out.append(
                jax.tree.map(lambda y, at=at, s=stack: y[at].reshape(*s, *y.shape[1:]), found)
            )
            start = at.stop
        return out

    # ---- where types tell how arrays lie: all go where the first row lies, and chips exchange parts

    def lies(self, like: Callable = lambda row: row) -> Any:
        """For what `like` takes of a row, the axes of the mesh along its axes, without the stack."""
        first = self.rows[0]
        return jax.tree.map(lambda x: PartitionSpec(*_lies(x, _depth(first))), like(first))

    def specs(self, like: Callable = lambda row: row) -> list:
        """The same for each row, with its stack, which is whole."""
        before = [[None] * _depth(row) for row in self.rows]
        return [jax.tree.map(lambda s, b=b: PartitionSpec(*b, *s), self.lies(like)) for b in before]

    def laid(self) -> list[Row]:
        return [jax.tree.map(_lie, row, s) for row, s in zip(self.rows, self.specs(), strict=True)]

    def items(self, rows: list[Row]) -> Row:
        """On one chip: whole matrices of its own, from its parts of all."""
        of = lambda x, spec: _to_items(x, spec, self.names)  # noqa: E731
        return jax.tree.map(of, self.joined(rows), self.lies())

    def parts(self, found: Any, like: Callable) -> list:
        """The way back, row by row."""
        of = lambda y, spec: _to_parts(y, spec, self.names)  # noqa: E731
        return self.split(jax.tree.map(of, found, self.lies(like)))

    def laid_back(self, found: list, like: Callable) -> list:
        back = lambda x, y: reshard(y, jax.typeof(x).sharding.spec)  # noqa: E731
        return [jax.tree.map(back, like(row), y) for row, y in zip(self.rows, found, strict=True)]

    # ---- where they do not: the compiler moves the stack, along one axis of the mesh after the other

    def handed_over(self) -> Row:
        def of(x: Array) -> Array:
            for names in self._ever_more():
                x = _lie(x, PartitionSpec(names or None, *[FREE] * (x.ndim - 1)))
            return _lie(x, PartitionSpec(self.names, *[None] * (x.ndim - 1)))

        return jax.tree.map(of, self.joined(self.rows))

    def handed_back(self, found: Any) -> list:
        def of(y: Array) -> Array:
            for names in reversed(self._ever_more()):
                y = _lie(y, PartitionSpec(names or None, *[FREE] * (y.ndim - 1)))
            return y

        return self.split(jax.tree.map(of, found))

    def _ever_more(self) -> list[tuple]:
        return [self.names[:i] for i in range(len(self.names) + 1)]


def _to_items(x: Array, spec: PartitionSpec, names: tuple) -> Array:
    """A chip's parts of all items of a stack, (n, *part), as a share of the items, whole.

    By one exchange, however many axes of the mesh cut them: what a chip sends to each other one, and what
    it gets, is a row of an axis of its own.
    """
    cuts = _cuts(spec, x.ndim - 1)
    alike, moved, gathered = _roles(cuts, names)
    n, *part = x.shape
    x = x.reshape(*_each_size(names), n // _size(names), *part)
    for name in reversed(alike):
        i = jax.lax.axis_index(name)
        x = jax.lax.dynamic_index_in_dim(x, i, names.index(name), keepdims=False)
    if moved:
        x = x.reshape(_size(moved), *x.shape[len(moved) :])
        x = jax.lax.all_to_all(x, moved, 0, 0)
    x = jax.lax.all_gather(x, gathered) if gathered else x
    sources = gathered + moved
    x = x.reshape(*_each_size(sources), n // _size(names), *part)
    x = x.transpose(_beside(cuts, sources))
    dims = [d * _size(cut) for d, cut in zip(part, cuts, strict=True)]
    return x.reshape(n // _size(names), *dims)


def _to_parts(y: Array, spec: PartitionSpec, names: tuple) -> Array:
    """The way back of `_to_items`."""
    cuts = _cuts(spec, y.ndim - 1)
    alike, moved, gathered = _roles(cuts, names)
    sources = gathered + moved
    n, *dims = y.shape
    part = [d // _size(cut) for d, cut in zip(dims, cuts, strict=True)]
    apart = [m for cut, d in zip(cuts, part, strict=True) for m in (*_each_size(cut), d)]
    y = y.reshape(n, *apart).transpose(np.argsort(_beside(cuts, sources)))
    for name in gathered:
        y = jax.lax.dynamic_index_in_dim(y, jax.lax.axis_index(name), 0, keepdims=False)
    if moved:
        y = y.reshape(_size(moved), n, *part)
        y = jax.lax.all_to_all(y, moved, 0, 0)
    y = jax.lax.all_gather(y, alike) if alike else y
    sharing = alike + moved
    y = y.reshape(*_each_size(sharing), n, *part)
    order = [*map(sharing.index, names)]
    y = y.transpose(*order, *range(len(order), y.ndim))
    return y.reshape(n * _size(names), *part)


def _roles(cuts: list[tuple], names: tuple) -> tuple[tuple, tuple, tuple]:
    """The axes of the mesh that share out what is the same along them, that also cut it, that only cut it."""
    cutting = tuple(itertools.chain(*cuts))
    alike = tuple(n for n in names if n not in cutting)
    moved = tuple(n for n in names if n in cutting)
    return alike, moved, tuple(n for n in cutting if n not in names)


def _beside(cuts: list[tuple], sources: tuple) -> list[int]:
    """The order that takes (*sources, n, *part) to (n, *dims), each source in front of the axis it cuts."""
    order = [len(sources)]
    for d, cut in enumerate(cuts):
        order += [*map(sources.index, cut), len(sources) + 1 + d]
    return order


def _axes_for(count: int, sizes: Any) -> tuple[str, ...]:
    """The axes of the mesh that have no more chips than needed for one matrix each; or all of them."""
    sets = [names for n in range(1, len(sizes) + 1) for names in itertools.combinations(sizes, n)]
    enough = [s for s in sets if math.prod(sizes[n] for n in s) >= count]
    return min(enough, key=lambda s: math.prod(sizes[n] for n in s), default=tuple(sizes))


def _depth(row: Row) -> int:
    """How many axes the stack has."""
    return jax.tree.leaves(row)[0].ndim - 2


def _lies(x: Array, depth: int) -> list:
    """The axes of the mesh along those of an array behind its stack; where no type tells, none."""
    if not is_typed(x):
        return []
    return partitions(jax.typeof(x).sharding.spec, x.ndim)[depth:]


def _cuts(spec: PartitionSpec, ndim: int) -> list[tuple]:
    """For each axis of an array, the axes of the mesh that cut it."""
    return [names_of(part) for part in partitions(spec, ndim)]


def _sizes() -> Any:
    return jax.sharding.get_abstract_mesh().shape


def _each_size(names: tuple) -> list[int]:
    """How many chips each of these axes of the mesh has."""
    return [_sizes()[n] for n in names]


def _size(names: tuple) -> int:
    return math.prod(_each_size(names))


def _lie(x: Array, spec: PartitionSpec) -> Array:
    """x lying so: an order, or where axes are automatic a word to the compiler."""
    return reshard(x, spec) if is_typed(x) else jax.lax.with_sharding_constraint(x, spec)
