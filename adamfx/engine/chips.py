"""Matrices shared out over the chips: each works on whole ones of its own, and no product crosses a chip."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from adamfx.engine.each import each
from adamfx.engine.placement import (
    check_one_kind,
    in_one_piece,
    is_explicit,
    partitions,
    reshard,
    whole,
)

Array = Any
FREE = PartitionSpec.UNCONSTRAINED


def each_matrix(function: Callable, *columns: list, join: bool = False) -> list:
    """[function(*row) for row in zip(*columns)], of stacks of matrices that it treats all alike.

    A row has stacks (..., m, n) of as many matrices each; what the function makes of a row is a tree of
    arrays with the axes of the stack in front.

    Where `jax.set_mesh` has set several chips, the matrices of one shape are joined to one stack, the
    stack moves once over the chips, and moves back: 2 bytes over the chips for each byte of the matrices. A
    number of them that the chips do not divide is filled up with zeros; where there are more chips than
    matrices, axes of the mesh that are not needed do the same work. A matrix that is alone of its shape is
    left to the compiler.

    Args:
      join: whether to join them on one chip too, to run the function once per shape. Then they are
        whole on every chip before and afterwards.
    """
    mesh = jax.sharding.get_abstract_mesh()
    chips = 1 if mesh.manual_axes else math.prod(mesh.shape.values())
    if chips > 1:
        check_one_kind(mesh)
    rows = list(zip(*columns, strict=True))
    kinds: dict[Any, list[int]] = {}
    for j, row in enumerate(rows):
        kinds.setdefault(tuple((x.shape[-2:], x.dtype) for x in row), []).append(j)
    out: list[Any] = [None] * len(rows)
    for members in itertools.chain(*(_alike(m, rows, chips) for m in kinds.values())):
        some = [rows[j] for j in members]
        shapes = [row[0].shape[:-2] for row in some]
        if not join and (chips == 1 or sum(map(math.prod, shapes)) < 2):
            alone = in_one_piece(function, lambda *row: row[0])
            found = each(alone, *map(list, zip(*some, strict=True)))
        elif chips == 1:
            found = _split(function(*map(_joined, zip(*some, strict=True))), shapes)
        else:
            found = _shared_out(function, some, shapes, mesh, join)
        for j, x in zip(members, found, strict=True):
            out[j] = x
    return out


def _alike(members: list[int], rows: list[tuple], chips: int) -> list[list[int]]:
    """Those of a kind that lie alike, where each has enough matrices for all chips; else all in one.

    In a stack the others would first have to move to where the first one lies.
    """
    found: dict[str, list[int]] = {}
    for j in members:
        found.setdefault(str(_matrix_of(rows[j][0])), []).append(j)
    counts = [sum(math.prod(rows[j][0].shape[:-2]) for j in some) for some in found.values()]
    return list(found.values()) if min(counts) >= chips > 1 else [members]


def _stack(x: Array) -> Array:
    """With one axis in front of its matrices."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _joined(xs: tuple) -> Array:
    # Whole, else each would be sharded as the one beside it in the stack.
    return jnp.concatenate([whole(_stack(x)) for x in xs])


def _split(found: Any, shapes: list[tuple], end: Callable = lambda j, y: whole(y)) -> list:
    """The rows of a tree of stacks, with their own axes again."""
    out, start = [], 0
    for j, shape in enumerate(shapes):
        at = slice(start, start + math.prod(shape))
        out.append(
            jax.tree.map(
                lambda y, j=j, at=at, s=shape: end(j, y[at].reshape(*s, *y.shape[1:])), found
            )
        )
        start = at.stop
    return out


