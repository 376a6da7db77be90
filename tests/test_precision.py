"""Parameters below float32: messages."""

import jax
import jax.numpy as jnp
import pytest

import adamfx as fx

P = {"w": jnp.zeros(3)}


def test_master_weights_notice_parameters_of_another_dtype():
    tx = fx.master_weights(fx.sgd(1.0))
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), P)
    for made_for, given in ((P, low), (low, P)):
        with pytest.raises(ValueError, match="parameters of other dtypes"):
            tx.step(given, tx.init(made_for), given)


@pytest.mark.parametrize("dtype", ["int8", "run1"])
def test_compensate_wants_a_floating_dtype(dtype):
    with pytest.raises(ValueError, match=r"compensate: dtype must be a floating dtype"):
        fx.compensate(dtype)


def test_compensate_cannot_hold_complex_errors_as_real():
    with pytest.raises(ValueError, match="complex"):
        fx.compensate("bfloat16").init({"w": jnp.zeros(2, jnp.complex64)})


def test_the_seed_is_whole():
    assert fx.round_stochastically(2.0) == fx.round_stochastically(2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"seed must be a whole number, got 2\.5"):
        fx.round_stochastically(2.5)  # type: ignore[arg-type]
