"""Predicates over parameters, as values: which leaves a block acts on.

A predicate is called with a tree of parameters and returns a tree of bools, so it can stand wherever
optax takes a mask function, and a masked optimizer still prints, compares and hashes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.trees import VARIABLE
from adamfx.values.constructor import constructor
from adamfx.values.value import Value


class Predicate(Value):
    """A choice of parameters by path, shape or dtype, as a value."""

    __slots__ = ()
    example = "a predicate such as ndim_at_least(2)"

    def __call__(self, params: Any) -> Any:
        """A tree of bools like `params`."""
        accepts = self.meaning
        return jax.tree_util.tree_map_with_path(lambda path, x: bool(accepts(path, x)), params)

    def __invert__(self) -> Predicate:
        return complement(self)

    def __and__(self, other: Predicate) -> Predicate:
        return all_of(self, other)

    def __or__(self, other: Predicate) -> Predicate:
        return any_of(self, other)


predicate = constructor(Predicate)


@predicate
def ndim_at_least(ndim: int):
    """Leaves of at least `ndim` dimensions: ndim_at_least(2) leaves out biases and norms."""
    ndim = checks.steps("ndim_at_least", "ndim", ndim)
    return lambda path, x: jnp.ndim(x) >= ndim


@predicate
def path_matches(*patterns: str):
    """Leaves whose path matches one of the glob patterns, e.g. path_matches("*/bias", "embed/*").

    A path joins the keys of the tree with slashes: {"dense": {"bias": b}} has dense/bias. A pattern
    that begins with */ also matches at the top, and the `value` inside a Flax nnx variable may be left
    out: "*/kernel" matches kernel, dense/kernel and dense/kernel/value.
    """
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"path_matches: needs one or more glob patterns, got {patterns}")

    def accepts(path, x):
        paths = [path, path[:-1]] if path and path[-1] == VARIABLE else [path]
        names = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
        names += ["/" + name for name in names]
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return accepts


@predicate
def has_dtype(*dtypes: Any):
    """Leaves of one of these dtypes, e.g. has_dtype("bfloat16", "float16")."""
    wanted = [_dtype(d) for d in dtypes]
    if not wanted:
        raise TypeError("has_dtype: needs one or more dtypes such as 'bfloat16'")
    return lambda path, x: jnp.result_type(x) in wanted


def _dtype(d: Any) -> Any:
    try:
        found = None if d is None else jnp.dtype(d)
    except Exception:  # NumPy reads much as a dtype, and fails in many ways
        found = None
    if found is None or found.kind in "OSUMm" or found.names:
        raise TypeError(f"has_dtype: dtypes must be such as 'bfloat16', got {checks.shown(d)}")
    return found


@predicate
def complement(of: Predicate):
    """Leaves that `of` leaves out: complement(path_matches("*/bias")), or ~path_matches("*/bias")."""
    (accepts,) = _meanings("complement", of)
    return lambda path, x: not accepts(path, x)


@predicate
def all_of(*predicates: Predicate):
    """Leaves that every predicate accepts: all_of(a, b), or a & b."""
    meanings = _meanings("all_of", *predicates)
    return lambda path, x: all(accepts(path, x) for accepts in meanings)


@predicate
def any_of(*predicates: Predicate):
    """Leaves that some predicate accepts: any_of(a, b), or a | b."""
    meanings = _meanings("any_of", *predicates)
    return lambda path, x: any(accepts(path, x) for accepts in meanings)


def _meanings(name: str, *predicates: Predicate) -> list[Callable]:
    for of in predicates:
        if not isinstance(of, Predicate):
            raise TypeError(
                f"{name}: predicates must be such as ndim_at_least(2), got {checks.shown(of)}"
            )
    return [of.meaning for of in predicates]
