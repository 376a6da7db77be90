"""Matrices: orthogonalizing, bases, views, grafts, and the optimizers made of them, against their oracles."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import papers_matrix as pm
import pytest

import adamfx as fx
from adamfx.engine.decompositions import in_batches

RNG = np.random.default_rng(0)
PARAM = {s: RNG.normal(size=s) for s in ((4, 5), (6, 3), (4, 4), (5, 4), (2, 3, 4), (5,), (1, 3))}
GRADS = {s: RNG.normal(size=(30, *s)) for s in PARAM}


def run(tx, shape, steps=30):
    """The updates of every step along their own path."""
    p = jnp.asarray(PARAM[shape])
    state, found, step = tx.init(p), [], jax.jit(tx.update)
    for g in GRADS[shape][:steps]:
        u, state = step(jnp.asarray(g), state, p)
        found.append(u)
        p = p + u
    return np.array(found)


def check(tx, oracle, shape, steps=30, tolerance=1e-12, **arguments):
    want = oracle(GRADS[shape][:steps], PARAM[shape], **arguments)
    np.testing.assert_allclose(
        run(tx, shape, steps), want, rtol=0, atol=tolerance * np.max(np.abs(want))
    )


def draws(shape, seed=0, steps=30):
    """The normal numbers that a block with this seed draws for the only leaf."""
    key, found = jax.random.key(seed, impl="threefry2x32"), []
    for _ in range(steps):
        key, now = jax.random.split(key)
        found.append(np.array(jax.random.normal(jax.random.fold_in(now, 0), shape, jnp.float64)))
    return np.array(found)


# ---- orthogonalize -------------------------------------------------------------------------------

SETS = {
    "jordan": pm.JORDAN,
    "dion": pm.OPTAX,
    "polar_express": pm.POLAR_EXPRESS,
    "deepseek": pm.DEEPSEEK,
    "record": pm.RECORD,
}


@pytest.mark.parametrize("first", ["frobenius", "spectral", "schatten", "aol"])
@pytest.mark.parametrize("name", SETS)
def test_orthogonalize(x64, name, first):
    margin = 1.02 if name == "polar_express" else 1.0
    tx = fx.orthogonalize(name, first=first, margin=margin)
    for shape in ((4, 5), (6, 3), (2, 3, 4)):
        u, _ = tx.update(jnp.asarray(GRADS[shape][0]), tx.init(PARAM[shape]))
        want = pm.orthogonalize(
            GRADS[shape][0],
            SETS[name],
            first=first,
            **({} if first in ("schatten", "aol") else {"margin": margin}),
        )
        np.testing.assert_allclose(u, want, rtol=1e-11, atol=1e-12)


def test_orthogonalize_makes_singular_values_near_one(x64):
    tx = fx.orthogonalize("record", first="spectral")
    u, _ = tx.update(jnp.asarray(GRADS[4, 5][0]), tx.init(PARAM[4, 5]))
    np.testing.assert_allclose(np.linalg.svd(u, compute_uv=False), 1, atol=1e-6)


def test_orthogonalize_in_bfloat16():
    g = jnp.asarray(GRADS[4, 5][0], jnp.float32)
    (a, _), (b, _) = (
        fx.orthogonalize(dtype=d).update(g, fx.identity().init(g)) for d in (None, "bfloat16")
    )
    assert b.dtype == jnp.float32
    assert 1e-4 < np.max(np.abs(a - b)) < 0.2


@pytest.mark.parametrize("wrong", ["newton", (1.0, 2.0), [(1, 2)], ()])
def test_coefficients_that_are_none(wrong):
    with pytest.raises(ValueError, match="'jordan', 'dion'"):
        fx.orthogonalize(wrong)


def test_zeros_stay_zeros():
    z = jnp.zeros((3, 4))
    for tx in (
        fx.orthogonalize(),
        fx.normalize_rows(),
        fx.whiten(),
        fx.muon(0.1),
        fx.soap(),
        fx.kron(),
    ):
        p, state = jnp.ones((3, 4)), tx.init(z)
        for _ in range(3):
            u, state = tx.update(z, state, p)
        assert np.all(np.isfinite(u)), tx


# ---- optimizers ----------------------------------------------------------------------------------

MATRICES = [(4, 5), (6, 3), (2, 3, 4)]
SQUARE = [
    (4, 5),
    (5, 4),
    (4, 4),
    (2, 3, 4),
]  # a longer one has a null space with no basis of its own


@pytest.mark.parametrize("shape", MATRICES)
def test_muon(x64, shape):
    decay = {"learning_rate": 0.02, "weight_decay": 0.1}
    check(fx.muon(0.02, weight_decay=0.1), pm.muon_optax, shape, eps=1e-7, **decay)
    check(fx.muon(0.02, weight_decay=0.1, form="jordan"), pm.muon, shape, **decay)
    moonlight = fx.muon(0.02, weight_decay=0.1, form="moonlight", consistent_rms=0.2)
    check(moonlight, pm.muon_moonlight, shape, **decay)
    plain = fx.muon(0.02, form="jordan", nesterov=False)
    check(plain, pm.muon, shape, learning_rate=0.02, nesterov=False)
    check(fx.normuon(0.02, weight_decay=0.1), pm.normuon, shape, **decay)


@pytest.mark.parametrize("shape", MATRICES)
def test_on_the_sphere(x64, shape):
    check(fx.muonh(0.02), pm.muonh, shape, learning_rate=0.02, tolerance=3e-12)
    check(fx.adamh(0.02), pm.adamh, shape, learning_rate=0.02)


@pytest.mark.parametrize("shape", MATRICES)
def test_scion(x64, shape):
    check(fx.scion(0.02, radius=2.0), pm.scion, shape, learning_rate=0.02, scale=2.0)
    signs = fx.scion(0.02, last=fx.ndim_at_least(2), last_radius=3.0)
    check(signs, pm.scion, shape, learning_rate=0.02, norm="sign", scale=3.0)


def test_scion_of_a_vector(x64):
    check(fx.scion(0.02, weight_decay=0.0), pm.scion, (5,), learning_rate=0.02, unconstrained=True)


@pytest.mark.parametrize("shape", SQUARE)
def test_soap(x64, shape):
    arguments = {"learning_rate": 0.02, "weight_decay": 0.0, "precondition_frequency": 3}
    check(
        fx.soap(0.02, weight_decay=0.0, precondition_frequency=3),
        pm.soap,
        shape,
        **arguments,
        tolerance=1e-9,
    )
    more = {"shampoo_beta": 0.9, "max_precond_dim": 4}
    tx = fx.soap(0.02, weight_decay=0.0, precondition_frequency=3, **more)
    check(tx, pm.soap, shape, **arguments, **more, tolerance=1e-9)


def test_momentum_in_bfloat16_beside_a_basis():
    """The first gradient only makes the basis: the momentum is written, and is still zero."""
    g = jnp.asarray(GRADS[(4, 5)][0], np.float32)
    first = fx.ema(0.9, storage=fx.cast("bfloat16"))
    tx = fx.scale_by_moments(first, fx.eigenbasis(0.9, 2))
    u, s = tx.update(g, tx.init(g))
    mu = fx.get(s, "mu")
    assert mu.dtype == jnp.bfloat16
    assert not mu.any()
    assert not u.any()
    _, s = tx.update(g, s)
    np.testing.assert_allclose(fx.get(s, "mu").astype(np.float32), 0.1 * g, rtol=2**-8)


def in_frame(m, v, seen, slow):
    """What each correction makes of (m, v, seen, slow) in the frame, from its definition: the quotient."""
    over = lambda x, v: x / (np.sqrt(v) + 1e-8)  # noqa: E731
    rms = np.sqrt(np.mean((seen / np.maximum(np.sqrt(v), 1e-6)) ** 2))
    return {
        "nesterov": over(0.9 * m + 0.1 * seen, v),
        "quasi_hyperbolic": over(0.3 * seen + 0.7 * m, 0.1 * seen**2 + 0.9 * v),
        "add_gradient": over(m + 2 * seen, v),
        "add_slow_average": over(m + 5 * slow, v),
        "center": over(seen, np.maximum(v - m**2, 0)),
        "arctan2": np.arctan2(m, np.sqrt(v)),
        "stabilize": over(m / max(1, rms), v),
        "undivided": m,
    }


CORRECTIONS = {
    "nesterov": fx.nesterov(),
    "quasi_hyperbolic": fx.quasi_hyperbolic(0.7, 0.9),
    "add_gradient": fx.add_gradient(2.0),
    "add_slow_average": fx.add_slow_average(0.99, 5.0),
    "center": fx.center(),
    "arctan2": fx.arctan2(),
    "stabilize": fx.stabilize(),
    "undivided": fx.undivided(),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_in_a_frame(x64, name):
    grads, want = GRADS[4, 5][:8], [np.zeros((4, 5))]
    left, right = (np.linalg.eigh(x)[1] for x in (grads[0] @ grads[0].T, grads[0].T @ grads[0]))
    m, v, slow = (np.zeros((4, 5)) for _ in range(3))
    for g in grads[1:]:
        m, slow = 0.9 * m + 0.1 * g, 0.99 * slow + 0.01 * g
        m_seen, seen, slow_seen = (left.T @ x @ right for x in (m, g, slow))
        v = 0.95 * v + 0.05 * seen**2
        want.append(left @ in_frame(m_seen, v, seen, slow_seen)[name] @ right.T)
    tx = fx.chain(fx.scale_by_moments(0.9, fx.eigenbasis(0.95, 1000)), CORRECTIONS[name])
    atol = 1e-9 * np.max(np.abs(want))
    np.testing.assert_allclose(run(tx, (4, 5), 8), want, rtol=0, atol=atol)


@pytest.mark.parametrize("make", [fx.eigenbasis, fx.kl_eigenbasis])
def test_a_first_moment_in_the_frame_is_the_same_as_one_outside(x64, make):
    found = []
    for b1 in (0.9, fx.ema(0.9, storage=fx.cast("float64"))):  # a storage keeps it outside
        found.append(run(fx.chain(fx.scale_by_moments(b1, make(0.95, 3))), (4, 5), 12))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-11 * np.max(np.abs(found)))


def test_what_adds_a_number_to_the_momentum_stays_outside(x64):
    moved, one = (
        fx.chain(fx.scale_by_moments(fx.ema(0.9, eps=0.1, storage=s), fx.eigenbasis(0.95, 3)))
        for s in (None, fx.cast("float64"))
    )
    np.testing.assert_allclose(run(moved, (4, 5), 8), run(one, (4, 5), 8), rtol=1e-10)


def test_stacks_of_one_size_make_one_batch(x64):
    rng, seen = np.random.default_rng(3), []
    shapes = [(4, 4), (2, 4, 4), (3, 3), (2, 1, 3, 3)]
    a, b = ([{"x": jnp.asarray(rng.normal(size=s))} for s in shapes] for _ in range(2))

    def work(x, y):
        seen.append(x.shape)
        return x @ y, jnp.sum(y, -1)

    for got, x, y in zip(in_batches(work, a, b), a, b, strict=True):
        np.testing.assert_allclose(got["x"][0], x["x"] @ y["x"], rtol=1e-14)
        np.testing.assert_array_equal(got["x"][1], jnp.sum(y["x"], -1))
    assert seen == [(3, 4, 4), (3, 3, 3)]


@pytest.mark.parametrize(("make", "calls"), [(fx.soap, 3), (fx.kl_soap, 3), (fx.shampoo, 1)])
def test_leaves_of_one_shape_are_decomposed_as_one_batch(make, calls):
    p = [jnp.ones((4, 4)) for _ in range(5)] + [jnp.ones((4, 7))]
    tx = make(0.1)
    program = jax.jit(tx.update).trace(p, jax.eval_shape(tx.init, p), p)
    text = program.lower(lowering_platforms=("cpu",)).as_text()
    assert len(re.findall(r"custom_call @lapack_", text)) == 2 * calls  # matrices of two sizes


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("make", [fx.soap, fx.kl_soap, fx.shampoo, fx.galore])
def test_the_cpu_decomposes_one_matrix_at_a_time(make, swept):
    """A batch in one call waits for threads that wait themselves: the run stood still for ever."""
    tx = make(0.1)

    def step(g):
        return tx.update(g, tx.init(g), g)

    several, shape = (jax.vmap(step), (2, 3, 4, 5)) if swept else (step, (3, 4, 5))
    with jax.default_device(jax.devices("cpu")[0]):
        program = jax.jit(several).lower(jnp.ones(shape)).compile().as_text()
    calls = [line for line in program.splitlines() if "lapack_" in line]
    assert calls
    shapes = re.findall(r"[fc]\d+\[([\d,]*)\]", "".join(calls))
    assert max(shape.count(",") for shape in shapes) == 1


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("shape", SQUARE)
def test_kl_soap(x64, shape, factored):
    tx = fx.kl_soap(0.02, weight_decay=0.0, precondition_frequency=3, factored=factored)
    arguments = {"learning_rate": 0.02, "weight_decay": 0.0, "precondition_frequency": 3}
    check(tx, pm.kl_soap, shape, **arguments, shampoo=factored, tolerance=1e-9)


@pytest.mark.parametrize("shape", SQUARE)
@pytest.mark.parametrize(("b2", "every"), [(1.0, 1), (0.9, 3)])
def test_shampoo(x64, shape, b2, every):
    tx = fx.shampoo(0.02, 0.9, b2, 1e-6, every, block_size=2, magnitude=fx.identity())
    arguments = {"learning_rate": 0.02, "b1": 0.9, "b2": b2, "eps": 1e-6, "every": every}
    check(tx, pm.shampoo, shape, **arguments, block_size=2, tolerance=1e-9)


def test_shampoo_of_a_vector(x64):
    tx = fx.shampoo(0.02, 0.9, 0.9, 1e-6, 3, magnitude=fx.identity(), matrices=fx.ndim_at_least(1))
    check(
        tx, pm.shampoo, (5,), learning_rate=0.02, b1=0.9, b2=0.9, eps=1e-6, every=3, tolerance=1e-9
    )


def test_shampoo_grafted(x64):
    """L^(-1/4) m R^(-1/4) with the size of Adam's update."""
    shape, sizes = (4, 5), []
    adam = fx.chain(fx.scale_by_moments(0.9, 0.999), fx.bias_correct())
    state = adam.init(PARAM[shape])
    for g in GRADS[shape]:
        u, state = adam.update(jnp.asarray(g), state)
        sizes.append(u)
    tx = fx.shampoo(0.02, 0.9, 0.9, 1e-6, 3)
    arguments = {"learning_rate": 0.02, "b1": 0.9, "b2": 0.9, "eps": 1e-6, "every": 3}
    check(tx, pm.shampoo, shape, **arguments, magnitude=np.array(sizes), tolerance=1e-9)


