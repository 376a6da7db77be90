"""APOLLO: how much Adam would change the gradient, seen in a few random directions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.arithmetic import safe_divide, safe_root, square
from adamfx.engine.norms import norm_over
from adamfx.engine.placement import along
from adamfx.moments.scale_by_moments import adam_correction
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Dynamic, Exact


@block
def scale_by_apollo(
    rank: int = 256,
    every: int = 200,
    b1: Exact = 0.9,
    b2: Exact = 0.999,
    eps: Exact = 1e-6,
    scale: Dynamic = 1.0,
    per_tensor: bool = False,
    growth: Dynamic = 1.01,
    seed: int = 0,
):
    """u = g |N| / |R| for every channel, R = P^T g in `rank` random directions, N Adam's direction of R.

    P (shorter side, rank) is N(0, 1/rank), drawn anew every so many steps; channels lie along the longer
    side. Then |u| grows by no more than `growth` from step to step, and u is multiplied by sqrt(scale) and,
    at last, by Adam's correction sqrt(1 - b2^t) / (1 - b1^t). Zhu et al. 2024, algorithm 1. Leaves that are
    no matrix pass.

    Args:
      rank, every: >= 1.
      b1, b2: in [0, 1), numbers.
      eps: >= 0.
      scale: >= 0.
      per_tensor: one ratio for the whole matrix (APOLLO-Mini, with rank 1).
      growth: >= 0; at least 1 where |u| may grow at all.
      seed: of P.

    Remembers of every matrix `projection`, `mu`, `nu`, and `norm`, that of the update before; `key`, and
    the log of the products of b1 and of b2.
    """
    name = "scale_by_apollo"
    rank, every = checks.steps(name, "rank", rank, 1), checks.steps(name, "every", every, 1)
    for n, b in (("b1", b1), ("b2", b2)):
        checks.decay(name, b, n)
    checks.number(name, "eps", eps, low=0)
    checks.number(name, "scale", scale, low=0)
    checks.number(name, "growth", growth, low=0)

    def init(p):
        if p.ndim < 2:
            return {}
        stack, (rows, columns) = p.shape[:-2], p.shape[-2:]
        k = min(rank, rows, columns)
        seen = (k, columns) if rows <= columns else (rows, k)
        zeros = jnp.zeros((*stack, *seen), p.dtype)
        projection = jnp.zeros((*stack, min(rows, columns), k), p.dtype)
        norm = jnp.zeros((*stack, 1, 1), p.real.dtype)
        of, short = range(len(stack)), -2 if rows <= columns else -1
        lies = (*of, None, p.ndim - 1) if rows <= columns else (*of, p.ndim - 2, None)
        return {
            "projection": along(projection, (*of, p.ndim + short, None)),
            "mu": along(zeros, lies),
            "nu": along(zeros.real, lies),
            "norm": norm,
        }

    def init_shared():
        return {"mu_log_product": np.zeros(2), "nu_log_product": np.zeros(2)}

    def shared(step):
        correction, grown = adam_correction(b1, b2, step.count, step.memory)
        return (step.count, correction), grown

    def leaf(g, here):
        if g.ndim < 2:
            return g, {}
        memory, (count, correction) = here.memory, here.shared
        is_left = g.shape[-2] <= g.shape[-1]

        # Drawn in every step: XLA of JAX 0.7 fails on the CPU where it draws sharded numbers in a loop.
        old = memory.projection
        width = np.sqrt(old.shape[-1]).astype(old.real.dtype)
        P = jnp.where(
            count % every == 0, jax.random.normal(here.key, old.shape, old.dtype) / width, old
        )
        R = jnp.swapaxes(P, -1, -2) @ g if is_left else g @ P
        m = memory.mu + (1 - b1) * (R - memory.mu)
        v = memory.nu + (1 - b2) * (square(R) - memory.nu)
        N = safe_divide(m, safe_root(v) + eps)
        over = (-2, -1) if per_tensor else (-2,) if is_left else (-1,)
        u = g * (norm_over(N, over) / (norm_over(R, over) + 1e-8))
        size = norm_over(u, (-2, -1))
        ratio = size / (memory.norm + 1e-8)
        held = jnp.where(count == 0, 1, jnp.maximum(ratio, growth) / growth)
        new = {"projection": P, "mu": m, "nu": v, "norm": size / held}
        return u / held * (safe_root(scale) * correction), new

    more = {"init_shared": init_shared, "seed": seed, "elementwise": False}
    return leafwise(leaf, init=init, shared=shared, **more)
