"""Every optimizer against its paper, written in NumPy float64 before the code: tests/papers.py."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import papers
import papers_elementwise
import pytest
import table
from conftest import enable_x64

import adamfx as fx

LR = 0.01

# What is compared: (sentence, oracle, hyperparameters of both). eps is varied where there is one.
CASES = {
    name: (getattr(fx, name), getattr(papers, name), {})
    for name in (
        *("sgd", "momentum", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "nadam", "nadamw"),
        *("adamax", "adamaxw", "amsgrad", "radam", "adabelief", "lion", "signum"),
        *("lamb", "lars", "novograd"),
    )
}


def case(name, oracle, sentence=None, **kwargs):
    CASES[name] = (sentence or getattr(fx, oracle), getattr(papers, oracle), kwargs)


def moments(*after, lr=LR, b1=0.9, b2=0.999, **kwargs):
    return fx.chain(fx.scale_by_moments(b1, b2, **kwargs), *after, fx.scale_by_lr(lr))


case("sgd momentum", "sgd", momentum=0.9)
case("sgd nesterov", "sgd", momentum=0.9, nesterov=True)
case("rmsprop out", "rmsprop", eps_in_sqrt=False)
case("rmsprop centered", "rmsprop", centered=True, momentum=0.9, nesterov=True, initial_scale=0.1)
case("rmsprop corrected", "rmsprop", bias_correction=True)
case("adam nesterov", "adam", nesterov=True, eps_root=1e-3)
case("radam nesterov", "radam", nesterov=True)
case("lamb decayed", "lamb", weight_decay=0.1)
case("lars decayed", "lars", weight_decay=0.1, nesterov=True)
case("novograd decayed", "novograd", weight_decay=0.1)

# Refinements of Adam, and others: tests/papers_elementwise.py.
NEW = {
    "adan": {"eps_root": 1e-3, "weight_decay": 0.1},
    "ademamix": {"weight_decay": 0.1, "b3": fx.linear_schedule(0.9, 0.999, 20), "alpha": 3.0},
    "simplified_ademamix": {"alpha": 2.0, "weight_decay": 0.1},
    "adopt": {"nesterov": True},
    "adopt unclipped": {"use_clipping": False},
    "acprop": {"weight_decay": 0.1},
    "padam": {},
    "rprop": {},
    "optimistic_gradient_descent": {"alpha": 0.5, "beta": 2.0},
    "optimistic_adam": {"beta": 0.5},
    "qhm": {},
    "qhadam": {"nu2": 0.9},
    "aggmo": {},
    "madgrad": {"weight_decay": 0.1},
    "madgrad without momentum": {"momentum": 0.0},
    "stable_adamw": {"weight_decay": 0.0},
    "adam_atan2": {"a": 1.27, "b": 0.5, "weight_decay": 0.1},
    "sign_sgd": {},
    "fromage": {},
    "sm3": {},
    "adafactor": {"min_dim_size_to_factor": 1},
    "adafactor with all": {
        "min_dim_size_to_factor": 3,
        "momentum": 0.9,
        "weight_decay_rate": 0.1,
        "decay_rate": 0.7,
    },
    "adafactor whole": {"factored": False, "clipping_threshold": None},
    "adamini": {"weight_decay": 0.1},
    "came": {"weight_decay": 0.1},
}
for name, kwargs in NEW.items():
    of = name.split()[0]
    CASES[name] = (getattr(fx, of), getattr(papers_elementwise, of), kwargs)

CASES["yogi"] = (fx.yogi, functools.partial(papers.yogi, initial_m=0.0), {})


# Sentences that are no alias: parts left out, swapped, or combined as nobody has before.
def momentum_inside(learning_rate):
    """The first of the paper's forms: the learning rate inside the buffer."""
    return fx.chain(fx.scale_by_lr(learning_rate), fx.scale_by_moments(fx.trace(0.9), None))


def adam_uncorrected(learning_rate, eps):
    return moments(lr=learning_rate, eps=eps)


