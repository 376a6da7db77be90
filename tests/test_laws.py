"""The laws of docs/architecture.md, each over the whole table."""

import contextlib
import copy
import itertools
import pickle
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import enable_x64
from hypothesis import given
from hypothesis import strategies as st
from table import OPTIMIZERS, SENTENCES, TABLE, rows, run, signature, tree

import adamfx as fx

every = pytest.mark.parametrize("tx", rows(TABLE))
WITH_NUMBERS = {name: tx for name, tx in TABLE.items() if jax.tree.leaves(tx)}
every_with_numbers = pytest.mark.parametrize("tx", rows(WITH_NUMBERS))


def leaves_scaled(tx, factor):
    return jax.tree.map(lambda x: x * factor, tx)


def close(a, b, rtol=1e-5):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=3e-7)


# ---- a value -------------------------------------------------------------------------------------


@every
def test_prints_as_the_code_that_builds_it(tx):
    again = eval(repr(tx), vars(fx))
    assert again == tx
    assert hash(again) == hash(tx)
    assert repr(again) == repr(tx)


@every
def test_pickles_copies_and_rebuilds(tx):
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert copy.deepcopy(tx) == tx
    assert copy.copy(tx) == tx
    leaves, structure = jax.tree.flatten(tx)
    assert jax.tree.unflatten(structure, leaves) == tx


@every_with_numbers
def test_structure_does_not_depend_on_numbers(tx):
    """Zero, one and a negative number give the same tree; only leaves differ."""
    for x in (0.0, 1.0, -3.0):
        other = jax.tree.map(lambda _, x=x: x, tx)
        assert jax.tree.structure(other) == jax.tree.structure(tx)
        assert other != tx


@every_with_numbers
def test_hyperparams_name_every_leaf(tx):
    named = {
        jax.tree_util.keystr(path)[1:]: x for path, x in jax.tree_util.tree_leaves_with_path(tx)
    }
    assert named.items() <= tx.hyperparams.items()
    for name, x in named.items():
        assert tx.replace(**{name: x}) == tx
        assert tx.replace(**{name: x / 2}).hyperparams[name] == x / 2


def test_array_leaves_are_unhashable_until_concrete():
    tx = fx.adam(jnp.float32(0.5))
    with pytest.raises(
        TypeError, match=r"unhashable chain: scale_by_lr.learning_rate is jnp.asarray"
    ):
        hash(tx)
    assert tx.concrete() == fx.adam(0.5)
    assert repr(fx.adam(jnp.float32(0.01)).concrete()) == repr(fx.adam(0.01))
    assert fx.adam(0.5, b1=jnp.float32(0.5)).concrete() == fx.adam(0.5, b1=0.5)
    with pytest.raises(ValueError, match=r"concrete: scale_by_lr.learning_rate has shape \(2,\)"):
        fx.adam(jnp.ones(2)).concrete()
    assert eval(repr(tx), vars(fx) | {"jnp": jnp}) == tx


def test_values_differ_where_calls_differ():
    assert fx.adam(1e-3) != fx.adam(2e-3)
    assert fx.adam(1e-3) != fx.adam(1e-3, b1=0.8)
    assert fx.adam(1e-3, 0) == fx.adam(1e-3, 0.0), "integers become floats"
    assert fx.adam(1) == fx.adam(1.0)
    assert fx.sgd(0.1) != "scale_by_lr(0.1)"
    assert fx.lion(1e-3, mask={"a": True}) == fx.lion(1e-3, mask={"a": True})
    assert fx.lion(1e-3, mask={"a": True}) != fx.lion(1e-3, mask={"a": False})
    mask = lambda p: p  # noqa: E731
    assert fx.lion(1e-3, mask=mask) == fx.lion(1e-3, mask=mask)
    assert fx.lion(1e-3, mask=mask) != fx.lion(1e-3, mask=lambda p: p)


