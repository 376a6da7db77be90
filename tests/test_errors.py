"""Every error message, by its words: what was received, what is allowed, what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamfx as fx

ADAM = fx.adam(1e-3)
P = {"dense": {"kernel": jnp.ones(3), "bias": jnp.ones(2)}}
S = ADAM.init(P)


def bad(**leaves):
    return {"dense": {**P["dense"], **leaves}}


@fx.block
def three(x):
    return 3


@fx.block
def broadcasting():
    return fx.leafwise(lambda u, here: jnp.ones((2, 3)))


@fx.block
def undeclared():
    return fx.leafwise(lambda u, here: u + here.param)


@fx.block
def growing():
    return fx.leafwise(
        lambda u, here: (u, {"m": jnp.ones((2, 3))}), init=lambda p: {"m": jnp.zeros_like(p)}
    )


def reshaping(update):
    return optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (update(u), s))


CONSTRUCTION = [
    (lambda: fx.ema(1.5), ValueError, "ema: decay must lie in [0, 1), got 1.5"),
    (lambda: fx.ema(-0.1), ValueError, "ema: decay must lie in [0, 1), got -0.1"),
    (lambda: fx.trace(1.0), ValueError, "trace: decay must lie in [0, 1), got 1.0"),
    (lambda: fx.decayed_max(1), ValueError, "decayed_max: decay must lie in [0, 1), got 1.0"),
    (lambda: fx.yogi_ema(2), ValueError, "yogi_ema: decay must lie in [0, 1), got 2.0"),
    (lambda: fx.nesterov(1.0), ValueError, "nesterov: decay must lie in [0, 1), got 1.0"),
    (lambda: fx.scale_by_past_rms(1.0), ValueError, "ema: decay must lie in [0, 1), got 1.0"),
    (lambda: fx.adam(0.1, b1=1), ValueError, "scale_by_moments: b1 must lie in [0, 1), got 1.0"),
    (lambda: fx.adam(0.1, eps=-1), ValueError, "eps must be finite and >= 0, got -1.0"),
    (lambda: fx.adam(0.1, eps_root=-1), ValueError, "eps_root must be finite and >= 0, got -1.0"),
    (
        lambda: fx.adam(-1),
        ValueError,
        "scale_by_lr: learning_rate must be finite and >= 0, got -1.0",
    ),
    (lambda: fx.adam(float("nan")), ValueError, "learning_rate must be finite and >= 0, got nan"),
    (lambda: fx.scale(float("inf")), ValueError, "scale: step_size must be finite, got inf"),
    (lambda: fx.clip(-1), ValueError, "clip: max_delta must be finite and >= 0, got -1.0"),
    (
        lambda: fx.clip_by_norm(-1),
        ValueError,
        "clip_by_norm: max_norm must be finite and >= 0, got -1",
    ),
    (lambda: fx.clip_by_global_norm(-1), ValueError, "max_norm must be finite and >= 0, got -1.0"),
    (
        lambda: fx.add_decayed_weights(-1),
        ValueError,
        "weight_decay must be finite and >= 0, got -1.0",
    ),
    (lambda: fx.trace(0.9, 2), ValueError, "trace: dampening must lie in [0, 1], got 2.0"),
    (lambda: fx.total(-1), ValueError, "total: initial must be finite and >= 0, got -1.0"),
    (lambda: fx.ema(0.9, of="cube"), ValueError, "ema: of must be one of None, 'value', 'square'"),
    (
        lambda: fx.scale_by_moments(0.9, 0.9, where="up"),
        ValueError,
        "scale_by_moments: where must be one of 'out', 'in', 'hat', 'floor', got 'up'",
    ),
    (
        lambda: fx.scale_by_moments(0.9, 0.9, lag=1),
        ValueError,
        "lag must be one of None, 'first', 'sec",
    ),
    (
        lambda: fx.scale_by_moments(None, None),
        ValueError,
        "b1 and b2 are both None; give at least one",
    ),
    (
        lambda: fx.bias_correct("third"),
        ValueError,
        "side must be one of None, 'first', 'second', got",
    ),
    (
        lambda: fx.cosine_decay_schedule(1.0, 0),
        ValueError,
        "decay_steps must be a whole number",
    ),
    (
        lambda: fx.linear_schedule(1.0, 0.0, 1.5),
        ValueError,
        "transition_steps must be a whole number",
    ),
    (
        lambda: fx.join_schedules((fx.constant_schedule(1.0),), (3,)),
        ValueError,
        "1 schedules need 0 bo",
    ),
    (
        lambda: fx.join_schedules((fx.constant_schedule(1.0),) * 3, (3, 2)),
        ValueError,
        "join_schedules: boundaries must increase, got (3, 2)",
    ),
    (
        lambda: fx.cosine_onecycle_schedule(2, 1.0),
        ValueError,
        "the turns must increase within 2 steps",
    ),
    (
        lambda: fx.adam("0.1"),
        TypeError,
        "adam: learning_rate must be a number, an array or a schedule, got '0.1'",
    ),
    (
        lambda: fx.adam(True),
        TypeError,
        "learning_rate must be a number, an array or a schedule, got T",
    ),
    (
        lambda: fx.adam([0.1, 0.2]),
        TypeError,
        "must be a number, an array or a schedule, got [0.1, 0.2]",
    ),
    (
        lambda: fx.scale(),
        TypeError,
        "scale: missing a required argument: 'step_size'; the signature is",
    ),
    (
        lambda: fx.scale(1.0, n=2),
        TypeError,
        "got an unexpected keyword argument 'n'; the signature is",
    ),
    (
        lambda: fx.chain(print),
        TypeError,
        "is not a gradient transformation: it needs init(params)",
    ),
    (
        lambda: fx.chain(fx.scale),
        TypeError,
        "scale is a function, not yet a transformation; call it",
    ),
    (lambda: fx.chain(3), TypeError, "3 is not a gradient transformation"),
    (lambda: fx.named("", ADAM), ValueError, "named: the name must be a non-empty string"),
    (
        lambda: fx.named("count", ADAM),
        ValueError,
        "other than 'count' and 'live_hyperparams', got",
    ),
    (
        lambda: fx.chain(fx.named("a", fx.sign()), fx.named("a", fx.sign())),
        ValueError,
        "chain: two blocks are named 'a'; every name must be its own",
    ),
    (
        lambda: fx.live(optax.sgd(0.1)),
        TypeError,
        "live: needs an adamfx transformation, got Gradient",
    ),
    (lambda: fx.live(fx.sign()), ValueError, "live: sign() has no dynamic hyperparameter to keep"),
    (lambda: fx.path_matches(), TypeError, "path_matches: needs one or more glob patterns, got ()"),
    (
        lambda: fx.complement(3),
        TypeError,
        "complement: of must be a predicate such as ndim_at_least(2), got 3",
    ),
    (
        lambda: three(1),
        TypeError,
        "three: a block returns leafwise(...) or a pair (init, update), got 3",
    ),
    (
        lambda: jax.jit(lambda n: three(n))(1),
        TypeError,
        "declare the parameter Dynamic or Exact in the signature, or pass a Python number",
    ),
]


def chain_update(*blocks, params=P):
    tx = fx.chain(*blocks)
    return tx.update(P, tx.init(P), params)


USE = [
    (
        lambda: ADAM.update(bad(kernel=jnp.ones((2, 3))), S),
        ValueError,
        "update: gradient at ['dense']['kernel'] has shape (2, 3), the state was made for (3,)",
    ),
    (
        lambda: ADAM.update(bad(kernel=jnp.ones((2, 3))), S, P),
        ValueError,
        "update: gradient at ['dense']['kernel'] has shape (2, 3), the parameter has (3,)",
    ),
    (
        lambda: ADAM.step(bad(kernel=jnp.ones(())), S, P),
        ValueError,
        "step: gradient at ['dense']['kernel'] has shape (), the parameter has (3,)",
    ),
    (
        lambda: ADAM.update(jnp.ones(3), S),
        ValueError,
        "the gradients are another tree than the state was",
    ),
    (
        lambda: ADAM.update(bad(extra=jnp.ones(3)), S),
        ValueError,
        "['dense']['extra'] is not expected",
    ),
    (
        lambda: ADAM.update({"dense": {"bias": jnp.ones(2)}}, S),
        ValueError,
        "['dense']['kernel'] is missing",
    ),
    (
        lambda: ADAM.update(jnp.ones(3), S, P),
        ValueError,
        "gradients and params must be trees of one struct",
    ),
    (
        lambda: ADAM.update(P, (), P),
        TypeError,
        "the state must be a dict with 'count', got tuple; make it",
    ),
    (
        lambda: ADAM.update(P, fx.sgd(0.1).init(P)),
        ValueError,
        "update: the state has no 'scale_by_moments', it has ['count', 'scale_by_lr']; make it with tx.init",
    ),
    (
        lambda: fx.sgd(0.1).update(P, S),
        ValueError,
        "the state holds ['scale_by_moments'], which no block of this transformation remembers",
    ),
    (
        lambda: fx.adamw(0.1).update(P, S),
        ValueError,
        "update: add_decayed_weights reads the parameters; call tx.update(grads, state, params)",
    ),
    (
        lambda: fx.adam(np.ones(2)).init(P),
        ValueError,
        "scale_by_lr: scale_by_lr.learning_rate has shape (2,), hyperparameters are scalars; to run a",
    ),
    (
        lambda: ADAM.step(P, S, None),
        ValueError,
        "step: needs the parameters; call tx.step(grads, state,",
    ),
    (
        lambda: ADAM.init({"f": jnp.tanh, "w": jnp.ones(2)}),
        TypeError,
        "leaves must be arrays, numbers or None: filter the tree first, e.g. with eqx.filter(model",
    ),
    (
        lambda: ADAM.update({"f": "x"}, S),
        TypeError,
        "update: the leaf at ['f'] of the gradients is 'x' of type str",
    ),
    (
        lambda: chain_update(fx.bias_correct()),
        ValueError,
        "bias_correct: nothing to correct; it must follow",
    ),
    (
        lambda: chain_update(fx.scale_by_moments(0.9, 0.9), fx.scale(1.0), fx.running_max()),
        ValueError,
        "running_max: nothing to correct; it must follow scale_by_moments, with nothing but other correct",
    ),
    (
        lambda: chain_update(fx.scale_by_moments(0.9, None), fx.running_max()),
        ValueError,
        "running_max: nothing to correct; the scale_by_moments before it has no second moment",
    ),
    (
        lambda: chain_update(fx.scale_by_moments(None, 0.9), fx.nesterov()),
        ValueError,
        "nesterov: nothing to correct; the scale_by_moments before it has no first moment",
    ),
    (
        lambda: chain_update(fx.scale_by_moments(None, 0.9), fx.bias_correct("first")),
        ValueError,
        "no first",
    ),
    (
        lambda: chain_update(fx.scale_by_moments(0.9, None), fx.rectify()),
        ValueError,
        "no second moment",
    ),
    (
        lambda: chain_update(fx.scale_by_moments(0.9, None), fx.center()),
        ValueError,
        "no second moment",
    ),
    (
        lambda: chain_update(broadcasting()),
        ValueError,
        "broadcasting: its leaf function returned update of shape (2, 3) for (2,); the arithmetic of",
    ),
    (
        lambda: chain_update(growing()),
        ValueError,
        "growing: its leaf function returned m of shape (2, 3)",
    ),
    (
        lambda: chain_update(reshaping(lambda u: u["dense"])),
        ValueError,
        "foreign: its update returned another tree than it was given",
    ),
    (
        lambda: chain_update(reshaping(lambda u: jax.tree.map(lambda x: x[:1], u))),
        ValueError,
        "foreign: its update turned ['dense']['bias'] of shape (2,) into (1,)",
    ),
    (
        lambda: fx.add_decayed_weights(0.1, {"dense": np.ones(2)}).update(P, {"count": 0}, P),
        TypeError,
        "mask must be a tree of Python bools, True where the block acts or a callable",
    ),
    (
        lambda: fx.add_decayed_weights(0.1, {"other": True}).update(P, {"count": 0}, P),
        ValueError,
        "add_decayed_weights: the mask does not match the parameters",
    ),
    (
        lambda: fx.apply_updates(P, {"dense": P["dense"]["kernel"]}),
        ValueError,
        "apply_updates: updates and params differ: in the updates ['dense'] is not expected",
    ),
    (
        lambda: fx.apply_updates(P, bad(bias=jnp.ones((2, 2)))),
        ValueError,
        "apply_updates: update at ['dense']['bias'] has shape (2, 2), the parameter has (2,)",
    ),
]


@pytest.mark.parametrize(("call", "kind", "words"), CONSTRUCTION + USE, ids=lambda x: None)
def test_message(call, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        call()


@pytest.mark.parametrize(("call", "kind", "words"), USE, ids=lambda x: None)
def test_same_message_under_jit(call, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        jax.jit(call)()


def test_tracers_are_not_range_checked():
    u = jax.jit(lambda lr, b1: fx.adam(lr, b1=b1).update(P, S)[0])(-1.0, 0.5)
    assert np.isfinite(u["dense"]["bias"]).all()


def test_rebuilding_a_tree_checks_nothing():
    negative = jax.tree.map(lambda x: -x, ADAM)
    assert negative.hyperparams["scale_by_lr.learning_rate"] == -1e-3
    assert jax.tree.map(lambda x: None, ADAM).leaves == (None,)


def test_as_optax_without_optax(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optax", None)
    with pytest.raises(ImportError, match="as_optax: needs optax; run: pip install optax"):
        ADAM.as_optax()
