"""Online convex optimisation: a stream of losses, and the regret against the best fixed point.

The learner pays f_t(theta_t) = (x_t . theta_t - y_t)^2 / 2 before it sees the gradient. Its regret is
R(T) = sum f_t(theta_t) - min over theta of sum f_t(theta), t = 1 ... T (Adam paper, section 4).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def stream(key: jax.Array, steps: int, size: int = 10) -> tuple[jax.Array, jax.Array]:
    """(x, y): x (steps, size) uniform in [-1, 1], y (steps,) linear in x with noise of deviation 0.5."""
    k_x, k_theta, k_noise = jax.random.split(key, 3)
    x = jax.random.uniform(k_x, (steps, size), minval=-1, maxval=1)
    theta = jax.random.uniform(k_theta, (size,), minval=-1, maxval=1)
    return x, x @ theta + 0.5 * jax.random.normal(k_noise, (steps,))


def loss(theta: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """(x . theta - y)^2 / 2, for one x (size,) or the mean of several (n, size)."""
    return jnp.mean((x @ theta - y) ** 2) / 2


def regret(losses: np.ndarray, x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """R(T) for each T in `at`, from the losses paid at t = 1, 2, ...; in float64.

    The best fixed point of the first T is that of least squares.
    """
    x, y, losses = (np.asarray(a, np.float64) for a in (x, y, losses))
    paid = np.cumsum(losses)
    best = []
    for t in at:
        theta = np.linalg.lstsq(x[:t], y[:t], rcond=None)[0]
        best.append(np.sum((x[:t] @ theta - y[:t]) ** 2) / 2)
    return paid[np.asarray(at) - 1] - np.array(best)