def adam_eps_hat(learning_rate, eps):
    return moments(fx.bias_correct(), lr=learning_rate, eps=eps, where="hat")


def amsgrad_torch(learning_rate, eps):
    return moments(fx.running_max(), fx.bias_correct(), lr=learning_rate, eps=eps)


def nadam_torch(learning_rate, eps):
    def mu(count):
        t = count.astype(float) + 1
        return 0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3))

    return moments(fx.bias_correct(), fx.nesterov(mu), lr=learning_rate, eps=eps)


def laprop(learning_rate, eps):
    """Division before averaging: two openings of the record, one after the other."""
    return fx.chain(
        fx.scale_by_moments(None, 0.999, eps=eps),
        fx.bias_correct(),
        fx.scale_by_moments(0.9, None),
        fx.bias_correct(),
        fx.scale_by_lr(learning_rate),
    )


def adopt(learning_rate, eps):
    """A lagging second moment, and a clip whose threshold is 0 at the first step."""
    return fx.chain(
        fx.scale_by_moments(
            None, fx.ema(0.9999, first_whole=True), eps=eps, where="floor", lag="second"
        ),
        fx.clip(lambda count: count.astype(float) ** 0.25),
        fx.scale_by_moments(0.9, None),
        fx.scale_by_lr(learning_rate),
    )


case("momentum inside", "momentum", momentum_inside, inside=True)
for sentence in (adam_uncorrected, adam_eps_hat, amsgrad_torch, nadam_torch, laprop, adopt):
    case(sentence.__name__, sentence.__name__, sentence)


def all_steps(tx, s, grads, path):
    def one(s, gp):
        u, s = tx.update(gp[0], s, gp[1])
        return s, u

    return jax.lax.scan(one, s, (grads, path))[1]


as_an_argument = jax.jit(all_steps)


@functools.cache
def closed_over(tx):
    return jax.jit(functools.partial(all_steps, tx))


OWN_EPS = [
    n for n in CASES if n.startswith(("adafactor", "came"))
]  # of the squares, not of the root


def errors(name, dtype, steps, scale, eps, as_argument=False, shape=(3, 4)):
    """|u - oracle's u| / |oracle's u| at every step, along the oracle's path."""
    sentence, oracle, kwargs = CASES[name]
    kwargs = {"learning_rate": LR} | kwargs
    parameters = inspect.signature(oracle).parameters
    if "eps" in parameters and name not in OWN_EPS:
        kwargs["eps"] = eps
    known = inspect.signature(sentence).parameters
    rng = np.random.default_rng(0)
    theta = rng.normal(size=shape).astype(np.float32)
    grads = (rng.normal(size=(steps, *shape)) * scale).astype(np.float32)
    want = oracle(grads, theta, **kwargs)
    path = theta + np.concatenate([0 * want[:1], np.cumsum(want, 0)[:-1]])
    tx = sentence(**{k: x for k, x in kwargs.items() if k in known})

    grads, path = jnp.asarray(grads, dtype), jnp.asarray(path, dtype)
    s = tx.init(path[0])
    run = functools.partial(as_an_argument, tx) if as_argument else closed_over(tx)
    got = run(s, grads, path)
    difference = np.linalg.norm((np.asarray(got, float) - want).reshape(steps, -1), axis=1)
    size = np.linalg.norm(want.reshape(steps, -1), axis=1)
    if dtype == jnp.float32 and name.startswith(
        "madgrad"
    ):  # u = z - p, of points that float32 rounds
        points = np.linalg.norm(path.reshape(steps, -1), axis=1)
        size = np.maximum(points, np.linalg.norm(theta))
    return difference / np.where(size == 0, 1, size)


