"""Where a state lies: its shapes and shardings before it is made, shared out over devices, on the host."""

import itertools
import math

import blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from table import OPTIMIZERS, SENTENCES, WRAPPERS
from test_sharding import CHOSEN, SHAPES, SPECS

import adamfx as fx
from adamfx.engine.chips import _axes_for, each_matrix
from benchmarks.hlo import arrays, collectives, computations

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


# ---- matrices shared out over the chips ----------------------------------------------------------

STACKS = {
    "a": ((16, 32), P("data", "model")),
    "b": ((32, 16), P("model", "data")),
    "c": ((16, 32), P(None, "data")),
    "both": ((16, 32), P(("model", "data"))),
    "stack": ((3, 16, 32), P(None, "data", "model")),
    "square": ((16, 16), P("data")),
    "alone": ((8, 40), P("data")),
    "two": ((24, 8), P(None, "data")),
    "of two": ((8, 24), P("data")),
    "vector": ((16,), P()),
}


OF_MATRICES = {
    "muon": fx.muon(0.01),
    "soap": fx.soap(0.01, precondition_frequency=2),
    "kron": fx.kron(0.01, every=2),
    "normuon": fx.normuon(0.01),
    "kl_soap": fx.kl_soap(0.01, precondition_frequency=2),
    "shampoo": fx.shampoo(0.01, every=2),
    "corrected": fx.chain(
        fx.scale_by_moments(0.9, fx.kronecker(0.9, 2)),
        fx.bias_correct(),
        fx.nesterov(),
        fx.scale(-0.01),
    ),
    "soap in bfloat16": fx.chain(
        fx.scale_by_moments(0.9, fx.eigenbasis(0.9, 2), mu_dtype="bfloat16"),
        fx.bias_correct(),
        fx.scale(-0.01),
    ),
    "live(arctan2)": fx.live(
        fx.chain(
            fx.scale_by_moments(0.9, fx.kronecker(0.9, 2)),
            fx.bias_correct(),
            fx.arctan2(0.5),
            fx.scale(-0.01),
        )
    ),
    "accumulate(kron)": fx.accumulate(fx.kron(0.01), 2),
    "orthogonalize in bfloat16": fx.chain(fx.orthogonalize(dtype="bfloat16"), fx.scale(-0.01)),
}


@AXES
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("muon", "soap", "kron") else pytest.mark.slow)
        for name in OF_MATRICES
    ],
)
def test_matrices_over_the_chips_step_as_on_one(name, axes, x64):
    tx = OF_MATRICES[name]
    rng = np.random.default_rng(1)
    shapes = {k: s for k, (s, _) in STACKS.items()}
    if name in (
        "soap",
        "kl_soap",
        "shampoo",
        "corrected",
        "soap in bfloat16",
        "live(arctan2)",
    ):  # else the Gram matrices have no basis of their own
        shapes = {k: (*s[:-2], 16, 16) if len(s) > 1 else s for k, s in shapes.items()}
    values = {k: rng.normal(size=s) for k, s in shapes.items()}
    want, _ = train(tx, jax.tree.map(jnp.asarray, values))
    mesh = mesh_of(axes)
    with jax.set_mesh(mesh):
        got, _ = train(tx, put(mesh, values, {k: x for k, (_, x) in STACKS.items()}))
    for k, x in got.items():
        as_before = x.sharding.is_equivalent_to(NamedSharding(mesh, STACKS[k][1]), x.ndim)
        if (
            axes == AxisType.Auto
        ):  # a compiler may also cut it along an axis that others of its kind use
            pairs = itertools.zip_longest(STACKS[k][1], x.sharding.spec)
            as_before |= all(a in (None, b) for a, b in pairs)
        assert as_before, (k, x.sharding)
        tolerance = 1e-3 if "bfloat16" in name else 1e-7
        np.testing.assert_allclose(x, want[k], rtol=tolerance, atol=tolerance, err_msg=k)


def test_no_more_chips_than_matrices_where_an_axis_can_be_spared():
    mesh = {"a": 4, "b": 2, "c": 16}
    for count, axes in (
        (2, ("b",)),
        (3, ("a",)),
        (8, ("a", "b")),
        (9, ("c",)),
        (500, ("a", "b", "c")),
    ):
        assert _axes_for(count, mesh) == axes


