"""Moments live where their parameter lives: eager and jitted init, automatic and explicit axes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from table import OPTIMIZERS, SENTENCES, WRAPPERS

import adamfx as fx

SPECS = {"w": P("x", "y"), "b": P("y"), "s": P(), "w2": P(None, ("x", "y"))}
SHAPES = {"w": (8, 4), "b": (4,), "s": (), "w2": (2, 8)}
CHOSEN = OPTIMIZERS | {
    k: SENTENCES[k] for k in ("scheduled decays", "live in chain", "clipped adamw")
}
CHOSEN |= {f"{name}(adamw)": SENTENCES[f"{name}(adamw)"] for name in WRAPPERS}
# Where every column lies on a device of its own, no larger block lies on one.
CHOSEN["stored(adamw)"] = fx.stored(
    fx.adamw(0.01), mu=fx.int8(1, min_size=0), nu=fx.uint8(1, min_size=0)
)


def layouts(shape, leaf):
    """How memory of another shape than its parameter may lie: each axis whole, or as one it divides.

    Of a square one, columns may lie as whatever cuts the parameter.
    """
    spec = (*SPECS[leaf], *[None] * len(SHAPES[leaf])) if leaf else ()
    of = [*zip(SHAPES[leaf], spec, strict=False)] if leaf else []
    # An axis of memory may have one number for each block of the parameter's.
    choices = [{None, *(a for m, a in of if n > 1 and m % n == 0)} for n in shape]
    if len(shape) > 1 and shape[-1] == shape[-2]:
        choices[-1] |= {a for _, a in of}
    for axes in itertools.product(*choices):
        used = [a for axis in axes if axis for a in ((axis,) if isinstance(axis, str) else axis)]
        if len(set(used)) == len(used):
            yield P(*axes)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", CHOSEN)
def test_state_follows_the_parameters(name, axes):
    tx = CHOSEN[name]
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axes, axes))
    with jax.set_mesh(mesh):
        p = {
            k: jax.device_put(np.full(SHAPES[k], 0.5, np.float32), NamedSharding(mesh, SPECS[k]))
            for k in SPECS
        }
        s = tx.init(p)

        def check(s):
            for path, x in jax.tree_util.tree_leaves_with_path(s):
                if "view" in str(path) or "stacked" in str(path):
                    continue  # the arrays that it is memory of are of another form
                keys = [getattr(k, "key", None) for k in path]
                leaf = next((k for k in keys if k in SPECS), None)
                own = leaf and x.shape == SHAPES[leaf]
                allowed = [SPECS[leaf]] if own else layouts(x.shape, leaf)
                lies = [
                    x.sharding.is_equivalent_to(NamedSharding(mesh, a), x.ndim) for a in allowed
                ]
                assert any(lies), (path, x.shape, x.sharding)

        def check_lies(s, layout):
            for x, lay in zip(jax.tree.leaves(s), jax.tree.leaves(layout), strict=True):
                if x.size < mesh.size and jax.__version_info__ < (0, 8):
                    continue  # it may then be cut over some of the devices, where axes are automatic
                assert x.sharding.is_equivalent_to(lay, x.ndim), (x.shape, x.sharding, lay)

        check(s)
        first, traces = jax.tree.map(lambda x: x.sharding, s), []
        check_lies(jax.jit(tx.init)(p), first)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def train_step(p, s):
            traces.append(1)
            g = jax.tree.map(lambda x: x * np.float32(0.1), p)
            return tx.step(g, s, p)

        for _ in range(3):
            p, s = train_step(p, s)
        check_lies(s, first)
        assert len(traces) == 1
        assert train_step._cache_size() == 1


def test_without_a_mesh_in_scope():
    """Automatic axes need no jax.set_mesh: the counter must not stay behind on one device."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    p = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, P("x")))
    tx = fx.live(fx.adam(0.1))
    for init in (tx.init, jax.jit(tx.init)):
        s = init(p)
        step = jax.jit(tx.step)
        q, s1 = step(p, s, p)
        q, s1 = step(p, s1, q)
        assert step._cache_size() == 1
        for x in jax.tree.leaves(s):
            assert len(x.sharding.device_set) == 8
        s = fx.set_hyperparams(s, learning_rate=0.5)
        step(p, s, q)
        assert step._cache_size() == 1


def test_norms_inside_shard_map():
    """Each device clips by the norm of its own part; the loop of the norm varies with it."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    g = {"a": jnp.arange(8.0), "b": jnp.ones(3)}
    specs = {"a": P("d"), "b": P()}

    def own(g):
        return fx.global_norm(g)[None]

    norms = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=(specs,), out_specs=P("d")))(g)
    parts = np.arange(8.0).reshape(4, 2)
    np.testing.assert_allclose(norms, np.sqrt((parts**2).sum(1) + 3), rtol=1e-6)
    grad = jax.shard_map(jax.grad(fx.global_norm), mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    unit = parts / np.linalg.norm(parts, axis=1, keepdims=True)
    np.testing.assert_allclose(jax.jit(grad)(g["a"]), unit.ravel(), rtol=1e-6)
