"""Flax linen, Flax nnx, Equinox and optax hold an adamfx transformation; a new rate compiles nothing."""

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from table import tree

import adamfx as fx

RATES = np.logspace(-4, -1, 10)
X = jnp.ones((2, 4))

# Flax and Equinox mix dtypes in their own code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_plain_jit_with_tx_as_argument():
    traces = []

    @jax.jit
    def step(tx, p, s):
        traces.append(1)
        return tx.step(p, s, p)

    p = tree()
    s = fx.adam(0.1).init(p)
    for rate in RATES:
        p, s = step(fx.adam(rate), p, s)
    assert len(traces) == 1


def test_linen_train_state():
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), X)["params"]
    ts = TrainState.create(
        apply_fn=model.apply, params=params, tx=fx.live(fx.adamw(0.1)).as_optax()
    )
    ts = TrainState.create(apply_fn=model.apply, params=params, tx=fx.live(fx.adamw(0.1)))
    traces = []

    @jax.jit
    def step(ts):
        traces.append(1)
        grads = jax.grad(lambda p: (model.apply({"params": p}, X) ** 2).sum())(ts.params)
        return ts.apply_gradients(grads=grads)

    for rate in RATES:
        ts = ts.replace(opt_state=fx.set_hyperparams(ts.opt_state, learning_rate=rate))
        ts = step(ts)
    assert len(traces) == 1
    np.testing.assert_allclose(ts.opt_state["live"]["scale_by_lr"].learning_rate, RATES[-1], 1e-6)


def test_nnx_optimizer():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, fx.live(fx.adamw(0.1)), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        grads = nnx.grad(lambda m: (m(X) ** 2).sum())(model)
        optimizer.update(model, grads)

    before = np.asarray(model.kernel[...])
    for rate in RATES:
        optimizer.opt_state = fx.set_hyperparams(optimizer.opt_state, learning_rate=rate)
        step(model, optimizer)
    assert len(traces) == 1
    assert np.abs(before - np.asarray(model.kernel[...])).max() > 0.05
    rate = fx.hyperparams(optimizer.opt_state)["live.scale_by_lr.learning_rate"]
    np.testing.assert_allclose(rate[...], RATES[-1], 1e-6)


@pytest.mark.skipif(
    tuple(map(int, flax.__version__.split(".")[:2])) < (0, 12),
    reason="before 0.12, nnx.Optimizer cannot hold a state without an array for some parameter",
)
def test_wrappers_inside_an_nnx_optimizer():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    groups = fx.partition(
        {"b": fx.set_to_zero()}, {"b": fx.path_matches("*/bias")}, default=fx.adamw(0.1)
    )
    tx = fx.skip_nonfinite(fx.monitor(fx.average_params(groups, fx.ema(0.9))), 0)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: (m(x) ** 2).sum())(model))

    bias, start = np.asarray(model.bias[...]), np.asarray(model.kernel[...])
    step(model, optimizer, X)
    first = np.asarray(model.kernel[...])
    step(model, optimizer, X)
    second = np.asarray(model.kernel[...])
    assert (first != start).any()
    np.testing.assert_array_equal(model.bias[...], bias)
    state = optimizer.opt_state
    found = fx.averaged_params(state, nnx.state(model, nnx.Param))
    np.testing.assert_allclose(found["kernel"][...], (0.9 * first + second) / 1.9, rtol=1e-5)
    assert fx.metrics(state)["gradient_norm"] > 0
    fx.check_finite(state)
    step(model, optimizer, X * np.nan)
    np.testing.assert_array_equal(model.kernel[...], second)
    with pytest.raises(FloatingPointError, match="the last 1 gradients were not finite, 1 in all"):
        fx.check_finite(optimizer.opt_state)


def test_equinox():
    model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    tx = fx.live(fx.adamw(0.1))
    s = tx.init(eqx.filter(model, eqx.is_inexact_array))
    traces = []

    @eqx.filter_jit
    def step(tx, model, s):
        traces.append(1)
        grads = eqx.filter_grad(lambda m: (jax.vmap(m)(X) ** 2).sum())(model)
        updates, s = tx.update(grads, s, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), s

    for rate in RATES:
        s = fx.set_hyperparams(s, learning_rate=rate)
        model, s = step(tx, model, s)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.masked(tx, {"w": True, "w2": False, "b": True, "s": False}),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.with_extra_args_support(tx),
        lambda tx: optax.partition(
            {"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "w2": "a", "b": "b", "s": "b"}
        ),
    ],
    ids=["chain", "masked", "MultiSteps", "apply_if_finite", "extra_args", "partition"],
)
@pytest.mark.parametrize(
    "convert", [lambda tx: tx, lambda tx: tx.as_optax()], ids=["tx", "as_optax"]
)
def test_inside_optax(wrap, convert):
    tx = wrap(convert(fx.adamw(0.1)))
    p = tree()
    with jax.numpy_dtype_promotion("standard"):
        s = tx.init(p)
        step = jax.jit(lambda p, s: tx.update(p, s, p))
        for _ in range(3):
            u, s = step(p, s)
            p = optax.apply_updates(p, u)
    assert np.isfinite(p["w"]).all()
    assert step._cache_size() <= 2  # apply_if_finite changes a weak type of its own


def test_optax_after_the_moments():
    """A foreign block right after scale_by_moments reads the quotient."""
    p = tree()
    ours = fx.chain(fx.scale_by_moments(0.9, 0.999), optax.scale(-0.1))
    theirs = fx.chain(fx.scale_by_moments(0.9, 0.999), fx.scale(-0.1))
    u, _ = ours.update(p, ours.init(p), p)
    for a, b in zip(
        jax.tree.leaves(u), jax.tree.leaves(theirs.update(p, theirs.init(p))[0]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


TARGETS = jnp.asarray([[1.0, -1.0, 0.5]])


def falls_to_zero(loss, params):
    """L-BFGS in three lines, on parameters of any kind."""
    tx, step = fx.lbfgs(), jax.value_and_grad(loss)
    state = tx.init(params)
    for _ in range(15):
        value, grad = step(params)
        params, state = tx.step(grad, state, params, value=value, grad=grad, value_fn=loss)
    assert loss(params) < 1e-8
    return params


def test_lbfgs_on_a_model_of_equinox():
    model = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params):
        return jnp.sum((jax.vmap(eqx.combine(params, static))(X) - TARGETS) ** 2)

    falls_to_zero(loss, params)


def test_lbfgs_on_a_model_of_nnx():
    graph, params = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))

    def loss(params):
        return jnp.sum((nnx.merge(graph, params)(X) - TARGETS) ** 2)

    falls_to_zero(loss, params)


def test_lbfgs_in_the_optimizer_of_nnx():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, fx.lbfgs(), wrt=nnx.Param)
    graph, _ = nnx.split(model)

    def of_state(params):
        return jnp.sum((nnx.merge(graph, params)(X) - TARGETS) ** 2)

    for _ in range(15):
        value, grads = nnx.value_and_grad(lambda m: jnp.sum((m(X) - TARGETS) ** 2))(model)
        optimizer.update(model, grads, value=value, grad=grads, value_fn=of_state)
    assert jnp.sum((model(X) - TARGETS) ** 2) < 1e-8