def test_replace_takes_any_unambiguous_suffix():
    tx = fx.adamw(1e-3)
    assert tx.replace(learning_rate=3e-4) == fx.adamw(3e-4)
    assert tx.replace(**{"scale_by_moments.b1": 0.8}) == fx.adamw(1e-3, b1=0.8)
    schedule = fx.linear_schedule(1.0, 0.0, 10)
    assert tx.replace(learning_rate=schedule) == fx.adamw(schedule)
    assert (
        fx.adamw(schedule)
        .replace(init_value=2.0)
        .hyperparams["scale_by_lr.learning_rate.init_value"]
        == 2.0
    )
    with pytest.raises(
        KeyError, match=r"'lr' is not a hyperparameter; known are scale_by_moments.b1"
    ):
        tx.replace(lr=1.0)
    two = fx.chain(fx.clip(1.0), fx.scale_by_lr(0.1), fx.scale_by_lr(0.2))
    with pytest.raises(
        KeyError, match=r"ambiguous.*scale_by_lr.learning_rate, scale_by_lr_2.learn"
    ):
        two.replace(learning_rate=1.0)
    with pytest.raises(ValueError, match="learning_rate must be finite and >= 0, got -1"):
        tx.replace(learning_rate=-1.0)


def test_wrappers_of_one_kind_inside_one_another_have_names_of_their_own():
    tx = fx.live(fx.lookahead(fx.lookahead(fx.sgd(0.1), 2, 0.5), 3, 0.25))
    names = tx.leaf_names()
    assert len(set(names)) == 3
    assert tx.hyperparams["live.lookahead.slow_step_size"] == 0.25
    assert tx.hyperparams["live.lookahead.lookahead.slow_step_size"] == 0.5
    assert len(fx.hyperparams(tx.init(tree()))) == 3


# ---- a monoid ------------------------------------------------------------------------------------


def test_chain_is_a_monoid_of_values():
    a, b, c = fx.clip(1.0), fx.scale_by_moments(0.9, None), fx.scale_by_lr(0.1)
    assert fx.chain(fx.chain(a, b), c) == fx.chain(a, fx.chain(b, c)) == fx.chain(a, b, c)
    assert fx.chain(a) == a
    assert fx.chain() == fx.identity() == fx.chain(fx.identity(), fx.chain())
    assert fx.chain(fx.identity(), a, fx.identity(), b) == fx.chain(a, b)
    sentence = fx.chain(fx.scale_by_moments(0.9, 0.999, eps=1e-8), fx.bias_correct(), c)
    assert sentence == fx.adam(0.1)


@given(st.lists(st.sampled_from(list(TABLE)), max_size=4), st.integers(0, 4))
def test_any_bracketing_is_the_same_value(names, cut):
    blocks = [TABLE[name] for name in names]
    whole = fx.chain(*blocks)
    assert fx.chain(fx.chain(*blocks[:cut]), fx.chain(*blocks[cut:])) == whole
    assert eval(repr(whole), vars(fx)) == whole


# ---- inside JAX ----------------------------------------------------------------------------------


@pytest.mark.slow
@every
def test_compiled_equals_line_by_line(tx):
    compiled = run(tx, steps=3)
    with jax.disable_jit():
        close(run(tx, steps=3), compiled)


@every
def test_unpacks_and_traces_once_as_an_argument(tx):
    init, update = tx
    p, g = tree(), tree(seed=1)
    s = init(p)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(tx, g, s, p):
        return tx.update(g, s, p)

    chex.clear_trace_counter()
    for factor in (1.0, 0.5, 2.0):
        other = leaves_scaled(tx, factor)
        close(step(other, g, s, p), other.update(g, s, p))
    close(step(tx, g, s, p), update(g, s, p))


@every_with_numbers
def test_a_sweep_is_one_program(tx):
    # Two gradients: in the basis of one, its own coordinates are rounding, which a division magnifies.
    p, g, g2 = tree(), tree(seed=1), tree(seed=2)
    sweep = jax.tree.map(lambda x: x * jnp.asarray([0.5, 1.0, 2.0], np.float32), tx)

    def two_steps(tx):
        s = tx.init(p)
        _, s = tx.update(g, s, p)
        return tx.update(g2, s, p)[0]

    together = jax.jit(jax.vmap(two_steps))(sweep)
    for i in range(3):
        alone = two_steps(jax.tree.map(lambda x, i=i: x[i], sweep))
        close(jax.tree.map(lambda x, i=i: x[i], together), alone)


