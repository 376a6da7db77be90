"""Errors of one form: what was received, what is allowed, what to do.

Arguments are checked when a constructor is called, and only concrete Python numbers for their
range: what a tracer holds is not known. Trees and shapes are checked while a program is traced, so
once per signature and not on every call.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from adamfx import trees

Tree = Any

# ---- arguments -----------------------------------------------------------------------------------


def number(
    block: str, name: str, x: Any, *, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raises unless x is an array, a schedule, or a number that is finite and low <= x <= high."""
    if not (isinstance(x, (int, float, np.ndarray, jax.Array)) or callable(x)):
        raise TypeError(f"{block}: {name} must be a number, an array or a schedule, got {x!r}")
    if isinstance(x, (int, float)) and not (math.isfinite(x) and low <= x <= high):
        raise ValueError(f"{block}: {name} must {_interval(low, high)}, got {x}")


def decay(block: str, x: Any, name: str = "decay") -> None:
    """Raises unless x is an array, a schedule, or a number in [0, 1)."""
    if not (isinstance(x, (int, float, np.ndarray, jax.Array)) or callable(x)):
        raise TypeError(f"{block}: {name} must be a number, an array or a schedule, got {x!r}")
    if isinstance(x, (int, float)) and not 0 <= x < 1:
        raise ValueError(f"{block}: {name} must lie in [0, 1), got {x}")


def choice(block: str, name: str, x: Any, allowed: Any) -> None:
    """Raises ValueError unless `x` is one of `allowed`."""
    if x not in allowed:
        raise ValueError(
            f"{block}: {name} must be one of {', '.join(map(repr, allowed))}, got {x!r}"
        )


def floating(block: str, name: str, dtype: Any) -> None:
    """Raises ValueError unless `dtype` is None or names floating or complex numbers."""
    try:
        good = dtype is None or jax.numpy.issubdtype(jax.numpy.dtype(dtype), jax.numpy.inexact)
    except TypeError:
        good = False
    if not good:
        raise ValueError(
            f"{block}: {name} must be a floating dtype such as 'bfloat16', got {dtype!r}"
        )


def steps(block: str, name: str, x: Any, low: int = 0) -> int:
    """`x` as an int; raises ValueError unless it is a whole number >= low, such as 1000 or 1e3."""
    whole = isinstance(x, (int, np.integer)) or (isinstance(x, float) and x.is_integer())
    if not (whole and x >= low):
        raise ValueError(f"{block}: {name} must be a whole number >= {low}, got {x!r}")
    return int(x)


def _interval(low: float, high: float) -> str:
    if high == math.inf:
        return "be finite" if low == -math.inf else f"be finite and >= {low:g}"
    return f"lie in [{low:g}, {high:g}]"


# ---- trees ---------------------------------------------------------------------------------------


def leaves(where: str, found: list, tree: Tree) -> None:
    """Raises TypeError, with the path, for a leaf that is neither an array nor a number nor None."""
    for j, x in enumerate(found):
        if x is not None and not hasattr(x, "dtype") and not isinstance(x, (int, float, complex)):
            raise TypeError(
                f"{where}: the leaf at {trees.paths(tree)[j]} is {x!r} of type {type(x).__name__}; leaves "
                "must be arrays, numbers or None: filter the tree first, e.g. with "
                "eqx.filter(model, eqx.is_array)"
            )


def params_like(where: str, params: Tree, grads: Tree) -> list:
    """The leaves of params; raises ValueError unless the gradients have their structure and shapes."""
    difference = trees.same_structure(grads, params)
    if difference:
        raise ValueError(
            f"{where}: gradients and params must be trees of one structure; in the gradients {difference}"
        )
    found = trees.flatten(params)[0]
    for j, (g, p) in enumerate(zip(trees.flatten(grads)[0], found, strict=True)):
        if g is not None and p is not None and np.shape(g) != np.shape(p):
            raise ValueError(
                f"{where}: gradient at {trees.paths(grads)[j]} has shape {np.shape(g)}, the "
                f"parameter has {np.shape(p)}"
            )
    return found


def gradient_dtypes(where: str, grads: list, params: list, tree: Tree) -> None:
    """Raises TypeError where a trained parameter gets a gradient that cannot be one of it."""
    for j, (g, p) in enumerate(zip(grads, params, strict=True)):
        if g is None or not trees.is_trained(p) or trees.dtype_of(g) == jax.dtypes.float0:
            continue
        real = not jax.numpy.issubdtype(trees.dtype_of(p), jax.numpy.complexfloating)
        is_complex = jax.numpy.issubdtype(trees.dtype_of(g), jax.numpy.complexfloating)
        if not trees.is_trained(g) or (real and is_complex):
            raise TypeError(
                f"{where}: gradient at {trees.paths(tree)[j]} is {trees.dtype_of(g)}, the parameter "
                f"{trees.dtype_of(p)}; give a gradient of its kind, or None or float0 to leave it"
            )


