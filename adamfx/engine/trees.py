"""Trees of parameters: flattening with paths, frozen leaves, dtypes, masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamfx.checks import shown
from adamfx.engine.each import parts


def is_none(x: Any) -> bool:
    return x is None


def flatten(tree: Any) -> tuple[list, Any]:
    """Leaves and structure; None counts as a leaf, since a frozen leaf has None for its memory."""
    return jax.tree.flatten(tree, is_leaf=is_none)


def paths(tree: Any) -> list[str]:
    """The path of every leaf as it would be written in code, e.g. "['dense']['kernel']"."""
    pairs = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)[0]
    return [jax.tree_util.keystr(path) or "the root" for path, _ in pairs]


def is_number(x: Any) -> bool:
    """Whether it is a number or an array of numbers: of any library, but not of objects or of strings."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or isinstance(dtype, type):
        return isinstance(x, (int, float, complex))
    return getattr(dtype, "kind", "V") not in "OSUMm"


def check_leaves(where: str, what: str, tree: Any, found: list | None = None) -> None:
    """Raises TypeError, with the path, for a leaf that is neither an array nor a number nor None.

    `found` are the leaves, where they are known.
    """
    for j, x in enumerate(flatten(tree)[0] if found is None else found):
        if x is not None and not is_number(x):
            raise TypeError(
                f"{where}: the leaf at {paths(tree)[j]} of the {what} is {shown(x)} of type "
                f"{type(x).__name__}; leaves must be arrays, numbers or None: filter the tree first, e.g. "
                "with eqx.filter(model, eqx.is_array)"
            )


def check_alike(where: str, names: tuple[str, str], given: Any, wanted: Any) -> None:
    """Raises unless these are trees of numbers of one structure and of the same shapes."""
    for name, tree in zip(names, (given, wanted), strict=True):
        check_leaves(where, name, tree)
    difference = same_structure(given, wanted)
    if difference:
        raise ValueError(
            f"{where}: {' and '.join(names)} must be trees of one structure: in {names[0]} {difference}"
        )
    for path, a, b in zip(paths(given), flatten(given)[0], flatten(wanted)[0], strict=True):
        if a is not None and b is not None and np.shape(a) != np.shape(b):
            raise ValueError(
                f"{where}: {names[0]} at {path} has shape {np.shape(a)}, {names[1]} has {np.shape(b)}"
            )


def as_like(where: str, name: str, new: Any, old: Any) -> Any:
    """`new` as an array like `old`: of its dtype, and lying as it does.

    Raises TypeError for what is no number of its kind, ValueError for another shape and for a fraction.
    """
    if not is_number(new):
        raise TypeError(f"{where}: {name} must be a number or an array, got {shown(new)}")
    if np.shape(new) != old.shape:
        raise ValueError(f"{where}: {name} has shape {old.shape} in the state, got {np.shape(new)}")
    kinds = (jnp.complexfloating, jnp.floating, jnp.integer, jnp.bool_)
    wide = [next((k for k in kinds if jnp.issubdtype(dtype_of(x), k)), None) for x in (new, old)]
    whole = isinstance(new, float) and new.is_integer()
    if None not in wide and kinds.index(wide[0]) < kinds.index(wide[1]) and not whole:  # type: ignore
        raise TypeError(f"{where}: {name} is {dtype_of(old)}, which cannot hold {shown(new)}")
    new = jnp.asarray(new, old.dtype)
    # Committed to its devices only if it was before: a change would compile the step again.
    return jax.device_put(new, old.sharding) if getattr(old, "committed", False) else new


def is_trained(x: Any) -> bool:
    """Whether a leaf is optimized: real or complex numbers. Integers, float0 and None are frozen."""
    return x is not None and jnp.issubdtype(dtype_of(x), jnp.inexact)


def the_array(x: Any) -> Any:
    """The one array in `x`: itself, or what a variable of Flax nnx holds."""
    return jax.tree.leaves(x)[0]


def dtype_of(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


@functools.cache
def at_least_float32(*dtypes: Any) -> Any:
    """The dtype that arithmetic over these dtypes runs in: their common one, float32 at least."""
    dtype = np.dtype(np.float32)
    for other in dtypes:
        with jax.numpy_dtype_promotion("standard"):  # bf16 and f16 meet in f32, whatever the mode
            dtype = jnp.promote_types(dtype, other)
    return dtype


def real_dtype(dtype: Any) -> Any:
    """float32 for complex64, float64 for complex128, else the dtype itself."""
    return jnp.finfo(dtype).dtype


def uphill(tree: Any) -> Any:
    """What jax.grad returned, as the direction in which the loss rises: complex leaves are conjugated.

    jax.grad returns df/dx - i df/dy of x + i y. The other way round it is the same.
    """
    return jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, tree)


def cast_floats(tree: Any, dtype: Any) -> Any:
    """Casts the float arrays of a tree to `dtype`; Python numbers and integers stay."""

    def cast(x: Any) -> Any:
        floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if floating else x

    return jax.tree.map(cast, tree)


