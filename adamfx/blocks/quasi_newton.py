"""Directions from the gradients before: L-BFGS and nonlinear conjugate gradients."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.arithmetic import dot, safe_divide, safe_root
from adamfx.transformation import block, leafwise


@block
def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True):
    """H u, H the inverse Hessian that the last k pairs s = p - p_prev, y = u - u_prev tell. L-BFGS.

    The two-loop recursion on coefficients: only the inner products of s, y and u are summed over the
    leaves, once per step. A pair without curvature, <s, y> <= 1e-10 |s| |y|, is left out; optax keeps it.
    Needs params. Nocedal & Wright 2006, algorithm 7.4.

    Args:
      memory_size: k >= 1.
      scale_init_precond: H begins as <s, y> / <y, y> of the newest pair, before the first as min(1, 1 /
        |u|); else as 1.

    Remembers `param`, `gradient`, and `differences` and `changes`, (k, *shape), the s and the y; `pairs`,
    how many.
    """
    k = checks.steps("scale_by_lbfgs", "memory_size", memory_size, 1)

    def init(p):
        z = jnp.zeros((k, *p.shape), p.dtype)
        return {"param": p, "gradient": jnp.zeros_like(p), "differences": z, "changes": z}

    def extended(g, here, first):
        """All s and y with the newest behind them."""
        old = here.memory
        s, y = (jnp.where(first, 0, x) for x in (here.param - old.param, g - old.gradient))
        return tuple(
            jnp.concatenate([xs, x[None]]) for xs, x in ((old.differences, s), (old.changes, y))
        )

    def sums(g, here):
        S, Y = extended(g, here, here.shared.count == 0)
        b = jnp.concatenate([S, Y, g[None]]).reshape(2 * k + 3, -1)
        return {"products": (b.conj() @ b.T).real}

    def shared(step):
        products, newest = step.sums.products, k
        s, y = newest, k + 1 + newest
        size = safe_root(products[s, s]) * safe_root(products[y, y])
        keep = products[s, y] > 1e-10 * size
        pairs = jnp.minimum(step.memory.pairs + keep.astype(jnp.int32), k)
        used = jnp.where(keep, jnp.arange(1, k + 1), jnp.arange(k))
        rows = jnp.concatenate([used, k + 1 + used, jnp.array([2 * k + 2])])
        G = products[rows][:, rows]
        gamma = jnp.ones((), G.dtype)
        if scale_init_precond:
            ys, yy = G[k - 1, 2 * k - 1], G[2 * k - 1, 2 * k - 1]
            alone = jnp.minimum(1, safe_divide(jnp.ones((), G.dtype), safe_root(G[-1, -1])))
            gamma = jnp.where(pairs > 0, safe_divide(ys, yy), alone)
        c = jnp.zeros(2 * k + 1, G.dtype).at[-1].set(1)
        a: list = [None] * k
        for i in reversed(range(k)):
            a[i] = safe_divide(G[i] @ c, G[i, k + i])
            c = c.at[k + i].add(-a[i])
        c = c * gamma
        for i in range(k):
            c = c.at[i].add(a[i] - safe_divide(G[k + i] @ c, G[i, k + i]))
        whole = jnp.zeros(2 * k + 3, G.dtype).at[rows].set(c)
        return (whole, keep, step.count == 0), {"pairs": pairs}

    def leaf(g, here):
        c, keep, first = here.shared
        S, Y = extended(g, here, first)
        u = jnp.tensordot(c.astype(g.dtype), jnp.concatenate([S, Y, g[None]]), 1)
        new = {"param": here.param, "gradient": g}
        kept = {n: jnp.where(keep, x[1:], x[:-1]) for n, x in (("differences", S), ("changes", Y))}
        return u, new | kept

    return leafwise(
        leaf,
        init=init,
        sums=sums,
        shared=shared,
        init_shared=lambda: {"pairs": np.zeros((), np.int32)},
        needs_params=True,
        elementwise=False,
    )


BETAS = ("polak_ribiere", "fletcher_reeves", "hestenes_stiefel", "dai_yuan")


@block
def scale_by_conjugate_gradient(method: str = "polak_ribiere", restart_every: int | None = None):
    """g + max(beta, 0) u_prev, and g alone where that is no descent. Nocedal & Wright 2006, section 5.2.

    With y = g - g_prev, beta is <g, y> / <g_prev, g_prev> (Polak & Ribiere), <g, g> / <g_prev, g_prev>
    (Fletcher & Reeves), -<g, y> / <u_prev, y> (Hestenes & Stiefel) or -<g, g> / <u_prev, y> (Dai & Yuan),
    signs for u = -d.

    Args:
      method: "polak_ribiere", "fletcher_reeves", "hestenes_stiefel" or "dai_yuan".
      restart_every: steps after which it begins again with g; None: never.

    Remembers `gradient` and `direction`.
    """
    name = "scale_by_conjugate_gradient"
    checks.choice(name, "method", method, BETAS)
    if restart_every is not None:
        restart_every = checks.steps(name, "restart_every", restart_every, 1)

    def init(p):
        return {"gradient": jnp.zeros_like(p), "direction": jnp.zeros_like(p)}

    def sums(g, here):
        before, u = here.memory.gradient, here.memory.direction
        pairs = {"gg": (g, g), "gy": (g, g - before), "old": (before, before)}
        pairs |= {"ug": (u, g), "uy": (u, g - before)}
        return {n: dot(x, y) for n, (x, y) in pairs.items()}

    def shared(step):
        s = step.sums
        above = s.gg if method in ("fletcher_reeves", "dai_yuan") else s.gy
        below = s.old if method in ("polak_ribiere", "fletcher_reeves") else -s.uy
        beta = jnp.maximum(safe_divide(above, below), 0)
        anew = step.count == 0
        if restart_every is not None:
            anew |= step.count % restart_every == 0
        return jnp.where(anew | (s.gg + beta * s.ug <= 0), 0, beta)

    def leaf(g, here):
        u = g + here.shared * here.memory.direction
        return u, {"gradient": g, "direction": u}

    return leafwise(leaf, init=init, sums=sums, shared=shared)