ADVICE = "make it with tx.init(params)"


def is_state(where: str, given: Any) -> None:
    """Raises TypeError unless this looks like a state."""
    if not isinstance(given, dict) or "count" not in given:
        raise TypeError(
            f"{where}: the state must be a dict with 'count', got {type(given).__name__}; {ADVICE}"
        )


def remembered_like(where: str, name: str, memory: Tree, updates: Tree) -> None:
    """Raises ValueError unless a wrapper's tree has, where there are gradients, arrays of their shape."""
    difference = trees.same_structure(updates, memory)
    if difference:
        raise ValueError(
            f"{where}: the gradients are another tree than the state was made for; in them {difference}"
        )
    for j, (m, u) in enumerate(
        zip(trees.flatten(memory)[0], trees.flatten(updates)[0], strict=True)
    ):
        if m is not None and u is not None and np.shape(m) != np.shape(u):
            raise ValueError(
                f"{where}: the gradient at {trees.paths(updates)[j]} has shape {np.shape(u)}, {name} in the "
                f"state {np.shape(m)}; {ADVICE}"
            )


def state(where: str, blocks: list, given: Any) -> None:
    """Raises TypeError or ValueError unless the state has what these blocks remember, and no more."""
    is_state(where, given)
    keys = {block.key for block in blocks}
    needed = [b.key for b in blocks if not b.is_pair and (b.spec.init or b.spec.init_shared)]
    for key in needed:
        if key not in given:
            raise ValueError(f"{where}: the state has no {key!r}, it has {sorted(given)}; {ADVICE}")
    unknown = sorted(set(given) - keys - {"count"})
    if unknown:
        raise ValueError(
            f"{where}: the state holds {unknown}, which no block of this transformation remembers; {ADVICE}"
        )


def memory_structure(where: str, block: Any, given: Any, grads: Tree) -> None:
    """Raises ValueError unless what a block remembers of each leaf is a tree like the gradients."""
    if block.is_pair or given is None:
        return
    names = set(block.scalar_names)
    if block.spec.init:
        names |= set(jax.eval_shape(block.spec.init, jax.ShapeDtypeStruct((), "float32")))
    if names != set(getattr(given, "_fields", ())):
        raise ValueError(
            f"{where}: the state of {block.key} holds {sorted(getattr(given, '_fields', ()))}, this "
            f"transformation remembers {sorted(names)}; make it with tx.init(params)"
        )
    for name in names - set(block.scalar_names):
        difference = trees.same_structure(grads, getattr(given, name))
        if difference:
            raise ValueError(
                f"{where}: the gradients are another tree than the state was made for; in them {difference}"
            )


def memory_shapes(where: str, blocks: list, x: list, trained: list[bool], grads: Tree) -> None:
    """What each block remembers must be what its init would make for this gradient."""
    expected: dict[Any, Any] = {}
    for block in blocks:
        for j in (j for j, t in enumerate(trained) if t and block.columns):
            key = (block.key, x[j].shape, x[j].dtype)
            if key not in expected:
                made = jax.eval_shape(block.spec.init, jax.ShapeDtypeStruct(x[j].shape, x[j].dtype))
                expected[key] = {name: m.shape for name, m in made.items()}
            for name, m in block.memory(j).items():
                if m.shape != expected[key][name]:
                    raise ValueError(
                        f"{where}: gradient at {trees.paths(grads)[j]} has shape {x[j].shape}, the state "
                        f"was made for {m.shape}"
                    )


def given_params(where: str, name: str, params: Tree, grads: Tree) -> None:
    """Raises ValueError for a block that reads the parameters and gets none."""
    if params is None and jax.tree.leaves(grads):
        raise ValueError(
            f"{where}: {name} reads the parameters; call tx.update(grads, state, params)"
        )


def mask(where: str, block: Any, params: Tree, grads: Tree) -> list[bool] | None:
    """On which leaves a block acts; None for all."""
    if block.is_pair or block.spec.mask is None or block.spec.mask is True:
        return None
    given_params(where, block.key, params, grads)
    return trees.evaluate_mask(block.key, block.spec.mask, params)
