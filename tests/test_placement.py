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
    with pytest.raises(ValueError, match=r"\.\.\. may stand for one axis of the memory only"):
        fx.along(jnp.zeros((2, 2)), (..., ...))
    with pytest.raises(
        ValueError, match=r"axes must name an axis .* 2 axes of the memory, got \(0,\)"
    ):
        fx.along(jnp.zeros((2, 2)), (0,))


@pytest.mark.parametrize("shape", [(8, 16), (8, 12), (4, 24)])
@pytest.mark.parametrize("axes", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_the_other_axis_of_a_square_takes_what_else_cuts_the_parameter(axes, shape):
    @fx.block
    def squares():
        def init(p):
            m, n = p.shape
            left, right = jnp.zeros((m, m)), jnp.zeros((n, n))
            return {"left": fx.along(left, (0, ...)), "right": fx.along(right, (1, ...))}

        return fx.leafwise(lambda u, here: (u, here.memory._asdict()), init=init)

    mesh, P = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axes, axes)), jax.sharding.PartitionSpec
    tx = squares()
    with jax.set_mesh(mesh):
        for spec, left, right in (
            (P("x", "y"), P("x", "y"), P("y", "x")),
            (P("x"), P("x"), P(None, "x")),
            (P(None, "y"), P(None, "y"), P("y")),
            (P(("y", "x") if shape[0] > 4 else "x"), None, None),
        ):
            p = jax.device_put(jnp.ones(shape), jax.sharding.NamedSharding(mesh, spec))
            for init in (tx.init, jax.jit(tx.init)):
                held = init(p)["squares"]
                for x, to in ((held.left, left), (held.right, right)):
                    if to is not None:
                        lies = jax.sharding.NamedSharding(mesh, to)
                        assert x.sharding.is_equivalent_to(lies, 2), (spec, x.shape, x.sharding)
