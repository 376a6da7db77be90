"""Parameters below float32: messages."""

import jax
import jax.numpy as jnp
import numpy as np
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


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: fx.lookahead(tx, 2, 0.1),
        lambda tx: fx.outer_step(tx, fx.sgd(0.1), 2),
        lambda tx: fx.ema_nesterov(tx, lookahead=2.0, decay=0.5),
        lambda tx: fx.mechanize(tx, s_init=0.1),
    ],
)
def test_copies_are_refused_where_parameters_are_moved_around_them(around):
    """And outside, bfloat16 parameters are the rounded float32 run."""
    with pytest.raises(ValueError, match=r"write master_weights\("):
        around(fx.skip_nonfinite(fx.master_weights(fx.sgd(0.05))))

    def run(tx, dtype):
        p = jnp.ones(4, dtype)
        state = tx.init(p)
        for _ in range(6):
            g = 2 * (tx.gradient_at(state, p).astype(jnp.float32) - 3)
            p, state = tx.step(g.astype(dtype), state, p)
        return p.astype(jnp.float32)

    low = run(fx.master_weights(around(fx.sgd(0.05))), jnp.bfloat16)
    np.testing.assert_allclose(low, run(around(fx.sgd(0.05)), jnp.float32), rtol=0.02)
