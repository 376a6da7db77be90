"""Metrics of a state."""

import equinox as eqx
import jax
import jax.numpy as jnp

import adamfx as fx


def test_metrics_reads_what_blocks_say_and_not_parameters_of_the_same_name():
    class Model(eqx.Module):
        metrics: jax.Array
        dropped: jax.Array
        inner: jax.Array

    model = Model(jnp.ones(2), jnp.ones(3), jnp.ones(1))
    assert set(fx.metrics(fx.adam(0.1).init(model))) == {"learning_rate"}
    tx = fx.monitor(fx.adam(0.1), ("update_norm",), per_leaf=True)
    names = {"update_norm", *(f"update_norm/{n}" for n in ("metrics", "dropped", "inner"))}
    assert set(fx.metrics(tx.init(model))) == {"learning_rate", *names}
