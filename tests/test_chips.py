"""Matrices shared out over the chips: each chip works on whole ones, and they move once there and back."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import AXES, mesh_of, put, train

import adamfx as fx
from adamfx.engine.chips import _axes_for, each_matrix
from benchmarks.hlo import collectives

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

PLAIN = ("muon", "soap", "kron")  # the others share what moves with one of these

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
    [pytest.param(name, marks=() if name in PLAIN else pytest.mark.slow) for name in OF_MATRICES],
)
def test_matrices_over_the_chips_step_as_on_one(name, axes, x64):
    tx = OF_MATRICES[name]
    rng = np.random.default_rng(1)
    some = STACKS if name in PLAIN else ("a", "b", "stack", "alone", "vector")
    shapes = {k: STACKS[k][0] for k in some}
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
        got, _ = train(tx, put(mesh, values, {k: STACKS[k][1] for k in some}))
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


@AXES
@pytest.mark.parametrize("name", PLAIN)
def test_matrices_that_no_mesh_knows_yet(name, axes, x64):
    tx, rng = OF_MATRICES[name], np.random.default_rng(1)
    p = {
        "a": rng.normal(size=(8, 8)),
        "b": rng.normal(size=(8, 8)),
        "c": rng.normal(size=(3, 8, 8)),
    }

    def twice():
        """By hand, since in a step of jit they are typed from the second one on."""
        q, s = p, tx.init(p)
        for _ in range(2):
            q, s = tx.step(jax.tree.map(np.sin, p), s, q)
            q = jax.tree.map(np.asarray, q)
        return q

    want = twice()
    with jax.set_mesh(mesh_of(axes)):
        got = twice()
    for k, x in got.items():
        np.testing.assert_allclose(x, want[k], rtol=1e-7, atol=1e-7, err_msg=k)


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


@pytest.mark.parametrize("name", PLAIN)
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
