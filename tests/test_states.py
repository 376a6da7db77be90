"""One entry of a state by name, and what other libraries ask of a state."""

import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from table import tree

import adamfx as fx

GROUPS = fx.partition(
    {"m": fx.adam(0.1), "v": fx.sgd(0.5, 0.9)},
    {"m": fx.ndim_at_least(2), "v": ~fx.ndim_at_least(2)},
)


def test_entries_by_any_unambiguous_end():
    tx = fx.skip_nonfinite(fx.accumulate(fx.adam(0.1), 2))
    s = tx.init(tree())
    assert fx.get(s, "count") == s["count"]
    assert fx.get(s, "mini_step") == s["skip_nonfinite"].inner["accumulate"].mini_step
    inner = s["skip_nonfinite"].inner["accumulate"].inner
    assert fx.get(s, "scale_by_moments.mu") is inner["scale_by_moments"].mu
    assert fx.get(s, "skip_nonfinite.accumulate.count") == inner["count"]
    groups = GROUPS.init(tree())
    rate = fx.get(groups, "v.scale_by_lr.learning_rate")
    np.testing.assert_allclose(rate, 0.5)
    with pytest.raises(
        KeyError, match=r"'learning_rate' is ambiguous.*partition.m.scale_by_lr.lea"
    ):
        fx.get(groups, "learning_rate")
    with pytest.raises(
        KeyError, match=r"get: 'nu_max' is not .*known are count, scale_by_moments.mu"
    ):
        fx.get(fx.adam(0.1).init(tree()), "nu_max")


def test_entries_are_set_and_nothing_compiles_again():
    tx, p = fx.adam(0.1), tree()
    step = jax.jit(tx.step)
    p, s = step(p, tx.init(p), p)
    s = fx.set(s, count=7, **{"scale_by_moments.mu": jax.tree.map(jnp.zeros_like, p)})
    assert s["count"] == 7
    assert not s["scale_by_moments"].mu["w"].any()
    step(p, s, p)
    assert step._cache_size() == 1
    with pytest.raises(ValueError, match=r"set: count has shape \(\) in the state, got \(2,\)"):
        fx.set(s, count=jnp.ones(2))
    with pytest.raises(ValueError, match=r"set: scale_by_moments.mu is another tree in the state"):
        fx.set(s, mu={"w": 1.0})


def test_inside_a_tuple_of_states():
    s = (fx.adam(0.1).init(tree()), optax.EmptyState())
    s = fx.set(s, mu=jax.tree.map(jnp.ones_like, tree()))
    assert fx.get(s, "0.scale_by_moments.mu")["b"].all()


@pytest.mark.parametrize(
    "tx",
    [
        fx.adam(0.1),
        GROUPS,
        fx.masked(fx.adam(0.1), fx.ndim_at_least(2)),
        fx.master_weights(fx.adam(0.1)),
        fx.accumulate(fx.lookahead(fx.adam(0.1), 2, 0.5), 2),
    ],
    ids=lambda tx: tx.name,
)
def test_optax_finds_what_is_like_the_parameters(tx):
    s = tx.init(tree(jnp.bfloat16))
    marked = optax.tree_map_params(tx, lambda x: x + 1, s, transform_non_params=lambda x: x * 0)
    for path, x in jax.tree_util.tree_leaves_with_path(marked):
        keys = {getattr(k, "key", None) for k in path}
        assert (np.asarray(x, float) != 0).all() == bool(keys & set(tree())), path


def test_a_state_that_is_none_is_refused_by_name():
    tx, p = fx.adam(0.1), tree()
    s = tx.init(p)
    for count in (jnp.float32(0), jnp.zeros(2, jnp.int32), None, "0"):
        with pytest.raises((TypeError, ValueError), match="count must be a whole number"):
            tx.step(p, s | {"count": count}, p)
    other = s["scale_by_moments"]._replace(mu=jax.tree.map(lambda x: x.astype(jnp.int32), p))
    with pytest.raises(TypeError, match=r"scale_by_moments.*mu.*int32"):
        tx.step(p, s | {"scale_by_moments": other}, p)


def test_names_end_at_a_dot():
    tx = fx.chain(fx.named("slow_rate", fx.scale_by_moments(0.9, None)), fx.sgd(0.1))
    assert tx.replace(learning_rate=0.2).hyperparams["scale_by_lr.learning_rate"] == 0.2
    try:
        found = tx.replace(rate=0.2)
    except KeyError:
        found = None
    assert found is None


