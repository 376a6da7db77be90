"""Another point for the gradient or the model, and private gradients, against their oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import papers_iterates as pi
import pytest

import adamfx as fx

RNG = np.random.default_rng(2)
SHAPES = {"matrix": (3, 4), "vector": (5,), "number": (), "stack": (2, 3, 4)}
PARAMS = {n: RNG.normal(size=s) for n, s in SHAPES.items()}
GRADS = {n: RNG.normal(size=(30, *s)) for n, s in SHAPES.items()}


def start():
    return jax.tree.map(jnp.asarray, PARAMS)


def run(tx, of=None):
    """Updates and points for the model; gradients from the table, or those of `of(t, params)`."""
    p = start()
    state, updates, models = tx.init(p), [], []

    @jax.jit
    def step(t, state, p):
        def grad_fn(q):
            return of(t, q) if of else {n: jnp.asarray(g)[t] for n, g in GRADS.items()}

        g = grad_fn(tx.gradient_at(state, p))
        return (
            tx.update(g, state, p, grad_fn=grad_fn)
            if tx.reads("grad_fn")
            else tx.update(g, state, p)
        )

    for t in range(30):
        u, state = step(jnp.asarray(t), state, p)
        p = fx.apply_updates(p, u)
        updates.append(u)
        models.append(tx.evaluate_at(state, p))
    return tuple(
        {n: np.stack([u[n] for u in found]) for n in PARAMS} for found in (updates, models)
    )


def same(got, want, tolerance=1e-12):
    for n in PARAMS:
        size = np.max(np.abs(want[n]))
        np.testing.assert_allclose(got[n], want[n], rtol=0, atol=tolerance * size, err_msg=n)


def quadratic(t, q):
    """The gradient of a loss that changes with the step; for NumPy and for JAX."""
    return {n: 0.3 * x + 0.1 * x**3 + GRADS_AT(n, t) for n, x in q.items()}


def GRADS_AT(n, t):
    return jnp.asarray(GRADS[n])[t] if isinstance(t, jax.Array) else GRADS[n][t - 1]


ADAM = fx.adamw(0.05, weight_decay=0.1)


def adam_step():
    return pi.adam_step(0.05, weight_decay=0.1)


@pytest.mark.parametrize("power", [2.0, 0.0])
@pytest.mark.parametrize("warmup", [None, 5])
def test_schedule_free(x64, warmup, power):
    more = {"warmup_steps": warmup, "b1": 0.8, "weight_decay": 0.1, "weight_lr_power": power}
    for name in ("schedule_free_sgd", "schedule_free_adamw"):
        got = run(getattr(fx, name)(0.05, **more))
        want = getattr(pi, name)(GRADS, PARAMS, learning_rate=0.05, **more)
        for a, b in zip(got, want, strict=True):
            same(a, b)


def test_schedule_free_around_any_sentence(x64):
    tx = fx.schedule_free(fx.chain(fx.clip_by_global_norm(1e9), ADAM), 0.05)
    want = pi.schedule_free(GRADS, PARAMS, base=adam_step(), learning_rate=0.05)
    for a, b in zip(run(tx), want, strict=True):
        same(a, b)


def test_schedule_free_refuses_b1_of_zero():
    with pytest.raises(ValueError, match="b1 must lie in"):
        fx.schedule_free_sgd(b1=0.0)


@pytest.mark.parametrize("restore", [False, True])
def test_ema_nesterov(x64, restore):
    more = {"decay": 0.9, "start": 3, "stop": 20, "restore": restore}
    got, _ = run(fx.ema_nesterov(ADAM, 0.3, **more), quadratic)
    want, _ = pi.ema_nesterov(
        PARAMS, steps=30, grad_fn=quadratic, base=adam_step(), lookahead=0.3, **more
    )
    same(got, want)


@pytest.mark.parametrize(("first", "every"), [(0, 1), (5, 3), (28, 1)])
def test_swa(x64, first, every):
    updates, models = run(fx.swa(ADAM, first, every))
    same(models, pi.swa(updates, PARAMS, start=first, every=every))


def test_outer_step(x64):
    outer = fx.sgd(fx.piecewise_constant_schedule(0.7, {3: 0.5}), 0.5, nesterov=True)
    rate = lambda t: 0.7 if t < 3 else 0.35  # noqa: E731
    got, _ = run(fx.outer_step(ADAM, outer, 4))
    same(got, pi.diloco(GRADS, PARAMS, base=adam_step(), every=4, outer_learning_rate=rate))


@pytest.mark.parametrize(
    ("tx", "oracle"), [(fx.sam(ADAM, 0.5), (pi.sam, {"rho": 0.5})), (fx.asam(ADAM), (pi.asam, {}))]
)
def test_sharpness_aware(x64, tx, oracle):
    function, more = oracle
    got, _ = run(tx, quadratic)
    same(got, function(PARAMS, steps=30, grad_fn=quadratic, base=adam_step(), **more))


def test_two_points_in_fit():
    """fit takes the gradient where it is wanted, and passes grad_fn."""

    def loss(p, batch):
        return jnp.sum((p - 3.0) ** 2)

    sgd = fx.sgd(0.1)
    for tx in (fx.sam(sgd), fx.ema_nesterov(sgd), fx.schedule_free_sgd(0.1), fx.swa(sgd, 40)):
        result = fx.fit(loss, tx, jnp.zeros(2), [None] * 60)
        at = tx.evaluate_at(result.state, result.params)
        assert loss(at, None) < 0.05, tx


def test_the_gradient_function_is_missing():
    tx = fx.sam(fx.sgd(0.1))
    with pytest.raises(ValueError, match="grad_fn=lambda params: gradient"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


# ---- privacy -------------------------------------------------------------------------------------


def test_the_private_mean_is_clipped_example_by_example(x64):
    each = {n: RNG.normal(size=(4, 6, *s)) * 0.3 for n, s in SHAPES.items()}
    tx = fx.differentially_private_aggregate(1.0, 0.0)
    state, found = tx.init(start()), []
    for t in range(4):
        u, state = tx.update({n: jnp.asarray(g[t]) for n, g in each.items()}, state, start())
        found.append(u)
    want = pi.dp_aggregate(each, 1.0)
    same({n: np.stack([u[n] for u in found]) for n in SHAPES}, want)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_noise_of_every_real_number(x64, dtype):
    """Both parts of a complex one get all that is promised of the privacy, or of the variance."""
    private = fx.differentially_private_aggregate(2.0, 1.5, seed=3)
    noisy = fx.add_noise(9.0, 0.0, seed=3)
    for tx, shape in ((private, (1, 40_000)), (noisy, (40_000,))):
        p = jnp.zeros(40_000, dtype)
        u, _ = tx.update(jnp.zeros(shape, dtype), tx.init(p), p)
        parts = (u.real, u.imag) if dtype == "complex128" else (u,)
        for x in parts:
            np.testing.assert_allclose(np.std(x), 3.0, rtol=0.02)
        assert len(parts) == 1 or abs(np.mean(u.real * u.imag)) < 0.25


@pytest.mark.parametrize("per_leaf", ["uniform", "size"])
def test_each_leaf_may_be_clipped_by_a_norm_of_its_own(x64, per_leaf):
    rng, scales = np.random.default_rng(5), np.array([0.1, 1.0, 10.0, 0.3, 3.0, 0.0])
    g = {"w": rng.normal(size=(6, 3, 4)), "b": rng.normal(size=(6, 4))}
    g = {n: x * scales.reshape(6, *[1] * (x.ndim - 1)) for n, x in g.items()}
    tx = fx.differentially_private_aggregate(1.5, 0.0, per_leaf=per_leaf)
    p = {n: jnp.zeros(x.shape[1:]) for n, x in g.items()}
    u, _ = tx.update(jax.tree.map(jnp.asarray, g), tx.init(p), p)
    size = {"w": 12, "b": 4}
    for n, x in g.items():
        limit = 1.5 * np.sqrt(1 / 2 if per_leaf == "uniform" else size[n] / 16)
        norms = np.sqrt((x**2).reshape(6, -1).sum(1))
        shrink = np.minimum(1, limit / np.where(norms == 0, 1, norms))
        want = np.mean(x * shrink.reshape(6, *[1] * (x.ndim - 1)), 0)
        np.testing.assert_allclose(u[n], want, rtol=1e-12)
    with jax.numpy_dtype_promotion("standard"):
        theirs, _ = optax.per_example_layer_norm_clip(
            jax.tree.map(jnp.asarray, g), 1.5, uniform=per_leaf == "uniform"
        )
    for n in g:
        np.testing.assert_allclose(u[n], theirs[n] / 6, rtol=1e-12)


def test_the_noise_has_the_deviation_that_is_promised():
    tx = fx.differentially_private_aggregate(2.0, 1.5, seed=3)
    p, g = jnp.zeros(20_000), jnp.zeros((5, 20_000))
    state = tx.init(p)
    u, state = tx.update(g, state, p)
    v, _ = tx.update(g, state, p)
    np.testing.assert_allclose(jnp.std(u), 1.5 * 2.0 / 5, rtol=0.03)
    assert abs(float(jnp.corrcoef(u, v)[0, 1])) < 0.03  # another noise at every step


def test_dpsgd_trains():
    x = jnp.asarray(RNG.normal(size=(64, 3)), jnp.float32)
    y = x @ jnp.array([1.0, -2.0, 0.5])

    def loss(p, example):
        a, b = example
        return (a @ p - b) ** 2

    tx, p = fx.dpsgd(0.2, 1.0, 0.1, 0, momentum=0.5), jnp.zeros(3)
    state = tx.init(p)
    for size in (None, 16):
        grads = fx.per_example_grads(loss, size)
        want = jax.vmap(jax.grad(loss), (None, 0))(p, (x, y))
        np.testing.assert_allclose(grads(p, (x, y)), want, rtol=1e-5)
    step = jax.jit(lambda p, state: tx.step(grads(p, (x, y)), state, p))
    for _ in range(60):
        p, state = step(p, state)
    np.testing.assert_allclose(p, [1.0, -2.0, 0.5], atol=0.2)


def test_a_gradient_without_examples():
    tx = fx.dpsgd(0.1, 1.0, 0.0, 0)
    p = {"w": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match=r"\['w'\]|w has shape|axis of examples in front"):
        tx.update({"w": jnp.ones((3, 2))}, tx.init(p), p)
    plain = fx.sgd(0.1)
    with pytest.raises(ValueError, match="the parameter has"):
        plain.update({"w": jnp.ones((5, 3, 2))}, plain.init(p), p)


# ---- complex leaves and target networks ----------------------------------------------------------


def test_split_real_and_imaginary(x64):
    z = RNG.normal(size=(2, 4)) + 1j * RNG.normal(size=(2, 4))
    tx = fx.split_real_and_imaginary(fx.chain(fx.scale_by_moments(0.9, 0.999), fx.bias_correct()))
    own = fx.chain(fx.scale_by_moments(0.9, 0.999), fx.bias_correct())
    p = {"z": jnp.asarray(z[0]), "x": jnp.asarray(z[0].real)}
    g = {"z": jnp.asarray(z[1]), "x": jnp.asarray(z[1].real)}
    (u, _), (a, _), (b, _) = (
        t.update(g, t.init(p), p) for t, g, p in
        ((tx, g, p), (own, g["z"].real, p["x"]), (own, g["z"].imag, p["x"]))
    )  # fmt: skip
    assert u["z"].dtype == jnp.complex128
    np.testing.assert_array_equal(u["z"], np.asarray(a) + 1j * np.asarray(b))
    np.testing.assert_array_equal(u["x"], a)


def test_target_networks(x64):
    new, old = {"a": jnp.ones(3)}, {"a": jnp.zeros(3)}
    np.testing.assert_allclose(fx.incremental_update(new, old, 0.25)["a"], 0.25)
    for t in range(7):
        got = fx.periodic_update(new, old, jnp.asarray(t), 3)["a"]
        np.testing.assert_array_equal(got, pi.periodic_update(new, old, t, 3)["a"])
    half = fx.incremental_update(
        {"a": jnp.ones(2, jnp.bfloat16)}, {"a": jnp.zeros(2, jnp.bfloat16)}, 0.1
    )
    assert half["a"].dtype == jnp.bfloat16
