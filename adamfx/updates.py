"""What is done with updates outside a step: applied to parameters; parameters that follow others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.each import each
from adamfx.engine.leaves import add

Tree = Any


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """params + updates, leaf by leaf, computed in float32 at least, in the parameter's dtype.

    A None update and a frozen (integer) parameter leave the parameter unchanged. Raises ValueError
    where structure or shape differ, with the path of the leaf. `tx.step` rounds once instead of
    twice for parameters below float32.
    """
    for name, tree in (("params", params), ("updates", updates)):
        trees.check_leaves("apply_updates", name, tree)
    difference = trees.same_structure(updates, params)
    if difference:
        raise ValueError(f"apply_updates: updates and params differ: in the updates {difference}")
    p, structure = trees.flatten(params)
    given = trees.flatten(updates)[0]
    rows = [
        j
        for j, (a, u) in enumerate(zip(p, given, strict=True))
        if u is not None and trees.is_trained(a)
    ]
    for j in rows:
        if jnp.shape(p[j]) != jnp.shape(given[j]):
            raise ValueError(
                f"apply_updates: update at {trees.paths(params)[j]} has shape {jnp.shape(given[j])}, the "
                f"parameter has {jnp.shape(p[j])}"
            )
    moved = each(add, [jnp.asarray(p[j]) for j in rows], [jnp.asarray(given[j]) for j in rows])
    for j, x in zip(rows, moved, strict=True):
        p[j] = x
    return structure.unflatten(p)


def incremental_update(new_tensors: Tree, old_tensors: Tree, step_size: Any) -> Tree:
    """step_size new + (1 - step_size) old, leaf by leaf: a slowly following target network.

    Args:
      new_tensors, old_tensors: trees of one structure; None leaves stay None.
      step_size: in [0, 1].

    The leaves have the dtype of the old ones.
    """

    checks.number("incremental_update", "step_size", step_size, low=0, high=1)
    if not trees.is_number(step_size) or np.shape(step_size):
        raise TypeError(
            f"incremental_update: step_size must be a number, got {checks.shown(step_size)}"
        )
    names = ("new_tensors", "old_tensors")
    trees.check_alike("incremental_update", names, new_tensors, old_tensors)

    def move(new: Any, old: Any) -> Any:
        wide = trees.at_least_float32(trees.dtype_of(old))
        a, b = jnp.asarray(old).astype(wide), jnp.asarray(new).astype(wide)
        return (a + jnp.asarray(step_size, a.real.dtype) * (b - a)).astype(trees.dtype_of(old))

    return jax.tree.map(move, new_tensors, old_tensors)


def periodic_update(new_tensors: Tree, old_tensors: Tree, steps: Any, update_period: int) -> Tree:
    """The new tensors at steps 0, period, 2 period, ..., else the old ones: a target network that is copied.

    Args:
      new_tensors, old_tensors: trees of one structure.
      steps: how many updates were done.
      update_period: >= 1.
    """
    period = checks.steps("periodic_update", "update_period", update_period, 1)
    if not trees.is_number(steps) or not jnp.issubdtype(trees.dtype_of(steps), jnp.integer):
        checks.steps("periodic_update", "steps", steps)
    if np.shape(steps):
        raise ValueError(f"periodic_update: steps must be a number, got {checks.shown(steps)}")
    names = ("new_tensors", "old_tensors")
    trees.check_alike("periodic_update", names, new_tensors, old_tensors)
    due = jnp.asarray(steps) % period == 0
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), new_tensors, old_tensors)