def _shared_out(function: Callable, rows: list, shapes: list[tuple], mesh: Any, join: bool) -> list:
    """The function of all matrices in rows of one kind, a part of them on each chip."""
    count = sum(map(math.prod, shapes))
    names = _axes_for(count, mesh.shape)
    missing = -count % _size(names)
    columns = list(zip(*rows, strict=True))

    def lies(x: Array) -> list:
        """Memory lies whole: no sharding but that of its parameter shall reach it."""
        return [None, None] if join else _matrix_of(x)

    rest = lies(columns[0][0])
    cuts = _cuts(rest, names)
    if cuts:  # in whose order no chip has to hand on what it gets
        names = tuple(dict.fromkeys(sum(cuts, ()) + names))

    def over_the_chips(xs: tuple) -> Array:
        settled = join or is_explicit(xs[0])
        xs = tuple(_lie(x, lies(x)) for x in xs) if settled else xs
        stacks = [_stack(x) for x in xs]
        if missing:
            stacks.append(jnp.zeros((missing, *stacks[0].shape[1:]), stacks[0].dtype))
        joined = jnp.concatenate([_lie(x, rest) for x in stacks] if settled else stacks)
        if cuts:
            return _lie(_at_once(_lie(joined, [None, *rest]), cuts), [names, None, None])
        for i in range(len(names) + 1):  # one axis of the mesh after the other: an exchange each
            joined = _lie(joined, _along(names[:i], rest))
        return _lie(joined, [names, None, None])

    shares = PartitionSpec(names)
    # JAX's own eigh for a TPU does not pass its check of what varies over the chips (0.10.2).
    run = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(shares,) * len(columns),
        out_specs=shares,
        check_vma=not join,
    )

    def back(y: Array) -> Array:
        if cuts:
            of_axes = cuts[: y.ndim - 1]
            return _at_once(_lie(y, [sum(of_axes, ()), *[()] * (y.ndim - 1)]), of_axes, back=True)
        for i in reversed(range(len(names) + 1)):
            y = _lie(y, _along(names[:i], rest[: y.ndim - 1]))
        return y

    def end(j: int, y: Array) -> Array:
        like = rows[j][0]
        if join:
            return whole(y)
        return reshard(y, jax.typeof(like).sharding) if is_explicit(y) else y

    found = run(*map(over_the_chips, columns))
    return _split(jax.tree.map(back, found), shapes, end)


def _axes_for(count: int, sizes: Any) -> tuple[str, ...]:
    """The axes of the mesh that have no more chips than needed for one matrix each; or all of them."""
    sets = [names for n in range(1, len(sizes) + 1) for names in itertools.combinations(sizes, n)]
    enough = [s for s in sets if math.prod(sizes[n] for n in s) >= count]
    return min(enough, key=lambda s: math.prod(sizes[n] for n in s), default=tuple(sizes))


def _matrix_of(x: Array) -> list:
    """The axes of the mesh along the rows and columns; where no type tells, what the compiler likes."""
    if not is_explicit(x):
        return [FREE, FREE]
    return partitions(jax.typeof(x).sharding.spec, x.ndim)[-2:]


def _along(names: tuple, rest: list) -> list:
    """Cut along these axes of the mesh as a stack, and each matrix along what is left of them."""

    def left(part: Any) -> Any:
        if part is FREE:
            return part
        of = part if isinstance(part, tuple) else (part,)
        return tuple(n for n in of if n is not None and n not in names) or None

    return [names or None, *map(left, rest)]


def _cuts(rest: list, names: tuple) -> list[tuple] | None:
    """The axes of the mesh along each axis of a matrix; None for none, and unless all are the stack's too."""
    if FREE in rest:
        return None
    cuts = [part if isinstance(part, tuple) else (part,) * (part is not None) for part in rest]
    found = {n for cut in cuts for n in cut}
    return cuts if found and found <= set(names) else None


def _at_once(x: Array, cuts: list[tuple], back: bool = False) -> Array:
    """A stack of matrices that are cut along `cuts`, cut along the stack instead; `back`: the other way.

    By one exchange: what one chip has of each matrix becomes a row of an axis of its own.
    """
    n, *dims = x.shape
    sizes = [_size(cut) for cut in cuts]
    parts = [d // size for d, size in zip(dims, sizes, strict=True)]  # of one chip
    beside = [m for pair in zip(sizes, parts, strict=True) for m in pair]
    order = [0, *range(1, len(beside), 2), *range(2, len(beside) + 1, 2)]  # sizes, then parts
    apart, stacked = ((), cuts), (sum(cuts, ()), [()] * len(cuts))
    (stack, axes), then = (stacked, apart) if back else (apart, stacked)
    x = _shaped(x, [n, *beside], [stack, *(a for cut in axes for a in (cut, ()))])
    x = _shaped(x.transpose(order), [n, math.prod(sizes), *parts], [stack, sum(axes, ())])
    stack, axes = then
    x = _lie(x, [stack, sum(axes, ()), *[()] * len(dims)])
    x = _shaped(x, [n, *sizes, *parts], [stack, *axes])
    return _shaped(x.transpose(np.argsort(order)), [n, *dims], [stack, *axes])


def _shaped(x: Array, shape: list, spec: list) -> Array:
    return jnp.reshape(x, shape, out_sharding=PartitionSpec(*(names or None for names in spec)))


def _size(names: tuple) -> int:
    """How many chips these axes of the mesh have."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[n] for n in names)


def _lie(x: Array, spec: list) -> Array:
    """x with its last axes along these of the mesh, and whole along those before."""
    to = PartitionSpec(*[None] * (x.ndim - len(spec)), *(names or None for names in spec))
    typed = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    return reshard(x, to) if typed else jax.lax.with_sharding_constraint(x, to)