@every
def test_step_is_update_and_apply(tx):
    p, g = tree(), tree(seed=1)
    s = tx.init(p)
    u, s1 = tx.update(g, s, p)
    q, s2 = tx.step(g, s, p)
    close((fx.apply_updates(p, u), s1), (q, s2))


@every
def test_inside_optax(tx):
    p, g = tree(), tree(seed=1)
    with jax.numpy_dtype_promotion("standard"):
        foreign = optax.chain(tx, optax.identity())
        u, _ = foreign.update(g, foreign.init(p), p)
    close(u, tx.update(g, tx.init(p), p)[0])


@every
def test_around_optax(tx):
    """A foreign block anywhere in the chain, also right after scale_by_moments."""
    p, g = tree(), tree(seed=1)
    mixed = fx.chain(optax.identity(), tx, optax.identity())
    close(mixed.update(g, mixed.init(p), p)[0], tx.update(g, tx.init(p), p)[0])


ORDER = r"\b(clip|scale_by_rprop|scale_by_cocob|arctan2|keep_params_nonnegative)\("
COMPLEX = {n: x for n, x in (OPTIMIZERS | SENTENCES).items() if not re.search(ORDER, repr(x))}


@pytest.mark.parametrize("tx", rows({n: x for n, x in COMPLEX.items() if n in OPTIMIZERS}))
def test_complex_leaves_under_strict_promotion(tx):
    """Rates are real, and their products no mistake of the caller."""
    p = {"z": jnp.array([1 + 2j, 0.5 - 1j], jnp.complex64), "x": jnp.ones(2)}
    s = tx.init(p)
    new, after = jax.eval_shape(tx.step, p, s, p)
    assert signature(new) == signature(p)
    assert signature(after) == signature(s)


DRAWN = {n for n, x in COMPLEX.items() if re.search("noise|kron", repr(x))}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in COMPLEX if n not in DRAWN])
def test_a_turn_of_complex_numbers_turns_the_step(name, x64):
    """Gradients and parameters times exp(i t) make updates times exp(i t), whatever is remembered."""
    tx, rng = COMPLEX[name], np.random.default_rng(1)
    shapes = {"w": (4, 4), "s": (3, 4, 4), "b": (5,), "c": ()}
    trees = [{k: rng.normal(size=(*s, 2)) @ [1, 1j] for k, s in shapes.items()} for _ in range(4)]

    def trained(by):
        p, *gradients = ({k: jnp.asarray(x * by) for k, x in t.items()} for t in trees)
        state = tx.init(p)
        for g in gradients:
            p, state = tx.step(g, state, p, value=jnp.asarray(1.0))
        return p

    turn = np.exp(0.7j)
    want, found = trained(1), trained(turn)
    for k, x in want.items():
        assert np.isfinite(x).all()
        np.testing.assert_allclose(found[k], x * turn, rtol=1e-9, atol=1e-12, err_msg=k)


NEED_AN_ORDER = [
    fx.clip(1.0),
    fx.rprop(1e-3),
    fx.adopt(1e-3),
    fx.cocob(),
    fx.adam_atan2(1e-3),
    fx.keep_params_nonnegative(),
]


@pytest.mark.parametrize("tx", NEED_AN_ORDER, ids=str)
def test_what_needs_an_order_says_so_of_complex_leaves(tx):
    p = jnp.array([1 + 2j, 0.5 - 1j], jnp.complex64)
    with pytest.raises(TypeError, match="split_real_and_imaginary"):
        tx.update(p, tx.init(p), p)
    inside = fx.split_real_and_imaginary(tx)
    u, _ = inside.update(p, inside.init(p), p)
    assert u.dtype == p.dtype


