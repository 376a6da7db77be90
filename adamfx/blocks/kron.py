"""PSGD: a preconditioner that learns to whiten, by steps on its own factors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import adjoint, safe_divide, square
from adamfx.engine.control import only_if
from adamfx.engine.norms import norm_over
from adamfx.engine.placement import along
from adamfx.schedules import ScheduleFunction, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Dynamic, Exact

Array = Any


@block
def scale_by_kron(
    precond_lr: Dynamic = 0.1,
    precond_init_scale: Exact = 1.0,
    damping: Dynamic = 2.0**-11.5,
    every: int | ScheduleFunction = 1,
    max_dim: int = 8192,
    seed: int = 0,
):
    """Q_L^T Q_L u Q_R^T Q_R, where the triangular Q_L, Q_R make both of these white.

    With noise V, h = u + damping mean|u| V, A = Q_L h Q_R^T, B = Q_L^-T V Q_R^-1:
    Q_L' = Q_L - precond_lr triu(A A^T - B B^T) Q_L / s(A A^T + B B^T), Q_R with A^T A and B^T B; s a lower
    bound of the largest singular value. Vectors and axes longer than max_dim have a diagonal Q. Li 2018;
    Pooladzandi & Li 2024. The authors also balance |Q_L| and |Q_R| at random, which leaves every update as
    it is.

    Args:
      precond_lr: > 0, the step of Q.
      precond_init_scale: > 0; Q_L Q_R^T starts there.
      damping: >= 0.
      every: Q steps where the number of steps done is a multiple of it: a whole number >= 1, or a schedule,
        whose values are rounded down. The authors step Q with a probability that is 1 in the first 500
        steps and then falls, by e in 1,000 steps, to 0.03; as seldom is
        exponential_decay(1.0, 1000, 2.71828, transition_begin=500, end_value=33.0).
      max_dim: the longest axis that has a triangular Q.
      seed: of V.

    Remembers `left`, `right` and `key`.
    """
    name = "scale_by_kron"
    checks.number(name, "precond_lr", precond_lr, low=0)
    checks.number(name, "precond_init_scale", precond_init_scale, low=0)
    checks.number(name, "damping", damping, low=0)
    if not callable(every):
        every = checks.steps(name, "every", every, 1)
    max_dim = checks.steps(name, "max_dim", max_dim)

    def init(p):
        stack, own = p.shape[:-2], p.shape[-2:]
        scale = precond_init_scale ** (1 / max(len(own), 1))
        found = {}
        for i, side in enumerate(("left", "right")[: max(len(own), 1)]):
            n = own[i] if own else 1
            axes = tuple(range(len(stack)))
            follows = p.ndim - len(own) + i if own else None
            if len(own) == 2 and n <= max_dim:
                q = jnp.broadcast_to(scale * jnp.eye(n), (*stack, n, n))
                axes = (*axes, follows, ...)
            else:
                q, axes = jnp.full((*stack, n), scale), (*axes, follows)
            found[side] = along(q.astype(p.dtype), axes)
        return found

    def leaf(u, here):
        g = u if u.ndim > 1 else u.reshape(-1, 1)
        Q = {s: getattr(here.memory, s) for s in here.memory._fields}
        if u.size == 0:
            return u, Q
        V = here.normal(u.shape, u.dtype).reshape(g.shape)

        def learn(Q, g, V, damping, precond_lr):
            h = g + damping * jnp.mean(jnp.abs(g), (-2, -1), keepdims=True) * V
            A = _times(Q, h)
            B = V
            for side, q in Q.items():
                B = _solve(q, B, side, g.ndim)
            new = {}
            for side, q in Q.items():
                dense = q.ndim == g.ndim
                a, b = (_gram(x, side, dense) for x in (A, B))
                if dense:
                    new[side] = q - precond_lr * (jnp.triu(safe_divide(a - b, _bound(a + b))) @ q)
                else:
                    bound = jnp.max(a + b, -1, keepdims=True)
                    new[side] = q - precond_lr * safe_divide(a - b, bound) * q
            return new

        Q = only_if(here.shared, learn, Q, g, V, damping, precond_lr)
        white = _times(Q, _times(Q, g), conjugate=True)
        return white.reshape(u.shape), Q

    def shared(step):
        n = jnp.asarray(value_at(every, step.count)).astype(step.count.dtype)
        return step.count % jnp.maximum(n, 1) == 0

    return leafwise(leaf, init=init, shared=shared, seed=seed, elementwise=False, of_matrices=True)


def _times(Q: dict, x: Array, conjugate: bool = False) -> Array:
    """Q_L x Q_R^T, or Q_L^H x Q_R^* ."""
    for side, q in Q.items():
        if q.ndim < x.ndim:
            q = q.conj() if conjugate else q
            x = x * jnp.expand_dims(q, -1 if side == "left" else -2)
        else:
            q = adjoint(q) if conjugate else q
            x = q @ x if side == "left" else x @ jnp.swapaxes(q, -1, -2)
    return x


def _solve(q: Array, x: Array, side: str, ndim: int) -> Array:
    """Q_L^-H x, or x Q_R^-1 ."""
    if q.ndim < ndim:
        return x / jnp.expand_dims(q.conj() if side == "left" else q, -1 if side == "left" else -2)
    if side == "left":
        return jax.scipy.linalg.solve_triangular(q, x, trans=2)
    y = jax.scipy.linalg.solve_triangular(q, jnp.swapaxes(x, -1, -2), trans=1)
    return jnp.swapaxes(y, -1, -2)


def _gram(x: Array, side: str, dense: bool) -> Array:
    """x x^H or x^T x^*, or its diagonal."""
    if not dense:
        return jnp.sum(square(x), -1 if side == "left" else -2)
    x = x if side == "left" else jnp.swapaxes(x, -1, -2)
    return x @ adjoint(x)


def _bound(s: Array) -> Array:
    """|S S_j| / |S_j|, S_j the largest column: at most the largest singular value."""
    j = jnp.argmax(jnp.sum(square(s), -2), -1)
    x = s @ jnp.take_along_axis(s, j[..., None, None], -1)
    return safe_divide(norm_over(s @ x, (-2, -1)), norm_over(x, (-2, -1)))
