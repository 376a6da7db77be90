"""Masks and labels of other kinds of tree."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import adamfx as fx

TWO_ONES = jnp.ones(2)


class Config(dict):
    """A mapping that JAX does not know."""

    def __init__(self, **items):
        super().__init__(items)


def test_masks_and_labels_given_as_other_mappings():
    p = {"a": {"w": TWO_ONES, "b": TWO_ONES}, "c": TWO_ONES}
    mask = {"a": {"w": True, "b": False}, "c": True}
    frozen = flax.core.freeze(mask)
    config = Config(a=Config(w=True, b=False), c=True)
    for given in (mask, frozen, config):
        tx = fx.add_decayed_weights(0.5, given)
        u, _ = tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
        assert jax.tree.map(lambda x: float(x[0]), u) == {"a": {"w": 0.5, "b": 0.0}, "c": 0.5}
    frozen_params = flax.core.freeze(p)
    tx = fx.masked(fx.scale(2.0), mask)
    u, _ = tx.update(frozen_params, tx.init(frozen_params), frozen_params)
    assert float(u["a"]["w"][0]) == 2.0
    labels = flax.core.freeze({"a": {"w": "x", "b": "y"}, "c": "y"})
    tx = fx.partition({"x": fx.scale(2.0), "y": fx.scale(3.0)}, labels)
    u, _ = tx.update(p, tx.init(p))
    assert float(u["a"]["w"][0]) == 2.0
    assert float(u["c"][0]) == 3.0


def test_masks_given_as_modules():
    import equinox as eqx

    model = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    mask = jax.tree.map(lambda x: x.ndim > 1, model)
    tx = fx.add_decayed_weights(1.0, mask)
    u, _ = tx.update(jax.tree.map(jnp.zeros_like, model), tx.init(model), model)
    assert u.weight.any()
    assert not u.bias.any()
    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    for given in (jax.tree.map(lambda x: x.ndim > 1, params), {"kernel": True, "bias": False}):
        tx = fx.add_decayed_weights(1.0, given)
        u, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        assert np.asarray(u["kernel"][...]).any()
        assert not np.asarray(u["bias"][...]).any()