def test_roots_that_fail_leave_the_old_ones(x64):
    tx = fx.whiten(0.9)
    state = tx.init(PARAM[4, 4])
    _, good = tx.update(jnp.asarray(GRADS[4, 4][0]), state)
    broken = GRADS[4, 4][1].copy()
    broken[0, 0] = np.nan
    _, after = tx.update(jnp.asarray(broken), good)
    for name in ("nu_left_basis", "nu_right_values", "nu_mass"):
        a, b = (getattr(s["scale_by_moments"], name) for s in (good, after))
        np.testing.assert_array_equal(a, b)


def test_roots_of_a_matrix_that_fail_leave_the_others_of_its_stack(x64):
    tx = fx.whiten(0.9)
    good = jnp.asarray(np.stack(GRADS[4, 4][:2]))
    broken = good.at[0, 0, 0].set(np.nan)
    _, state = tx.update(good, tx.init(good))
    _, after = tx.update(broken, state)
    _, alone = tx.update(good[1:], tx.update(good[1:], tx.init(good[1:]))[1])
    for name in ("nu_left_basis", "nu_right_values", "nu_mass"):
        a, b, c = (getattr(s["scale_by_moments"], name) for s in (state, after, alone))
        np.testing.assert_array_equal(b[0], a[0])
        np.testing.assert_allclose(b[1], c[0], rtol=1e-12)


