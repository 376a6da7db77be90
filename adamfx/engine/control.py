"""Running something only if a number that the device has just computed says so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamfx.engine import trees
from adamfx.engine.each import each


def count_up(n: jax.Array, by: Any = True) -> jax.Array:
    """n + 1, or n where `by` is false. It stops one before the end, so that n + 1 never wraps either."""
    return n + (jnp.asarray(by) & (n < np.int32(2**31 - 2))).astype(jnp.int32)


def once(scalars: Any, count: jax.Array) -> Any:
    """The same floats and bools, computed once.

    XLA copies what it takes for cheap, such as a cosine schedule, into the loop of every leaf that reads
    it, but no division; so each is divided by a one that no compiler knows to be one.
    """
    one = jax.lax.select(jnp.asarray(count) < 0, np.float32(2), np.float32(1))

    def over_one(x: Any) -> Any:
        if not isinstance(x, Tracer):
            return x
        if x.dtype == np.bool_:
            return x.astype(np.float32) / one != 0
        return x / one.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(over_one, scalars)


def only_if(predicate: jax.Array, function: Callable, operands: Any, *read: Any) -> Any:
    """`function(operands, *read)` if the predicate holds, else `operands`, without a copy of them.

    `function` must keep structure, shapes and dtypes, and read arrays only from its arguments. A
    loop of at most one turn: XLA works in it on the operands in place, where both branches of a
    conditional get copies (measured on the CPU: 12 times the time of an accumulated step), and under
    vmap both are run. The derivative is that of `function` under a select, since such loops have none
    in reverse.
    """
    return _only_if(lambda *args: ((), function(*args)), None, predicate, operands, read)[1]


def zeros_or(
    predicate: jax.Array, function: Callable, zeros: Callable, operands: Any, *read: Any
) -> Any:
    """(new, operands) = function(operands, *read) if the predicate holds, else (zeros(), operands).

    As `only_if`, but a conditional on a TPU, which copies nothing there. Zeros that came with the
    operands would be an array more.
    """
    return _only_if(function, zeros, predicate, operands, read)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _only_if(
    function: Callable, zeros: Callable | None, predicate: jax.Array, operands: Any, read: Any
) -> Any:
    if zeros is None:
        return _loop(function, tuple, predicate, operands, read)
    made = jax.jit(function)  # traced once for both

    def branch(predicate, operands, read):
        return jax.lax.cond(predicate, made, lambda x, *_: (zeros(), x), operands, *read)

    loop = functools.partial(_loop, made, zeros)
    return jax.lax.platform_dependent(predicate, operands, read, tpu=branch, default=loop)


@_only_if.defjvp
def _only_if_jvp(function: Callable, zeros: Any, primals: tuple, tangents: tuple) -> Any:
    predicate, operands, read = primals
    _, d_operands, d_read = tangents

    def chosen(a, b):
        return a if a.dtype == jax.dtypes.float0 else jnp.where(predicate, a, b)

    off = jax.tree.map(lambda t: chosen(t, 0), (d_operands, d_read))  # no NaN of what is not run
    _, (new, d) = jax.jvp(lambda x, r: function(x, *r), (operands, read), off)
    d = (jax.tree.map(lambda t: chosen(t, 0), new), jax.tree.map(chosen, d, d_operands))
    return _only_if(function, zeros, predicate, operands, read), d


def _loop(function: Callable, zeros: Callable, predicate: Any, operands: Any, read: Any) -> Any:
    def turn(carry):
        go, (_, x) = carry
        # Seemingly changing from turn to turn, else the compiler works on it outside the loop.
        leaves, structure = jax.tree.flatten(read)
        trained = [j for j, y in enumerate(leaves) if trees.is_trained(y)]
        seeming = each(lambda y: jnp.where(go, y, 0), [jnp.asarray(leaves[j]) for j in trained])
        for j, y in zip(trained, seeming, strict=True):
            leaves[j] = y
        here = structure.unflatten(leaves)
        return jnp.zeros_like(go), function(x, *here)

    start = (predicate, (zeros(), operands))
    return jax.lax.while_loop(lambda carry: carry[0], turn, start)[1]
