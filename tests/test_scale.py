"""Where a state lies: its shapes and shardings before it is made, shared out over devices, on the host."""

import blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import AXES, CUT, LIES, VALUES, assert_lies, loss, mesh_of, put, train
from table import OPTIMIZERS, SENTENCES, WRAPPERS
from test_sharding import CHOSEN, SHAPES, SPECS

import adamfx as fx
from benchmarks.hlo import arrays, computations

# ---- abstract_state ------------------------------------------------------------------------------

OF_ALL = OPTIMIZERS | {f"{name}(adamw)": SENTENCES[f"{name}(adamw)"] for name in WRAPPERS}
OF_ALL["stored(adamw)"] = CHOSEN["stored(adamw)"]  # of which no block straddles two devices


@AXES
@pytest.mark.parametrize("name", OF_ALL)
def test_shapes_and_shardings_of_a_state_that_is_not_made(name, axes):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axes, axes))
    with jax.set_mesh(mesh):
        p = {k: jnp.full(SHAPES[k], 0.5) for k in SPECS}
        p = {k: jax.device_put(x, NamedSharding(mesh, SPECS[k])) for k, x in p.items()}
        made = OF_ALL[name].init(p)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), p
        )
    for given in (p, abstract):
        found = fx.abstract_state(OF_ALL[name], given)
        assert jax.tree.structure(found) == jax.tree.structure(made)
        pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(made), strict=True)
        for (path, a), b in pairs:
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert a.sharding.mesh == mesh
            if "view" not in str(path) and "stacked" not in str(path):  # arrays of another form
                assert b.sharding.is_equivalent_to(a.sharding, b.ndim), (path, a, b.sharding)


def test_a_state_of_one_device_has_no_sharding_and_of_two_meshes_none_at_all():
    like = fx.abstract_state(fx.adam(1e-3), {"w": jnp.ones(3)})
    assert like["scale_by_moments"].mu["w"].shape == (3,)
    devices = np.array(jax.devices())
    two = [jax.sharding.Mesh(devices[i : i + 4], ("x",)) for i in (0, 4)]
    p = [jax.device_put(jnp.ones(4), NamedSharding(mesh, P("x"))) for mesh in two]
    with pytest.raises(ValueError, match="lie on 2 meshes; call it for the tree of each one"):
        fx.abstract_state(fx.adam(1e-3), p)


# ---- shard_state ---------------------------------------------------------------------------------

INSIDE = {
    "adamw": fx.adamw(1e-2),
    "lamb": fx.lamb(1e-2),
    "clipped": fx.chain(fx.clip_by_global_norm(1.0), fx.adamw(1e-2)),
    "adafactor": fx.adafactor(1e-2, min_dim_size_to_factor=4),
    "muon": fx.muon(1e-2),
    "master_weights": fx.master_weights(fx.adamw(1e-2)),
    "accumulate": fx.accumulate(fx.adamw(1e-2), 2),
    "skip_nonfinite": fx.skip_nonfinite(fx.adamw(1e-2)),
    "schedule_free": fx.schedule_free(fx.sgd(1e-2), 1e-2),
}
AROUND = {
    "": lambda tx: tx,
    "accumulate": lambda tx: fx.accumulate(tx, 2),
    "skip_nonfinite": fx.skip_nonfinite,
    "partition": lambda tx: fx.partition(
        {"a": tx, "b": fx.sgd(0.1)}, {"w": "a", "t": "a", "b": "b", "s": "b"}
    ),
}


@AXES
@pytest.mark.parametrize("name", INSIDE)
def test_a_state_in_shares_steps_as_a_whole_one(name, axes):
    mesh = mesh_of(axes)
    with jax.set_mesh(mesh):
        p, tx = put(mesh), INSIDE[name]
        want, _ = train(tx, p)
        got, state = train(fx.shard_state(tx), p)
        assert_lies(got, LIES, mesh)
        seen = {k for k in ("mu", "z", "acc_grads") if _has(state, k)}
        for k in seen:
            assert_lies(fx.get(state, k), CUT, mesh)
        assert seen or name in ("adafactor", "muon")
    for k in p:
        np.testing.assert_allclose(got[k], want[k], rtol=2e-5, atol=2e-6)


