"""Wrappers, groups, precision and averages: oracles in NumPy, and laws of what is nested."""

import contextlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table import OPTIMIZERS, WRAPPERS, signature, tree

import adamfx as fx
from adamfx.engine import control, trees
from adamfx.wrappers.monitor import METRICS

LR, B1, B2, EPS = 0.05, 0.9, 0.999, 1e-8
LOW = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
low = pytest.mark.parametrize("dtype", LOW.values(), ids=LOW)
rng = np.random.default_rng


def exact(a, b, tol=1e-12):
    np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=tol, atol=tol)


# ---- oracles, NumPy float64 ----------------------------------------------------------------------


class Sgd:
    def __call__(self, g):
        return -LR * g


class Momentum:
    b = 0.0

    def __call__(self, g):
        self.b = 0.9 * self.b + g
        return -LR * self.b


class Adam:
    m = v = 0.0
    t = 0

    def __call__(self, g):
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * g
        self.v = B2 * self.v + (1 - B2) * g * g
        self.m_hat, self.v_hat = self.m / (1 - B1**self.t), self.v / (1 - B2**self.t)
        return -LR * self.m_hat / (np.sqrt(self.v_hat) + EPS)


PAIRS = {
    "sgd": (fx.sgd(LR), Sgd),
    "momentum": (fx.momentum(LR), Momentum),
    "adam": (fx.adam(LR, B1, B2, EPS), Adam),
}


def run(tx, p, grads, method="step"):
    """Yields (parameters, state) after each gradient; a callable one is of the parameters."""
    p, state = jnp.asarray(p), None
    state = tx.init(p)
    for g in grads:
        g = jnp.asarray(g(p) if callable(g) else g)
        if method == "step":
            p, state = tx.step(g, state, p)
        else:
            u, state = tx.update(g, state, p)
            p = fx.apply_updates(p, u)
        yield p, state


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("method", ["step", "update"])
def test_accumulate_is_one_large_batch(x64, name, k, method):
    tx, oracle = PAIRS[name][0], PAIRS[name][1]()
    p, grads = rng(0).normal(size=5), rng(1).normal(size=(4 * k, 5))
    for t, (q, state) in enumerate(run(fx.accumulate(tx, k), p, grads, method)):
        if (t + 1) % k == 0:
            p = p + oracle(grads[t + 1 - k : t + 1].mean(0))
        exact(q, p)
        assert state["accumulate"].mini_step == (t + 1) % k
        assert state["accumulate"].inner["count"] == (t + 1) // k


def test_accumulate_starts_each_window_at_zero_for_a_gradient_that_comes_late():
    tx = fx.accumulate(fx.sgd(1.0), 2)
    p = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    state = tx.init(p)
    one = jnp.ones(2)
    for g in ({"a": one, "b": 8 * one}, {"a": one, "b": 8 * one}, {"a": one, "b": None}):
        p, state = tx.step(g, state, p)
    p, state = tx.step({"a": one, "b": 4 * one}, state, p)
    np.testing.assert_array_equal([p["a"], p["b"]], [-2 * one, -10 * one])


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("method", ["step", "update"])
def test_lookahead_is_algorithm_1(x64, reset, method):
    k, a, scale = 5, 0.3, np.linspace(0.5, 2, 4)
    noise = rng(2).normal(size=(12, 4))
    theta = phi = rng(3).normal(size=4)
    fast = Momentum()
    tx = fx.lookahead(fx.momentum(LR), k, a, reset_state=reset)
    grads = [lambda p, n=n: scale * p + n for n in noise]
    for t, (q, state) in enumerate(run(tx, theta, grads, method)):
        theta = theta + fast(scale * theta + noise[t])
        if (t + 1) % k == 0:
            theta = phi = phi + a * (theta - phi)
            fast = Momentum() if reset else fast
        exact(q, theta)
        exact(state["lookahead"].slow, phi)
        assert state["lookahead"].steps_since_sync == (t + 1) % k


