"""The laws of docs/architecture.md for methods that read the loss, or ask for it again."""

import copy
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table import signature, tree

import adamfx as fx

TABLE = {
    "momo": fx.momo(0.1),
    "momo_adam": fx.momo_adam(0.01),
    "polyak_sgd": fx.polyak_sgd(0.1),
    "reduce_on_plateau": fx.chain(fx.adam(0.01), fx.reduce_on_plateau(patience=1)),
    "skip_spikes": fx.skip_spikes(fx.adam(0.01), 4),
    "sam": fx.sam(fx.sgd(0.1)),
    "asam": fx.asam(fx.adam(0.01)),
    "sophia": fx.sophia(0.01, update_interval=2),
    "armijo_sgd": fx.armijo_sgd(),
    "lbfgs": fx.lbfgs(memory_size=3),
    "nonlinear_cg": fx.nonlinear_cg(),
}
WRAPPED = {
    "chain": lambda tx: fx.chain(fx.clip(10.0), tx),
    "named": lambda tx: fx.named("inner", tx),
    "live": fx.live,
    "masked": lambda tx: fx.masked(tx, fx.ndim_at_least(1)),
    "skip_nonfinite": fx.skip_nonfinite,
    "lookahead": lambda tx: fx.lookahead(tx, 2, 0.5),
    "average_params": lambda tx: fx.average_params(tx, fx.ema(0.9)),
    "master_weights": fx.master_weights,
    "monitor": fx.monitor,
}
every = pytest.mark.parametrize("tx", TABLE.values(), ids=TABLE)
TARGET = tree(seed=9)
RNG = np.random.default_rng(7)


def loss(p):
    parts = [jnp.sum((p[n] - TARGET[n]) ** 2) for n in sorted(p)]
    return sum(parts[1:], parts[0]) + 0.1 * jnp.sum(jnp.cos(p["w"]))


def given(p):
    """What fit passes to a step."""
    value, grad = jax.value_and_grad(loss)(p)
    more = {"value": value, "grad": grad, "value_fn": loss, "grad_fn": jax.grad(loss)}
    return grad, more


def step(tx, p, s):
    grad, more = given(p)
    return tx.step(grad, s, p, **more)


@every
def test_is_a_value(tx):
    again = eval(repr(tx), vars(fx))
    assert again == tx == fx.read(repr(tx)) == pickle.loads(pickle.dumps(tx)) == copy.deepcopy(tx)
    assert hash(again) == hash(tx)
    leaves, structure = jax.tree.flatten(tx)
    assert jax.tree.unflatten(structure, leaves) == tx


@every
def test_scan_is_the_loop_and_the_loss_falls(tx):
    p = tree()
    s = tx.init(p)
    before = signature(s)

    def body(carry, _):
        return step(tx, *carry), None

    (q, last), _ = jax.jit(lambda c: jax.lax.scan(body, c, None, length=6))((p, s))
    assert signature(last) == before
    one = jax.jit(lambda p, s: step(tx, p, s))
    r = p
    for _ in range(6):
        r, s = one(r, s)
    chex.assert_trees_all_close(q, r, rtol=1e-4, atol=1e-6)
    assert loss(q) < loss(p)


@every
def test_step_is_update_and_apply(tx):
    p = tree()
    grad, more = given(p)
    u, s = tx.update(grad, tx.init(p), p, **more)
    q, s2 = tx.step(grad, tx.init(p), p, **more)
    chex.assert_trees_all_close((fx.apply_updates(p, u), s), (q, s2), rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("name", [n for n in TABLE if jax.tree.leaves(TABLE[n])])
def test_a_sweep_is_one_program(name):
    tx, p = TABLE[name], tree()
    sweep = jax.tree.map(lambda x: x * jnp.asarray([0.5, 1.0], np.float32), tx)

    def two(tx):
        q, s = step(tx, p, tx.init(p))
        return step(tx, q, s)[0]

    together = jax.jit(jax.vmap(two))(sweep)
    for i in range(2):
        alone = jax.jit(two)(jax.tree.map(lambda x, i=i: x[i], sweep))
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-4, atol=1e-6
        )


@every
def test_at_the_minimum_nothing_is_nan(tx):
    """No gradient, a loss of zero, twice."""
    p = tree()
    zero = jax.tree.map(jnp.zeros_like, p)

    def flat(p):
        return sum(0.0 * jnp.sum(x) for x in p.values())

    more = {"value": jnp.zeros(()), "grad": zero, "value_fn": flat, "grad_fn": lambda p: zero}
    s = tx.init(p)
    for _ in range(2):
        u, s = tx.update(zero, s, p, **more)
        chex.assert_tree_all_finite((u, s))