def _has(state, name):
    try:
        fx.get(state, name)
    except KeyError:
        return False
    return True


@AXES
@pytest.mark.parametrize("name", AROUND)
def test_wrappers_around_shares(name, axes):
    mesh = mesh_of(axes)
    with jax.set_mesh(mesh):
        p = put(mesh)
        want, _ = train(AROUND[name](fx.adamw(1e-2)), p)
        got, _ = train(AROUND[name](fx.shard_state(fx.adamw(1e-2))), p)
    for k in p:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-5, atol=1e-6)


@AXES
def test_what_travels_is_as_narrow_as_the_parameters(axes):
    mesh = mesh_of(axes)
    with jax.set_mesh(mesh):
        p = put(mesh, {"w": np.ones((64, 16), jnp.bfloat16)})
        tx = fx.shard_state(fx.master_weights(fx.adamw(1e-2)))
        s = tx.init(p)
        text = jax.jit(tx.step).lower(p, s, p).compile().as_text()
    gathers = [line for line in text.splitlines() if " all-gather(" in line]
    assert gathers
    assert all("f32[64,16]" not in line.split("all-gather(")[0] for line in gathers)


@AXES
@pytest.mark.parametrize("kind", ["jax", "numpy"])
def test_shares_of_parameters_that_no_mesh_knows_yet(kind, axes):
    """Such lie whole on every device; of a mesh of one axis, no other one could cut them."""
    mesh, tx = jax.make_mesh((8,), ("data",), axis_types=(axes,)), fx.shard_state(fx.adamw(1e-2))
    p = dict(VALUES) if kind == "numpy" else jax.tree.map(jnp.asarray, VALUES)
    want, _ = train(fx.adamw(1e-2), p)
    with jax.set_mesh(mesh):
        g, s = jax.grad(loss)(p), tx.init(p)
        by_hand, after = tx.step(g, s, p)
        traced, _ = jax.jit(tx.step)(g, jax.jit(tx.init)(p), p)
        got, _ = train(tx, p)
    assert fx.get(after, "mu")["w"].sharding.shard_shape((64, 16)) == (8, 16)
    for k, x in want.items():
        np.testing.assert_allclose(got[k], x, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(by_hand[k], traced[k], rtol=2e-5, atol=2e-6)


def test_shares_without_a_mesh_or_its_axis():
    with pytest.raises(ValueError, match="no mesh is set"):
        fx.shard_state(fx.adam(1e-3)).init({"w": jnp.ones(8)})
    with pytest.raises(TypeError, match="axis must be the name"):
        fx.shard_state(fx.adam(1e-3), 0)
    mesh = mesh_of(AxisType.Auto)
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="no axis 'expert'; it has 'data', 'model'"),
    ):
        fx.shard_state(fx.adam(1e-3), "expert").init(put(mesh))