@pytest.mark.parametrize("shape", [(4, 5), (6, 3), (1, 3)])
def test_kron(x64, shape):
    check(fx.kron(0.02), pm.kron, shape, learning_rate=0.02, probes=draws(shape), tolerance=1e-9)


def test_kron_steps_its_factors_ever_more_seldom(x64):
    every = fx.exponential_decay(1.0, 10, 2.71828, transition_begin=5, end_value=4.5)
    tx = fx.kron(0.02, every=every)
    assert fx.read(repr(tx)) == tx
    rare = {"learning_rate": 0.02, "probes": draws((4, 5)), "tolerance": 1e-9}
    share = lambda n: min(2.71828 ** (max(n - 5, 0) / 10), 4.5)  # noqa: E731
    check(tx, pm.kron, (4, 5), every=share, **rare)
    check(fx.kron(0.02, every=3), pm.kron, (4, 5), every=3, **rare)


def test_each_matrix_of_a_stack_draws_for_itself():
    """Both have the same gradient, and learn by the noise beside it."""
    tx = fx.scale_by_kron(damping=1.0)
    p = jnp.ones((2, 3, 4))
    tiny = jnp.full_like(p, 1e-3)
    left = fx.get(tx.update(tiny, tx.init(p))[1], "left")
    assert np.abs(left[0] - left[1]).max() > 1e-3


