"""What users of JAX optimizers run into: one test, at least, for each row of the list of problems.

The number in a test's name is the row of that list: 25 measured complaints about today's libraries.
"""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from table import signature

import adamfx as fx

LIGHT = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Flax and Equinox
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}


def same(a, b):
    """Bit for bit the same tree."""
    assert signature(a) == signature(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def close(a, b, rtol=1e-6, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


def full(value, like=PARAMS):
    return jax.tree.map(lambda p: jnp.full_like(p, value), like)


# ---- 5: the learning rate is readable ------------------------------------------------------------


def test_row_05_rate_last_applied_is_in_the_state():
    rate = fx.linear_schedule(0.1, 0.0, 10)
    tx = fx.adam(rate)
    p, s = PARAMS, tx.init(PARAMS)
    for t in range(3):
        p, s = tx.step(full(1.0), s, p)
        np.testing.assert_allclose(s["scale_by_lr"].learning_rate, 0.1 * (1 - t / 10), 1e-6)
        np.testing.assert_allclose(fx.metrics(s)["learning_rate"], 0.1 * (1 - t / 10), 1e-6)


def test_row_05_rate_of_each_group():
    tx = fx.partition(
        {"m": fx.adam(fx.linear_schedule(0.1, 0.0, 10)), "v": fx.sgd(0.5)},
        {"m": fx.ndim_at_least(2), "v": ~fx.ndim_at_least(2)},
    )
    p, s = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        p, s = tx.step(full(1.0), s, p)
    np.testing.assert_allclose(
        s["partition"].inner["m"]["scale_by_lr"].learning_rate, 0.09, rtol=1e-6
    )
    found = fx.metrics(s)
    np.testing.assert_allclose(found["partition/m/scale_by_lr/learning_rate"], 0.09, rtol=1e-6)
    np.testing.assert_allclose(found["partition/v/scale_by_lr/learning_rate"], 0.5, rtol=1e-6)


def test_row_05_a_parameter_may_be_called_as_a_readout_is():
    params = {"metrics": jnp.ones(2), "learning_rate": jnp.ones(3)}
    found = fx.metrics(fx.adam(0.1).init(params))
    assert set(found) == {"learning_rate"}
    np.testing.assert_allclose(found["learning_rate"], 0.1, rtol=1e-6)


def test_row_05_live_rates_are_set_between_steps():
    tx = fx.live(fx.sgd(0.1))
    s = tx.init(PARAMS)
    step = jax.jit(tx.step)
    p, s = step(full(1.0), s, PARAMS)
    close(p, jax.tree.map(lambda x: x - 0.1, PARAMS))
    s = fx.set_hyperparams(s, learning_rate=0.5)
    (name,) = fx.hyperparams(s)
    assert name.endswith("learning_rate")
    q, s = step(full(1.0), s, p)
    close(q, jax.tree.map(lambda x: x - 0.5, p))
    np.testing.assert_allclose(fx.metrics(s)["learning_rate"], 0.5)
    assert step._cache_size() == 1
    with pytest.raises(KeyError, match="no_such_rate"):
        fx.set_hyperparams(s, no_such_rate=1.0)


def test_row_05_a_scheduled_rate_is_replaced():
    tx = fx.sgd(fx.linear_schedule(0.1, 0.0, 10))
    p, s = tx.step(full(1.0), tx.init(PARAMS), PARAMS)
    other = tx.replace(learning_rate=0.5)  # the state stays
    q, s = other.step(full(1.0), s, p)
    close(q, jax.tree.map(lambda x: x - 0.5, p))
    np.testing.assert_allclose(fx.metrics(s)["learning_rate"], 0.5)


# ---- 6: bfloat16 parameters move -----------------------------------------------------------------

ADAM = fx.adam(1e-3)


def by_step(tx, g, s, p):
    return tx.step(g, s, p)


def by_update(apply, tx, g, s, p):
    u, s = tx.update(g, s, p)
    return apply(p, u), s


WAYS = {
    "step": by_step,
    "update": functools.partial(by_update, fx.apply_updates),
    "optax": functools.partial(by_update, optax.apply_updates),
}


def after_500(tx, way, state, dtype=jnp.bfloat16):
    p = jnp.ones((), dtype)

    def body(carry, _):
        p, s = carry
        return WAYS[way](tx, jnp.ones((), dtype), s, p), None

    (p, _), _ = jax.lax.scan(body, (p, state), None, length=500)
    return p


@pytest.mark.parametrize("way", WAYS)
def test_row_06_bfloat16_parameters_move(way):
    one = jnp.ones((), jnp.bfloat16)
    exact = 0.5  # 1 - 500 * 1e-3; the float64 run is the next test
    assert after_500(ADAM, way, ADAM.init(one)) == 1.0
    for tx in (fx.chain(ADAM, fx.compensate()), fx.master_weights(ADAM)):
        p = after_500(tx, way, tx.init(one))
        assert p.dtype == jnp.bfloat16
        assert abs(float(p) - exact) <= 1e-3, tx


def test_row_06_the_exact_end(x64):
    p = after_500(ADAM, "step", ADAM.init(jnp.ones((), jnp.float64)), jnp.float64)
    np.testing.assert_allclose(p, 0.5, rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_row_06_rounding_stochastically_is_right_in_the_mean(way):
    one = jnp.ones((), jnp.bfloat16)
    states = [fx.chain(ADAM, fx.round_stochastically(seed)).init(one) for seed in range(20)]
    states = jax.tree.map(lambda *xs: jnp.stack(xs), *states)
    tx = fx.chain(ADAM, fx.round_stochastically())
    ends = jax.jit(jax.vmap(lambda s: after_500(tx, way, s)))(states)
    ends = np.asarray(ends, np.float64)
    assert len(set(ends)) > 3
    assert abs(ends.mean() - 0.5) <= 3 * ends.std(ddof=1) / 20**0.5


# ---- 9: gradient accumulation --------------------------------------------------------------------


def accumulated(tx, grads, p=PARAMS):
    step, s, emitted = jax.jit(tx.step), tx.init(p), []
    for g in grads:
        new, s = step(g, s, p)
        emitted.append(bool(np.any(new["w"] != p["w"])))
        p = new
    return p, s, emitted


def random_grads(n, seed=0, like=PARAMS):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), like)
        for _ in range(n)
    ]