# ---- state ---------------------------------------------------------------------------------------

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64]


@every
def test_state_keeps_its_type(tx):
    """Structure, shapes, dtypes and weak types, for every pair of parameter and gradient dtype:
    what scan, cond and donation need."""
    for p_dtype, g_dtype in itertools.product(DTYPES, DTYPES):
        with enable_x64() if jnp.float64 in (p_dtype, g_dtype) else contextlib.nullcontext():
            p, g = (jax.ShapeDtypeStruct((2, 2), d) for d in (p_dtype, g_dtype))
            s = jax.eval_shape(tx.init, p)
            u, after = jax.eval_shape(tx.update, g, s, p)
            assert signature(after) == signature(s)
            assert u.dtype == p_dtype
            wide = jnp.float64 if p_dtype is jnp.float64 else jnp.float32
            held = [x for x in jax.tree.leaves(s) if x.size != 2]  # but a counter on its own
            floats = {x.dtype for x in held if jnp.issubdtype(x.dtype, jnp.floating)}
            if not any(w in repr(tx) for w in ("monitor(", "partition(")):  # metrics, empty groups
                assert floats <= {jnp.dtype(wide)}
            assert not any(x.weak_type for x in jax.tree.leaves(s))
            if not reads_params(tx):
                u, after = jax.eval_shape(tx.update, g, s)
                assert signature(after) == signature(s)
                assert u.dtype == g_dtype


@pytest.mark.parametrize(
    "make",
    [
        *(fx.adam, fx.madgrad, fx.prodigy, fx.dadapt_adamw, fx.schedule_free_adamw, fx.hyperball),
        *(fx.add_noise, fx.clip_by_global_norm, fx.adopt),
    ],
)
def test_a_schedule_of_float32_where_jax_has_64_bits(make, x64):
    """As an argument, whose numbers are arrays: nothing mixes dtypes, and the state keeps its own."""
    tx = make(fx.cosine_decay_schedule(0.01, 10))
    p = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    s = jax.eval_shape(tx.init, p)
    u, after = jax.eval_shape(lambda tx, g, s, p: tx.update(g, s, p), tx, p, s, p)
    assert signature(after) == signature(s)
    assert u.dtype == jnp.float32


def reads_params(tx):
    return tx.reads("params") or any(
        word in repr(tx) for word in ("lookahead", "monitor", "outer_step")
    )


@every
def test_scan_and_eager_loop_agree(tx):
    p = tree()
    grads = jax.tree.map(lambda *x: jnp.stack(x), *[tree(seed=t + 1) for t in range(5)])

    def body(carry, g):
        p, s = carry
        return tx.step(g, s, p), None

    (q, s), _ = jax.lax.scan(body, (p, tx.init(p)), grads)
    q2, s2, _ = run(tx, steps=5)
    close((q, s), (q2, s2))


@every
def test_no_state_array_is_shared(tx):
    p = {"a": jnp.zeros((8,)), "b": jnp.zeros((8,))}
    arrays = [*jax.tree.leaves(tx.init(p)), *jax.tree.leaves(p)]
    pointers = [x.unsafe_buffer_pointer() for x in arrays if x.size]
    assert len(set(pointers)) == len(pointers)
    step = jax.jit(tx.step, donate_argnums=(1, 2))
    step(tree(seed=1), tx.init(tree()), tree())


@every
def test_frozen_leaves_and_missing_gradients(tx):
    p = {**tree(), "int": jnp.arange(3), "none": None}
    s = tx.init(p)
    g = {**tree(seed=1), "int": np.zeros((3,), jax.dtypes.float0), "none": None}
    assert signature(s) == signature(tx.init({**tree(), "int": None, "none": None}))
    u, s1 = tx.update(g, s, p)
    assert u["none"] is None
    assert u["int"].dtype == jnp.int32
    assert not u["int"].any()
    assert signature(s1) == signature(s)

    missing = {**g, "w": None}
    assert jax.eval_shape(tx.update, missing, s1, p)[0]["w"] is None
    q, s2 = tx.step(missing, s1, p)
    assert q["none"] is None
    chex.assert_trees_all_equal(q["int"], p["int"])
    chex.assert_trees_all_equal(q["w"], p["w"])
    assert not [1 for x in jax.tree.leaves(q) if np.isnan(x).any()]
    old = {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(s1)}
    for path, x in jax.tree_util.tree_leaves_with_path(s2):
        # The sum of a window that is over is emptied at the start of the next, for every leaf.
        if "['w']" in (name := jax.tree_util.keystr(path)) and "acc_grads" not in name:
            chex.assert_trees_all_equal(x, old[jax.tree_util.keystr(path)])