@pytest.mark.parametrize("kind", ["mean", "ema", "scheduled"])
def test_average_params(x64, kind):
    p, grads = rng(4).normal(size=3), rng(5).normal(size=(8, 3))
    decays = np.full(8, 0.9) if kind == "ema" else 0.5 + 0.4 * np.arange(8) / 7
    schedule = fx.linear_schedule(0.5, 0.9, 7)
    of = {"mean": fx.mean(), "ema": fx.ema(0.9), "scheduled": fx.ema(schedule)}[kind]
    oracle, seen = Adam(), []
    tx = fx.average_params(PAIRS["adam"][0], of)
    exact(fx.averaged_params(tx.init(jnp.asarray(p)), jnp.asarray(p)), p)
    for t, (q, state) in enumerate(run(tx, p, grads)):
        p = p + oracle(grads[t])
        seen.append(p)
        exact(q, p)
        weights = np.ones(t + 1)
        if kind != "mean":
            weights = [(1 - decays[i]) * np.prod(decays[i + 1 : t + 1]) for i in range(t + 1)]
        wanted = np.average(seen, axis=0, weights=weights)
        exact(fx.averaged_params(state, q), wanted)


def test_monitor(x64):
    names, p = {"a": (3, 2), "b": (4,)}, {}
    r, oracles = rng(6), {k: Adam() for k in names}
    p = {k: r.normal(size=s) for k, s in names.items()}
    tx = fx.monitor(PAIRS["adam"][0], tuple(METRICS), per_leaf=True)
    state = tx.init(jax.tree.map(jnp.asarray, p))
    bound = LR * max(1, (1 - B1) / np.sqrt(1 - B2))
    size = lambda xs: np.sqrt(sum((x**2).sum() for x in xs))  # noqa: E731

    def seven(g, u, p, ratio):
        return {
            "gradient_norm": size(g),
            "update_norm": size(u),
            "param_norm": size(p),
            "update_ratio": size(u) / size(p),
            "effective_step": max(np.abs(x).max() for x in u),
            "effective_step_bound": bound,
            "signal_to_noise": size(ratio) / np.sqrt(sum(x.size for x in ratio)),
        }

    for _ in range(4):
        g = {k: r.normal(size=s) for k, s in names.items()}
        _, state = tx.update(*jax.tree.map(jnp.asarray, (g, state, p)))
        u = {k: oracles[k](g[k]) for k in names}
        ratio = {k: o.m_hat / np.sqrt(o.v_hat) for k, o in oracles.items()}
        of = [g, u, p, ratio]
        wanted = seven(*(x.values() for x in map(dict, of)))
        for k in names:
            wanted |= {f"{n}/{k}": x for n, x in seven(*([x[k]] for x in of)).items()}
        found = fx.metrics(state)
        found.pop("learning_rate", None)
        assert found.keys() == wanted.keys()
        for n, x in wanted.items():
            assert found[n].dtype == jnp.float32
            np.testing.assert_allclose(found[n], x, rtol=1e-6, err_msg=n)
        p = {k: p[k] + u[k] for k in names}


# ---- below float32 -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["step", "update"])
def test_compensate_is_kahan(method):
    """A learning rate of 2^-9 makes the product exact, so that every bit is determined."""
    bf16, f32 = ml_dtypes.bfloat16, np.float32
    p = rng(7).normal(size=64).astype(bf16)
    grads = rng(8).normal(size=(100, 64)).astype(bf16)
    c, total = np.zeros(64, f32), p.astype(np.float64)
    tx = fx.chain(fx.sgd(2.0**-9), fx.compensate())
    for g, (q, state) in zip(grads, run(tx, p, grads, method), strict=True):
        wanted = f32(-(2.0**-9)) * g.astype(f32) + c
        u = wanted.astype(bf16).astype(f32)
        after = (p.astype(f32) + u).astype(bf16)
        c = wanted - (after.astype(f32) - p.astype(f32))
        p = after
        total = total - 2.0**-9 * g.astype(np.float64)
        np.testing.assert_array_equal(np.asarray(q), p)
        np.testing.assert_array_equal(state["compensate"].error, c)
    exact(p.astype(np.float64) + c, total, 1e-5)


@pytest.mark.parametrize("method", ["step", "update"])
def test_master_weights_is_the_rounded_float32_run(method):
    p = rng(9).normal(size=64).astype(ml_dtypes.bfloat16)
    grads = rng(10).normal(size=(20, 64)).astype(ml_dtypes.bfloat16)
    wide = run(PAIRS["adam"][0], p.astype(np.float32), grads.astype(np.float32))
    oracle, x = Adam(), p.astype(np.float64)
    tx = fx.master_weights(PAIRS["adam"][0])
    for g, (q, state), (full, _) in zip(grads, run(tx, p, grads, method), wide, strict=True):
        x = x + oracle(g.astype(np.float64))
        master = state["master_weights"].master
        exact(master, full, 1e-6)
        exact(master, x, 1e-5)
        wanted = np.asarray(master).astype(p.dtype)
        if method == "step":
            np.testing.assert_array_equal(np.asarray(q), wanted)
        else:  # the update is rounded, too
            exact(np.asarray(q).astype(np.float64), wanted.astype(np.float64), 2**-9)


