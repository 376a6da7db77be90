"""Eigenvectors, QR and singular vectors of a stack of matrices: on the CPU one matrix after another.

jaxlib shares a batch of matrices out to the pool of threads on which the call itself runs, and waits. As many
such calls at a time as there are threads wait for ever: seen with jaxlib 0.10.2, a vmapped SOAP of two leaves
and two cores. What is differentiated takes JAX's own way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamfx.engine.placement import whole

Array = Any


def _one_at_a_time(decompose: Callable[[Array], tuple]) -> Callable[[Array], tuple]:
    one = jax.custom_batching.custom_vmap(decompose)

    @one.def_vmap
    def of_batch(_: int, __: list, x: Array) -> tuple:
        in_turn = functools.partial(jax.lax.map, one)
        found = jax.lax.platform_dependent(x, cpu=in_turn, default=jax.vmap(decompose))
        return found, (True,) * len(found)

    @jax.custom_jvp
    def of_stack(x: Array) -> tuple:
        of = one
        for _ in x.shape[:-2]:
            of = jax.vmap(of)
        return of(x)

    @of_stack.defjvp
    def of_stack_jvp(primals: tuple, tangents: tuple) -> tuple:
        return jax.jvp(decompose, primals, tangents)

    return of_stack


def in_batches(function: Callable, *trees: Any) -> Any:
    """`function` of corresponding stacks of square matrices in trees of one structure.

    Stacks of one size and dtype are joined to one, for one call: a batch where that is faster, and on the
    CPU nothing that disturbs it. What is returned has an axis of matrices in front.
    """
    leaves, structure = jax.tree.flatten(trees[0])
    rows = list(zip(leaves, *map(structure.flatten_up_to, trees[1:]), strict=True))
    kinds: dict[Any, list[int]] = {}
    for j, (x, *_) in enumerate(rows):
        kinds.setdefault((x.shape[-1], x.dtype), []).append(j)
    out: list[Any] = [None] * len(rows)
    for (n, _), members in kinds.items():
        columns = zip(*(rows[j] for j in members), strict=True)
        # Whole, else each would be sharded as the one beside it in the stack.
        found = function(
            *(jnp.concatenate([whole(x.reshape(-1, n, n)) for x in c]) for c in columns)
        )
        start = 0
        for j in members:
            stack = rows[j][0].shape[:-2]
            end = start + math.prod(stack)
            out[j] = jax.tree.map(
                lambda y, a=start, b=end, s=stack: whole(y[a:b].reshape(*s, *y.shape[1:])), found
            )
            start = end
    return structure.unflatten(out)


@_one_at_a_time
def eigh(x: Array) -> tuple:
    """(eigenvalues, eigenvectors as columns), the smallest first."""
    return tuple(jnp.linalg.eigh(x))


@_one_at_a_time
def qr(x: Array) -> tuple:
    """(Q, R)."""
    return tuple(jnp.linalg.qr(x))


@_one_at_a_time
def svd(x: Array) -> tuple:
    """(U, singular values, V^H), as many as the shorter side is long."""
    return tuple(jnp.linalg.svd(x, full_matrices=False))
