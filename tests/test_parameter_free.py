"""Parameter-free and loss-aware optimizers against their oracles; Sophia and its estimators."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import papers_elementwise
import papers_iterates as pi
import pytest

import adamfx as fx

RNG = np.random.default_rng(1)
SHAPES = {"matrix": (3, 4), "vector": (5,), "number": (), "stack": (2, 3, 4)}
PARAMS = {n: RNG.normal(size=s) for n, s in SHAPES.items()}
GRADS = {n: RNG.normal(size=(30, *s)) for n, s in SHAPES.items()}
VALUES = np.abs(RNG.normal(size=30)) * 3 + 0.5


def run(tx, dtype=None, values=None):
    p = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    state, found = tx.init(p), []
    step = jax.jit(tx.update)
    for t in range(30):
        extra = {} if values is None else {"value": jnp.asarray(values[t], dtype)}
        u, state = step({n: jnp.asarray(g[t], dtype) for n, g in GRADS.items()}, state, p, **extra)
        found.append(u)
        p = fx.apply_updates(p, u)
    return {n: np.stack([u[n] for u in found]) for n in PARAMS}


DECAY = {"weight_decay": 0.1}
CASES = {
    "dog": (fx.dog(**DECAY), functools.partial(pi.dog, **DECAY)),
    "dog, distance": (
        fx.dog(init_step=("distance", 0.1)),
        functools.partial(pi.dog, init_step=("distance", 0.1)),
    ),
    "dog, rate": (
        fx.dog(init_step=("learning_rate", 0.1)),
        functools.partial(pi.dog, init_step=("learning_rate", 0.1)),
    ),
    "ldog, distance": (
        fx.ldog(init_step=("distance", 0.1)),
        functools.partial(pi.ldog, init_step=("distance", 0.1)),
    ),
    "ldog": (fx.ldog(0.5, **DECAY), functools.partial(pi.ldog, learning_rate=0.5, **DECAY)),
    "dowg": (fx.dowg(0.5, **DECAY), functools.partial(pi.dowg, learning_rate=0.5, **DECAY)),
    "dowg, start": (
        fx.dowg(init_estim_sq_dist=0.1),
        functools.partial(pi.dowg, init_estim_sq_dist=0.1),
    ),
    "prodigy": (
        fx.prodigy(estim_lr0=1e-2, **DECAY),
        functools.partial(pi.prodigy, estim_lr0=1e-2, **DECAY),
    ),
    "prodigy, safeguard": (
        fx.prodigy(0.5, beta3=0.9, safeguard_warmup=True, estim_lr_coef=50.0),
        functools.partial(
            pi.prodigy, learning_rate=0.5, beta3=0.9, safeguard_warmup=True, estim_lr_coef=50.0
        ),
    ),
    "dadapt_adamw": (
        fx.dadapt_adamw(estim_lr0=1e-2, **DECAY),
        functools.partial(pi.dadapt_adamw, estim_lr0=1e-2, **DECAY),
    ),
    "cocob": (fx.cocob(**DECAY), functools.partial(pi.cocob, **DECAY)),
    "cocob, alpha": (
        fx.cocob(2.0, alpha=3.0),
        functools.partial(pi.cocob, learning_rate=2.0, alpha=3.0),
    ),
    "momo": (
        fx.momo(0.5, **DECAY),
        functools.partial(pi.momo, values=VALUES, learning_rate=0.5, **DECAY),
    ),
    "momo, bound": (
        fx.momo(0.5, 0.8, adapt_lower_bound=True, **DECAY),
        functools.partial(
            pi.momo, values=VALUES, learning_rate=0.5, beta=0.8, adapt_lower_bound=True, **DECAY
        ),
    ),
    "momo_adam": (
        fx.momo_adam(0.5, **DECAY),
        functools.partial(pi.momo_adam, values=VALUES, learning_rate=0.5, **DECAY),
    ),
    "momo_adam, bound": (
        fx.momo_adam(0.5, lower_bound=0.1, adapt_lower_bound=True),
        functools.partial(
            pi.momo_adam, values=VALUES, learning_rate=0.5, lower_bound=0.1, adapt_lower_bound=True
        ),
    ),
    "polyak_sgd": (
        fx.polyak_sgd(0.02, 0.5, f_min=1.0, eps=0.1),
        functools.partial(
            pi.polyak_sgd, values=VALUES, max_learning_rate=0.02, scaling=0.5, f_min=1.0, eps=0.1
        ),
    ),
    "polyak_sgd, sps+": (
        fx.polyak_sgd(1.0, f_min=1.0, variant="sps+"),
        functools.partial(pi.polyak_sgd, values=VALUES, f_min=1.0, variant="sps+"),
    ),
    "mechanize": (
        fx.mechanize(fx.adam(0.1)),
        functools.partial(pi.mechanize, inner_update=pi.adam_step(0.1)),
    ),
    "mechanize, two": (
        fx.mechanize(fx.sgd(1.0), weight_decay=0.0, s_init=1e-2, num_betas=2),
        functools.partial(
            pi.mechanize, inner_update=pi.sgd_step(1.0), weight_decay=0.0, s_init=1e-2, num_betas=2
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_its_paper(x64, case):
    tx, oracle = CASES[case]
    values = VALUES if case.startswith(("momo", "polyak")) else None
    want, got = oracle(GRADS, PARAMS), run(tx, values=values)
    for n in PARAMS:
        np.testing.assert_allclose(
            got[n], want[n], rtol=0, atol=1e-12 * np.max(np.abs(want[n])), err_msg=n
        )


# Their first steps are below the spacing of float32 parameters, so the distance travelled is one of
# rounded parameters; the same with larger first steps are in the test.
TINY = ("dog", "ldog", "dowg", "mechanize", "prodigy, safeguard")


@pytest.mark.parametrize("case", [c for c in CASES if c not in TINY])
def test_float32_is_near_float64(case):
    """To 5e-6 of the largest update; COCOB's, a point less the parameter, to a few spacings of that."""
    tx, oracle = CASES[case]
    values = VALUES if case.startswith(("momo", "polyak")) else None
    want, got = oracle(GRADS, PARAMS), run(tx, jnp.float32, values)
    for n, p in PARAMS.items():
        size = np.max(np.abs(want[n]))
        size = max(size, np.max(np.abs(p)) / 10) if case == "cocob" else size
        np.testing.assert_allclose(got[n], want[n], rtol=0, atol=5e-6 * size, err_msg=n)