def test_row_09_a_nan_is_dropped_and_counted_and_the_inner_count_waits():
    tx, good = fx.accumulate(fx.adamw(0.1), 3), random_grads(6)
    bad = {"w": good[0]["w"].at[1, 1].set(jnp.nan), "b": good[0]["b"]}
    p, s, emitted = accumulated(tx, good)
    assert emitted == [False, False, True] * 2
    q, t, late = accumulated(tx, [*good[:3], good[0], bad, good[1], *good[3:]])
    assert late == [False, False, True] + [False] * 5 + [True]
    same(p, q)
    same(s["accumulate"].inner, t["accumulate"].inner)
    assert int(s["accumulate"].dropped) == 0
    assert int(t["accumulate"].dropped) == int(fx.metrics(t)["dropped"]) == 1
    for x in (s, t):
        assert int(x["accumulate"].inner["count"]) == 2
        assert int(x["accumulate"].mini_step) == 0
    one_by_one = fx.skip_nonfinite(tx)
    q, t, late = accumulated(one_by_one, [*good[:2], bad, *good[2:]])
    assert late == [False, False, False, True, False, False, True]
    same(p, q)
    _, r, _ = accumulated(tx, good[:5])
    assert int(r["accumulate"].inner["count"]) == 1
    assert int(r["accumulate"].mini_step) == 2