def is_arrays(tree: Any) -> bool:
    """Whether every leaf is an array or a number."""
    kinds = (jax.Array, np.ndarray, np.generic, int, float, complex)
    return all(isinstance(x, kinds) for x in jax.tree.leaves(tree))


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is being traced, so that the caller is inside jit, vmap, grad, ..."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(trees))


def same_structure(given: Any, wanted: Any) -> str | None:
    """None if the trees have one structure, else the first path where they differ, in words."""
    if flatten(given)[1] == flatten(wanted)[1]:
        return None
    mine, theirs = paths(given), paths(wanted)
    for a in mine:
        if a not in theirs:
            return f"{a} is not expected"
    for b in theirs:
        if b not in mine:
            return f"{b} is missing"
    return f"{jax.tree.structure(given)} was given for {jax.tree.structure(wanted)}"


Mask = Any  # None, a bool, a tree of bools (or a prefix of one), or a callable: params -> tree


def spread(block: str, what: str, given: Any, params: Any) -> list:
    """One entry per leaf of `params` from a tree of them, a prefix of one, or a callable.

    The tree may be made of other nodes: a Flax or Equinox module, a FrozenDict, a config of one's own;
    then its leaves are found by their paths.
    """
    leaves, structure = flatten(params)
    if not leaves:
        return []
    given = _plain(given)
    found, other = flatten(given)
    if other == structure and not callable(given):  # which is a tree of one leaf, too
        return found
    names, theirs = _names(params), _names(given)
    if len(theirs) > 1 and set(names) == set(theirs):
        by_name = dict(zip(theirs, found, strict=True))
        return [by_name[name] for name in names]
    if callable(given):
        return spread(block, what, given(params), params)
    try:
        whole = jax.tree.map(
            lambda m, sub: jax.tree.map(lambda _: m, sub, is_leaf=is_none), given, params
        )
        return structure.flatten_up_to(whole)
    except ValueError:
        raise ValueError(
            f"{block}: the {what} does not match the parameters: in it {same_structure(given, params)}; give "
            "a tree like the parameters, or a prefix of one"
        ) from None


def _plain(tree: Any) -> Any:
    """Mappings that JAX does not know, such as a config, as dicts."""
    known = not isinstance(tree, Mapping) or jax.tree_util.all_leaves([tree]) is False
    return tree if known else {k: _plain(x) for k, x in tree.items()}


def _names(tree: Any) -> list[str]:
    """The path of each leaf as names alone, without the `value` inside a Flax nnx variable."""
    pairs = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)[0]
    paths = [path[:-1] if path and path[-1] == VARIABLE else path for path, _ in pairs]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


VARIABLE = jax.tree_util.GetAttrKey("value")  # the last step of the path to a Flax nnx parameter


def evaluate_mask(block: str, mask: Mask, params: Any) -> list[bool]:
    """One Python bool per leaf of `params`."""
    leaves = spread(block, "mask", mask, params)
    for path, m in zip(paths(params), leaves, strict=True):
        if not isinstance(m, (bool, np.bool_)) and m is not None:
            raise TypeError(
                f"{block}: the mask at {path} is {m!r}; masks are trees of Python bools, True where "
                "the block acts"
            )
    return [bool(m) for m in leaves]


def map_trained(function: Callable, tree: Any) -> Any:
    """Applies `function` to the trained leaves; the others become None."""
    return jax.tree.map(lambda x: function(x) if is_trained(x) else None, tree, is_leaf=is_none)


def finite(tree: Any) -> jax.Array:
    """Whether every number in the tree, and its square, is finite."""
    # By "and": the CPU compiler of JAX 0.7 takes a maximum 15 times as slowly.
    arrays = [jnp.asarray(x) for x in jax.tree.leaves(tree) if is_trained(x)]
    found = parts(_are_finite, jax.lax.bitwise_and, _not_all, arrays)
    if not found:
        return jnp.asarray(True)
    # Ending in a division: XLA copies a chain of cheap operations, such as "and" over the leaves, into
    # the loop of every leaf that asks, but no division.
    bad = functools.reduce(jax.lax.add, found)
    return 1 / (1 + bad) == 1


def _are_finite(x: jax.Array) -> jax.Array:
    return jnp.abs(x) ** 2 < jnp.inf


def _not_all(x: jax.Array) -> jax.Array:
    """0 where all hold, else 1."""
    return jnp.where(jnp.all(x), jnp.float32(0), jnp.float32(1))


def round_to(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` as `dtype` would hold it, still in its own dtype.

    By reduce_precision: compilers may drop a pair of casts. It flushes numbers below the normal
    ones of float16 to zero, which a cast does not, so these are rounded on their fixed grid.
    """
    to, own = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if to.bits >= own.bits:
        return x
    rounded = jax.lax.reduce_precision(x, to.nexp, to.nmant)
    if to.nexp >= own.nexp:
        return rounded
    grid = float(to.smallest_subnormal)
    return jnp.where(jnp.abs(x) < float(to.tiny), jnp.round(x / grid) * grid, rounded)
