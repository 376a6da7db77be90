"""Differential privacy: gradients of single examples, clipped, summed and hidden in noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.arithmetic import normal, safe_divide, safe_root, square
from adamfx.engine.control import count_up
from adamfx.engine.words import Treewise
from adamfx.transformation import block
from adamfx.values.arguments import checked
from adamfx.values.constructor import Dynamic

Tree = Any


@block
def differentially_private_aggregate(
    l2_norm_clip: Dynamic,
    noise_multiplier: Dynamic,
    seed: int = 0,
    *,
    per_leaf: str | None = None,
):
    """The mean over the examples of g min(1, C / |g|), plus noise of deviation sigma C / n.

    Abadi et al. 2016, algorithm 1. Takes gradients with an axis of examples in front, as
    `per_example_grads` makes them; |g| is over all leaves. It stands first in a sentence.

    Args:
      l2_norm_clip: C > 0.
      noise_multiplier: sigma >= 0.
      seed: of the noise.
      per_leaf: None; or each leaf is clipped by a norm of its own, whose C is sqrt(w) C, w the same part of 1
        for all leaves ("uniform") or in proportion to their sizes ("size"), so that an example still counts
        C at most. McMahan et al. 2018.

    Remembers `steps`, from which the noise of a step is drawn.
    """
    name = "differentially_private_aggregate"
    checks.number(name, "l2_norm_clip", l2_norm_clip, low=0)
    checks.number(name, "noise_multiplier", noise_multiplier, low=0)
    checks.choice(name, "per_leaf", per_leaf, (None, "uniform", "size"))

    def squares(g):
        return jnp.sum(square(g), tuple(range(1, g.ndim)))

    def shrinks(g):
        """By what each example of each leaf is multiplied."""
        parts = [squares(x).astype(g[0].real.dtype) for x in g]
        sizes = [math.prod(x.shape[1:]) if per_leaf == "size" else 1 for x in g]
        weights = [n / max(sum(sizes), 1) for n in sizes]
        if per_leaf is None:
            parts, weights = [functools.reduce(jnp.add, parts)] * len(g), [1.0] * len(g)
        for total, w in zip(parts, weights, strict=True):
            limit = jnp.asarray(l2_norm_clip * w**0.5, total.dtype)
            shrink = jnp.minimum(1, safe_divide(limit, safe_root(total)))
            yield jnp.where(total == 0, 1, shrink)

    def run(leaves, memory, step):
        if not leaves.examples:
            raise ValueError(
                f"{name}: it takes gradients of single examples, so it must be the first word of the whole "
                "sentence, outside of every wrapper: chain(differentially_private_aggregate(...), ...)"
            )
        wide = leaves.wide()
        g = [x.astype(d) for x, d in zip(leaves.updates, wide, strict=True)]
        if not g:
            return leaves.replace(examples=False), {"steps": count_up(memory.steps)}
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), memory.steps)
        keys = jax.random.split(key, len(g))

        def private(g, key, shrink):
            n = g.shape[0]
            c = shrink.astype(g.real.dtype).reshape(n, *[1] * (g.ndim - 1))
            noise = normal(key, g.shape[1:], g.dtype)
            sigma = jnp.asarray(noise_multiplier * l2_norm_clip, g.real.dtype)
            return (jnp.sum(g * c, 0) + sigma * noise) / n

        out = [private(*row) for row in zip(g, keys, shrinks(g), strict=True)]
        leaves = leaves.replace(updates=out, gradients=out, examples=False)
        return leaves, {"steps": count_up(memory.steps)}

    return Treewise(
        run,
        {},
        init_shared=lambda: {"steps": np.zeros((), np.int32)},
        carried=(),
        per_example=True,
    )


@checked
def per_example_grads(
    loss: Callable[[Tree, Any], Any], microbatch_size: int | None = None
) -> Callable[[Tree, Any], Tree]:
    """`(params, batch) -> tree`: the gradient of loss(params, example) for every example of a batch.

    Args:
      loss: of one example: a scalar.
      microbatch_size: how many examples at once; None: all. What the backward pass holds is that of so many.

    The leaves are those of params with the axis of examples in front. Like jax.grad: of complex parameters, a
    step takes the conjugate.
    """
    if microbatch_size is not None:
        microbatch_size = checks.steps("per_example_grads", "microbatch_size", microbatch_size, 1)

    def checked_loss(params: Tree, example: Any) -> Any:
        value = checks.call("per_example_grads", "loss", loss, params, example)
        checks.loss("per_example_grads", "loss", value, has_aux=False)
        return value

    def grads(params: Tree, batch: Any) -> Tree:
        def one(example: Any) -> Tree:
            return jax.grad(checked_loss)(params, example)

        if microbatch_size is None:
            return jax.vmap(one)(batch)
        return jax.lax.map(one, batch, batch_size=microbatch_size)

    return grads