def test_row_09_equals_the_large_batch():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 12, 2)), jnp.float32)
    grad = jax.jit(jax.grad(lambda p, x: jnp.mean((x @ p["w"] + p["b"][None] - 1.0) ** 2)))
    large, small = fx.adamw(0.1), fx.accumulate(fx.adamw(0.1), 4)
    p, s, q, t = PARAMS, large.init(PARAMS), PARAMS, small.init(PARAMS)
    for batch in x:
        p, s = large.step(grad(p, batch), s, p)
        for micro in batch.reshape(4, 3, 2):
            q, t = small.step(grad(q, micro), t, q)
    close(p, q, 1e-5, 1e-6)


def test_row_09_every_is_a_schedule():
    every = fx.piecewise_constant_schedule(1.0, {1: 2.0, 2: 1.5})  # 1, then 2, then 3
    g = random_grads(7)
    p, s, emitted = accumulated(fx.accumulate(fx.sgd(0.1), every), g)
    assert emitted == [True, False, True, False, False, True, False]
    assert int(s["accumulate"].inner["count"]) == 3
    means = [g[0]["w"], (g[1]["w"] + g[2]["w"]) / 2, (g[3]["w"] + g[4]["w"] + g[5]["w"]) / 3]
    close(p["w"], PARAMS["w"] - 0.1 * sum(means))


# ---- 10: checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: fx.accumulate(tx, 2)])
def test_row_10_the_configuration_changes_and_the_state_fits(wrap):
    schedule = fx.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20)
    variants = [
        fx.adamw(0.1),
        fx.adamw(schedule),
        fx.adamw(0.1, weight_decay=fx.linear_schedule(0.1, 0.0, 9)),
        fx.adamw(0.1, mask=fx.ndim_at_least(2)),
        fx.chain(fx.clip_by_global_norm(1.0), fx.adamw(0.1)),
        fx.chain(fx.clip(1.0), fx.adamw(schedule, mask=~fx.path_matches("*/b"))),
        fx.adam(0.1),
    ]
    variants = [wrap(tx) for tx in variants]
    wanted = signature(variants[0].init(PARAMS))
    saved = variants[0].step(full(1.0), variants[0].init(PARAMS), PARAMS)[1]
    for tx in variants:
        assert signature(tx.init(PARAMS)) == wanted, tx
        assert signature(tx.step(full(1.0), saved, PARAMS)[1]) == wanted, tx


# ---- 11: parameter groups ------------------------------------------------------------------------


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.Dense(3, name="body")(x))


class NnxNet(nnx.Module):
    def __init__(self):
        self.body, self.head = (nnx.Linear(*n, rngs=nnx.Rngs(0)) for n in ((4, 3), (3, 2)))


class EqxNet(eqx.Module):
    body: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self):
        self.body, self.head = (eqx.nn.Linear(*n, key=jax.random.key(0)) for n in ((4, 3), (3, 2)))


MODELS = {
    "dict": lambda: {
        "body": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
        "head": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    },
    "linen": lambda: Net().init(jax.random.key(0), jnp.ones((1, 4)))["params"],
    "nnx": lambda: nnx.state(NnxNet(), nnx.Param),
    "equinox": lambda: eqx.filter(EqxNet(), eqx.is_inexact_array),
}
TXS = {"slow": fx.sgd(0.1), "fast": fx.sgd(1.0)}


def is_head(path):
    return "head" in jax.tree_util.keystr(path)


def label_tree(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "fast" if is_head(path) else "slow", params
    )


