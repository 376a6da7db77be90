"""A block at work: what it may remember, and what is said where it goes wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx

ONE = jnp.ones(1)


@fx.block
def by_rank():
    def init(p):
        return {"m": jnp.zeros_like(p)} if p.ndim > 1 else {}

    return fx.leafwise(lambda u, here: (u, {"m": u}) if u.ndim > 1 else (u, {}), init=init)


@fx.block
def forgetful():
    return fx.leafwise(lambda u, here: u, init=lambda p: {"m": jnp.zeros_like(p)})


@fx.block
def integers():
    def init(p):
        return {"n": jnp.full(p.shape, 2**24, jnp.int32)}

    def leaf(u, here):
        return u, {"n": here.memory.n + 1}

    return fx.leafwise(leaf, init=init)


TWO_ONES = jnp.ones(2)


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


def test_init_may_return_other_names_for_other_leaves():
    p = {"a": jnp.full((2, 2), 3.0), "b": ONE}
    tx = by_rank()
    s = tx.init(p)
    assert s["by_rank"].m["b"] is None
    u, after = jax.jit(tx.update)(p, s)
    np.testing.assert_array_equal(u["b"], ONE)
    np.testing.assert_array_equal(after["by_rank"].m["a"], p["a"])
    assert jax.tree.structure(after) == jax.tree.structure(s)


def test_a_leaf_function_that_forgets_its_memory():
    tx = forgetful()
    with pytest.raises(
        TypeError, match=r"forgetful: its leaf function must return \(u, {name: array}"
    ):
        tx.update(ONE, tx.init(ONE))


def test_integer_memory_stays_exact():
    tx = integers()
    s = tx.init(ONE)
    for _ in range(2):
        _, s = tx.update(ONE, s)
    assert s["integers"].n.tolist() == [2**24 + 2]
    assert s["integers"].n.dtype == jnp.int32


def test_the_state_of_another_sentence_is_named():
    with pytest.raises(
        ValueError, match=r"the state of scale_by_moments holds \['mu', 'mu_log_produc"
    ):
        fx.sgd(0.1, 0.9).update(ONE, fx.adam(0.1).init(ONE))


@pytest.mark.parametrize(("given", "kind", "words"), WRONG.values(), ids=WRONG)
def test_a_block_that_is_wrong_is_named(given, kind, words):
    @fx.block
    def wrong():
        leaf = given.get("leaf", lambda u, here: (u, here.memory._asdict()))
        if "init" not in given and "leaf" not in given:
            leaf = lambda u, here: u  # noqa: E731
        return fx.leafwise(leaf, **{k: x for k, x in given.items() if k != "leaf"})

    with jax.numpy_dtype_promotion("standard"), pytest.raises(kind, match=words):
        wrong().update(TWO_ONES, wrong().init(TWO_ONES))


def test_a_pair_whose_state_changes_structure():
    @fx.block
    def growing():
        return lambda p: {"n": 0.0}, lambda u, s, p=None: (u, {"n": 0.0, "m": u})

    with pytest.raises(ValueError, match=r"growing: its update turned the state .* must stay"):
        growing().update(TWO_ONES, {"count": jnp.int32(0), "growing": {"n": jnp.zeros(())}})

    @fx.block
    def nothing():
        return lambda p: {"n": jnp.zeros(())}, lambda u, s, p=None: None

    with pytest.raises(
        TypeError, match=r"nothing: its update must return \(updates, state\), got N"
    ):
        nothing().update(TWO_ONES, nothing().init(TWO_ONES))


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
            made(out).update(TWO_ONES, made(out).init(TWO_ONES))


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