@every
def test_empty_tree(tx):
    u, s = tx.update({}, tx.init({}), {})
    assert u == {}
    assert signature(s) == signature(tx.init({}))


# ---- numbers -------------------------------------------------------------------------------------


@every
def test_zero_gradients_never_give_nan(tx):
    p = {d.__name__: jnp.ones((2, 2), d) for d in DTYPES[:3]}
    zero = jax.tree.map(jnp.zeros_like, p)
    for variant in (tx, tx.replace(eps=0.0)) if has_eps(tx) else (tx,):
        s = variant.init(p)
        for _ in range(3):
            u, s = variant.update(zero, s, p)
            chex.assert_tree_all_finite((u, s))


def has_eps(tx):
    return sum(name.endswith(".eps") for name in tx.hyperparams) == 1


@pytest.mark.slow
@every_with_numbers
def test_derivatives_are_finite_at_zero_gradients(tx):
    """With respect to all hyperparameters, decays and eps among them."""
    p = {"a": jnp.ones((2,)), "b": jnp.ones((2,))}
    zero = {"a": jnp.zeros((2,)), "b": jnp.asarray([0.0, 1.0], np.float32)}
    tx = with_array_decays(tx)

    @jax.jit
    def loss(tx):
        s = tx.init(p)
        total = 0.0
        for g in (zero, zero):
            u, s = tx.update(g, s, p)
            total += sum(jnp.sum(x) for x in jax.tree.leaves(u))
        return total

    chex.assert_tree_all_finite(jax.tree.leaves(jax.grad(loss)(tx)))


def with_array_decays(tx):
    exact = {
        name: jnp.float32(x)
        for name, x in tx.hyperparams.items()
        if isinstance(x, float)
        and name.rsplit(".", 1)[1] in ("b1", "b2", "decay", "eps", "eps_root")
    }
    return jax.tree.map(jnp.float32, tx.replace(**exact))


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "radam", "lamb", "nadam", "adamax"])
def test_derivatives_equal_finite_differences(name, x64):
    p = {"b": tree(np.float64)["b"]}
    grads = [{"b": tree(np.float64, seed=t)["b"].at[0].set(0.0)} for t in range(1, 8)]
    tx = jax.tree.map(jnp.float64, with_array_decays(OPTIMIZERS[name]))
    tx = jax.tree.map(lambda x: x.astype(jnp.float64), tx)

    @jax.jit
    def loss(tx):
        s, q = tx.init(p), p
        for g in grads:
            q, s = tx.step(g, s, q)
        return sum(jnp.sum(x * x) for x in jax.tree.leaves(q))

    derivative = jax.grad(loss)(tx)
    assert type(derivative) is type(tx)
    leaves, structure = jax.tree.flatten(tx)
    for i, (name, d) in enumerate(zip(tx.leaf_names(), jax.tree.leaves(derivative), strict=True)):
        if name.endswith(("eps", "eps_root")):
            continue  # of second order at 1e-8: no finite difference resolves it
        h = 1e-6 * max(abs(float(leaves[i])), 1e-3)

        def at(delta, i=i):
            moved = [x + delta * (j == i) for j, x in enumerate(leaves)]
            return loss(jax.tree.unflatten(structure, moved))

        np.testing.assert_allclose(
            d, (at(h) - at(-h)) / (2 * h), rtol=2e-5, atol=1e-7, err_msg=name
        )
