"""Faults found in use, each with a test that names its subject."""

import functools
import os
import pickle
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from table import tree

import adamfx as fx

ONE = jnp.ones(2)


# ---- wrappers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner",
    [
        fx.partition({"m": fx.adam(0.1)}, {"m": fx.ndim_at_least(2)}, fx.sgd(0.1, 0.9)),
        fx.masked(fx.adam(0.1), fx.ndim_at_least(2)),
        fx.accumulate(fx.adam(0.1), 2),
    ],
    ids=lambda tx: tx.name,
)
@pytest.mark.parametrize("missing", [False, True])
def test_lookahead_resets_any_state(inner, missing):
    tx, p = fx.lookahead(inner, 2, 0.5, reset_state=True), tree()
    s = tx.init(p)
    start = s["lookahead"].inner
    for t in range(2):
        g = tree(seed=t + 1) | ({"b": None} if missing else {})
        p, s = jax.jit(tx.step)(g, s, p)
    after = s["lookahead"].inner
    assert jax.tree.structure(after) == jax.tree.structure(start)
    jax.tree.map(np.testing.assert_array_equal, after, start)


def test_lookahead_resets_copies_from_what_is_known_exactly():
    """Around master_weights: from the slow parameters in float32, not from rounded ones."""
    tx = fx.lookahead(fx.master_weights(fx.sgd(2.0**-12)), 2, 0.5, reset_state=True)
    p = jnp.ones(2, jnp.bfloat16)
    s = tx.init(p)
    for _ in range(2):
        p, s = tx.step(jnp.ones(2, jnp.bfloat16), s, p)
    slow = s["lookahead"].slow
    np.testing.assert_array_equal(slow, np.float32([1 - 2.0**-12] * 2) + np.float32(0))
    np.testing.assert_array_equal(s["lookahead"].inner["master_weights"].master, slow)


def test_whole_floats_count_steps_under_strict_promotion():
    for tx in (fx.lookahead(fx.sgd(0.1), 2.0, 0.5), fx.accumulate(fx.sgd(0.1), 2.0)):
        p, s = ONE, tx.init(ONE)
        for _ in range(2):
            p, s = tx.step(ONE, s, p)
        assert (p != ONE).all()
    for schedule in (
        fx.cosine_decay_schedule(1.0, 10.0),
        fx.linear_schedule(1.0, 0.0, 10.0, 2.0),
        fx.piecewise_constant_schedule(1.0, {5.0: 0.5}),
        fx.warmup_cosine_decay_schedule(0.0, 1.0, 2.0, 8.0),
    ):
        whole = fx.adam(schedule)
        jax.jit(whole.step)(ONE, whole.init(ONE), ONE)


def test_counters_saturate():
    tx, last = fx.skip_nonfinite(fx.accumulate(fx.sgd(0.1), 3)), np.int32(2**31 - 2)
    s = tx.init(ONE)
    names = ("total_notfinite", "notfinite_count", "dropped", "skip_nonfinite.accumulate.count")
    s = fx.set(s, **dict.fromkeys(names, last))
    for x in (jnp.full(2, jnp.nan), ONE, ONE, ONE):
        _, s = tx.update(x, s)
    for name in ("total_notfinite", "dropped", "skip_nonfinite.accumulate.count"):
        assert fx.get(s, name) == last, name


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
    with pytest.raises(
        ValueError, match=r"axes must name one axis .* 2 axes of the memory, got \(0,\)"
    ):
        fx.along(jnp.zeros((2, 2)), (0,))


# ---- what a user's block gets wrong --------------------------------------------------------------


def returns(value):
    return lambda *_: value


