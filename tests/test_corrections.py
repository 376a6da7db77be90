"""Corrections of the record, and what NaN, dtypes and a decay of zero do to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx

ONE = jnp.ones(1)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adagrad", "amsgrad", "novograd"])
def test_nan_gradients_are_seen(name):
    """A NaN second moment must not read as zero: the update is NaN, not 0 and not enormous."""
    tx = getattr(fx, name)(0.1)
    s = tx.init(ONE)
    _, s = tx.update(ONE, s, ONE)
    u, s = tx.update(jnp.array([jnp.nan]), s, ONE)
    assert np.isnan(u).all()
    u, s = tx.update(ONE, s, ONE)
    assert np.isnan(u).all()


def test_correcting_twice_is_an_error():
    tx = fx.chain(fx.scale_by_moments(0.9, 0.9), fx.bias_correct("first"), fx.bias_correct())
    with pytest.raises(ValueError, match="bias_correct: the moment is corrected already"):
        tx.update(ONE, tx.init(ONE))


def test_moment_dtypes():
    with pytest.raises(
        ValueError, match="mu_dtype must be a floating dtype such as 'bfloat16', got"
    ):
        fx.adam(0.1, mu_dtype="int32")
    with pytest.raises(ValueError, match="nu_dtype must be a floating dtype"):
        fx.scale_by_moments(0.9, 0.9, nu_dtype="float33")
    with pytest.raises(ValueError, match="mu_dtype float32 cannot hold the complex moment mu"):
        fx.adam(0.1, mu_dtype="float32").init(jnp.ones(1, complex))
    assert fx.adam(0.1, mu_dtype=np.float16) == fx.adam(0.1, mu_dtype=jnp.float16)


@pytest.mark.parametrize("name", ["b1", "b2"])
@pytest.mark.parametrize("steps", [1, 3])
def test_derivatives_at_a_decay_of_zero(name, steps, x64):
    def moved(b):
        tx = fx.adam(0.1, eps=1e-3, **{name: b})
        p = jnp.asarray(1.0)
        state = tx.init(p)
        for t in range(steps):
            p, state = tx.step(2 * p + t, state, p)
        return p

    tiny = 1e-6
    difference = (moved(jnp.asarray(tiny)) - moved(jnp.asarray(0.0))) / tiny
    slope = jax.grad(moved)(jnp.asarray(0.0))
    np.testing.assert_allclose(slope, difference, atol=1e-4)


def test_a_derivative_at_zero_after_many_steps_is_finite():
    def moved(b):
        tx = fx.adam(0.1, b1=b)
        p = jnp.asarray(1.0)

        def step(carry, g):  # never zero for long, where the root of v has no derivative
            return tx.step(g + carry[0], carry[1], carry[0]), None

        return jax.lax.scan(step, (p, tx.init(p)), jnp.sin(jnp.arange(2000.0)))[0][0]

    assert jnp.isfinite(jax.grad(moved)(jnp.asarray(0.0)))
