"""States carried over: what would be lost is an error."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamfx as fx

P = {"w": jnp.zeros(3)}


G = {"w": jnp.ones(3)}


def moved(tx, n=5):
    state = tx.init(P)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(n):
            _, state = tx.update(G, state, P)
    return state


class Tensor:
    """As much of a tensor as is looked at."""

    def __init__(self, x):
        self.x = np.asarray(x, np.float32)
        self.dtype = self.x.dtype

    def detach(self):
        return self

    cpu = detach

    def __array__(self, *args, **kwargs):
        return self.x

    def __int__(self):
        return int(self.x)


def entry(step=5, **more):
    return {
        "step": Tensor(step),
        "exp_avg": Tensor(np.ones(3)),
        "exp_avg_sq": Tensor(np.ones(3)),
        **more,
    }


TWO = {"a": jnp.zeros(3), "b": jnp.zeros(3)}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fx.average_params(fx.adam(0.1), fx.ema(0.9)), optax.adam(0.1)),
        (fx.average_params(fx.adam(0.1)), optax.adam(0.1)),
        (fx.lookahead(fx.adam(0.1), 2, 0.5), optax.adam(0.1)),
        (fx.chain(fx.adam(0.1), fx.compensate()), optax.adam(0.1)),
        (fx.master_weights(fx.adam(0.1)), optax.adam(0.1)),
    ],
)
def test_what_optax_has_not_begins_at_the_parameters_and_is_not_lost_on_the_way_back(ours, theirs):
    p = {"w": jnp.full(3, 2.0, "bfloat16")}
    fresh, state = ours.init(p), fx.interop.from_optax(ours, moved(theirs), p)
    if "master" not in str(jax.tree_util.tree_leaves_with_path(fresh)):
        np.testing.assert_array_equal(ours.evaluate_at(state, p)["w"], p["w"])
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    assert fx.get(state, "scale_by_moments.mu")["w"][0] > 0
    with pytest.raises(ValueError, match="would lose"):
        fx.interop.to_optax(ours, state, theirs.init(p))


def test_half_a_window_is_not_lost_in_silence():
    tx, ours = optax.MultiSteps(optax.adam(0.1), 3), fx.accumulate(fx.adam(0.1), 3)
    fx.interop.from_optax(fx.adam(0.1), moved(tx, 6), P)
    with pytest.raises(ValueError, match=r"the state holds .*acc_grads.*, which adamfx would lose"):
        fx.interop.from_optax(fx.adam(0.1), moved(tx, 5), P)
    fx.interop.to_optax(ours, moved(ours, 6), optax.adam(0.1).init(P))
    with pytest.raises(ValueError, match=r"acc_grads.* would lose"):
        fx.interop.to_optax(ours, moved(ours, 5), optax.adam(0.1).init(P))


def test_hyperparameters_stay_what_they_were():
    injected = optax.inject_hyperparams(optax.adam)(0.1)
    theirs, ours = moved(injected), fx.live(fx.adam(0.1))
    theirs = theirs._replace(hyperparams={**theirs.hyperparams, "learning_rate": jnp.float32(0.05)})
    state = fx.interop.from_optax(ours, theirs, P)
    assert fx.hyperparams(state) == {"live.scale_by_lr.learning_rate": np.float32(0.05)}
    back = fx.interop.to_optax(ours, state, injected.init(P))
    assert back.hyperparams["learning_rate"] == np.float32(0.05)
    for call in (
        lambda: fx.interop.from_optax(fx.adam(0.1), theirs, P),
        lambda: fx.interop.to_optax(fx.adam(0.05), moved(fx.adam(0.05)), injected.init(P)),
        lambda: fx.interop.to_optax(ours, state, optax.adam(0.1).init(P)),
    ):
        with pytest.raises(ValueError, match=r"learning_rate( is |=)0\.(05|1)"):
            call()


def test_a_count_that_is_given_reaches_what_is_inside():
    peer = optax.chain(optax.adam(0.1), optax.scale_by_schedule(lambda t: 1.0))
    adam, schedule = moved(peer)
    theirs = (adam, schedule._replace(count=jnp.asarray(2)))
    for tx in (fx.adam(0.1), fx.named("mine", fx.adam(0.1)), fx.monitor(fx.adam(0.1))):
        with pytest.raises(ValueError, match=r"tells of \[2, 5\] steps; pass count"):
            fx.interop.from_optax(tx, theirs, P)
        state = fx.interop.from_optax(tx, theirs, P, count=5)
        assert fx.get(state, "count") == 5
        wanted = fx.interop.from_optax(tx, adam, P)
        jax.tree.map(np.testing.assert_array_equal, state, wanted)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (fx.adam(0.1), optax.chain(optax.adam(0.1), optax.trace(0.9)), "holds .*'trace'.* beyond"),
        (fx.adam(0.1), optax.apply_every(3), "holds .*grad_acc, which adamfx would lose"),
        (fx.adam(0.1), optax.rprop(0.1), "holds step_sizes.*, which adamfx would lose"),
        (
            fx.partition({"x": fx.adam(0.1)}, {"w": "x"}),
            optax.multi_transform({"y": optax.adam(0.1)}, {"w": "y"}),
            "has the groups x, the state given y",
        ),
    ],
)
def test_what_optax_has_and_we_cannot_hold(ours, theirs, words):
    with pytest.raises(ValueError, match=words):
        fx.interop.from_optax(ours, moved(theirs), P, count=5)


def test_what_is_no_state_of_the_transformation():
    tx, peer = fx.adam(0.1), optax.adam(0.1)
    for carry in (
        lambda: fx.interop.from_optax(peer, peer.init(P), P),
        lambda: fx.interop.to_optax(peer, tx.init(P), peer.init(P)),
        lambda: fx.interop.from_torch(peer, {}, {"w": 0}, P),
        lambda: fx.interop.to_torch(peer, tx.init(P), {"w": 0}, {}),
    ):
        with pytest.raises(TypeError, match="must be a transformation of adamfx"):
            carry()
    averaged = fx.average_params(tx).init(P)
    with pytest.raises(ValueError, match="the state holds keep_average, which"):
        fx.interop.to_optax(tx, averaged, peer.init(P))
    rest = {key: x for key, x in averaged.items() if key != "keep_average"}
    fx.interop.to_optax(tx, rest, peer.init(P))


def test_runs_are_carried_over_one_at_a_time():
    two = {"w": jnp.zeros((2, 3))}
    tx, peer = fx.adam(0.1), optax.adam(0.1)
    for carry in (
        lambda: fx.interop.from_optax(tx, jax.vmap(peer.init)(two), two),
        lambda: fx.interop.to_optax(tx, jax.vmap(tx.init)(two), jax.vmap(peer.init)(two)),
    ):
        with pytest.raises(ValueError, match=r"holds \(2,\) runs; carry over one at a time"):
            carry()


def test_the_state_of_an_optimizer_of_flax():
    nnx = pytest.importorskip("flax.nnx")
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(layer, optax.adam(0.1), wrt=nnx.Param)
    with jax.numpy_dtype_promotion("standard"):
        optimizer.update(layer, jax.tree.map(jnp.ones_like, nnx.state(layer, nnx.Param)))
    params, tx = nnx.state(layer, nnx.Param), fx.adam(0.1)
    state = fx.interop.from_optax(tx, optimizer.opt_state, params)
    assert state["count"] == 1
    np.testing.assert_allclose(jax.tree.leaves(state["scale_by_moments"].mu)[0], 0.1)
    back = fx.interop.to_optax(tx, state, optimizer.opt_state)
    assert jax.tree.structure(back) == jax.tree.structure(optimizer.opt_state)


def test_the_slow_parameters_of_lookahead_come_as_pairs():
    tx, ours = optax.lookahead(optax.adam(0.1), 2, 0.5), fx.lookahead(fx.adam(0.1), 2, 0.5)
    state = tx.init(optax.LookaheadParams.init_synced(P))
    with pytest.raises(ValueError, match=r"remembers \['slow'\].*LookaheadParams"):
        fx.interop.from_optax(ours, state, P)
    with pytest.raises(ValueError, match=r"remembers \['slow'\].*would lose"):
        fx.interop.to_optax(ours, ours.init(P), state)


def test_torch_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    tx, group = fx.adam(0.1), {"params": [0], "lr": 0.1, "amsgrad": False}
    state = fx.interop.from_torch(tx, {0: entry()}, {"w": 0}, P)
    like = {"state": {}, "param_groups": [group]}
    for like["state"] in ({}, {0: entry(step=0)}):  # before a step, and after some
        back = fx.interop.to_torch(tx, state, {"w": 0}, like)
        assert back["state"][0]["step"] == 5
        np.testing.assert_array_equal(back["state"][0]["exp_avg"], np.ones(3))
        assert back["param_groups"] == [group]
    made = fx.interop.to_torch(tx, state, {"w": 0}, like, Tensor)["state"][0]
    assert {type(x) for x in made.values()} == {Tensor}


@pytest.mark.parametrize(
    ("tx", "state", "words"),
    [
        (fx.adam(0.1), {0: entry(5), 1: entry(3)}, r"moved \[3, 5\] times"),
        (fx.adam(0.1), {0: entry()}, "nothing for the parameter at .*b"),
        (fx.adam(0.1), {0: entry(), 1: {"step": Tensor(5)}}, "b.* has no 'exp_avg'"),
        (fx.sgd(0.1), {k: {"step": Tensor(5), "sum": Tensor(np.ones(3))} for k in (0, 1)}, "'sum'"),
        (fx.adam(0.1), {0: entry(), 1: entry(exp_avg=Tensor(np.ones(2)))}, r"b.*shape \(2,\)"),
        (fx.adam(0.1), object(), "must be optimizer.state .*, got object"),
    ],
)
def test_what_torch_has_and_we_cannot_hold(tx, state, words):
    with pytest.raises((ValueError, TypeError), match=words):
        fx.interop.from_torch(tx, state, {"a": 0, "b": 1}, TWO)


def test_another_tree_of_moments():
    with pytest.raises(ValueError, match="from_optax: mu is another tree than params"):
        fx.interop.from_optax(fx.adam(0.1), moved(optax.adam(0.1)), TWO)


def test_names_of_optax_point_to_ours():
    with pytest.raises(AttributeError, match=r"MultiSteps.*accumulate\("):
        _ = fx.MultiSteps
    with pytest.raises(AttributeError, match=r"adamfx has no 'nothing'$"):
        _ = fx.nothing
    for name, other in fx.interop.COUNTERPARTS.items():
        assert any(hasattr(m, name) for m in MODULES), name
        assert not hasattr(fx, name), name
        first = re.match(r"\w+", other).group()
        assert hasattr(fx, first) or first in ("jax", "optax", "tx", "state", "None", "a", "any"), (
            other
        )


MODULES = (optax, optax.contrib, optax.transforms, optax.schedules)
ASIDE = {  # of other kinds: modules, losses, distributions, types of annotations, tree functions
    "contrib", "experimental", "losses", "projections", "schedules", "transforms", "tree", "tree_utils",
    "second_order", "perturbations", "monte_carlo", "assignment", "multi_normal", "tree_map_params",
    "MaskOrFn", "OptState", "Params", "ScalarOrSchedule", "ShouldSkipUpdateFunction", "ConditionFn",
    "TransformInitFn", "TransformUpdateFn", "TransformUpdateExtraArgsFn", "Updates", "ZoomLinesearchInfo",
}  # fmt: skip


def test_every_name_of_optax_has_one_here():
    """Losses, projections, tree functions, types and the classes of states aside (here a state is a dict)."""
    missing = [
        name
        for module in MODULES
        for name in dir(module)
        if not (
            name.startswith("_")
            or name in ASIDE
            or name.endswith("State")
            or name in dir(optax.losses)
        )
        and not hasattr(fx, name)
        and name not in fx.interop.COUNTERPARTS
    ]
    assert not missing