# ---- offload -------------------------------------------------------------------------------------


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 leaves it on the device")
@AXES
def test_an_abstract_state_knows_what_rests_on_the_host(axes):
    mesh = mesh_of(axes)
    params = {"w": jax.device_put(np.ones((512, 16), np.float32), NamedSharding(mesh, P("model")))}
    tx = fx.offload(fx.adamw(0.01))
    with jax.set_mesh(mesh):
        pairs = zip(
            *map(jax.tree.leaves, (fx.abstract_state(tx, params), tx.init(params))), strict=True
        )
        kinds = [(a.sharding.memory_kind or "device", b.sharding.memory_kind) for a, b in pairs]
    assert all(a == b for a, b in kinds)
    assert ("pinned_host", "pinned_host") in kinds


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 leaves it on the device")
@pytest.mark.parametrize(
    "around",
    [
        "offload(adamw(1e-2))",
        "offload(chain(clip_by_global_norm(1.0), named('a', adamw(1e-2))))",
        "offload(lamb(1e-2))",
        "offload(accumulate(adamw(1e-2), 2))",
        "accumulate(offload(adamw(1e-2)), 2)",
        "offload(skip_nonfinite(adamw(1e-2)))",
        "skip_nonfinite(offload(adamw(1e-2)))",
        "offload(offload(adamw(1e-2)))",
        "offload(masked(live(adamw(1e-2)), ndim_at_least(1)))",
        "offload(stored(adamw(1e-2), nu=uint8()))",
        "offload(master_weights(schedule_free_adamw(1e-2)))",
        "offload(adopt(1e-2))",
        "offload(monitor(adagrad(1e-2)))",
        "offload(adafactor(1e-2, momentum=0.9))",
    ],
)
def test_a_state_on_the_host(around):
    p = {"w": jnp.ones((64, 128)), "v": jnp.ones(5000), "x": jnp.ones(5001), "b": jnp.ones(3)}
    want, _ = train(fx.read(around.replace("offload", "chain")), p)
    got, state = train(fx.read(around), p)
    for k in p:
        np.testing.assert_allclose(got[k], want[k], rtol=3e-7)  # another program, another rounding
        assert got[k].sharding.memory_kind == "device"
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state) if x.size >= 4096}
    assert kinds == {"pinned_host"} or around.startswith("accumulate")
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state) if x.size < 4096} == {"device"}


def test_leaves_without_memory_hold_nobody_up_and_let_nobody_through():
    """From the third leaf with memory on, one is fetched when that of the leaf before the last is back."""
    facts = {"w": True, "x": False, "y": True}

    @fx.block
    def summed():
        return fx.leafwise(
            lambda u, here: (here.memory.m + u, {"m": here.memory.m + u}),
            init=lambda p: {"m": jnp.zeros_like(p)},
            mask=lambda params: {k: facts[k[0]] for k in params},
            each=lambda params: {k: k[0] for k in params},
        )

    p = {k: jnp.ones((64, 65)) for k in ("w0", "w1", "x0", "x1", "y0", "y1")}
    tx = fx.offload(summed())
    made = jax.make_jaxpr(tx.update)(p, tx.init(p), p)
    waits = [e for e in made.eqns if e.primitive.name == "optimization_barrier"]
    assert [len(e.invars) for e in waits] == [2, 2]


def test_a_state_on_the_host_is_saved_and_read_back(tmp_path):
    p = {"w": jnp.ones((64, 128))}
    tx = fx.offload(fx.adamw(1e-2))
    p, state = train(tx, p, 2)
    fx.save(tmp_path / "run", {"params": p, "state": state})
    again = fx.load(tmp_path / "run", {"params": p, "state": state})
    q, _ = tx.step(p, again["state"], again["params"])
    r, _ = tx.step(p, state, p)
    np.testing.assert_array_equal(q["w"], r["w"])