def neighbours(x, dtype):
    """The numbers of `dtype` next to x, below and above; both x where it is one of them."""
    near = x.astype(dtype)
    up, down = np.asarray(np.inf, dtype), np.asarray(-np.inf, dtype)
    below = np.where(near.astype(np.float64) > x, np.nextafter(near, down), near)
    above = np.where(near.astype(np.float64) < x, np.nextafter(near, up), near)
    return below.astype(np.float64), above.astype(np.float64)


def rounded(p, u, method="step", seed=0):
    tx = fx.chain(fx.sgd(1.0), fx.round_stochastically(seed))
    ((q, _),) = run(tx, p, [-u], method)
    assert q.dtype == p.dtype
    return np.asarray(q).astype(np.float64)


@low
@pytest.mark.parametrize("scale", [1.0, 100.0, 2.0**-12, 2.0**-16, 2.0**-22])
@pytest.mark.parametrize("method", ["step", "update"])
def test_round_stochastically_takes_a_neighbour_without_bias(dtype, scale, method):
    r = rng(11)
    p = (r.normal(size=4000) * scale).astype(dtype)
    wide = p.astype(np.float32)
    # As updates of a low dtype, p' - p is a number of it where the step is the smaller one.
    u = wide * r.uniform(-0.25, 0.25, size=4000) if method == "update" else r.normal(size=4000)
    u = (u if method == "update" else u * scale).astype(np.float32)
    x = (wide + u).astype(np.float64)
    below, above = neighbours(x, dtype)
    q = rounded(p, u, method)
    wrong = (q != below) & (q != above)
    assert not wrong.any(), (wide[wrong][:3], u[wrong][:3], q[wrong][:3])
    gap = np.where(above > below, above - below, 1)
    f = (x - below) / gap
    for toward in (1, np.sign(x)):  # neither downward nor toward zero
        error = (toward * (q - x) / gap).mean()
        assert abs(error) <= 4 * np.sqrt((f * (1 - f)).mean() / 4000)


@low
def test_round_stochastically_of_one_number(dtype):
    """A step of 0.3 spacings upward moves 30 % of them; one of nothing moves none."""
    p = np.ones(4000, dtype)
    gap = float(jnp.finfo(dtype).eps)
    for sign in (1, -1):
        q = rounded(sign * p, np.full(4000, sign * 0.3 * gap, np.float32), seed=3)
        share = (np.abs(q) == 1 + gap).mean()
        assert abs(share - 0.3) <= 4 * np.sqrt(0.3 * 0.7 / 4000)
        np.testing.assert_array_equal(rounded(sign * p, np.zeros(4000, np.float32)), sign)


# ---- trees ---------------------------------------------------------------------------------------


def turn(held, y):
    x, n = held
    return jnp.sin(x) * y, n + 1


def ours(c, x, y, n):
    return control.only_if(c, turn, (x, n), y)


def theirs(c, x, y, n):
    return jax.lax.cond(c, lambda: turn((x, n), y), lambda: (x, n))


def test_only_if_is_cond():
    r, n = rng(12), jnp.int32(4)
    x, y, dx, dy = (jnp.asarray(r.normal(size=(6, 3)), jnp.float32) for _ in range(4))
    several = jnp.asarray([True, False, True, True, False, False])

    def same(view, *args):
        a, b = view(ours)(*args), view(theirs)(*args)
        assert signature(a) == signature(b)
        jax.tree.map(lambda s, t: np.testing.assert_allclose(s, t, rtol=1e-6), a, b)

    def loss(f):
        return lambda c, x, y: jnp.sum(f(c, x, y, n)[0] ** 2)

    def losses(f):
        one = jax.vmap(loss(f))
        return lambda c, x, y: one(c, x, y).sum()

    def tangent(f):
        return lambda c: jax.jvp(lambda x, y: f(c, x, y, n)[0], (x, y), (dx, dy))

    for c in (jnp.asarray(True), jnp.asarray(False)):
        same(lambda f: f, c, x, y, n)
        same(jax.jit, c, x, y, n)
        same(lambda f: jax.vmap(f, (None, 0, 0, None)), c, x, y, n)
        same(lambda f: jax.jit(jax.grad(loss(f), (1, 2))), c, x, y)
        same(tangent, c)
        same(lambda f: jax.jit(tangent(f)), c)
    same(lambda f: jax.vmap(f, (0, 0, 0, None)), several, x, y, n)
    same(lambda f: jax.jit(jax.vmap(f, (0, 0, None, None))), several, x, y[0], n)
    same(lambda f: jax.vmap(f, (0, None, None, None)), several, x, y, n)
    same(lambda f: jax.grad(losses(f), (1, 2)), several, x, y)