WRONG = {
    "init an array": (
        {"init": lambda p: jnp.zeros_like(p)},
        TypeError,
        r"wrong: init must return {name: array}, such as",
    ),
    "init a list": ({"init": lambda p: [p]}, TypeError, "wrong: init must return"),
    "init a list by name": (
        {"init": lambda p: {"m": [p, p]}},
        TypeError,
        r"wrong: init must return {name: array}, m is \[",
    ),
    "a name": (
        {"init": lambda p: {"first moment": p}},
        ValueError,
        r"wrong: init names 'first moment'; a name is read as state\['wrong'\].name",
    ),
    "a private name": ({"init": lambda p: {"_m": p}}, ValueError, "init names '_m'"),
    "shared alone": (
        {"init_shared": returns({"n": 0.0})},
        TypeError,
        "wrong: it has init_shared but no shared",
    ),
    "shared without a pair": (
        {"init_shared": returns({"n": 0.0}), "shared": returns(1.0)},
        TypeError,
        r"wrong: shared must return \(scalars, {name: scalar}\), since it has init_shared",
    ),
    "shared loses a name": (
        {"init_shared": returns({"n": 0.0}), "shared": returns((1.0, {}))},
        ValueError,
        r"wrong: shared remembers \[\], init_shared made \['n'\]",
    ),
    "init complex": (
        {"init": lambda p: {"m": p + 1j}},
        ValueError,
        "wrong: init made m complex for a real parameter",
    ),
    "leaf complex": ({"leaf": lambda u, here: u * 1j}, ValueError, "update complex for a real one"),
    "leaf a list": (
        {"leaf": lambda u, here: [u]},
        TypeError,
        "wrong: its leaf function must return the new update, an array",
    ),
    "leaf None": ({"leaf": returns(None)}, TypeError, "must return the new update, an array; it"),
}


@pytest.mark.parametrize(("given", "kind", "words"), WRONG.values(), ids=WRONG)
def test_a_block_that_is_wrong_is_named(given, kind, words):
    @fx.block
    def wrong():
        leaf = given.get("leaf", lambda u, here: (u, here.memory._asdict()))
        if "init" not in given and "leaf" not in given:
            leaf = lambda u, here: u  # noqa: E731
        return fx.leafwise(leaf, **{k: x for k, x in given.items() if k != "leaf"})

    with jax.numpy_dtype_promotion("standard"), pytest.raises(kind, match=words):
        wrong().update(ONE, wrong().init(ONE))


def test_a_pair_whose_state_changes_structure():
    @fx.block
    def growing():
        return lambda p: {"n": 0.0}, lambda u, s, p=None: (u, {"n": 0.0, "m": u})

    with pytest.raises(ValueError, match=r"growing: its update turned the state .* must stay"):
        growing().update(ONE, {"count": jnp.int32(0), "growing": {"n": jnp.zeros(())}})

    @fx.block
    def nothing():
        return lambda p: {"n": jnp.zeros(())}, lambda u, s, p=None: None

    with pytest.raises(
        TypeError, match=r"nothing: its update must return \(updates, state\), got N"
    ):
        nothing().update(ONE, nothing().init(ONE))


def test_a_wrapper_that_is_wrong_is_named():
    def made(out):
        @fx.block
        def wrong(inner: fx.Inner):
            return fx.treewise(lambda leaves, memory, step: out(leaves), inner)

        return wrong(fx.sgd(0.1))

    for out, kind, words in (
        (lambda leaves: leaves, TypeError, r"wrong: run must return \(leaves, what it remembers\)"),
        (
            lambda leaves: (leaves, {}),
            ValueError,
            r"wrong: run remembers \[\], its init made \['inner'\]",
        ),
    ):
        with pytest.raises(kind, match=words):
            made(out).update(ONE, made(out).init(ONE))


def test_what_block_decorates():
    class Thing:
        pass

    for x in (Thing, functools.partial(fx.leafwise, None)):
        with pytest.raises(
            TypeError, match="block: it decorates a function, whose name and signature"
        ):
            fx.block(x)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: fx.chain(fx.trace(0.9), fx.scale_by_lr(0.1)),
            r"scale_by_moments\(trace\(0.9\), None\)",
        ),
        (lambda: fx.chain(fx.ema(0.9)), r"scale_by_moments\(ema\(0.9\), None\)"),
        (lambda: fx.accumulate(fx.constant_schedule(1.0), 2), r"scale_by_lr\(constant_schedule"),
        (lambda: fx.chain(fx.ndim_at_least(2)), r"masked\(transformation, ndim_at_least\(2\)\)"),
    ],
)
def test_what_is_no_transformation_here_names_the_sentence_that_is_meant(make, sentence):
    with pytest.raises(TypeError, match=f"not a transformation .*write {sentence}"):
        make()


