"""Where memory lives."""

import jax
import jax.numpy as jnp
import pytest

import adamfx as fx


def test_init_inside_shard_map():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    tx = fx.adam(0.1)
    p = jnp.ones(4)
    state = jax.tree.map(lambda x: spec("x") if x.shape == p.shape else spec(), tx.init(p))
    init = jax.shard_map(tx.init, mesh=mesh, in_specs=spec("x"), out_specs=state)
    assert init(p)["scale_by_moments"].mu.shape == (4,)


@pytest.mark.parametrize("axes", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_memory_of_a_square_leaf_is_not_sharded_by_accident(axes):
    @fx.block
    def scalar_per_row():
        def init(p):
            return {"gram": fx.along(jnp.zeros((p.shape[0],) * 2), (None, None))}

        return fx.leafwise(lambda u, here: (u, {"gram": here.memory.gram}), init=init)

    mesh = jax.make_mesh((8,), ("x",), axis_types=(axes,))
    with jax.set_mesh(mesh):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        p = jax.device_put(jnp.ones((8, 8)), sharding)
        for init in (scalar_per_row().init, jax.jit(scalar_per_row().init)):
            assert init(p)["scalar_per_row"].gram.sharding.is_fully_replicated
    with pytest.raises(
        ValueError, match=r"axes must name an axis .* 2 axes of the memory, got \(0,\)"
    ):
        fx.along(jnp.zeros((2, 2)), (0,))
