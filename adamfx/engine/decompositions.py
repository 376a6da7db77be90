"""Eigenvectors, QR and singular vectors of a stack of matrices: on the CPU one matrix after another.

jaxlib shares a batch of matrices out to the pool of threads on which the call itself runs, and waits. As many
such calls at a time as there are threads wait for ever: seen with jaxlib 0.10.2, a vmapped SOAP of two leaves
and two cores. What is differentiated takes JAX's own way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamfx.engine.chips import joined

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
    CPU nothing that disturbs it. What is returned has the axes of the stack in front.
    """
    leaves, structure = jax.tree.flatten(trees[0])
    more = [structure.flatten_up_to(tree) for tree in trees[1:]]
    return structure.unflatten(joined(function, leaves, *more))


@_one_at_a_time
def eigh(x: Array) -> tuple:
    """(eigenvalues, eigenvectors as columns), the smallest first.

    On a TPU by Jacobi's method for every size, as JAX does it up to 256: what it has for larger matrices is
    compiled for 194 s where this takes 5 (512 x 512).
    """
    if not hasattr(jax.lax.linalg, "EighImplementation"):  # before JAX 0.8
        return tuple(jnp.linalg.eigh(x))

    def jacobi(x: Array) -> tuple:
        vectors, values = jax.lax.linalg.eigh(
            x, implementation=jax.lax.linalg.EighImplementation.JACOBI
        )
        return values, vectors

    return jax.lax.platform_dependent(x, tpu=jacobi, default=lambda x: tuple(jnp.linalg.eigh(x)))


@_one_at_a_time
def qr(x: Array) -> tuple:
    """(Q, R)."""
    return tuple(jnp.linalg.qr(x))


@_one_at_a_time
def svd(x: Array) -> tuple:
    """(U, singular values, V^H), as many as the shorter side is long."""
    return tuple(jnp.linalg.svd(x, full_matrices=False))