@LIGHT
@pytest.mark.parametrize("labels", ["tree", "function", "predicates", "function of bools"])
@pytest.mark.parametrize("model", MODELS)
def test_row_11_groups(model, labels):
    params, calls = MODELS[model](), []

    def count(params):
        calls.append(1)
        return label_tree(params)

    def bools(of):
        return lambda p: jax.tree.map(lambda x: x == of, label_tree(p))

    given = {
        "tree": label_tree(params),
        "function": count,
        "predicates": {"slow": ~fx.path_matches("head/*"), "fast": fx.path_matches("head/*")},
        "function of bools": {"slow": bools("slow"), "fast": bools("fast")},
    }[labels]
    tx = fx.partition(TXS, given)
    s, g = tx.init(params), full(1.0, params)
    updates, s = tx.update(g, s)  # without params
    updates, s = tx.update(g, s, params)
    assert len(calls) == (labels == "function")
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    for path, u in jax.tree_util.tree_leaves_with_path(updates):
        np.testing.assert_allclose(u, -1.0 if is_head(path) else -0.1, rtol=1e-6)


def test_row_11_labels_as_a_prefix_and_default():
    params = MODELS["dict"]()
    for tx in (
        fx.partition(TXS, {"body": "slow", "head": "fast"}),
        fx.partition({"fast": TXS["fast"]}, {"fast": fx.path_matches("head/*")}, TXS["slow"]),
    ):
        u, _ = tx.update(full(1.0, params), tx.init(params))
        close(u, {"body": full(-0.1, params["body"]), "head": full(-1.0, params["head"])})


def test_row_11_errors_name_the_path():
    params = MODELS["dict"]()
    tx = fx.partition(TXS, {"slow": fx.path_matches("body/*"), "fast": fx.path_matches("*/kernel")})
    with pytest.raises(ValueError, match=r"slow.*fast.*\['body'\]\['kernel'\]"):
        tx.init(params)
    tx = fx.partition(
        TXS, {"slow": fx.path_matches("body/*"), "fast": fx.path_matches("head/kernel")}
    )
    with pytest.raises(ValueError, match=r"no group.*\['head'\]\['bias'\]"):
        tx.init(params)
    with pytest.raises(ValueError, match="unknown"):
        fx.partition(TXS, {"body": "slow", "head": "unknown"}).init(params)


# ---- 14: sharded init ----------------------------------------------------------------------------