def test_kron_of_a_vector_and_of_a_stack(x64):
    tx = fx.kron(0.02, matrices=fx.ndim_at_least(1))
    check(tx, pm.kron, (5,), learning_rate=0.02, probes=draws((5,)), tolerance=1e-9)
    of_each = np.broadcast_to(draws((3, 4))[:, None], (30, 2, 3, 4))  # every layer draws the same
    check(
        fx.stacked(fx.kron(0.02)),
        pm.kron,
        (2, 3, 4),
        learning_rate=0.02,
        probes=of_each,
        tolerance=1e-9,
    )


@pytest.mark.parametrize("shape", MATRICES)
def test_galore(x64, shape):
    tx = fx.galore(0.02, 2, 4, 0.25, weight_decay=0.1)
    arguments = {"rank": 2, "update_proj_gap": 4, "scale": 0.25, "weight_decay": 0.1}
    check(
        tx,
        pm.galore,
        shape,
        learning_rate=0.02,
        **arguments,
        align=True,
        decay_after=False,
        tolerance=1e-9,
    )


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("shape", MATRICES)
def test_apollo(x64, shape, per_tensor):
    tx = fx.apollo(0.02, 2, 4, 2.0, weight_decay=0.1, per_tensor=per_tensor)
    P = draws((*shape[:-2], min(shape[-2:]), 2))[::4] / np.sqrt(2)
    arguments = {"update_proj_gap": 4, "scale": 2.0, "weight_decay": 0.1, "projections": P}
    scaled = "tensor" if per_tensor else "channel"
    check(
        tx, pm.apollo, shape, learning_rate=0.02, **arguments, scale_type=scaled, decay_after=False
    )


