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


def test_the_one_bad_number_of_many_leaves():
    """Small vectors are tested together, sixteen at a time."""
    tx = fx.skip_nonfinite(fx.sgd(0.1))
    g = [jnp.ones(3)] * 40 + [jnp.ones((2, 2))] * 2 + [jnp.ones(5000)]
    s = tx.init(g)
    for j in (0, 15, 16, 33, 39, 40, 42):
        for x in (jnp.nan, -jnp.inf, 1e20):
            bad = [y.at[(1,) * y.ndim].set(x) if i == j else y for i, y in enumerate(g)]
            _, after = tx.update(bad, s)
            assert fx.get(after, "total_notfinite") == 1
    assert fx.get(tx.update(g, s)[1], "total_notfinite") == 0