WRAPPED = {
    "accumulate": fx.accumulate(ADAM, 2),
    "average": fx.average_params(ADAM, fx.ema(0.9)),
    "master": fx.master_weights(ADAM),
    "lookahead": fx.lookahead(ADAM, 2, 0.5),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_row_14_state_of_wrappers_follows_the_parameters(name):
    tx, dtype = WRAPPED[name], jnp.bfloat16 if name == "master" else jnp.float32
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {(8, 2): P("x"), (3, 16): P(None, "x")}
    params = {
        str(shape): jax.device_put(jnp.ones(shape, dtype), NamedSharding(mesh, spec))
        for shape, spec in specs.items()
    }
    s = jax.jit(tx.init)(params)

    def check(s):
        arrays = [x for x in jax.tree.leaves(s) if x.shape in specs]
        assert len(arrays) == 6  # both moments and what the wrapper adds
        for x in jax.tree.leaves(s):
            wanted = NamedSharding(mesh, specs.get(x.shape, P()))
            assert x.sharding.is_equivalent_to(wanted, x.ndim)

    check(s)
    step = jax.jit(lambda p, s: tx.step(p, s, p))
    for _ in range(3):
        params, s = step(params, s)
    check(s)
    assert step._cache_size() == 1


# ---- 18: gradients that are not finite -----------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_row_18_never_applied_and_bitwise_unchanged(bad):
    tx = fx.skip_nonfinite(fx.adamw(0.1), max_consecutive_errors=5)
    step = jax.jit(tx.step)
    p, s = step(full(1.0), tx.init(PARAMS), PARAMS)
    q, t = p, s
    g = {"w": full(1.0)["w"].at[0, 1].set(bad), "b": full(1.0)["b"]}
    for n in range(1, 31):
        q, t = step(g, t, q)
        memory = t["skip_nonfinite"]
        assert int(memory.notfinite_count) == int(memory.total_notfinite) == n
        assert bool(memory.too_many) == (n > 5)
        assert not memory.last_finite
        if n == 5:
            fx.check_finite(t)
    same(p, q)
    same(s["skip_nonfinite"].inner, t["skip_nonfinite"].inner)
    assert fx.metrics(t)["too_many"]
    with pytest.raises(FloatingPointError, match="30"):
        fx.check_finite(t)
    q, t = step(full(0.5), t, q)
    p, s = step(full(0.5), s, p)
    same(p, q)
    same(s["skip_nonfinite"].inner, t["skip_nonfinite"].inner)
    memory = t["skip_nonfinite"]
    assert int(memory.notfinite_count) == 0
    assert int(memory.total_notfinite) == 30
    assert bool(memory.last_finite)
    assert not memory.too_many
    fx.check_finite(t)


def test_row_18_update_is_zero():
    tx = fx.skip_nonfinite(fx.adamw(0.1))
    u, _ = tx.update(full(jnp.nan), tx.init(PARAMS), PARAMS)
    same(u, full(0.0))


# ---- 20: frozen leaves ---------------------------------------------------------------------------


def test_row_20_frozen_means_no_state_no_update_no_decay():
    params = PARAMS | {"frozen": jnp.linspace(1.0, 2.0, 35).reshape(5, 7)}
    tx = fx.partition(
        {"zero": fx.set_to_zero()},
        {"zero": fx.path_matches("frozen")},
        default=fx.adamw(0.1, weight_decay=0.5),
    )
    p, s = params, tx.init(params)
    for _ in range(3):
        p, s = tx.step(full(1.0, params), s, p)
        assert all(x.shape != (5, 7) for x in jax.tree.leaves(s))
    same(p["frozen"], params["frozen"])
    assert np.all(p["w"] != params["w"])


WITH_FROZEN = {
    "accumulate": fx.accumulate(fx.adamw(0.1), 1),
    "skip_nonfinite": fx.skip_nonfinite(fx.adamw(0.1)),
    "lookahead": fx.lookahead(fx.adamw(0.1), 2, 0.5),
    "average_params": fx.average_params(fx.adamw(0.1)),
    "monitor": fx.monitor(fx.adamw(0.1), per_leaf=True),
    "master_weights": fx.master_weights(fx.adamw(0.1)),
    "masked": fx.masked(fx.adamw(0.1), {"w": True, "i": True, "n": True}),
    "live": fx.live(fx.adamw(0.1)),
}


@pytest.mark.parametrize("name", WITH_FROZEN)
def test_row_20_integers_and_none_inside_wrappers(name):
    tx = WITH_FROZEN[name]
    params = {"w": jnp.ones(2), "i": jnp.arange(11), "n": None}
    grads = {"w": jnp.ones(2), "i": np.zeros(11, jax.dtypes.float0), "n": None}
    s = tx.init(params)
    p, s1 = tx.step(grads, s, params)
    assert signature(s1) == signature(s)
    assert all(jnp.shape(x) != (11,) for x in jax.tree.leaves(s))
    same(p["i"], params["i"])
    assert p["n"] is None
    assert np.all(p["w"] < 1)
    u, _ = tx.update(grads, s, params)
    q = fx.apply_updates(params, u)
    same(q["i"], params["i"])
    close(q["w"], p["w"])


# ---- 22: weight decay ----------------------------------------------------------------------------

LR, WD = 0.1, 0.2
MASKS = {
    "all": (None, {"dense": {"kernel": 1, "bias": 1}, "norm": {"scale": 1}}),
    "paths": (
        ~fx.path_matches("*/bias", "*/norm*"),
        {"dense": {"kernel": 1, "bias": 0}, "norm": {"scale": 0}},
    ),
    "ndim": (fx.ndim_at_least(2), {"dense": {"kernel": 1, "bias": 0}, "norm": {"scale": 0}}),
}
KINDS = {
    "coupled": lambda d: fx.chain(d, fx.momentum(LR, 0.9)),
    "decoupled": lambda d: fx.chain(
        fx.scale_by_moments(fx.trace(0.9), None), d, fx.scale_by_lr(LR)
    ),
    "independent": lambda d: fx.chain(
        fx.scale_by_moments(fx.trace(0.9), None),
        fx.scale_by_lr(LR, flip_sign=False),
        d,
        fx.scale(-1.0),
    ),
}


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_row_22_one_block_for_decay(kind, mask, scheduled):
    where, acts = MASKS[mask]
    decay = fx.linear_schedule(WD, 0.0, 4) if scheduled else WD
    tx = KINDS[kind](fx.add_decayed_weights(decay, where))
    p = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    acts = jax.tree.leaves(acts)
    want, trace, s = np.ones(3), np.zeros(3), tx.init(p)
    for t in range(3):
        p, s = tx.step(full(0.5, p), s, p)
        d = np.array(acts) * want * (WD * (1 - t / 4) if scheduled else WD)
        trace = 0.9 * trace + 0.5 + (d if kind == "coupled" else 0)
        u = {"coupled": LR * trace, "decoupled": LR * (trace + d), "independent": LR * trace + d}
        want = want - u[kind]
    for x, y in zip(jax.tree.leaves(p), want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


# ---- 24: averages and metrics --------------------------------------------------------------------


def test_row_24_averages_of_bfloat16_parameters_are_held_in_float32():
    check_averages("step")


def test_row_24_averages_by_update_and_apply_updates():
    check_averages("update")


def check_averages(way):
    p = {"w": jnp.linspace(0.5, 2.0, 64).astype(jnp.bfloat16)}
    tx = fx.chain(
        fx.sgd(0.05),
        fx.named("ema", fx.keep_average(fx.ema(0.9))),
        fx.named("mean", fx.keep_average(fx.mean())),
    )
    assert fx.average_params(fx.sgd(0.05)) == fx.chain(fx.sgd(0.05), fx.keep_average())
    s, visited = tx.init(p), []
    for g in random_grads(30, 3, p):
        p, s = WAYS[way](tx, g, s, p)
        visited.append(np.asarray(p["w"], np.float64))
    visited, weights = np.array(visited), 0.9 ** np.arange(30)[::-1]
    wide = {"w": p["w"].astype(jnp.float32)}
    for name, w in (("ema", weights / weights.sum()), ("mean", np.full(30, 1 / 30))):
        assert s[name].average["w"].dtype == jnp.float32
        found = fx.averaged_params(s[name], wide)["w"]
        # `update` rounds u as well: some visited parameters lie one bfloat16 rounding away.
        atol = 1e-5 if way == "step" else 2**-9
        np.testing.assert_allclose(found, w @ visited, rtol=0, atol=atol, err_msg=name)
        assert fx.averaged_params(s[name], p)["w"].dtype == jnp.bfloat16


def test_row_24_monitor_inside_scan():
    tx = fx.monitor(fx.sgd(0.1), ("gradient_norm", "update_norm", "param_norm"), per_leaf=True)
    grads = random_grads(4)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)

    def body(carry, g):
        p, s = carry
        new, s = tx.step(g, s, p)
        return (new, s), (p, fx.metrics(s))

    s = tx.init(PARAMS)
    (_, end), (before, found) = jax.lax.scan(body, (PARAMS, s), stacked)
    assert signature(end) == signature(s)

    def norms(tree, t):
        return {k: np.linalg.norm(np.asarray(x[t], np.float64)) for k, x in tree.items()}

    for t in range(4):
        for name, tree, c in (
            ("gradient_norm", stacked, 1.0),
            ("update_norm", stacked, 0.1),
            ("param_norm", before, 1.0),
        ):
            each = norms(tree, t)
            whole = np.linalg.norm(list(each.values()))
            np.testing.assert_allclose(found[name][t], c * whole, rtol=1e-6)
            for k, x in each.items():
                np.testing.assert_allclose(found[f"{name}/{k}"][t], c * x, rtol=1e-6)
