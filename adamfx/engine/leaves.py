"""The table of leaves that goes through the whole house.

The door, `enter` or `begin`, flattens the trees and checks them, once per call. Inside there are rows:
one per leaf that is trained now. Frozen leaves (integers, float0, None, no gradient) wait outside and
come back when a run ends, by `as_updates` or `applied`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine import trees
from adamfx.engine.each import each
from adamfx.engine.placement import as_tagged, summed

Array = Any
Tree = Any


class Layout:
    """Where the rows of a table stand in the trees of a caller."""

    def __init__(
        self,
        where: str,
        structure: Any,
        rows: Sequence[int],
        grads: list,
        params: list,
        absent: Sequence[int] = (),
    ):
        self.where, self.structure, self.rows = where, structure, tuple(rows)
        self.grads, self.params = grads, params  # all leaves as they were given
        self.absent = tuple(absent)  # parameters of this table that got no gradient

    def paths(self) -> list[str]:
        """The path of each row."""
        size = len(self.grads)
        paths = trees.paths(self.structure.unflatten(list(range(size))))
        return [paths[j] for j in self.rows]

    def only(self, keep: Sequence[bool]) -> Layout:
        rows = [j for j, k in zip(self.rows, keep, strict=True) if k]
        return Layout(self.where, self.structure, rows, self.grads, self.params, self.absent)

    def column(self, name: str, tree: Tree, given: str = "") -> list:
        """What a tree like the parameters holds for each row; None where it holds nothing.

        `given` names an extra argument, which must hold an array for every row.
        """
        try:
            found = self.structure.flatten_up_to(tree)
        except (ValueError, TypeError):
            found = [tree]
        if given:
            self._check_given(given, found, tree)
        if any(x is not None and not hasattr(x, "dtype") for x in found):
            given = self.structure.unflatten(self.grads)
            difference = trees.same_structure(given, tree) or f"{name} holds no arrays"
            raise ValueError(
                f"{self.where}: the gradients are another tree than the state was made for; in them "
                f"{difference}"
            )
        return [found[j] for j in self.rows]

    def _check_given(self, name: str, found: list, tree: Tree) -> None:
        fits = len(found) == len(self.grads) and all(hasattr(found[j], "dtype") for j in self.rows)
        if not fits:
            difference = trees.same_structure(tree, self.structure.unflatten(self.grads))
            raise ValueError(
                f"{self.where}: {name} must be a tree of arrays like the parameters: in it {difference}"
            )
        for j, path in zip(self.rows, self.paths(), strict=True):
            if found[j].shape != np.shape(self.grads[j]):
                raise ValueError(
                    f"{self.where}: {name} at {path} has shape {found[j].shape}, the gradient "
                    f"{np.shape(self.grads[j])}"
                )

    def tree(self, column: list, rest: Tree = None) -> Tree:
        """A tree of a column; other leaves are those of `rest`, a tree like it, or None."""
        size = len(self.grads)
        whole = [None] * size if rest is None else self.structure.flatten_up_to(rest)
        for j, x in zip(self.rows, column, strict=True):
            whole[j] = x
        return self.structure.unflatten(whole)

    def pick(self, of_all: Sequence) -> list:
        """The entries of the rows in a list with one per leaf of the trees."""
        if len(of_all) != len(self.grads):
            raise ValueError(
                f"{self.where}: the gradients have {len(self.grads)} leaves, the state was made for "
                f"{len(of_all)}; make it with tx.init(params)"
            )
        return [of_all[j] for j in self.rows]


class Leaves:
    """One row per trained leaf; see the head of this file. Changed copies are made by `replace`.

    updates    the update so far: float32 at least within a run
    gradients  the gradient, as the estimators saw it
    params     the parameters before the step; None where the caller passed none
    dtypes     what each leaf will be rounded to at the end
    final      whether what a run returns is what the caller gets, so that it may round
    examples   whether updates still have an axis of examples in front
    applies    whether the caller takes new parameters, so that a run may end with `moved`
    moved      the new parameters, where a run has ended by itself; see `ended`
    on_host    whether memory of the blocks may rest on the host, to be fetched leaf by leaf
    """

    __slots__ = (
        "applies", "dtypes", "examples", "final", "gradients", "layout", "moved", "on_host", "params",
        "updates",
    )  # fmt: skip

    def __init__(
        self,
        layout: Layout,
        updates: list,
        gradients: list,
        params: list | None,
        dtypes: list,
        applies: bool = False,
    ):
        self.layout, self.updates, self.gradients = layout, updates, gradients
        self.params, self.dtypes, self.applies = params, dtypes, applies
        self.moved: list | None = None
        self.final = True
        self.examples = self.on_host = False

    def __len__(self) -> int:
        return len(self.dtypes)

    def replace(self, **changes: Any) -> Leaves:
        """The same table with other columns."""
        new = copy.copy(self)
        for name, x in changes.items():
            setattr(new, name, x)
        return new

    def only(self, keep: Sequence[bool]) -> Leaves:
        """The rows where `keep` is true."""

        def of(column: list | None) -> Any:
            if column is None:
                return None
            return [x for x, k in zip(column, keep, strict=True) if k]

        new = self.replace(layout=self.layout.only(keep))
        for name in ("updates", "gradients", "params", "dtypes", "moved"):
            setattr(new, name, of(getattr(self, name)))
        return new

    def among(self, chosen: Sequence[bool]) -> Leaves:
        """The rows of a group, `chosen` for every leaf of the trees."""
        part = self.only(self.layout.pick(chosen))
        part.layout.absent = tuple(j for j in self.layout.absent if chosen[j])
        return part

    def put(self, part: Leaves) -> Leaves:
        """This table with the updates and parameters of `part`, a table of some of its rows."""
        new = self.replace(updates=list(self.updates))
        new.params = None if self.params is None else list(self.params)
        place = {j: i for i, j in enumerate(self.layout.rows)}
        for i, j in enumerate(part.layout.rows):
            new.updates[place[j]] = part.updates[i]
            if new.params is not None and part.params is not None:
                new.params[place[j]] = part.params[i]
        return new

    def each(self, function: Callable, *columns: list) -> list:
        """[function(*row) for row in zip(*columns)], traced once per kind of row."""
        return each(function, *columns)

    def shapes(self) -> list[tuple]:
        """The shape of each row at the end."""
        return [u.shape[1:] if self.examples else u.shape for u in self.updates]

    def wide(self) -> list:
        """The dtype in which each row is computed."""
        return [
            trees.at_least_float32(u.dtype, to)
            for u, to in zip(self.updates, self.dtypes, strict=True)
        ]

    def tree(self, column: list) -> Tree:
        """A tree of a column, like the caller's, None for other leaves."""
        return self.layout.tree(column)

    def check_whole(self, name: str) -> None:
        """Raises ValueError in a part of the tree, for a block that evaluates the loss."""
        mine, all_of_them = len(self), sum(map(trees.is_trained, self.layout.params))
        if mine != all_of_them:
            raise ValueError(
                f"{name}: it evaluates the loss, so it must see all parameters, and got {mine} of "
                f"{all_of_them}; leave it outside of partition and masked: {name}(partition(...)) or "
                f"chain(partition(...), {name}(...))"
            )

    def param_tree(self) -> Tree:
        """The parameters as a tree; frozen ones as they were given, those of other groups None."""
        mine = set(self.layout.rows)
        rest = [
            None if j in mine or trees.is_trained(p) else p
            for j, p in enumerate(self.layout.params)
        ]
        for j, p in zip(self.layout.rows, self.params or [], strict=True):
            rest[j] = p
        return self.layout.structure.unflatten(rest)

    # The two ways a run ends.

    def as_updates(self) -> Tree:
        """A tree of updates, each in the dtype of its leaf; zeros for frozen leaves."""
        out = [_frozen(g, p) for g, p in zip(self.layout.grads, self.layout.params, strict=True)]
        for j, u, to in zip(self.layout.rows, self.updates, self.dtypes, strict=True):
            u = u if u.dtype == to else u.astype(to)
            out[j] = as_tagged(u, self.layout.params[j])
        return self.layout.structure.unflatten(out)

    def applied(self) -> Tree:
        """A tree of new parameters: p + u, rounded once; frozen leaves as they were."""
        out = list(self.layout.params)
        for j, p in zip(self.layout.rows, self.ended(), strict=True):
            out[j] = as_tagged(p, out[j])
        return self.layout.structure.unflatten(out)

    def ended(self) -> list:
        """The column of new parameters."""
        if self.moved is not None:
            return self.moved
        return each(add, self.params or [], self.updates)