@pytest.mark.parametrize("stacked", [False, True], ids=["leaves", "stack"])
def test_matrices_move_once_over_the_chips_and_back(stacked):
    """What the compiled program of muon sends, and computes, on eight chips."""
    n, shape = 16, (32, 64)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    cut = NamedSharding(mesh, P(*[None] * stacked, "data"))
    leaf = jax.ShapeDtypeStruct((n, *shape) if stacked else shape, np.float32, sharding=cut)
    params = {"stack": leaf} if stacked else {f"layer{i}": leaf for i in range(n)}
    tx = fx.muon(0.01)
    with jax.set_mesh(mesh):
        state = fx.abstract_state(tx, params)
        where = jax.tree.map(lambda x: x.sharding, (params, state))
        made = jax.jit(tx.step, out_shardings=where).lower(params, state, params).compile()
    sent = collectives(made.as_text())
    assert set(sent) == {"all-to-all"}
    own = 4 * n * shape[0] * shape[1] / 8
    assert sum(size for _, size in sent.values()) <= 2 * own
    a, b = shape
    ideal = n * 5 * (2 * a * a * b * 2 + 2 * a**3) / 8
    assert ideal <= made.cost_analysis()["flops"] <= 1.25 * ideal


def test_matrices_of_one_shape_that_lie_in_two_ways():
    """One exchange there and one back for each way, over both axes of the mesh at once."""
    mesh = mesh_of(AxisType.Explicit)
    specs = {"q": P("data", "model"), "o": P("model", "data")}
    cut = {k: NamedSharding(mesh, s) for k, s in specs.items()}
    shape = (8, 16)
    names = [f"{k}{i}" for i in range(8) for k in specs]
    params = {n: jax.ShapeDtypeStruct(shape, np.float32, sharding=cut[n[0]]) for n in names}
    tx = fx.muon(0.01)
    with jax.set_mesh(mesh):
        state = fx.abstract_state(tx, params)
        made = jax.jit(tx.step).lower(params, state, params).compile()
    sent = collectives(made.as_text())
    own = 4 * len(names) * shape[0] * shape[1] / 8
    assert sent == {"all-to-all": (4, 2 * own)}


@pytest.mark.parametrize("count", [3, 4, 11])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (P("data", "model"), P("model", "data")),
        (P(("model", "data")), P("data")),
        (P(None, ("model", "data")), P("model")),
        (P("data"), P("model")),
        (P("model"), P()),
        (P(), P("data", "model")),
    ],
)
def test_every_part_of_a_matrix_comes_to_its_place(first, second, count):
    """Of two columns that lie otherwise: to the chip of its matrix, its rows and columns, and back."""
    mesh = mesh_of(AxisType.Explicit)
    shape = (16, 8)
    weights = np.arange(128.0, dtype=np.float32).reshape(shape)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(count, *shape)).astype(np.float32) for _ in range(2))
    with jax.set_mesh(mesh):
        columns = [
            [jax.device_put(a, NamedSharding(mesh, spec)) for a in stack]
            for stack, spec in ((x, first), (y, second))
        ]
        found = jax.jit(lambda *c: each_matrix(lambda a, b: weights[None] * a - b, *c))(*columns)
    for a, b, z in zip(x, y, found, strict=True):
        np.testing.assert_allclose(z, weights * a - b, rtol=1e-5)
        assert z.sharding.is_equivalent_to(NamedSharding(mesh, first), 2)


def layers(n=8, shape=(8, 16)):
    """A mesh, and abstract matrices that are cut along both of its axes."""
    mesh = mesh_of(AxisType.Explicit)
    cut = NamedSharding(mesh, P("data", "model"))
    return mesh, {f"w{i}": jax.ShapeDtypeStruct(shape, np.float32, sharding=cut) for i in range(n)}