def test_a_name_of_optax_with_another_meaning_is_a_hint():
    with pytest.raises(AttributeError, match=r"what optax calls so is skip_nonfinite"):
        _ = fx.apply_if_finite


# ---- hyperparameters -----------------------------------------------------------------------------


def test_counts_of_steps_are_no_bools():
    for make in (
        lambda: fx.accumulate(fx.sgd(0.1), True),
        lambda: fx.cosine_decay_schedule(1.0, True),
        lambda: fx.fit(lambda p: p, fx.sgd(0.1), ONE, [()], epochs=True),
    ):
        with pytest.raises(ValueError, match="must be a whole number >= 1, got True"):
            make()


@pytest.mark.parametrize("x", [jax.random.key(0), jnp.asarray(True), np.asarray([False])], ids=repr)
def test_arrays_that_are_no_numbers(x):
    for make in (fx.adam, fx.scale, lambda x: fx.adam(0.1, b1=x)):
        with pytest.raises(TypeError, match="expected a number, an array or a schedule, got"):
            make(x)


@pytest.mark.parametrize("value", [None, 1j, jnp.ones(3), "0.1"], ids=repr)
def test_schedules_return_one_real_number(value):
    tx = fx.adam(lambda count: value)
    with pytest.raises(TypeError, match=r"the schedule .*lambda.* must return one real number"):
        tx.init(ONE)


# ---- masks and labels of other kinds of tree -----------------------------------------------------


class Config(dict):
    """A mapping that JAX does not know."""

    def __init__(self, **items):
        super().__init__(items)


def test_masks_and_labels_given_as_other_mappings():
    p = {"a": {"w": ONE, "b": ONE}, "c": ONE}
    mask = {"a": {"w": True, "b": False}, "c": True}
    frozen = flax.core.freeze(mask)
    config = Config(a=Config(w=True, b=False), c=True)
    for given in (mask, frozen, config):
        tx = fx.add_decayed_weights(0.5, given)
        u, _ = tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
        assert jax.tree.map(lambda x: float(x[0]), u) == {"a": {"w": 0.5, "b": 0.0}, "c": 0.5}
    frozen_params = flax.core.freeze(p)
    tx = fx.masked(fx.scale(2.0), mask)
    u, _ = tx.update(frozen_params, tx.init(frozen_params), frozen_params)
    assert float(u["a"]["w"][0]) == 2.0
    labels = flax.core.freeze({"a": {"w": "x", "b": "y"}, "c": "y"})
    tx = fx.partition({"x": fx.scale(2.0), "y": fx.scale(3.0)}, labels)
    u, _ = tx.update(p, tx.init(p))
    assert float(u["a"]["w"][0]) == 2.0
    assert float(u["c"][0]) == 3.0


def test_masks_given_as_modules():
    import equinox as eqx

    model = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    mask = jax.tree.map(lambda x: x.ndim > 1, model)
    tx = fx.add_decayed_weights(1.0, mask)
    u, _ = tx.update(jax.tree.map(jnp.zeros_like, model), tx.init(model), model)
    assert u.weight.any()
    assert not u.bias.any()
    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    for given in (jax.tree.map(lambda x: x.ndim > 1, params), {"kernel": True, "bias": False}):
        tx = fx.add_decayed_weights(1.0, given)
        u, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        assert np.asarray(u["kernel"][...]).any()
        assert not np.asarray(u["bias"][...]).any()


# ---- values --------------------------------------------------------------------------------------