@every
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_inside_of_wrappers(tx, wrap):
    whole, p = wrap(tx), tree()
    if whole.name == "masked" and (tx.reads("value_fn") or tx.reads("grad_fn")):
        grad, more = given(p)
        with pytest.raises(ValueError, match=r"must see all parameters, and got 3 of 4"):
            whole.update(grad, whole.init(p), p, **more)
        return
    assert fx.read(repr(whole)) == whole
    s = whole.init(p)
    grad, more = given(p)
    del more["value_fn"], more["grad_fn"]

    def traced(p, s, grad, more):
        return whole.step(grad, s, p, **more, value_fn=loss, grad_fn=jax.grad(loss))

    q, after = jax.eval_shape(traced, p, s, grad, more)
    assert signature(after) == signature(s)
    assert signature(q) == signature(p)


@every
def test_what_is_missing_is_named(tx):
    needed = [n for n in ("value", "value_fn", "grad_fn") if tx.reads(n)]
    assert needed
    p = tree()
    with pytest.raises(ValueError, match=rf"update: .*({'|'.join(needed)})="):
        tx.update(tree(seed=1), tx.init(p), p)


@every
def test_in_fit(tx):
    result = fx.fit(lambda p, batch: loss(p), tx, tree(), [None] * 12, progress=False)
    assert result.history["loss"][-1] < result.history["loss"][0]


# ---- complex parameters --------------------------------------------------------------------------

CURVED = RNG.normal(size=(8, 8))
CURVED = CURVED @ CURVED.T / 8 + np.eye(8)
AIM = RNG.normal(size=8)


def of_parts(p):
    """A loss of eight real numbers, of which four are imaginary parts."""
    x = jnp.concatenate([p["re"], p["im"]]) - AIM
    return 0.5 * x @ CURVED @ x + 0.1 * jnp.sum(jnp.cos(x))


def of_complex(p):
    return of_parts({"re": p["z"].real, "im": p["z"].imag})


LINEAR = {
    "sgd": fx.sgd(0.1),
    "momentum": fx.sgd(0.1, 0.9, nesterov=True),
    "clip_by_global_norm": fx.chain(fx.clip_by_global_norm(1.0), fx.sgd(0.1)),
    "polyak_sgd": fx.polyak_sgd(0.1),
    "sam": fx.sam(fx.sgd(0.1), 0.05),
    "split adam": fx.split_real_and_imaginary(fx.adam(0.1)),
    "armijo_sgd": fx.armijo_sgd(),
    "lbfgs": fx.lbfgs(),
    "nonlinear_cg": fx.nonlinear_cg(),
}


@pytest.mark.parametrize("name", LINEAR)
def test_complex_numbers_are_trained_as_pairs_of_real_ones(name, x64):
    """jax.grad returns df/dx - i df/dy of x + i y, along which the loss rises in x and falls in y."""
    tx = LINEAR[name]
    real = fx.adam(0.1) if name == "split adam" else tx
    start = RNG.normal(size=(2, 4))
    p, q = {"z": jnp.asarray(start[0] + 1j * start[1])}, dict(zip(("re", "im"), start, strict=True))
    found = fx.fit(lambda p, _: of_complex(p), tx, p, [None] * 8, progress=False)
    want = fx.fit(lambda p, _: of_parts(p), real, q, [None] * 8, progress=False)
    assert of_parts(want.params) < of_parts(q)
    together = jax.lax.complex(want.params["re"], want.params["im"])
    np.testing.assert_allclose(found.params["z"], together, rtol=1e-9)
    step, s = fx.make_step(of_complex), tx.init(p)
    for _ in range(8):
        p, s, _ = step(tx, p, s)
    np.testing.assert_allclose(p["z"], together, rtol=1e-9)


def test_gradients_that_a_line_search_kept_are_those_of_jax(x64):
    """Of complex parameters as jax.grad returns them, before the first step and after it."""
    tx, value_and_grad = fx.lbfgs(), fx.value_and_grad_from_state(of_complex)
    p = {"z": jnp.asarray([1 + 2j, 1j, -1 + 0j, 2 - 1j])}
    s = tx.init(p)
    for _ in range(8):
        value, grad = value_and_grad(p, state=s)
        np.testing.assert_allclose(grad["z"], jax.grad(of_complex)(p)["z"], rtol=1e-9)
        grad = jax.tree.map(jnp.conj, grad)
        p, s = tx.step(grad, s, p, value=value, grad=grad, value_fn=of_complex)
    assert np.abs(jax.grad(of_complex)(p)["z"]).max() < 1e-4