EDGES = [0, 1, 65504, 65519.99, 65520, 3.38e38, 3.3961e38, np.inf, np.nan, 2.0**-14, 2.0**-24]
EDGES += [2.0**-25, 1.5 * 2.0**-25, 2.0**-26, 1.5 * 2.0**-24, 2.5 * 2.0**-24, 1 + 2.0**-8]


@low
@pytest.mark.parametrize("compiled", [True, False])
def test_round_to_is_a_cast_there_and_back(dtype, compiled):
    bits = rng(13).integers(0, 2**32, size=20_000, dtype=np.uint32)
    x = np.concatenate([np.asarray(EDGES, np.float32), bits.view(np.float32)])
    # Bits: all exponents of float32. Small: all of float16, subnormal ones included.
    small = rng(14).normal(size=20_000) * 2.0 ** rng(15).integers(-27, 17, size=20_000)
    x = np.concatenate([x, -x, small.astype(np.float32)])
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(dtype).astype(np.float32)
    with contextlib.nullcontext() if compiled else jax.disable_jit():
        found = np.asarray(jax.jit(lambda x: trees.round_to(x, dtype))(jnp.asarray(x)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
    some = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found[some]), np.signbit(wanted[some]))


@pytest.mark.parametrize("dtype", [np.float32, *LOW.values()], ids=["float32", *LOW])
def test_finite_notices_every_position(dtype):
    check = jax.jit(lambda x: trees.finite({"a": jnp.ones(3), "b": [x, None], "n": jnp.arange(2)}))
    assert check(jnp.ones(1000, dtype))
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((1000,), dtype)
        for j in range(1000):
            x[j] = bad
            assert not check(x.copy())
            x[j] = 1
        x[5], x[700] = bad, np.nan
        assert not check(x)
    assert trees.finite({})
    assert trees.finite(jnp.zeros((0, 3)))


# ---- laws of what is nested two deep around a tree of any form -----------------------------------

NESTED = st.tuples(
    st.sampled_from(list(WRAPPERS)), st.sampled_from(list(WRAPPERS)), st.sampled_from([*OPTIMIZERS])
)
SHAPES = st.sampled_from([(), (3,), (2, 3), (2, 1, 2), (0,), (2, 0)])


def nested(names):
    a, b, c = names
    return WRAPPERS[a](WRAPPERS[b](OPTIMIZERS[c]))


def some_trees(dtypes):
    leaf = st.tuples(SHAPES, st.sampled_from([*dtypes, "int32"])) | st.none()
    leaf = leaf.map(lambda x: x and Leaf(*x))
    inside = st.recursive(
        leaf,
        lambda x: (
            st.lists(x, max_size=2)
            | st.tuples(x, x)
            | st.dictionaries(st.sampled_from(["w", "b", "c"]), x, max_size=2)
        ),
        max_leaves=4,
    )
    first = st.builds(Leaf, SHAPES, st.sampled_from(dtypes))
    return st.fixed_dictionaries(
        {"w1": first}, optional={"b": first, "int": st.just(Leaf((2,), "int32")), "x": inside}
    )


class Leaf:
    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype

    def __repr__(self):
        return f"{self.dtype}{list(self.shape)}"


