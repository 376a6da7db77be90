"""Each estimator against its recursion by hand, with its mass, its first value and its lag."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx

G = np.random.default_rng(0).normal(size=(6, 3))


def directions(*blocks, grads=G):
    """What a chain makes of each gradient, in float64."""
    tx = fx.chain(*blocks)
    s = tx.init(jnp.asarray(grads[0]))
    out = []
    for g in grads:
        u, s = tx.update(jnp.asarray(g), s)
        out.append(u)
    return np.asarray(out), s


def left(estimator, *corrections):
    return directions(fx.scale_by_moments(estimator, None), *corrections)[0]


def by_hand(step, start=0.0):
    s, out = np.full(3, start), []
    for t, g in enumerate(G, 1):
        s = step(s, g, t)
        out.append(s)
    return np.asarray(out)


CASES = {
    "ema": (fx.ema(0.8), lambda s, x, t: 0.8 * s + 0.2 * x, 0.0),
    "ema from 2, eps": (
        fx.ema(0.8, initial=2.0, eps=0.1),
        lambda s, x, t: 0.8 * s + 0.2 * x + 0.1,
        2.0,
    ),
    "ema whole": (
        fx.ema(0.8, first_whole=True),
        lambda s, x, t: x if t == 1 else 0.8 * s + 0.2 * x,
        0.0,
    ),
    "trace": (fx.trace(0.8), lambda s, x, t: 0.8 * s + x, 0.0),
    "trace damped": (fx.trace(0.8, 0.3), lambda s, x, t: 0.8 * s + 0.7 * x, 0.0),
    "trace damped, whole": (
        fx.trace(0.8, 0.3, first_whole=True),
        lambda s, x, t: x if t == 1 else 0.8 * s + 0.7 * x,
        0.0,
    ),
    "total": (fx.total(), lambda s, x, t: s + x, 0.0),
    "total from 2": (fx.total(2.0), lambda s, x, t: s + x, 2.0),
    "mean": (fx.mean(), lambda s, x, t: s + (x - s) / t, 0.0),
    "decayed_max": (fx.decayed_max(0.8), lambda s, x, t: np.maximum(0.8 * s, abs(x)), 0.0),
    "decayed_max, eps": (
        fx.decayed_max(0.8, eps=1.0),
        lambda s, x, t: np.maximum(0.8 * s, abs(x) + 1),
        0.0,
    ),
    "yogi": (
        fx.yogi_ema(0.8, of="square"),
        lambda s, x, t: s - 0.2 * np.sign(s - x**2) * x**2,
        1e-6,
    ),
}
OF_MASS_ONE = [name for name in CASES if name not in ("ema", "ema from 2, eps", "yogi")]


@pytest.mark.parametrize("name", CASES)
def test_recursion(name, x64):
    estimator, step, start = CASES[name]
    np.testing.assert_allclose(left(estimator), by_hand(step, start), rtol=1e-12)


@pytest.mark.parametrize("name", OF_MASS_ONE)
def test_mass_one_is_never_corrected(name, x64):
    estimator = CASES[name][0]
    np.testing.assert_array_equal(left(estimator, fx.bias_correct()), left(estimator))
    both = left(estimator, fx.bias_correct(), fx.nesterov())
    np.testing.assert_allclose(both, left(estimator, fx.nesterov()), rtol=1e-14)


def test_yogi_is_corrected_by_convention(x64):
    w = 1 - 0.8 ** np.arange(1, 7)[:, None]
    yogi = fx.yogi_ema(0.8)
    np.testing.assert_allclose(left(yogi, fx.bias_correct()) * w, left(yogi), rtol=1e-12)


def test_statistics(x64):
    m = by_hand(lambda s, x, t: 0.8 * s + 0.2 * x)
    wanted = {
        "value": G,
        "square": G**2,
        "abs": abs(G),
        "deviation": (G - m) ** 2,
        "norm_square": (G**2).sum(axis=1, keepdims=True) + 0 * G,
    }
    for of, x in wanted.items():
        estimator = fx.ema(0.8, of=of)
        u, s = directions(fx.scale_by_moments(0.8, estimator, eps=0.0))
        v = np.zeros(3)
        for row, m_t, x_t in zip(u, m, x, strict=True):
            v = 0.8 * v + 0.2 * x_t
            root = v if of in ("value", "abs") else np.sqrt(v)
            np.testing.assert_allclose(row, m_t / root, rtol=1e-12, err_msg=of)
        assert s["scale_by_moments"].nu.shape == (() if of == "norm_square" else (3,))


@pytest.mark.parametrize("b", [0.0, jnp.zeros(())], ids=["number", "array"])
def test_without_memory_the_average_is_the_gradient(b, x64):
    """b = 0: the mass is one, its logarithm is not needed, and derivatives are finite."""
    np.testing.assert_allclose(left(fx.ema(b)), G, rtol=1e-12)
    np.testing.assert_allclose(left(fx.ema(b), fx.bias_correct()), G, rtol=1e-12)
    np.testing.assert_allclose(left(fx.ema(b), fx.bias_correct(), fx.nesterov()), G, rtol=1e-12)
    slope = jax.grad(lambda b: left_of_two(b).sum())(jnp.zeros(()))
    assert np.isfinite(slope)


def left_of_two(b):
    tx = fx.chain(fx.scale_by_moments(b, None), fx.bias_correct())
    _, s = tx.update(jnp.asarray(G[0]), tx.init(jnp.asarray(G[0])))
    return tx.update(jnp.asarray(G[1]), s)[0]


def test_a_lagging_side_has_the_mass_it_had(x64):
    """u_t = m_hat_t / sqrt(v_hat_{t-1}); m_hat_1 at the first step, where v weighs nothing."""
    u, _ = directions(fx.scale_by_moments(0.8, 0.9, eps=0.0, lag="second"), fx.bias_correct())
    m, v = np.zeros(3), np.zeros(3)
    for t, (row, g) in enumerate(zip(u, G, strict=True), 1):
        m = 0.8 * m + 0.2 * g
        m_hat = m / (1 - 0.8**t)
        want = m_hat if t == 1 else m_hat / np.sqrt(v / (1 - 0.9 ** (t - 1)))
        np.testing.assert_allclose(row, want, rtol=1e-12)
        v = 0.9 * v + 0.1 * g**2


def test_one_side_alone(x64):
    both = fx.scale_by_moments(0.8, 0.9, eps=0.0)
    w1, w2 = (1 - b ** np.arange(1, 7)[:, None] for b in (0.8, 0.9))
    plain = directions(both)[0]
    np.testing.assert_allclose(
        directions(both, fx.bias_correct("first"))[0], plain / w1, rtol=1e-12
    )
    second = directions(both, fx.bias_correct("second"))[0]
    np.testing.assert_allclose(second, plain * np.sqrt(w2), rtol=1e-12)


def test_rounding_never_makes_the_variance_negative():
    grads = np.full((50, 3), 0.1, np.float32)
    u, _ = directions(
        fx.scale_by_moments(0.9, 0.9, eps=1e-3), fx.bias_correct(), fx.center(), grads=grads
    )
    assert np.isfinite(u).all()
    assert (u > 50).all()  # 0.1 over a variance near 0 and eps 1e-3


# ---- what is remembered --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tx", "floats"),
    [
        (fx.adafactor(0.01), 200 + 300),  # a mean of each row, of each column
        (fx.sm3(0.01, momentum=None), 200 + 300),
        (fx.adamini(0.01), 200 * 300 + 300),  # mu whole, one number for each output
        (fx.came(0.01), 200 * 300 + 2 * (200 + 300)),
        (fx.adamw(0.01), 2 * 200 * 300),
        (fx.muon(0.01), 200 * 300),
    ],
    ids=["adafactor", "sm3", "adamini", "came", "adamw", "muon"],
)
def test_numbers_that_a_matrix_costs(tx, floats):
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((200, 300), jnp.float32))
    held = [x.size for x in jax.tree.leaves(state) if x.size > 20]
    assert sum(held) == floats