def test_the_loss_is_missing():
    tx = fx.momo()
    with pytest.raises(ValueError, match="value"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


# ---- on a plateau --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"patience": 2},
        {"patience": 2, "cooldown": 3, "factor": 0.5},
        {"accumulation_size": 3, "patience": 1, "min_scale": 0.05},
    ],
)
def test_reduce_on_plateau(x64, arguments):
    losses = np.concatenate([np.linspace(3, 1, 12), 1 + 0.1 * RNG.random(40)])
    tx = fx.reduce_on_plateau(**arguments)
    state, found = tx.init(jnp.ones(2)), []
    for x in losses:
        u, state = tx.update(jnp.ones(2), state, value=jnp.asarray(x))
        found.append(u[0])
    want = papers_elementwise.reduce_on_plateau(losses, **arguments)
    assert len(set(want)) > 1
    np.testing.assert_allclose(found, want, rtol=1e-12)


# ---- Sophia --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1.0, None])
def test_sophia_of_given_hessians(x64, threshold):
    hessians = np.abs(RNG.normal(size=GRADS["matrix"].shape))
    tx = fx.sophia(0.1, clip_threshold=threshold, update_interval=4, estimator=None)
    p = jnp.asarray(PARAMS["matrix"])
    state, found = tx.init(p), []
    for g, h in zip(GRADS["matrix"], hessians, strict=True):
        u, state = tx.update(jnp.asarray(g), state, p, hessian=jnp.asarray(h))
        found.append(u)
        p = p + u
    want = papers_elementwise.sophia(
        GRADS["matrix"], PARAMS["matrix"], learning_rate=0.1, hessians=hessians,
        clip_threshold=threshold, update_interval=4, lagged=False,
    )  # fmt: skip
    np.testing.assert_allclose(found, want, rtol=1e-11)


def test_hutchinson_is_the_diagonal_in_the_mean(x64):
    A = RNG.normal(size=(4, 4))
    A = jnp.asarray(A @ A.T)

    def loss(p):
        return 0.5 * p["x"] @ A @ p["x"]

    keys = jax.random.split(jax.random.key(0), 4000)
    params = {"x": jnp.ones(4), "n": 3}
    found = jax.vmap(lambda k: fx.hutchinson(loss, params, k)["x"])(keys)
    np.testing.assert_allclose(
        found.mean(0), jnp.diag(A), atol=6 * float(found.std(0).max()) / 4000**0.5
    )


def test_gauss_newton_bartlett():
    estimate = fx.gauss_newton_bartlett(lambda p, key: jnp.sum(p["x"] ** 3), 8)
    got = estimate(None, {"x": jnp.array([1.0, 2.0])}, jax.random.key(0))["x"]
    np.testing.assert_allclose(got, 8 * np.array([3.0, 12.0]) ** 2)


def test_curvatures_of_complex_numbers_are_means_over_both_parts(x64):
    A = RNG.normal(size=(6, 6))
    A = A @ A.T

    def loss(p):
        x = jnp.concatenate([p["x"].real, p["x"].imag])
        return 0.5 * x @ A @ x

    keys = jax.random.split(jax.random.key(0), 4000)
    params = {"x": jnp.asarray([1 + 2j, 3 - 1j, 0.5j])}
    found = jax.vmap(lambda k: fx.hutchinson(loss, params, k)["x"])(keys)
    assert found.dtype == np.float64
    want = (np.diag(A)[:3] + np.diag(A)[3:]) / 2
    np.testing.assert_allclose(found.mean(0), want, atol=6 * float(found.std(0).max()) / 4000**0.5)
    estimate = fx.gauss_newton_bartlett(lambda p, key: loss(p), 8)
    x = np.concatenate([params["x"].real, params["x"].imag])
    want = 4 * ((A @ x)[:3] ** 2 + (A @ x)[3:] ** 2)
    np.testing.assert_allclose(estimate(None, params, keys[0])["x"], want)


def test_sophia_trains_complex_numbers_in_fit():
    def loss(p, batch):
        return 0.5 * jnp.sum(jnp.array([1.0, 10.0, 100.0]) * jnp.abs(p) ** 2)

    start = jnp.array([1 + 1j, 1 - 1j, 1j])
    tx = fx.sophia(0.05, gamma=1.0, weight_decay=0.0, clip_threshold=None)
    result = fx.fit(loss, tx, start, [None] * 200)
    assert loss(result.params, None) < 1e-2 * loss(start, None)
    with pytest.raises(TypeError, match=r"clip: complex numbers have no order.*split_real"):
        fx.fit(loss, fx.sophia(0.05), start, [None])


def test_sophia_trains_in_fit():
    A = jnp.diag(jnp.array([1.0, 10.0, 100.0]))

    def loss(p, batch):
        return 0.5 * p @ A @ p

    result = fx.fit(loss, fx.sophia(0.05, gamma=1.0, weight_decay=0.0), jnp.ones(3), [None] * 200)
    assert loss(result.params, None) < 1e-2 * loss(jnp.ones(3), None)