@pytest.mark.parametrize("as_argument", [False, True], ids=["closed over", "argument"])
@pytest.mark.parametrize("name", CASES)
def test_float64_equals_the_paper(name, as_argument, x64):
    for scale, eps in ((1.0, 1e-8), (1e-6, 0.3), (1e3, 0.3), (1e-6, 1e-8)):
        assert errors(name, jnp.float64, 40, scale, eps, as_argument).max() <= 1e-12


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", NEW)
def test_other_shapes(name, shape, x64):
    """A scalar, a vector, a stack of matrices."""
    assert errors(name, jnp.float64, 30, 1.0, 1e-8, shape=shape).max() <= 1e-12


# eps 1e-8 under a root of 1e-6: what differs is a rounding of the paper's own formula. AdEMAMix adds five
# parts of an average over 10,000 steps, MADGRAD holds plain sums of a thousand gradients of either sign.
LONG_SUMS = {"ademamix": 4e-6, "madgrad": 1e-5, "madgrad without momentum": 1e-5}


@pytest.mark.slow
@pytest.mark.parametrize("as_argument", [False, True], ids=["closed over", "argument"])
@pytest.mark.parametrize("name", CASES)
def test_float32_stays_with_the_paper_for_1000_steps(name, as_argument):
    for scale in (1e-6, 1.0, 1e3):
        for eps in (1e-8, 0.3):
            worst = errors(name, jnp.float32, 1000, scale, eps, as_argument).max()
            assert worst <= LONG_SUMS.get(name, 2e-6), (scale, eps)


# Where float32 is further from float64 than 5e-6 of the largest update, and why.
CONDITION = {
    "acprop": 5e-4,  # divides by |g_t-1 - m_t-1|, which is small for some number of some leaf
    "muonh": 1e-4,  # a point of the sphere less the parameter, a hundred times as long
    "adamh": 1e-4,  # likewise
    "schedule_free_adamw": 2e-5,  # a point less the parameter
}
# jax.random draws other numbers in float64. Roots of singular matrices are lost, so Shampoo's eps is 1e-4.
DRAWS = ("noisy_sgd", "kron", "apollo")
NEAR = table.OPTIMIZERS | {"shampoo": fx.shampoo(0.01, every=2, block_size=2, eps=1e-4)}


@pytest.mark.parametrize("name", [n for n in NEAR if n not in DRAWS])
def test_float32_is_near_float64(name):
    """The updates of 30 steps along one path of float32 parameters, of matrices, a vector and a scalar."""
    tx = NEAR[name]
    grads = jax.tree.map(lambda *g: np.stack(g), *[table.tree(seed=t + 1) for t in range(30)])
    start = table.tree()

    def point(carry, g):
        p, s = carry
        u, s = tx.update(g, s, p)
        return (jax.tree.map(jnp.add, p, u), s), p

    path = jax.jit(lambda g, p: jax.lax.scan(point, (p, tx.init(p)), g)[1])(grads, start)
    path = jax.tree.map(np.asarray, path)
    along = jax.jit(lambda g, q: all_steps(tx, tx.init(jax.tree.map(lambda x: x[0], q)), g, q))
    got = along(grads, path)
    with enable_x64():
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (grads, path))
        want = jax.tree.map(np.asarray, along(*wide))
    for n, w in want.items():
        assert w.dtype == np.float64
        gap = np.max(np.abs(np.asarray(got[n], float) - w))
        assert gap <= CONDITION.get(name, 5e-6) * np.max(np.abs(w)), n


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999])
def test_adam_in_float32_for_every_b2(b2):
    """Median elementwise relative error at most 5e-7 at every step, 1 to 1,000."""
    rng = np.random.default_rng(1)
    grads = rng.normal(size=(1000, 512)).astype(np.float32)
    want = papers.adam(grads, grads[0] * 0, learning_rate=LR, b2=b2)
    tx = fx.adam(LR, b2=b2)

    def one(s, g):
        u, s = tx.update(g, s)
        return s, u

    got = jax.jit(lambda s, g: jax.lax.scan(one, s, g)[1])(tx.init(jnp.zeros(512)), grads)
    error = np.median(np.abs(np.asarray(got, float) / want - 1), axis=1)
    assert error.max() <= 5e-7, f"{error.max():.1e} at step {error.argmax() + 1}"


