"""Predicates over parameters, as values: which leaves a block acts on.

A predicate is called with a tree of parameters and returns a tree of bools, so it can stand wherever
optax takes a mask function, and a masked optimizer still prints, compares and hashes.
"""

from __future__ import annotations

import fnmatch
from typing import Any

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.values import Value, constructor


class Predicate(Value):
    """A choice of parameters by path, shape or dtype, as a value."""

    __slots__ = ()

    def __call__(self, params: Any) -> Any:
        """A tree of bools like `params`."""
        accepts = self.meaning
        return jax.tree_util.tree_map_with_path(lambda path, x: bool(accepts(path, x)), params)


predicate = constructor(Predicate)


@predicate
def ndim_at_least(ndim: int):
    """Leaves of at least `ndim` dimensions: ndim_at_least(2) leaves out biases and norms."""
    checks.steps("ndim_at_least", "ndim", ndim)
    return lambda path, x: jnp.ndim(x) >= ndim


@predicate
def path_matches(*patterns: str):
    """Leaves whose path matches one of the glob patterns, e.g. path_matches("*/bias", "embed/*").

    A path joins the keys of the tree with slashes: {"dense": {"bias": b}} has dense/bias.
    """
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"path_matches: needs one or more glob patterns, got {patterns}")

    def accepts(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return accepts


@predicate
def complement(of: Predicate):
    """Leaves that `of` leaves out: complement(path_matches("*/bias"))."""
    if not isinstance(of, Predicate):
        raise TypeError(f"complement: needs a predicate such as ndim_at_least(2), got {of!r}")
    accepts = of.meaning
    return lambda path, x: not accepts(path, x)