def add(p: Array, u: Array) -> Array:
    wide = trees.at_least_float32(p.dtype, u.dtype)
    return jax.lax.add(p.astype(wide), u.astype(wide)).astype(p.dtype)


def _frozen(g: Any, p: Any) -> Any:
    """The update of a frozen leaf: zeros of the parameter's dtype."""
    like = g if p is None else p
    if g is None or jnp.issubdtype(trees.dtype_of(like), jax.dtypes.extended):
        return None
    if trees.is_trained(like) and trees.is_trained(g):
        return None  # a row stands here
    if trees.dtype_of(like) == jax.dtypes.float0:
        return np.zeros(np.shape(like), jax.dtypes.float0)
    return jnp.zeros_like(like)


# ---- the door ------------------------------------------------------------------------------------


def begin(params: Tree) -> Leaves:
    """The table of parameters that `init` works on; what stands in `updates` has only their shape."""
    given, structure = trees.flatten(params)
    trees.check_leaves("init", "params", params, given)
    rows = [j for j, x in enumerate(given) if trees.is_trained(x)]
    p = [jnp.asarray(given[j]) for j in rows]
    return Leaves(Layout("init", structure, rows, given, given), p, p, p, [x.dtype for x in p])


def enter(
    where: str,
    grads: Tree,
    params: Tree,
    applies: bool = False,
    per_example: bool = False,
    adds: bool = False,
) -> Leaves:
    """The table of a step, after every check of trees, shapes and kinds.

    With `per_example` gradients have an axis of examples in front. With `adds` those that are unreduced
    stay so.
    """
    given, structure = trees.flatten(grads)
    trees.check_leaves(where, "params" if grads is params else "gradients", grads, given)
    theirs: list = [None] * len(given)
    if params is not None:
        theirs, other = trees.flatten(params)
        trees.check_leaves(where, "params", params, theirs)
        if structure != other:
            raise ValueError(
                f"{where}: gradients and params must be trees of one structure; in the gradients "
                f"{trees.same_structure(grads, params)}"
            )
        _check_pairs(where, given, theirs, grads, per_example)
    rows = [
        j
        for j, (g, p) in enumerate(zip(given, theirs, strict=True))
        if trees.is_trained(g) and (params is None or trees.is_trained(p))
    ]
    g = [jnp.asarray(given[j]) for j in rows]
    g = g if adds else [summed(x) for x in g]
    p = None if params is None else [summed(jnp.asarray(theirs[j])) for j in rows]
    absent = [
        j
        for j, (g, p) in enumerate(zip(given, theirs, strict=True))
        if g is None and trees.is_trained(p)
    ]
    layout = Layout(where, structure, rows, given, theirs, absent)
    table = Leaves(layout, g, g, p, [x.dtype for x in p or g], applies)
    return table.replace(examples=per_example)