@pytest.mark.parametrize("name", ["soap", "kl_soap", "kron"])
def test_what_matrices_remember_moves_with_them(name):
    """No chip holds, computes or is sent more than an eighth of all; what moves does so once, and back."""
    tx = getattr(fx, name)(0.01)
    mesh, params = layers(shape=(32, 64))

    def made(params):
        state = fx.abstract_state(tx, params)
        return state, jax.jit(tx.step).lower(params, state, params).compile()

    with jax.set_mesh(mesh):
        state, over_chips = made(params)
    plain = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in params.items()}
    _, alone = made(plain)
    arrays = [x for x in jax.tree.leaves(state) if x.ndim > 1]
    for x in arrays:
        assert math.prod(x.sharding.shard_shape(x.shape)) == x.size / 8, (x.shape, x.sharding)
    own = 4 * sum(x.size for x in [*arrays, *jax.tree.leaves(params)]) / 8
    sent = collectives(over_chips.as_text())
    assert sent.pop("all-to-all")[1] <= 2.02 * own
    assert (
        sum(size for _, size in sent.values()) < 0.05 * own
    )  # norms, and what is remembered per row
    share = over_chips.cost_analysis()["flops"] / (alone.cost_analysis()["flops"] / 8)
    assert 0.9 < share < 1.2


@pytest.mark.parametrize("name", ["muon", "soap", "kron"])
def test_derivatives_of_matrices_over_the_chips(name, x64):
    """Of the parameters after two steps by the first ones: the way there and back has a way back, too."""
    tx = getattr(fx, name)(0.01)
    mesh, like = layers(shape=(16, 16))  # of others the Gram matrices have equal eigenvalues
    rng = np.random.default_rng(3)
    values = {k: rng.normal(size=x.shape) for k, x in like.items()}

    def after(p):
        q, s = p, tx.init(p)
        for _ in range(2):
            q, s = tx.step(jax.tree.map(jnp.sin, q), s, q)
        return sum(jnp.sum(x**2) for x in q.values())

    want = jax.jit(jax.grad(after))(jax.tree.map(jnp.asarray, values))
    with jax.set_mesh(mesh):
        p = put(mesh, values, {k: x.sharding.spec for k, x in like.items()})
        got = jax.jit(jax.grad(after))(p)
    for k, x in got.items():
        np.testing.assert_allclose(x, want[k], rtol=1e-6, atol=1e-8)


@AXES
def test_what_a_block_of_matrices_may_read(axes):
    """Norms or extra arguments, where it is left to the compiler; a number that is differentiated by."""

    @fx.block
    def over_norm(rate: fx.Dynamic):
        leaf = lambda u, here: rate * u / here.norms.n  # noqa: E731
        return fx.leafwise(
            leaf, norms=lambda u, here: {"n": u}, elementwise=False, of_matrices=True
        )

    @fx.block
    def times_extra(rate: fx.Dynamic):
        leaf = lambda u, here: rate * u * here.extra.hess  # noqa: E731
        return fx.leafwise(leaf, per_leaf=("hess",), elementwise=False, of_matrices=True)

    @fx.block
    def squared(rate: fx.Dynamic):
        return fx.leafwise(lambda u, here: rate * (u @ u), elementwise=False, of_matrices=True)

    mesh = mesh_of(axes)
    rng = np.random.default_rng(0)
    values = {k: rng.normal(size=(8, 8)).astype(np.float32) for k in "abc"}

    def total(rate, p, block):
        tx = block(rate)
        u, _ = tx.update(p, tx.init(p), hess=p)
        return sum(jnp.sum(x) for x in u.values())

    for block in (over_norm, times_extra, squared):
        run = jax.jit(jax.value_and_grad(total), static_argnums=2)
        want = run(2.0, jax.tree.map(jnp.asarray, values), block)
        with jax.set_mesh(mesh):
            got = run(2.0, put(mesh, values, dict.fromkeys(values, P("data", "model"))), block)
        np.testing.assert_allclose(got, want, rtol=1e-4)


def test_what_a_view_shows_is_cut_as_the_leaf_is():
    tx = fx.view(fx.chain(fx.scale_by_moments(0.9, 0.99), fx.scale(-0.1)), fx.in_blocks(8))
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        p = put(mesh, {"w": np.ones((16, 24))}, {"w": P("data", "model")})
        mu = fx.get(tx.init(p), "mu")["w"]
        _, state = jax.jit(tx.step)(p, tx.init(p), p)
    assert jax.eval_shape(tx.init, p)  # with no mesh set
    assert mu.shape == (2, 3, 8, 8)
    for x in (mu, fx.get(state, "mu")["w"]):
        assert x.sharding.spec == P(None, None, ("data", "model"), None)


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