def test_what_is_no_matrix_goes_to_adamw(x64):
    """In a partition that the repr shows."""
    params = {"w": jnp.asarray(PARAM[4, 5]), "b": jnp.asarray(PARAM[5,])}
    grads = {"w": jnp.asarray(GRADS[4, 5][0]), "b": jnp.asarray(GRADS[5,][0])}
    adam = fx.adamw(0.02)
    want = adam.update(grads, adam.init(params), params)[0]["b"]
    for make in (
        fx.muon,
        fx.normuon,
        fx.shampoo,
        fx.soap,
        fx.kl_soap,
        fx.kron,
        fx.galore,
        fx.apollo,
    ):
        assert repr(make(learning_rate=0.02)).startswith("partition({'matrix': "), make
        for tx in (make(learning_rate=0.02), make(learning_rate=0.3, others=fx.adamw(0.02))):
            u, _ = tx.update(grads, tx.init(params), params)
            np.testing.assert_array_equal(u["b"], want)


# ---- the record ----------------------------------------------------------------------------------

RECORD = fx.chain(
    fx.scale_by_moments(0.95, None),
    fx.nesterov(),
    fx.scale_by_moments(
        None, fx.eigenbasis(0.9, 1, of_gradient=True, skips_first=False), where="floor"
    ),
    # Here the record rescales to the Schatten 4-norm that the momentum had. The next word divides by it.
    fx.orthogonalize("record", first="schatten"),
    fx.scale_by_shape("fan"),
    fx.damp_outward(0.5),
    fx.uw_floor(0.3825, per_row=True),
    fx.radial_brake(0.0375, outward=1.0, cautious_decay=0.025),
)


@pytest.mark.parametrize("shape", [(4, 5), (4, 4), (5, 4)])
def test_the_record_of_2026_as_one_sentence(x64, shape):
    assert fx.read(repr(RECORD)) == RECORD
    check(RECORD, pm.record, shape, steps=20, tolerance=1e-9)


# ---- views ---------------------------------------------------------------------------------------


def test_in_blocks_and_back(x64):
    for size in (1, 2, 3, 7):
        tx = fx.view(fx.scale(2.0), fx.in_blocks(size))
        for shape, p in PARAM.items():
            u, _ = tx.update(jnp.asarray(p), tx.init(p))
            np.testing.assert_array_equal(u, 2 * p, err_msg=f"{shape} {size}")


