"""chain, named, live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table import tree

import adamfx as fx

ONE = jnp.ones(1)


def test_setting_a_live_hyperparameter_compiles_nothing():
    p = tree()
    tx = fx.live(fx.adam(0.1))
    s = tx.init(p)
    step = jax.jit(tx.step)
    for rate in (0.1, 0.2, 0.3):
        s = fx.set_hyperparams(s, learning_rate=rate)
        p, s = step(p, s, p)
        p, s = step(p, s, p)
    assert step._cache_size() == 1


def test_state_keys_never_collide():
    m = fx.scale_by_moments(0.9, None)
    tx = fx.chain(fx.named("scale_by_moments_2", m), m, m)
    assert list(tx.init(ONE)) == [
        *("count", "scale_by_moments_2", "scale_by_moments", "scale_by_moments_3")
    ]


def test_parameters_called_hyperparams():
    p = {"hyperparams": {"learning_rate": ONE}}
    tx = fx.live(fx.adam(0.1))
    states = [tx.init(p), tx.init(p)]
    assert set(fx.hyperparams(states[0])) == {"live.scale_by_lr.learning_rate"}
    assert len(fx.hyperparams(states)) == 2
    states = fx.set_hyperparams(states, **{"0.live.scale_by_lr.learning_rate": 0.5})
    assert [float(x) for x in fx.hyperparams(states).values()] == [0.5, np.float32(0.1)]


def test_extra_arguments_that_mix_arrays_and_strings():
    tx = fx.adam(0.1)
    with pytest.raises(
        TypeError, match=r"update: the extra argument x is .*pass arrays and callables as"
    ):
        tx.update(ONE, tx.init(ONE), x=[ONE, "a"])


def test_small_mistakes_have_messages():
    with pytest.raises(TypeError, match=r"clip is a function.*call it: clip\(...\)"):
        fx.chain(fx.adam(0.1), fx.clip)
    with pytest.raises(TypeError, match=r"chain\(\*blocks\)"):
        fx.chain([fx.adam(0.1)])
    with pytest.raises(ValueError, match="moments must be one of"):
        fx.leafwise(lambda u, here: u, moments="open")
    with pytest.raises(KeyError, match="nothing is live"):
        fx.set_hyperparams(fx.adam(0.1).init(ONE), learning_rate=1.0)