def _check_pairs(where: str, grads: list, params: list, tree: Tree, per_example: bool) -> None:
    """Raises where a gradient has another shape than its parameter, or cannot be one of its kind."""
    for j, (g, p) in enumerate(zip(grads, params, strict=True)):
        if g is None or p is None:
            continue
        wanted = f"the parameter has {np.shape(p)}"
        wanted += "; it needs an axis of examples in front of that" if per_example else ""
        if np.shape(g)[1 if per_example else 0 :] != np.shape(p) or (
            per_example and not np.ndim(g)
        ):
            raise ValueError(
                f"{where}: gradient at {trees.paths(tree)[j]} has shape {np.shape(g)}, {wanted}"
            )
        if not trees.is_trained(p) or trees.dtype_of(g) == jax.dtypes.float0:
            continue
        real = not jnp.issubdtype(trees.dtype_of(p), jnp.complexfloating)
        is_complex = jnp.issubdtype(trees.dtype_of(g), jnp.complexfloating)
        if not trees.is_trained(g) or (real and is_complex):
            raise TypeError(
                f"{where}: gradient at {trees.paths(tree)[j]} is {trees.dtype_of(g)}, the parameter "
                f"{trees.dtype_of(p)}; give a gradient of its kind, or None or float0 to leave it"
            )