@settings(max_examples=60)
@given(NESTED, some_trees(["float32", "bfloat16", "float16"]), st.booleans())
def test_types_of_what_is_nested(names, form, missing):
    tx = nested(names)
    again = eval(repr(tx), vars(fx))
    assert again == tx
    assert hash(again) == hash(tx)
    p = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(x.dtype)), form)
    g = {**p, "int": None} if missing and "int" in p else p
    s = jax.eval_shape(tx.init, p)
    u, after = jax.eval_shape(tx.update, g, s, p)
    assert signature(after) == signature(s)
    assert signature(u) == signature(g)

    def scan(p, s, g):
        return jax.lax.scan(lambda c, _: (tx.step(g, c[1], c[0]), None), (p, s), length=2)[0]

    assert signature(jax.eval_shape(scan, p, s, g)) == signature((p, s))


def numbers(form, seed):
    r = rng(seed)

    def make(x):
        y = r.integers(5, size=x.shape) if x.dtype == "int32" else r.normal(size=x.shape)
        return jnp.asarray(y, x.dtype)

    return jax.tree.map(make, form)


@settings(max_examples=12)
@given(NESTED, some_trees(["float32"]))
def test_runs_of_what_is_nested(names, form):
    tx = nested(names)

    def close(a, b):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)

    def both(step):
        p, grads = numbers(form, 0), [numbers(form, 1), numbers(form, 2)]
        s = tx.init(p)
        for g in grads:
            p, s = step(g, s, p)
        return p, s

    def by_hand(g, s, p):
        u, s = tx.update(g, s, p)
        return fx.apply_updates(p, u), s

    p, s = both(by_hand)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((p, s)))
    close(both(jax.jit(tx.step)), (p, s))
    close(both(jax.jit(tx.step, donate_argnums=(1, 2))), (p, s))
    with jax.disable_jit():
        close(both(by_hand), (p, s))

    alone = [(numbers(form, 3), s, p), (numbers(form, 4), tx.init(p), p)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    results = jax.vmap(tx.step)(*together)
    for i, one in enumerate(alone):
        close(jax.tree.map(lambda x, i=i: x[i], results), tx.step(*one))


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "default", "words"),
    [
        ({"a": fx.path_matches("w*")}, None, r"no group claims .*\['b'\].*default="),
        (
            {"a": fx.path_matches("w*"), "z": fx.path_matches("*")},
            fx.sgd(0.1),
            r"'a', 'z' claim .*\['w'\]",
        ),
        ({"q": fx.path_matches("w*")}, None, r"no transformation for the label 'q'.*'a', 'z'"),
        (
            {"w": "a", "w2": "z", "b": "q", "s": "a"},
            None,
            r"the label 'q' in param_labels; known are 'a', 'z'",
        ),
    ],
)
def test_labels_that_do_not_fit(labels, default, words):
    with pytest.raises(ValueError, match=words):
        fx.partition({"a": fx.adam(0.1), "z": fx.set_to_zero()}, labels, default).init(tree())


@pytest.mark.parametrize(
    ("name", "tx"),
    [
        ("lookahead", fx.lookahead(fx.sgd(0.1), 2, 0.5)),
        ("monitor", fx.monitor(fx.sgd(0.1))),
        ("compensate", fx.chain(fx.sgd(0.1), fx.compensate())),
        ("round_stochastically", fx.chain(fx.sgd(0.1), fx.round_stochastically())),
        ("master_weights", fx.master_weights(fx.sgd(0.1))),
        ("keep_average", fx.average_params(fx.sgd(0.1))),
    ],
)
def test_missing_params(name, tx):
    with pytest.raises(ValueError, match=rf"update: {name} reads the parameters; call tx.update"):
        tx.update(tree(seed=1), tx.init(tree()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fx.accumulate(fx.sgd(0.1), 0), "accumulate: every must be .*1.* got 0"),
        (lambda: fx.lookahead(fx.sgd(0.1), 0, 0.5), "lookahead: sync_period must be .*1.* got 0"),
        (lambda: fx.lookahead(fx.sgd(0.1), 2, 2), "lookahead: slow_step_size must .*0, 1.* got 2"),
        (lambda: fx.monitor(fx.sgd(0.1), ("grad",)), "monitor: metrics .*gradient_norm.*'grad'"),
        (
            lambda: fx.monitor(fx.sgd(0.1), "signal_to_noise"),
            "monitor: signal_to_noise .* need a scale_by_moments",
        ),
        (
            lambda: fx.averaged_params(fx.sgd(0.1).init(tree()), tree()),
            "averaged_params: this state holds no average; wrap .* average_params",
        ),
    ],
)
def test_words_that_help(make, words):
    with pytest.raises(ValueError, match=words):
        make()