@pytest.mark.parametrize("text", ["{}", "shard_state({}, 'data')"])
@pytest.mark.parametrize("shape", [(16, 384), (13, 384)])
def test_blocks_that_straddle_two_devices(text, shape):
    """384 numbers are three blocks of 128, and four devices have 96 of them each."""
    one = "stored(adamw(1e-3), mu=int8(min_size=1), nu=uint8(min_size=1))"
    tx = fx.read(text.format(one))
    value = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    want = {"w": jnp.asarray(value)}
    state = fx.read(one).init(want)
    for _ in range(2):
        want, state = fx.read(one).step({"w": jnp.asarray(value)}, state, want)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        p = g = put(mesh, {"w": value}, {"w": P(None, "data" if text == "{}" else None)})
        like, state, step = fx.abstract_state(tx, p), tx.init(p), jax.jit(tx.step)
        for a, b in zip(jax.tree.leaves(like), jax.tree.leaves(state), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        for _ in range(2):
            p, state = step(g, state, p)
    assert step._cache_size() == 1
    np.testing.assert_allclose(p["w"], want["w"], rtol=1e-6)


def test_meshes_on_which_a_layout_cannot_be_said():
    mixed = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit, AxisType.Auto))
    with jax.set_mesh(mixed):
        p = put(
            mixed, {k: np.ones((16, 24), np.float32) for k in "ab"}, dict.fromkeys("ab", P("data"))
        )
        jax.jit(fx.adamw(0.1).step)(p, fx.adamw(0.1).init(p), p)
        for make in (fx.muon, fx.soap, fx.kron, lambda lr: fx.shard_state(fx.adam(lr), "model")):
            with pytest.raises(ValueError, match="data explicit, model auto"):
                jax.jit(make(0.1).step)(p, make(0.1).init(p), p)
    mesh, tx = mesh_of(AxisType.Auto), fx.shard_state(fx.adam(0.1), "data")
    with jax.set_mesh(mesh):
        p = put(mesh)
        with pytest.raises(ValueError, match="call init outside of jit"):
            jax.jit(tx.init)(p)
        state = tx.init(p)
        q, _ = jax.jit(tx.step)(p, state, p)
    assert q["w"].sharding.is_equivalent_to(p["w"].sharding, 2)


# ---- parameters whose gradients stay unreduced ---------------------------------------------------

REDUCED = pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 has no such type")


def regression(p, x):
    return jnp.mean(jnp.sum(jnp.tanh(x @ p["w"]) @ p["v"], 1))


def tagged_params(mesh):
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(16, 4)), "v": rng.normal(size=(4, 4))}
    values = {k: x.astype(np.float32) for k, x in values.items()}
    tagged = {
        k: jax.reshard(jnp.asarray(x), P(None, None, reduced={"data"})) for k, x in values.items()
    }
    return values, tagged