@pytest.mark.parametrize(
    ("rows", "columns", "to"),
    [
        (None, (-1,), (6, 4)),
        ((0,), (1, 2), (2, 12)),
        ((0,), (2,), (3, 2, 4)),
        ((1,), (0, 2), (3, 8)),
    ],
)
def test_as_matrix(x64, rows, columns, to):
    x = fx.as_matrix(rows, columns).meaning
    p = jnp.asarray(PARAM[2, 3, 4])
    seen = x.into(p, {})
    assert seen.shape == to
    np.testing.assert_array_equal(x.back(seen, p, {}), p)
    tx = fx.view(fx.orthogonalize(), fx.as_matrix(rows, columns))
    u, _ = tx.update(p, tx.init(p))
    want = fx.orthogonalize().update(seen, fx.identity().init(seen))[0]
    np.testing.assert_allclose(x.into(u, {}), want, rtol=1e-12)


def test_axes_named_twice():
    tx = fx.view(fx.orthogonalize(), fx.as_matrix((0, 1), (1,)))
    with pytest.raises(ValueError, match="share an axis"):
        tx.init(jnp.ones((2, 3, 4)))


def test_stacked_layers_are_layers_of_their_own(x64):
    """Norms, ratios and noise-free memory as if every layer were a leaf of another run."""
    tx = fx.chain(fx.clip_by_global_norm(1.0), fx.lamb(0.1))
    stack = fx.stacked(tx, fx.path_matches("layers"))
    params = {"layers": jnp.asarray(PARAM[2, 3, 4]), "head": jnp.asarray(PARAM[4, 5])}
    grads = [
        {"layers": jnp.asarray(a), "head": jnp.asarray(b)}
        for a, b in zip(GRADS[2, 3, 4], GRADS[4, 5], strict=True)
    ]
    state = stack.init(params)
    own = [tx.init(p) for p in params["layers"]]
    head = tx.init(params["head"])
    for g in grads[:3]:
        u, state = jax.jit(stack.update)(g, state, params)
        for i in range(2):
            want, own[i] = tx.update(g["layers"][i], own[i], params["layers"][i])
            np.testing.assert_allclose(u["layers"][i], want, rtol=1e-12)
        want, head = tx.update(g["head"], head, params["head"])
        np.testing.assert_allclose(u["head"], want, rtol=1e-12)


def test_stacked_refuses_a_scalar():
    with pytest.raises(ValueError, match="a leaf without axes has no layers"):
        fx.stacked(fx.sgd(0.1)).init(jnp.ones(()))


# ---- work only where it is due -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tx", "work"),
    [
        (fx.soap(0.1, precondition_frequency=5), ("eigh", "qr")),
        (fx.kl_soap(0.1), ("eigh", "qr")),
        (fx.shampoo(0.1, every=5), ("eigh",)),
        (fx.galore(0.1, 2), ("svd",)),
    ],
)
def test_decompositions_stand_in_a_loop_of_at_most_one_turn(tx, work):
    """Under jit, vmap and scan: none outside of a while loop, so that it runs only when it is due."""
    p = jnp.ones((2, 4, 4))

    def step(g, p):
        return tx.update(g, tx.init(p), p)[0]

    for f in (step, jax.vmap(step)):
        outside, inside = set(), set()
        _walk(jax.make_jaxpr(f)(p, p).jaxpr, False, outside, inside)
        for name in work:
            assert name in inside, name
            assert name not in outside, name


def _walk(jaxpr, in_loop, outside, inside):
    for eqn in jaxpr.eqns:
        (inside if in_loop else outside).add(eqn.primitive.name)
        for value in eqn.params.values():
            for part in value if isinstance(value, (list, tuple)) else [value]:
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    _walk(part, in_loop or eqn.primitive.name == "while", outside, inside)


@pytest.mark.parametrize("name", ["soap", "kl_soap", "shampoo", "muon", "kron"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0, 2)])
def test_a_matrix_without_numbers_disturbs_no_other(name, shape):
    tx = getattr(fx, name)(0.1)
    p, alone = {"w": jnp.zeros(shape), "v": jnp.ones((2, 3))}, {"v": jnp.ones((2, 3))}
    found = [tx.step(x, tx.init(x), x)[0] for x in (p, alone)]
    assert found[0]["w"].shape == shape
    np.testing.assert_allclose(found[0]["v"], found[1]["v"], rtol=1e-5)
