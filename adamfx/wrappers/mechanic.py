"""Mechanic: a learning rate for any transformation, learned from how its steps agree with the gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.arithmetic import dot, safe_divide, safe_root
from adamfx.engine.norms import norm
from adamfx.transformation import block, treewise
from adamfx.values.constructor import Dynamic, Exact, Inner


@block
def mechanize(
    base_optimizer: Inner,
    weight_decay: Dynamic = 1e-2,
    eps: Exact = 1e-8,
    s_init: Exact = 1e-6,
    num_betas: int = 6,
):
    """p' = p_0 + sum(s) x, x the sum of the steps of the transformation, one s for each beta = 1 - 10^-i.

    With Delta = (p_0 - p) / (sum(s) + eps) and h = <Delta, g + weight_decay sum(s) |g| / |p| p>:
    r <- beta r + s clip(h, -m, m),  m <- max(beta m, |h| + eps),  v <- beta^2 v + h^2,
    s <- (s_init / n m + max(r, 0)) / (sqrt(v) + eps). Needs params. Cutkosky et al. 2023, algorithm 1, in
    the form of the authors' JAX code.

    Args:
      base_optimizer: with its learning rate at 1, or a schedule that ends at 1.
      weight_decay: >= 0, seen by h only.
      eps: > 0.
      s_init: > 0, the first scale.
      num_betas: n >= 1.

    Remembers `inner`, `start`, p_0, and `s`, `r`, `m`, `v`, vectors of n.
    """
    checks.number("mechanize", "weight_decay", weight_decay, low=0)
    checks.number("mechanize", "eps", eps, low=0)
    checks.number("mechanize", "s_init", s_init, low=0)
    n = checks.steps("mechanize", "num_betas", num_betas, 1)
    tx = base_optimizer
    checks.holds_no_copies("mechanize", tx)

    def init_shared():
        zeros = {name: np.zeros(n) for name in ("r", "m", "v")}
        return {"s": np.full(n, s_init)} | zeros

    def total(arrays, like):
        return functools.reduce(
            jax.lax.add, [x.astype(like.dtype) for x in arrays], jnp.zeros_like(like)
        )

    def run(leaves, memory, step):
        out, inner = tx.run(leaves, memory.inner, step)
        old, kinds = memory, [p0.dtype for p0 in memory.start]

        def alike(column):
            return [x.astype(d) for x, d in zip(column, kinds, strict=True)]

        p, g = alike(leaves.params), alike(leaves.updates)
        scale = jnp.sum(old.s)

        def delta(p, p0):
            return (p0 - p) / (scale + eps).astype(p.real.dtype)

        deltas = leaves.each(delta, p, memory.start)
        pull = weight_decay * scale * norm(g) / (norm(p) + eps)

        def along(d, g, p):
            return dot(d, g + pull.astype(p.real.dtype) * p)

        h = total(leaves.each(along, deltas, g, p), scale)
        beta = jnp.asarray(1 - 0.1 ** np.arange(1, n + 1), scale.dtype)
        r = beta * old.r + old.s * jnp.clip(h, -old.m, old.m)
        m = jnp.maximum(beta * old.m, jnp.abs(h) + eps)
        v = beta**2 * old.v + h**2
        s = safe_divide(s_init / n * m + jnp.maximum(r, 0), safe_root(v) + eps)
        new = jnp.sum(s)

        def move(p0, d, u, p):
            return p0 - new.astype(p.real.dtype) * (d - u) - p

        updates = leaves.each(move, memory.start, deltas, alike(out.updates), p)
        kept = {"start": memory.start, "s": s, "r": r, "m": m, "v": v}
        return leaves.replace(updates=updates), {"inner": inner} | kept

    return treewise(
        run, tx, init=lambda p: {"start": p}, init_shared=init_shared, needs=("params",)
    )
