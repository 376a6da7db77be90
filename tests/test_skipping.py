"""Gradients that are not finite."""

import jax
import jax.numpy as jnp
import pytest

import adamfx as fx


def test_check_finite_of_many_runs():
    tx = fx.skip_nonfinite(fx.sgd(0.1), 0)
    state = jax.vmap(tx.init)({"w": jnp.zeros((2, 3))})
    fx.check_finite(state)
    bad = {"w": jnp.stack([jnp.ones(3), jnp.full(3, jnp.nan)])}
    _, state = jax.vmap(tx.update)(bad, state)
    with pytest.raises(FloatingPointError, match="the last 1 gradients"):
        fx.check_finite(state)
