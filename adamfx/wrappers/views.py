"""Other forms of a leaf: lenses, through which a transformation sees another array; stacks of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.arithmetic import adjoint, dot
from adamfx.engine.control import count_up, only_if
from adamfx.engine.decompositions import svd
from adamfx.engine.placement import Along, along, cut_as, in_one_piece, summed
from adamfx.engine.words import Treewise
from adamfx.transformation import GradientTransformation, block
from adamfx.values.arguments import Mask, checked
from adamfx.values.constructor import Inner, P, constructor
from adamfx.values.value import Value
from adamfx.wrappers.groups import Labels

Array = Any


OUTSIDE = (
    "the loss takes the parameters as they are, and there they have another form; what evaluates it belongs "
    "outside, as in sam(view(...)) and chain(view(...), scale_by_zoom_linesearch(...))"
)


class Through(NamedTuple):
    """The meaning of a lens, for one array; linear maps both ways."""

    into: Callable[[Array, dict], Array]  # (x, memory) -> what is seen
    back: Callable[[Array, Array, dict], Array]  # (seen, something like x, memory) -> x
    init: Callable[[Array], dict] = lambda p: {}  # what it remembers of a parameter
    turn: Callable[[dict, Array, Array], dict] = lambda memory, g, count: memory  # before a step
    shows_params: bool = True  # whether parameters can be seen through it


class Lens(Value):
    """Another form of an array, as a value."""

    __slots__ = ()
    example = "a lens such as in_blocks(128)"
    means = (Through,)


def lens(function: Callable[P, Any]) -> Callable[P, Lens]:
    """Decorator: makes a constructor of lenses from a plain function, which returns a `Through`."""
    return _construct(function)


_construct = constructor(Lens)


@lens
def in_blocks(size: int):
    """The last two axes cut into blocks of size x size, a stack of matrices; zeros fill up the last ones.

    Leaves with fewer than two axes stay as they are. Means within a block count the zeros.
    """
    size = checks.steps("in_blocks", "size", size, 1)

    def cut(n):
        return min(size, n), -(-n // size)

    def into(x, memory):
        if x.ndim < 2 or x.size == 0:
            return x
        (a, k), (b, m) = cut(x.shape[-2]), cut(x.shape[-1])
        fill = [*[(0, 0)] * (x.ndim - 2), (0, a * k - x.shape[-2]), (0, b * m - x.shape[-1])]
        # XLA of JAX 0.7 reads beyond the zeros where it fuses them into the division of a batch.
        x = jax.lax.optimization_barrier(jnp.pad(x, fill))
        return jnp.swapaxes(x.reshape(*x.shape[:-2], k, a, m, b), -2, -3)

    def back(y, x, memory):
        if x.ndim < 2 or x.size == 0:
            return y
        (a, k), (b, m) = cut(x.shape[-2]), cut(x.shape[-1])
        y = jnp.swapaxes(y, -2, -3).reshape(*x.shape[:-2], k * a, m * b)
        return y[..., : x.shape[-2], : x.shape[-1]]

    return Through(into, back)


@lens
def as_matrix(rows: Sequence[int] | None = None, columns: Sequence[int] = (-1,)):
    """These axes joined as rows and those as columns; what is named in neither is a stack in front.

    `as_matrix()` joins all axes but the last, for convolutions; `as_matrix((0,), (1, 2))` is the kernel
    (inputs, heads, size of a head) of attention. Leaves with fewer than two axes stay as they are.

    Args:
      rows: axes of the inputs; None: all but the columns.
      columns: axes of the outputs.
    """
    for n, axes in (("rows", rows), ("columns", columns)):
        if axes is not None and not all(isinstance(a, int) for a in axes):
            raise TypeError(f"as_matrix: {n} must be axes, such as (0, 1), got {axes!r}")

    def order(x):
        to = [a % x.ndim for a in columns]
        of = (
            [a for a in range(x.ndim) if a not in to]
            if rows is None
            else [a % x.ndim for a in rows]
        )
        if set(of) & set(to):
            raise ValueError(
                f"as_matrix: rows {rows} and columns {columns} share an axis of a leaf of shape {x.shape}"
            )
        stack = [a for a in range(x.ndim) if a not in of and a not in to]
        return stack, of, to

    def into(x, memory):
        if x.ndim < 2:
            return x
        stack, of, to = order(x)
        shape = [x.shape[a] for a in stack]
        joined = [math.prod(x.shape[a] for a in axes) for axes in (of, to)]
        return jnp.transpose(x, (*stack, *of, *to)).reshape(*shape, *joined)

    def back(y, x, memory):
        if x.ndim < 2:
            return y
        axes = [a for part in order(x) for a in part]
        y = y.reshape([x.shape[a] for a in axes])
        return jnp.transpose(y, np.argsort(axes).tolist())

    return Through(into, back)


@lens
def low_rank(rank: int, every: int = 200):
    """A matrix by the leading singular vectors of the gradient on its shorter side, new every so many steps.

    P^T g with P (rows, rank) where rows <= columns, else g P. Each new vector is turned to the side of the
    old one, so that moments go on. Parameters are not seen. Zhao et al. 2024 (GaLore), algorithm 2.

    Args:
      rank: singular vectors that are kept, >= 1.
      every: steps between two decompositions, >= 1.
    """
    rank = checks.steps("low_rank", "rank", rank, 1)
    every = checks.steps("low_rank", "every", every, 1)

    def is_left(x):
        return x.shape[-2] <= x.shape[-1]

    def init(p):
        if p.ndim < 2:
            return {}
        axis = p.ndim - (2 if is_left(p) else 1)
        n = p.shape[axis]
        basis = jnp.zeros((*p.shape[:-2], n, min(rank, n)), p.dtype)
        return {"basis": along(basis, (*range(p.ndim - 2), axis, None))}

    def turn(memory, g, count):
        if not memory:
            return memory

        def decompose(held, g):
            u, _, vh = svd(g)
            new = (u if is_left(g) else adjoint(vh))[..., : held.shape[-1]]
            with_old = dot(new, held, -2)
            return jnp.where(with_old < 0, -new, new)

        return {"basis": only_if(count % every == 0, decompose, memory["basis"], g)}

    def into(x, memory):
        if not memory:
            return x
        P = memory["basis"]
        return adjoint(P) @ x if is_left(x) else x @ P

    def back(y, x, memory):
        if not memory:
            return y
        P = memory["basis"]
        return P @ y if is_left(x) else y @ adjoint(P)

    return Through(into, back, init, turn, shows_params=False)


@lens
def as_real():
    """A complex array as two real ones, its real and imaginary part along a new first axis."""

    def into(x, memory):
        return jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x

    def back(y, x, memory):
        return jax.lax.complex(y[0], y[1]) if jnp.iscomplexobj(x) else y

    return Through(into, back)


@checked
def split_real_and_imaginary(inner: GradientTransformation) -> GradientTransformation:
    """The transformation on the real and the imaginary part of complex leaves, as if they were two."""
    return view(inner, as_real())


@block
def view(transformation: Inner, through: Lens):
    """The transformation on every leaf in another form.

        view(muon(0.02), as_matrix())                        # kernels of convolutions
        view(scale_by_moments(0.9, 0.999), low_rank(128))    # moments of GaLore

    Args:
      transformation: what runs on what is seen. It gets parameters where the lens shows them.
      through: a lens: `in_blocks(size)`, `as_matrix()`, `low_rank(rank, every)`, or one of your own under
        `@lens`.

    Remembers `inner`, the state of the transformation, and what the lens does, by its names. Raises
    ValueError around what evaluates the loss.
    """
    if not isinstance(through, Lens):
        raise TypeError(f"view: through must be a lens such as as_matrix(), got {through!r}")
    tx, x = transformation, through.meaning
    checks.holds_none("view", tx, checks.evaluates, OUTSIDE)
    # Where axes are explicit, which axis of what is seen follows which is not known.
    seen_whole = in_one_piece(x.into, lambda x, memory: None)
    back = in_one_piece(x.back, lambda seen, x, memory: x)

    def into(x, memory):
        return cut_as(x, seen_whole(x, memory))

    def init(p):
        return x.init(p)

    def init_shared():
        return {"steps": np.zeros((), np.int32)}

    def seen(leaves, memories):
        """The table as the transformation sees it."""

        def of(column):
            return None if column is None else leaves.each(into, column, memories)

        updates = of(leaves.updates)
        # What is real there is rounded to the real dtype of a complex leaf.
        dtypes = [
            d if jnp.iscomplexobj(u) else trees.real_dtype(d)
            for u, d in zip(updates or [], leaves.dtypes, strict=True)
        ]
        new = leaves.replace(updates=updates, gradients=of(leaves.gradients), dtypes=dtypes)
        return new.replace(params=of(leaves.params) if x.shows_params else None)

    def arrays(memory):
        return {n: m.array if isinstance(m, Along) else m for n, m in memory.items()}

    def start(leaves):
        wide = [p.astype(trees.at_least_float32(p.dtype)) for p in leaves.params]
        params = leaves.each(into, wide, [arrays(x.init(p)) for p in wide])
        return {"inner": tx.start(leaves.replace(updates=params, gradients=params, params=params))}

    def memories_of(memory, wide):
        """What the lens remembers of each row, in the dtype of the arithmetic."""
        names = [n for n in memory._fields if n not in ("inner", "steps")]
        rows = [{n: getattr(memory, n)[j] for n in names} for j in range(len(wide))]
        return [
            {n: m.astype(d) for n, m in row.items() if m is not None}
            for row, d in zip(rows, wide, strict=True)
        ]

    def run(leaves, memory, step):
        count, wide = memory.steps, leaves.wide()
        g = [u.astype(d) for u, d in zip(leaves.updates, wide, strict=True)]
        old = memories_of(memory, wide)
        turn = in_one_piece(lambda m, g: x.turn(m, g, count), lambda m, g: m)
        turned = leaves.each(turn, old, g)
        table = seen(leaves.replace(updates=g, gradients=g), turned)
        out, inner = tx.run(table, memory.inner, step)
        updates = leaves.each(back, out.updates, g, turned)
        new = {"inner": inner, "steps": count_up(count)}
        for n in {n for m in turned for n in m}:
            column = zip(turned, getattr(memory, n), strict=True)
            new[n] = [None if m is None else t[n].astype(m.dtype) for t, m in column]
        return leaves.replace(updates=updates), new

    def through_(leaves, memory, point):
        if not x.shows_params or leaves.params is None:
            return leaves
        memories = memories_of(memory, leaves.wide())
        moved = point(tx, seen(leaves, memories), memory.inner)
        return leaves.replace(params=leaves.each(back, moved.params, leaves.params, memories))

    return Treewise(
        run, {"inner": tx}, init, init_shared, start=start, carried=("inner",), through=through_
    )


@block
def stacked(transformation: Inner, where: Mask = True):
    """The first axis of these leaves is layers: the transformation sees one layer at a time.

    Norms, trust ratios, clips and sums over the tree are those of one layer; the state has the axis in
    front. Other leaves are seen as they are, as a group of their own. For models that scan over layers.

    Args:
      transformation: what runs on each layer.
      where: a tree of bools, a prefix of one, or a callable of the parameters that returns one.

    Remembers `labels`, the number of layers of each leaf, and `inner`, a state for each number of layers.
    """
    tx = transformation
    checks.holds_none("stacked", tx, checks.evaluates, OUTSIDE)

    def layers(leaves):
        chosen = trees.evaluate_mask("stacked", where, leaves.param_tree())
        flat = trees.flatten(leaves.param_tree())[0]
        found = []
        for c, p in zip(chosen, flat, strict=True):
            if c and trees.is_trained(p) and np.ndim(p) == 0:
                raise ValueError(
                    "stacked: a leaf without axes has no layers; leave it out by where=ndim_at_least(1)"
                )
            found.append(int(np.shape(p)[0]) if c and trees.is_trained(p) else 0)
        return found

    def one_layer(leaves, function, n, *columns):
        """`function(table of one layer, *)` for all layers at once; for n = 0 of the table as it is."""
        given = {
            name: [summed(x) for x in getattr(leaves, name)]  # vmap knows nothing of tags
            for name in ("updates", "gradients", "params")
            if getattr(leaves, name) is not None
        }
        if n == 0:
            return function(leaves, *columns)
        return jax.vmap(lambda own, *c: function(leaves.replace(**own), *c))(given, *columns)

    def groups(leaves, labels):
        for n in sorted(set(labels)):
            yield n, leaves.among([x == n for x in labels])

    def start(leaves):
        labels = layers(leaves)
        states = {_label(n): one_layer(part, tx.start, n) for n, part in groups(leaves, labels)}
        return {"labels": Labels(tuple(labels)), "inner": states}

    def run(leaves, memory, step):
        states, out = {}, leaves
        for n, part in groups(leaves, memory.labels.of):

            def layer(table, state):
                new, state = tx.run(table, state, step)
                return new.updates, state

            updates, states[_label(n)] = one_layer(part, layer, n, memory.inner[_label(n)])
            out = out.put(part.replace(updates=updates))
        return out, {"labels": memory.labels, "inner": states}

    def through(leaves, memory, point):
        for n, part in groups(leaves, memory.labels.of):

            def layer(table, state):
                return point(tx, table, state).params

            moved = one_layer(part, layer, n, memory.inner[_label(n)])
            leaves = leaves.put(part.replace(params=moved))
        return leaves

    return Treewise(run, {"": tx}, start=start, carried=("labels", "inner"), through=through)


def _label(n: int) -> str:
    return f"layers_{n}" if n else "others"
