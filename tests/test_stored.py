"""Storage below float32, of any memory: against NumPy, its bounds, its bytes, and that runs still train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.engine.memory import is_memory
from benchmarks.storage import factors, losses, verdict

RNG = np.random.default_rng(0)


# ---- the oracle, NumPy float64 -------------------------------------------------------------------


def write8(x, block, signed):
    """(codes, scales) of the formulas of the docstrings."""
    y = (x if signed else np.sqrt(x)).reshape(*x.shape[:-1], -1, block)
    s = np.abs(y).max(-1, keepdims=True)
    y = np.divide(y, s, out=np.zeros_like(y), where=s > 0)
    codes = np.round(127 * 2 * y / (1 + np.abs(y))) if signed else np.round(255 * y)
    if not signed:
        codes = np.maximum(codes, y > 0)
    return codes.reshape(x.shape), s[..., 0]


def read8(codes, s, signed):
    y = codes.reshape(*codes.shape[:-1], s.shape[-1], -1) / (127 if signed else 255)
    y = y / (2 - np.abs(y)) if signed else y
    x = y * s[..., None]
    return (x if signed else x * x).reshape(codes.shape)


STORAGES = {"int8": (fx.int8, True), "uint8": (fx.uint8, False)}
of_both = pytest.mark.parametrize(("make", "signed"), STORAGES.values(), ids=STORAGES)


@of_both
def test_codes_and_scales(x64, make, signed):
    form = make(16, min_size=0).meaning
    x = RNG.normal(size=(3, 5, 64)) * np.exp(RNG.normal(size=(3, 5, 64)) * 3)
    x = x if signed else x * x
    x[0, 0, :16] = 0
    parts = form.write(jnp.asarray(x), None)
    codes, scales = write8(x, 16, signed)
    assert parts["codes"].dtype == (np.int8 if signed else np.uint8)
    np.testing.assert_array_equal(parts["codes"], codes)
    np.testing.assert_allclose(parts["scales"], scales, rtol=1e-15)
    back = form.read(parts, x)
    np.testing.assert_allclose(back, read8(codes, scales, signed), rtol=1e-12)
    assert not back[0, 0, :16].any()
    largest = np.abs(x).reshape(3, 5, 4, 16).max(-1)
    of_largest = np.abs(np.asarray(back)).reshape(3, 5, 4, 16).max(-1)
    np.testing.assert_allclose(of_largest, largest, rtol=1e-12)


def test_a_divisor_that_is_not_zero_stays_so():
    form = fx.uint8(8, min_size=0).meaning
    v = np.array([1.0, 1e-12, 1e-30, 0.0, 1e-3, 1e-3, 1e-3, 1e-3], np.float32)
    back = np.asarray(form.read(form.write(jnp.asarray(v), None), v))
    np.testing.assert_array_equal(back > 0, v > 0)
    np.testing.assert_allclose(np.sqrt(back), np.sqrt(v), atol=1 / 255)


@of_both
def test_rounded_at_random_in_the_mean_to_the_number(make, signed):
    form = make(64, min_size=0, stochastic=True).meaning
    x = jnp.asarray(np.abs(RNG.normal(size=64)) + 0.1, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    codes = jax.vmap(lambda key: form.write(x, key)["codes"])(keys).astype(np.float32)
    y = np.asarray(x if signed else np.sqrt(x), np.float64)
    y = y / y.max()
    want = 127 * 2 * y / (1 + y) if signed else 255 * y
    np.testing.assert_allclose(codes.mean(0), want, atol=0.05)
    assert np.ptp(codes, axis=0).max() == 1


@pytest.mark.parametrize(
    ("n", "block", "scales"), [(256, 128, 2), (96, 64, 2), (100, 128, 1), (97, 64, 1), (6, 4, 2)]
)
def test_blocks_divide_the_last_axis(n, block, scales):
    parts = fx.int8(block, min_size=0).meaning.write(jnp.ones((4, n)), None)
    assert parts["scales"].shape == (4, scales)


# ---- stored --------------------------------------------------------------------------------------


def test_adamw_of_bytes_equals_the_paper_with_rounded_moments(x64):
    tx = fx.stored(fx.adamw(0.01), mu=fx.int8(16, min_size=0), nu=fx.uint8(16, min_size=0))
    p = RNG.normal(size=(4, 32))
    q, state, step = jnp.asarray(p), tx.init(jnp.asarray(p)), jax.jit(tx.step)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t in range(1, 11):
        g = RNG.normal(size=p.shape)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p = p - 0.01 * (u + 1e-4 * p)
        m, v = (read8(*write8(x, 16, signed), signed) for x, signed in ((m, True), (v, False)))
        q, state = step(jnp.asarray(g), state, q)
    np.testing.assert_allclose(q, p, rtol=1e-12)


def test_two_bytes_per_parameter_and_small_leaves_in_float32():
    p = {"w": jnp.zeros((256, 512)), "b": jnp.zeros(512)}
    state = fx.stored(fx.adamw(1e-3), mu=fx.int8(), nu=fx.uint8()).init(p)
    size = sum(x.nbytes for x in jax.tree.leaves(fx.get(state, "mu.w.codes")))
    assert size == p["w"].size
    found = sum(x.nbytes for x in jax.tree.leaves(state))
    assert found < 2.1 * p["w"].size + 8 * p["b"].size + 100
    assert fx.get(state, "nu.b").dtype == np.float32


@pytest.mark.parametrize("storage", [fx.cast("bfloat16"), fx.cast_stochastically("bfloat16")])
def test_a_sum_of_gradients_in_bfloat16(storage):
    tx = fx.stored(fx.accumulate(fx.sgd(1.0), 4), acc_grads=storage)
    p = {"w": jnp.zeros((8, 8)), "s": jnp.zeros(())}
    state = tx.init(p)
    assert fx.get(state, "acc_grads")["w"].dtype == jnp.bfloat16
    total = 0
    for _ in range(8):
        g = {"w": jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32), "s": jnp.ones(())}
        total = total + g["w"] / 4
        p, state = tx.step(g, state, p)
    np.testing.assert_allclose(p["w"], -total, atol=0.03)
    np.testing.assert_allclose(p["s"], -2, rtol=1e-2)


def test_rounding_at_random_draws_anew_in_every_step_and_leaf():
    tx = fx.stored(fx.momentum(1.0), mu=fx.int8(8, min_size=0, stochastic=True))
    p = {"a": jnp.zeros((4, 8)), "b": jnp.zeros((4, 8))}
    g = jax.tree.map(lambda x: jnp.tile(jnp.linspace(0.1, 1, 8, dtype=x.dtype), (4, 1)), p)
    _, one = tx.update(g, tx.init(p), p)
    codes = {n: np.asarray(fx.get(one, f"mu.{n}.codes")) for n in p}
    assert (codes["a"] != codes["b"]).any()
    _, two = tx.update(jax.tree.map(lambda x: 0.1 * x, g), one, p)  # m stays about as it was
    assert not np.array_equal(fx.get(one, "key"), fx.get(two, "key"))


def test_only_what_has_a_gradient_is_written_again():
    tx = fx.stored(fx.adam(0.1), mu=fx.int8(8, min_size=0))
    p = {"a": jnp.ones((2, 8)), "b": jnp.ones((2, 8))}
    g = jax.tree.map(lambda x: jnp.tile(jnp.arange(1.0, 9), (2, 1)), p)
    _, state = tx.update(g, tx.init(p), p)
    u, after = tx.update({"a": g["a"], "b": None}, state, p)
    assert u["b"] is None or not np.any(u["b"])
    np.testing.assert_array_equal(fx.get(after, "mu.b.codes"), fx.get(state, "mu.b.codes"))
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_bfloat16_weights_with_a_correction_of_a_byte():
    """7.1 bytes per parameter, weight and gradient included, and the loss of float32 all the same."""
    adamw = fx.adamw(3e-4)
    in_bytes = fx.stored(
        fx.chain(adamw, fx.compensate()),
        error=fx.int8(stochastic=True),
        mu=fx.int8(stochastic=True),
        nu=fx.uint8(stochastic=True),
    )
    p = {
        "w": jnp.asarray(RNG.normal(size=(64, 128)) / 8),
        "v": jnp.asarray(RNG.normal(size=(128, 64)) / 11),
    }
    x, y = (jnp.asarray(RNG.normal(size=(256, 64)), jnp.float32) for _ in range(2))

    def loss(p):
        w, v = (p[k].astype(jnp.float32) for k in ("w", "v"))
        return jnp.mean((jnp.tanh(x @ w) @ v - y) ** 2)

    def final(tx, dtype):
        params = jax.tree.map(lambda q: q.astype(dtype), p)
        start = params, tx.init(params)
        body = lambda c, _: (tx.step(jax.grad(loss)(c[0]), c[1], c[0]), None)  # noqa: E731
        (params, state), _ = jax.jit(lambda c: jax.lax.scan(body, c, length=200))(start)
        return loss(params), state

    full, _ = final(adamw, "float32")
    got, state = final(in_bytes, "bfloat16")
    plain, _ = final(adamw, "bfloat16")
    assert abs(got - full) < 0.02 * full
    assert plain > 1.1 * full  # most steps are smaller than one rounding
    count = sum(q.size for q in p.values())
    assert sum(s.nbytes for s in jax.tree.leaves(state)) <= 3.15 * count


@fx.storage
def in_even_steps():
    """A byte each, the codes evenly spaced from zero: what is small beside the largest becomes zero."""

    def write(x, key):
        scale = jnp.maximum(jnp.max(x), jnp.finfo(x.dtype).tiny)
        return {"codes": jnp.round(255 * x / scale).astype("uint8"), "scale": scale}

    return fx.Form(write, lambda kept, like: kept["codes"].astype("float32") / 255 * kept["scale"])


def test_a_run_in_bytes_ends_within_the_spread_of_float32_and_one_in_poor_bytes_does_not():
    problem, tx = factors(), fx.adamw(1e-3)
    sweep = [3e-3, 1e-2], 3, 100
    full = losses(tx, problem, *sweep)

    def within(**storages):
        return verdict(full, losses(fx.stored(tx, **storages), problem, *sweep)).within

    assert (full[1] < 0.9 * full[0]).all()  # something is learnt
    assert within(mu=fx.int8(), nu=fx.uint8()).all()
    assert not within(nu=in_even_steps()).any()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: fx.stored(fx.sgd(1e-3)), TypeError, "name at least one memory"),
        (lambda: fx.stored(fx.adam(1e-3), mu="bfloat16"), TypeError, "mu must be a storage"),
        (
            lambda: fx.stored(fx.sgd(1e-3), mu=fx.int8()).init(jnp.ones(3)),
            ValueError,
            "remembers no mu; it remembers learning_rate",
        ),
        (lambda: fx.int8(0), ValueError, "block must be"),
    ],
)
def test_what_cannot_be_stored(make, error, match):
    with pytest.raises(error, match=match):
        make()


KEEPS = {
    "cast": fx.cast("bfloat16"),
    "cast_stochastically": fx.cast_stochastically("bfloat16"),
    "int8": fx.int8(min_size=1),
    "cover": fx.cover(),
}


@pytest.mark.parametrize("storage", KEEPS.values(), ids=KEEPS)
def test_complex_numbers_are_kept_whole(storage):
    """None loses an imaginary part; real leaves beside them are stored."""
    p = {"z": jnp.full((4, 4), 1 + 2j), "x": jnp.ones((4, 4))}
    tx, plain = fx.stored(fx.sgd(0.1, 0.9), mu=storage), fx.sgd(0.1, 0.9)
    state, other, q = tx.init(p), plain.init(p), p
    for _ in range(3):
        p, state = tx.step(p, state, p)
        q, other = plain.step(q, other, q)
    np.testing.assert_array_equal(p["z"], q["z"])
    kept = {jax.tree_util.keystr(k): x.dtype for k, x in jax.tree.leaves_with_path(state)}
    (z,), x = ([d for k, d in kept.items() if f"mu['{n}']" in k] for n in "zx")
    assert z == jnp.complex64
    assert x != [jnp.float32]


def test_what_is_inside_of_wrappers_is_found():
    tx = fx.stored(
        fx.skip_nonfinite(
            fx.partition({"a": fx.adam(0.1), "b": fx.lion(0.1)}, {"a": "a", "b": "b"})
        ),
        mu=fx.int8(8, min_size=0),
    )
    p = {"a": jnp.ones((2, 8)), "b": jnp.ones((2, 8))}
    state = tx.init(p)
    kept = [x for x in jax.tree.leaves(state, is_leaf=is_kept) if is_kept(x)]
    assert len(kept) == 2
    p, state = tx.step(p, state, p)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(p))


def is_kept(x):
    return is_memory(x) and x._fields == ("codes", "scales")