@REDUCED
@pytest.mark.parametrize("name", OF_ALL)
def test_gradients_may_be_unreduced(name):
    """Types alone: parameters come back as they were, memory is that of parameters without a tag."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        _, p = tagged_params(mesh)
        x = jax.device_put(np.ones((32, 16), np.float32), P("data"))
        state = jax.jit(OF_ALL[name].init).eval_shape(p)

        def step(p, s, x):
            value, g = jax.value_and_grad(regression)(p, x)
            assert jax.typeof(g["w"]).sharding.spec.unreduced == {"data"}
            value_fn = lambda p: regression(p, x)  # noqa: E731
            more = {"value": value, "grad": g, "value_fn": value_fn, "grad_fn": jax.grad(value_fn)}
            return OF_ALL[name].step(g, s, p, **more)

        new, after = jax.jit(step).eval_shape(p, state, x)
    types = [[(y.shape, y.dtype, y.sharding.spec) for y in jax.tree.leaves(t)] for t in (new, p)]
    assert types[0] == types[1]
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.sharding.spec) == (b.shape, b.sharding.spec)


@REDUCED
def test_one_reduction_for_all_gradients_of_a_window():
    tx = fx.accumulate(fx.adamw(1e-2), 8)
    xs = np.random.default_rng(1).normal(size=(8, 32, 16)).astype(np.float32)

    def window(p, s, xs):
        def micro(carry, x):
            p, s = carry
            return tx.step(jax.grad(regression)(p, x), s, p), None

        return jax.lax.scan(micro, (p, s), xs)[0]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        values, p = tagged_params(mesh)
        s, shared = tx.init(p), jax.device_put(xs, P(None, "data"))
        made = jax.jit(window).lower(p, s, shared).compile()
        got = made(*made(p, s, shared), shared)
    program, _ = computations(made.as_text())
    [(where, found)] = [
        (c, x) for c, lines in program.items() for x in lines if x.op == "all-reduce"
    ]
    assert sum(a.size for a in arrays(found.type)) == 4 * (16 * 4 + 4 * 4)
    asking = [x for lines in program.values() for x in lines if x.op == "conditional"]
    assert any(where in x.rest for x in asking)  # once per window, not per gradient
    want = values, tx.init(values)
    for _ in range(2):
        want = jax.jit(window)(*want, xs)
    for k in values:
        np.testing.assert_allclose(got[0][k], want[0][k], rtol=1e-6)


@REDUCED
def test_fit_takes_parameters_with_reduced_axes():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    x = np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32)
    with jax.set_mesh(mesh):
        values, p = tagged_params(mesh)
        batch = jax.device_put(x, P("data"))
        got = fx.fit(regression, fx.adam(0.1), p, [batch] * 4, progress=False)
    want = fx.fit(regression, fx.adam(0.1), values, [x] * 4, progress=False)
    for column in ("loss", "gradient_norm"):
        np.testing.assert_allclose(got.history[column], want.history[column], rtol=1e-5)


# ---- leaves on several meshes ---------------------------------------------------------------------


@AXES
@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "accumulate(adamw)"])
def test_each_leaf_steps_where_it_lives(name, axes):
    tx = OF_ALL.get(name) or fx.accumulate(fx.adamw(0.01), 2)
    meshes = [
        jax.make_mesh((4,), ("x",), axis_types=(axes,), devices=jax.devices()[i : i + 4])
        for i in (0, 4)
    ]
    values = {
        "first": VALUES["w"],
        "second": VALUES["w"][:8] * 2,
        "step": np.int32(3),
        "none": None,
    }
    params = values | {
        k: jax.device_put(values[k], NamedSharding(m, P("x")))
        for k, m in zip(("first", "second"), meshes, strict=True)
    }
    grads = params | {"step": None}
    many = fx.per_mesh(tx)
    states, state = many.init(params), tx.init(values)
    want = values
    for _ in range(3):
        params, states = many.step(grads, states, params)
        want, state = tx.step(values | {"step": None}, state, want)
    updates, _ = many.update(grads, states, params)
    for k, m in zip(("first", "second"), meshes, strict=True):
        assert params[k].sharding.is_equivalent_to(NamedSharding(m, P("x")), 2)
        assert updates[k].sharding.device_set == set(m.devices.flat)
        np.testing.assert_allclose(params[k], want[k], rtol=1e-5, atol=1e-7)
    assert params["none"] is None
    assert params["step"] == 3


def test_what_looks_at_all_leaves_is_refused_on_several_meshes():
    tx = fx.accumulate(fx.chain(fx.clip_by_global_norm(1.0), fx.adamw(0.01)), 2)
    with pytest.raises(ValueError, match="clip_by_global_norm looks at all leaves"):
        fx.per_mesh(tx)
    mesh = mesh_of(AxisType.Auto)
    one = fx.per_mesh(fx.adamw(0.01))
    states = one.init(put(mesh))
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(one.step)(put(mesh), states, put(mesh))
    with pytest.raises(ValueError, match="lie on 2 meshes, the state is of 1"):
        one.step(put(mesh), states, put(mesh) | {"b": jnp.ones(7)})


# ---- the page ------------------------------------------------------------------------------------


@REDUCED
def test_the_code_of_the_page_runs():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    params = {"w": jnp.ones((16, 4)), "v": jnp.ones((4, 4))}
    batches = np.ones((8, 32, 16), np.float32)
    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda x: jax.device_put(x, P(None, None)), params)
        held = dict(fx=fx, jax=jax, P=P, mesh=mesh, params=params, grads=params, loss=regression)
        held["eight_batches"] = jax.device_put(batches, P(None, "data"))
        blocks.run("docs/scale.md", held)
    assert sum("..." not in code for code in blocks.blocks("docs/scale.md")) == 7
