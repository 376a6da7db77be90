"""Meshes of eight devices that tests lay values on, and a loss to train them with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

RNG = np.random.default_rng(0)
AXES = pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
VALUES = {
    "w": RNG.normal(size=(64, 16)).astype(np.float32),
    "t": RNG.normal(size=(5, 24)).astype(np.float32),
    "b": np.ones(7, np.float32),
    "s": np.float32(1.0),
}
LIES = {"w": P("model", None), "t": P(), "b": P(), "s": P()}
CUT = {"w": P("model", "data"), "t": P(None, "data"), "b": P(), "s": P()}


def mesh_of(axes):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(axes, axes))


def put(mesh, values=VALUES, lies=LIES):
    return {k: jax.device_put(x, NamedSharding(mesh, lies[k])) for k, x in values.items()}


def loss(p):
    return sum(jnp.sum(jnp.sin(x * 3 + i)) for i, x in enumerate(jax.tree.leaves(p)))


def train(tx, p, steps=4):
    @jax.jit
    def step(p, s):
        return tx.step(jax.grad(loss)(p), s, p)

    s = tx.init(p)
    for _ in range(steps):
        p, s = step(p, s)
    return p, s


def assert_lies(tree, specs, mesh):
    for k, x in tree.items():
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, specs[k]), x.ndim), (k, x.sharding)