def test_whole_numbers_and_bools_of_a_packed_state():
    tx, p = fx.skip_nonfinite(fx.accumulate(fx.adam(0.1), 2)), tree()
    s = tx.init(p)
    for n in (0, 1, 65535, 65536, 2**31 - 2, -1, -70000):
        s = fx.set(s, total_notfinite=n, **{"skip_nonfinite.accumulate.count": 1 - n})
        for held in (s, jax.device_get(s), jax.jit(lambda s: s)(s), pickle.loads(pickle.dumps(s))):
            assert fx.get(held, "total_notfinite") == n
            assert fx.get(held, "skip_nonfinite.accumulate.count") == 1 - n
        assert jax.jit(lambda s: fx.get(s, "total_notfinite"))(s) == n
    for yes in (True, False):
        s = fx.set(s, too_many=yes)
        assert fx.get(s, "too_many").dtype == bool
        assert fx.get(s, "too_many") == yes
        assert fx.get(s, "last_finite")


@pytest.mark.parametrize("how", ["step", "npz", "npz of shapes"])
def test_a_dict_of_the_same_names_is_a_state(how, tmp_path):
    """As every state of 0.1 was one: checkpoints and loops of then go on."""
    tx, p = fx.skip_nonfinite(fx.accumulate(fx.adam(0.1), 2)), tree()
    step = jax.jit(lambda p, s: tx.step(p, s, p))
    s = tx.init(p)
    for _ in range(3):
        p, s = step(p, s)
    inner = s["skip_nonfinite"]
    old = {**s, "skip_nonfinite": inner._replace(inner={**inner.inner})}
    again = old
    if how != "step":
        fx.save(tmp_path / "old.npz", {"s": old})
        like = tx.init(p) if how == "npz" else jax.eval_shape(tx.init, p)
        again = fx.load(tmp_path / "old.npz", {"s": like})["s"]
        assert jax.tree.structure(again) == jax.tree.structure(s)
        fx.save(tmp_path / "new.npz", {"s": s})
        assert set(np.load(tmp_path / "new.npz").files) == set(np.load(tmp_path / "old.npz").files)
    assert fx.get(again, "skip_nonfinite.accumulate.count") == 1
    for _ in range(3):
        p1, s = step(p, s)
        p2, again = step(p, again)
        jax.tree.map(np.testing.assert_array_equal, p1, p2)
        jax.tree.map(np.testing.assert_array_equal, fx.get(s, "mu"), fx.get(again, "mu"))
        assert fx.get(s, "mini_step") == fx.get(again, "mini_step")
    assert isinstance(again, dict) == (how == "step")


def test_a_state_reads_as_a_dict():
    tx, p = fx.adam(0.1), tree()
    s = tx.init(p)
    names = ["count", "scale_by_moments", "scale_by_lr"]
    assert list(s) == list(s.keys()) == [key for key, _ in s.items()] == names
    assert len(s) == len(s.values()) == 3
    assert "count" in s
    assert "mu" not in s
    assert s.get("mu") is None
    assert type(s | {"count": 1}) is dict
    assert ({"count": 1} | s)["count"] == 0
    assert "scale_by_lr" in repr(s)
    with pytest.raises(
        KeyError, match=r"no 'scale_by_momentum' in this state, it has count, scale_by"
    ):
        s["scale_by_momentum"]
    with pytest.raises(
        TypeError, match=r"a state is not changed in place; .*fx\.set\(state, count="
    ):
        s["count"] = 0
    # Where no arrays stand, each scalar is what stands for all of them.
    assert jax.tree.map(lambda x: x.ndim, s)["count"] == 1
    assert jax.eval_shape(tx.init, p)["scale_by_lr"].learning_rate.dtype == jnp.float32
    many = jax.vmap(tx.init)(jax.tree.map(lambda x: jnp.stack([x] * 3), p))
    np.testing.assert_array_equal(many["count"], [0, 0, 0])
    assert many["scale_by_moments"].mu_log_product.shape == (3, 2)
    assert fx.set(many, count=jnp.arange(3))["count"].tolist() == [0, 1, 2]


def test_a_block_may_have_any_name():
    for name in ("keys", "scalars", "items", "two words"):
        tx, p = fx.chain(fx.named(name, fx.scale_by_moments(0.9, None)), fx.sgd(0.1)), tree()
        s = tx.init(p)
        for again in (s, pickle.loads(pickle.dumps(s)), tx.step(p, s, p)[1]):
            assert again[name].mu.keys() == p.keys()
        assert (
            flax.serialization.from_bytes(s, flax.serialization.to_bytes(s))[name].mu.keys()
            == p.keys()
        )