@pytest.mark.parametrize(
    "decay",
    [
        fx.piecewise_constant_schedule(0.9, {6: 0.5 / 0.9}),
        fx.lambda_decay_schedule(0.9, 0.99),
        fx.linear_schedule(0.0, 0.999, 50),
        fx.linear_schedule(0.999, 0.0, 50),
    ],
    ids=repr,
)
def test_correction_is_exact_for_scheduled_decays(decay):
    """The corrected average of a constant gradient 1 is 1 (optax: .716)."""
    tx = fx.chain(fx.scale_by_moments(decay, None), fx.bias_correct())
    s = tx.init(jnp.zeros(3))
    for _ in range(100):
        u, s = tx.update(jnp.ones(3), s)
        np.testing.assert_allclose(u, 1, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_scheduled_decays_equal_the_weighted_mean(nesterov, x64):
    """beta_1,t = beta_1 lambda^(t-1), and b2 growing: divided by the weights given out."""
    b1, b2 = fx.lambda_decay_schedule(0.9, 0.98), fx.linear_schedule(0.5, 0.999, 30)
    grads = np.random.default_rng(2).normal(size=(60, 5))
    want = papers.adam(grads, grads[0], learning_rate=LR, b1=b1, b2=b2, nesterov=nesterov)
    tx = fx.adam(LR, b1, b2, nesterov=nesterov)
    s = tx.init(jnp.zeros(5))
    for g, u in zip(grads, want, strict=True):
        got, s = tx.update(jnp.asarray(g), s)
        np.testing.assert_allclose(got, u, rtol=1e-12)


def test_decays_changed_between_steps_keep_the_correction_exact():
    """A mass computed from the step count would be wrong after the change."""
    tx = fx.chain(fx.scale_by_moments(0.9, None), fx.bias_correct())
    s = tx.init(jnp.zeros(3))
    for b in (0.9, 0.99, 0.0, 0.5):
        u, s = tx.replace(b1=b).update(jnp.ones(3), s)
        np.testing.assert_allclose(u, 1, atol=1e-6)


def test_complex_parameters(x64):
    """The second moment is real: |g|^2. Equal to Adam on the modulus and phase by hand."""
    rng = np.random.default_rng(3)
    g = jnp.asarray(rng.normal(size=4) + 1j * rng.normal(size=4))
    tx = fx.adam(LR, eps=1e-3)
    s = tx.init(g)
    u, s = tx.update(g, s, g)
    u2, s = tx.update(g, s, g)
    assert s["scale_by_moments"].nu.dtype == jnp.float64
    g = np.asarray(g)
    np.testing.assert_allclose(u, -LR * g / (np.abs(g) + 1e-3), rtol=1e-12)
    np.testing.assert_allclose(u2, u, rtol=1e-12)


def test_uncorrected_rmsprop_and_momentum_are_adam_with_words_left_out():
    corrected = fx.adam(1e-3)
    words = [tx for _, tx in corrected.blocks]
    assert fx.chain(words[0], words[2]) == moments(lr=1e-3)
    assert corrected.replace(b1=None) == moments(fx.bias_correct(), lr=1e-3, b1=None)
    assert fx.chain(words[0].replace(b1=None), words[2]) == fx.rmsprop(
        1e-3, 0.999, eps_in_sqrt=False
    )
    assert fx.chain(words[0].replace(b2=None, b1=fx.trace(0.9)), words[2]) == fx.momentum(1e-3)


def test_float64_error_is_seen_in_64_bit_only():
    """The oracle comparison is sharp: in float32 it is far above the float64 bar."""
    with enable_x64():
        exact = errors("adam", jnp.float64, 20, 1.0, 1e-8).max()
    assert exact < 1e-12 < errors("adam", jnp.float32, 20, 1.0, 1e-8).max()
