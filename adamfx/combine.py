"""Putting blocks together: `chain`, `named`, `live`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamfx.engine import sentence as engine
from adamfx.engine import trees
from adamfx.engine.placement import anchor, replicate
from adamfx.engine.words import Treewise
from adamfx.transformation import GradientTransformation, Sentence, block, identity
from adamfx.values.constructor import Inner
from adamfx.values.value import match_name

LIVE = "live_hyperparams"  # where `live` keeps them in the state


@block
def chain(*transformations: Inner):
    """One transformation after the other; a value, and a monoid of values.

    Nested chains flatten, `identity()` disappears, `chain(a)` is `a` and `chain()` is `identity()`.
    Any object with optax's `init` and `update` may stand among the blocks.
    """
    flat: list[GradientTransformation] = []
    for tx in transformations:
        flat.extend(_parts(tx))
    if len(flat) < 2:
        return flat[0] if flat else identity()
    if len(flat) == len(transformations) and all(map(_is, flat, transformations)):
        _check_names([key for key, _ in _named(flat)])
        return Sentence(flat)
    return chain(*flat)


def when(condition: bool, transformation: GradientTransformation) -> GradientTransformation:
    """The transformation if the condition holds, else the empty chain: a word that may be left out."""
    return transformation if condition else identity()


def unless_none(make: Callable, x: Any, *args: Any, **kwargs: Any) -> GradientTransformation:
    """make(x, ...), or the empty chain where x is None: a word of an optional argument."""
    return identity() if x is None else make(x, *args, **kwargs)


def _parts(tx: GradientTransformation) -> tuple:
    meaning = tx.meaning
    return tuple(meaning) if isinstance(meaning, Sentence) else (tx,)


def _is(a: Any, b: Any) -> bool:
    return a is b


def _named(flat: list[GradientTransformation]) -> list[tuple[str, Any]]:
    return [(tx.arguments["name"], tx) for tx in flat if "name" in tx.arguments]


def _check_names(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"chain: two blocks are named {name!r}; every name must be its own")


@block
def named(name: str, transformation: Inner):
    """The same transformation, under this key in the state: named("slow", scale_by_moments(...)).

    A chain keeps its state as a dict of its own under the name.
    """
    if not isinstance(name, str) or not name or name in ("count", LIVE):
        raise ValueError(
            f"named: the name must be a non-empty string other than 'count' and {LIVE!r}, got {name!r}"
        )
    meaning = transformation.meaning
    return _nested(transformation) if isinstance(meaning, Sentence) else meaning


def _nested(tx: GradientTransformation) -> Treewise:
    """A whole sentence as one block, with a counter of its own; nothing is rounded between."""

    def run(leaves, state, step):
        return engine.run(tx.blocks, leaves, state, step.extra)

    def through(leaves, state, point):
        return point(tx, leaves, state)

    return Treewise(
        run, {"": tx}, start=tx.start, carried=(), bare=True, through=through, hands_on=True
    )


@block
def live(transformation: Inner):
    """Keeps the dynamic hyperparameters in the state, where they can be read and set between steps.

    For frameworks that hold the optimizer as a static thing (Flax's TrainState and nnx.Optimizer,
    eqx.filter_jit): setting a hyperparameter compiles nothing, and checkpoints hold it.

        tx = live(adam(1e-3)); state = tx.init(params)
        hyperparams(state)              # {'live.scale_by_lr.learning_rate': Array(0.001, ...)}
        state = set_hyperparams(state, learning_rate=3e-4)

    What is live is what is a leaf of the inner transformation: learning rates, weight decays,
    thresholds, the numbers of schedules; a decay if it was given as an array.
    """
    if transformation.name == "foreign":
        given = transformation.arguments["transformation"]
        raise TypeError(f"live: needs an adamfx transformation, got {given!r}")
    names = transformation.leaf_names()
    if not names:
        raise ValueError(f"live: {transformation!r} has no dynamic hyperparameter to keep")

    def start(leaves):
        first = anchor(leaves.params)
        dtype = trees.at_least_float32(*(trees.real_dtype(x.dtype) for x in leaves.params))
        values = {
            n: replicate(first, jnp.asarray(x, dtype))
            for n, x in zip(names, transformation.leaves, strict=True)
        }
        return {**transformation.start(leaves), LIVE: values}

    def inside(state):
        if LIVE not in state:
            raise ValueError(f"live: the state holds no {LIVE!r}; make it with tx.init(params)")
        inner = {key: x for key, x in state.items() if key != LIVE}
        return transformation.form.build([state[LIVE][n] for n in names]), inner

    def run(leaves, state, step):
        tx, inner = inside(state)
        out, inner = engine.run(tx.blocks, leaves, inner, step.extra)
        return out, {**inner, LIVE: state[LIVE]}

    def through(leaves, state, point):
        return point(inside(state)[0], leaves, inside(state)[1])

    inner = {"": transformation}
    return Treewise(run, inner, start=start, carried=(), bare=True, through=through, hands_on=True)


def hyperparams(state: Any) -> dict[str, Any]:
    """The live hyperparameters in any state tree that holds some, by dotted name."""
    found = {}
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = _live_name(path)
        if name is not None:
            found[name] = x
    return found


def set_hyperparams(state: Any, **changes: Any) -> Any:
    """The state with live hyperparameters set; any unambiguous end of a name will do.

    Dtype and structure stay, so nothing is compiled again. Works on the state of a transformation
    and on any tree around it (an optax or Flax state). Raises KeyError for an unknown name.
    """
    known = list(hyperparams(state))
    if changes and not known:
        raise KeyError(
            "set_hyperparams: nothing is live in this state; it must come from live(...).init"
        )
    exact = {match_name(name, known, "set_hyperparams"): x for name, x in changes.items()}

    def change(path, old):
        name = _live_name(path)
        if name not in exact:
            return old
        if callable(exact[name]):
            raise TypeError(
                f"set_hyperparams: {name} is a number in the state, got {exact[name]!r}; a schedule "
                "belongs in the transformation itself"
            )
        return trees.as_like("set_hyperparams", name, exact[name], old)

    return jax.tree_util.tree_map_with_path(change, state)


def _live_name(path: tuple) -> str | None:
    """The dotted name of the live hyperparameter at this path, under the keys of outer chains."""
    keys = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", ""))) for k in path]
    if LIVE not in keys[:-1]:
        return None
    i = keys.index(LIVE)
    return ".".join(str(k) for k in keys[: i + 2] if k != LIVE)