def test_as_optax_compares_hashes_and_pickles_as_its_value():
    tx = fx.adam(0.1).as_optax()
    assert tx == fx.adam(0.1).as_optax()
    assert tx != fx.adam(0.2).as_optax()
    assert hash(tx) == hash(fx.adam(0.1).as_optax())
    again = pickle.loads(pickle.dumps(tx))
    assert again == tx
    assert isinstance(again, optax.GradientTransformationExtraArgs)
    u, _ = again.update(ONE, again.init(ONE), ONE)
    np.testing.assert_allclose(u, -0.1, rtol=1e-5)


def test_a_body_runs_once_when_a_value_is_built():
    calls = []

    @fx.block
    def noting(rate: fx.Dynamic):
        calls.append(rate)
        return fx.leafwise(lambda u, here: u * rate)

    tx = fx.chain(noting(0.5), fx.scale(1.0))
    assert calls == [0.5]
    assert (repr(tx), tx.hyperparams["noting.rate"], tx.blocks[0][0]) == (
        "chain(noting(0.5), scale(1.0))",
        0.5,
        "noting",
    )
    assert calls == [0.5]


FORK = """
import os, threading, sys
import adamfx as fx

go = True
def build():
    n = 0
    while go:
        n += 1
        fx.scale(1.0 + n % 7).replace(step_size=2.0)

threads = [threading.Thread(target=build, daemon=True) for _ in range(4)]
[t.start() for t in threads]
sys.setswitchinterval(1e-5)
for i in range(60):
    pid = os.fork()
    if pid == 0:
        import signal
        signal.alarm(20)
        fx.chain(fx.clip(1.0 + i), fx.sgd(0.1))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "a forked child hung in its first constructor call"
go = False
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_builds_values():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_pickles_of_earlier_versions_load():
    """Constructors are found by their public name, whatever module held them."""
    text = pickle.dumps(fx.scale(2.0)).replace(b"adamfx.blocks.scaling", b"adamfx.scaling_of_old")
    assert pickle.loads(text) == fx.scale(2.0)


# ---- fit with a line search ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "tx", [optax.lbfgs(), fx.chain(optax.lbfgs())], ids=["alone", "in a chain"]
)
def test_fit_with_a_line_search_of_optax(tx):
    target = jnp.asarray([1.0, -2.0, 3.0])

    def loss(p, x):
        return jnp.sum((p - target) ** 2 * x)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        scale = jnp.asarray([1.0, 10.0, 100.0])
        params, *_ = fx.fit(loss, tx, jnp.zeros(3), [scale] * 15, progress=False)
        np.testing.assert_allclose(params, target, rtol=1e-3)
        step = fx.make_step(loss)
        p, s = jnp.zeros(3), fx.GradientTransformation.as_inner(tx).init(jnp.zeros(3))
        for _ in range(15):
            p, s, _ = step(tx, p, s, scale)
        np.testing.assert_allclose(p, target, rtol=1e-3)


def test_evaluate_sees_the_point_to_use():
    tx = fx.lookahead(fx.sgd(0.1), 3, 0.5)
    seen = []

    def evaluate(p, state):
        seen.append((np.asarray(p), np.asarray(state["lookahead"].slow)))
        return 0.0

    fx.fit(lambda p, x: jnp.sum((p - x) ** 2), tx, ONE, [ONE * 3] * 5, evaluate=evaluate,
           evaluate_every=1, progress=False)  # fmt: skip
    assert len(seen) == 5
    for p, slow in seen:
        np.testing.assert_array_equal(p, slow)
    average = fx.average_params(fx.sgd(0.1), fx.ema(0.5))
    s, p = average.init(ONE), ONE
    for _ in range(3):
        p, s = average.step(ONE, s, p)
    np.testing.assert_allclose(average.evaluate_at(s, p), fx.averaged_params(s, p), rtol=1e-6)
    np.testing.assert_allclose(fx.accumulate(average, 2).evaluate_at(
        fx.accumulate(average, 2).init(ONE), ONE), ONE)  # fmt: skip
