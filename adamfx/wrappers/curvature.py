"""Estimates of the diagonal of the Hessian, and a wrapper that makes one every so many steps: Sophia."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.checks import shown
from adamfx.engine import trees
from adamfx.engine.arithmetic import square
from adamfx.engine.control import count_up
from adamfx.transformation import block, treewise
from adamfx.values.arguments import checked
from adamfx.values.constructor import Inner

Tree = Any


@checked
def hutchinson(loss: Callable[[Tree], Any], params: Tree, key: jax.Array) -> Tree:
    """z * (H z), z random signs: in the mean the diagonal of the Hessian of loss(params). A tree.

    Of a complex number it is the mean curvature along its real and its imaginary part, which is real.
    """
    trees.check_leaves("hutchinson", "params", params)
    if not isinstance(key, jax.Array):
        raise TypeError(f"hutchinson: key must be one such as jax.random.key(0), got {shown(key)}")
    leaves, structure = trees.flatten(params)
    trained = [j for j, p in enumerate(leaves) if trees.is_trained(p)]

    def of(values):
        full = list(leaves)
        for j, x in zip(trained, values, strict=True):
            full[j] = x
        return loss(structure.unflatten(full))

    p = [jnp.asarray(leaves[j]) for j in trained]
    keys = jax.random.split(key, len(p)) if p else []
    z = [_signs(k, x) for k, x in zip(keys, p, strict=True)]
    products = jax.jvp(jax.grad(of), (p,), (z,))[1]
    out: list = [None] * len(leaves)
    for j, a, b in zip(trained, z, products, strict=True):
        out[j] = (a * b).real / _parts(a)
    return structure.unflatten(out)


def _parts(x: jax.Array) -> int:
    """Over how many real numbers the curvature of one number is a mean."""
    return 2 if jnp.iscomplexobj(x) else 1


def _signs(key: jax.Array, like: jax.Array) -> jax.Array:
    """Random signs like an array; of a complex one, of the real and of the imaginary part."""
    if not jnp.iscomplexobj(like):
        return jax.random.rademacher(key, like.shape, like.dtype)
    return jax.lax.complex(*jax.random.rademacher(key, (2, *like.shape), like.real.dtype))


@checked
def gauss_newton_bartlett(
    sampled_loss: Callable[[Tree, jax.Array], Any], batch_size: int
) -> Callable[..., Tree]:
    """An estimator for losses that are negative log-likelihoods: batch_size times the square of a gradient.

    Args:
      sampled_loss: `(params, key) -> mean loss` over the batch with labels drawn by key from the model
        itself.
      batch_size: examples in the batch, >= 1.

    Returns `(loss, params, key) -> tree`, for `with_hessian`. Liu et al. 2023, algorithm 2.
    """
    size = checks.steps("gauss_newton_bartlett", "batch_size", batch_size, 1)

    def estimate(loss: Any, params: Tree, key: jax.Array) -> Tree:
        g = jax.grad(lambda p: sampled_loss(p, key))(params)
        return jax.tree.map(lambda x: size * square(x) / _parts(x), g)

    return estimate


@block
def with_hessian(
    transformation: Inner, estimator: Callable = hutchinson, every: int = 10, seed: int = 0
):
    """Every so many steps, an estimate of the Hessian's diagonal reaches what is inside as `hessian`.

    Between them it gets zeros: `seldom(b2, every, of=given("hessian", 1))` reads the others only. Needs
    params and `value_fn=`, the loss as a function of the parameters, which `fit` and `make_step` pass.

    Args:
      transformation: what reads `hessian`.
      estimator: `(value_fn, params, key) -> tree like params`, of real numbers: hutchinson,
        gauss_newton_bartlett(...), or yours.
      every: >= 1.
      seed: of the keys.

    Remembers `inner`, `steps`.
    """
    every = checks.steps("with_hessian", "every", every, 1)
    if not callable(estimator):
        raise TypeError(
            f"with_hessian: the estimator is a function (value_fn, params, key), got {estimator!r}"
        )
    tx = transformation

    def run(leaves, memory, step):
        leaves.check_whole("with_hessian")
        params, value_fn = leaves.param_tree(), step.extra["value_fn"]
        like = [(p.shape, trees.real_dtype(p.dtype)) for p in leaves.params]

        def estimate():
            key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), memory.steps)
            found = trees.flatten(estimator(value_fn, params, key))[0]
            return [
                jnp.asarray(x, d) for x, (_, d) in zip(leaves.layout.pick(found), like, strict=True)
            ]

        def nothing():
            return [jnp.zeros(*kind) for kind in like]

        column = jax.lax.cond(memory.steps % every == 0, estimate, nothing)
        extra = {**step.extra, "hessian": leaves.tree(column)}
        out, inner = tx.run(leaves, memory.inner, step._replace(extra=extra))
        return out, {"inner": inner, "steps": count_up(memory.steps)}

    return treewise(
        run,
        tx,
        init_shared=lambda: {"steps": np.zeros((), np.int32)},
        needs=("params", "value_fn"),
    )
