"""One transformation for a tree whose leaves lie on several meshes: each steps where it lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from adamfx.engine import trees
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import checked

Tree = Any


class PerMesh(NamedTuple):
    """What `per_mesh` makes: `init`, `update` and `step`, to be called outside jit.

    The state is a tuple with one state per mesh, in the order in which the leaves name them.
    """

    init: Callable
    update: Callable
    step: Callable


@checked
def per_mesh(transformation: GradientTransformation) -> PerMesh:
    """The transformation for the stages of a pipeline: one program per mesh, none waits for another.

        tx = fx.per_mesh(fx.adamw(1e-3))
        states = tx.init(params)                       # leaves on several meshes
        params, states = tx.step(grads, states, params)

    JAX compiles no program for arrays of several meshes, so it stands outside jit and fit, and is no word
    of a sentence. Arguments of `update` and `step` are those of a transformation.

    Args:
      transformation: of words that look at one leaf at a time. Wrappers that ask something of all
        gradients, such as skip_nonfinite, ask it of those of one mesh.

    Raises ValueError for words that change a leaf by what they see of all others, such as
    clip_by_global_norm; a norm over the meshes is yours to add up.
    """
    tx = transformation
    if word := _looks_around(tx):
        raise ValueError(
            f"per_mesh: {word} looks at all leaves, and would see those of one mesh; leave it out, and scale "
            "the gradients before"
        )

    def init(params: Tree) -> tuple:
        return tuple(tx.init(part) for part in _split(params, params))

    def run(method: Callable, grads: Tree, states: tuple, params: Tree, extra: dict) -> tuple:
        like = grads if params is None else params
        if trees.is_traced(grads, params):
            raise ValueError(
                "per_mesh: no program can hold arrays of several meshes; call it outside jit, and not in fit"
            )
        parts = _split(like, grads), _split(like, params)
        if len(states) != len(parts[0]):
            raise ValueError(
                f"per_mesh: the leaves lie on {len(parts[0])} meshes, the state is of {len(states)}; call "
                "init for where they lie now"
            )
        rows = zip(parts[0], states, parts[1], strict=True)
        found, states = zip(*(method(g, s, p, **extra) for g, s, p in rows), strict=True)
        return _joined(like, found), states

    def update(grads: Tree, states: tuple, params: Tree = None, **extra: Any) -> tuple:
        return run(tx.update, grads, states, params, extra)

    def step(grads: Tree, states: tuple, params: Tree, **extra: Any) -> tuple:
        return run(tx.step, grads, states, params, extra)

    return PerMesh(init, update, step)


def _looks_around(tx: GradientTransformation) -> str:
    """A word of a sentence, wherever inside, that looks at more than one leaf; none: nothing."""
    for name, value in tx.blocks:
        spec: Any = value.meaning
        if getattr(spec, "sums", None) is not None or getattr(spec, "whole_tree", False):
            return name
        for inside in getattr(spec, "inside", {}).values():
            if word := _looks_around(inside):
                return word
    return ""


def _is_none(x: Any) -> bool:
    return x is None


def _places(like: Tree) -> list:
    """Of each leaf, where it lies: a mesh, or a set of devices."""

    def place(x: Any) -> Any:
        sharding = getattr(x, "sharding", None)
        if sharding is None:
            return None if x is None else frozenset(jax.devices()[:1])
        return getattr(sharding, "mesh", None) or frozenset(sharding.device_set)

    return [place(x) for x in jax.tree.leaves(like, is_leaf=_is_none)]


def _split(like: Tree, tree: Tree) -> list[Tree]:
    """For each mesh the tree with None for what lies elsewhere."""
    places = _places(like)
    meshes = [p for p in dict.fromkeys(places) if p is not None]
    if tree is None:
        return [None for _ in meshes]
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_none)
    rows = list(zip(leaves, places, strict=True))
    return [structure.unflatten([x if at == p else None for x, at in rows]) for p in meshes]


def _joined(like: Tree, parts: tuple) -> Tree:
    """Each leaf from the part of its mesh."""
    places = _places(like)
    meshes = [p for p in dict.fromkeys(places) if p is not None]
    columns = dict(zip(meshes, (jax.tree.leaves(x, is_leaf=_is_none) for x in parts), strict=True))
    leaves = [None if p is None else columns[p][j] for j, p in enumerate(places)]
    return jax.tree.structure(like, is_leaf=_is_none).unflatten(leaves)
