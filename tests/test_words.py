"""Every word before or after an optimizer against its oracle, and schedules: papers_elementwise.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import papers_elementwise as papers_of
import pytest

import adamfx as fx

STEPS = 30
SHAPES = {"w": (3, 4), "b": (5,), "s": (), "k": (2, 3, 4), "row": (1, 6), "conv": (3, 3, 2, 4)}
RATE = fx.linear_schedule(0.5, 0.01, STEPS)


def inputs(scale=1.0):
    """Updates and parameters of all steps, of sizes a million apart; each is zero at one step."""
    rng = np.random.default_rng(0)
    u, p = ({n: rng.normal(size=(STEPS, *s)) for n, s in SHAPES.items()} for _ in "up")
    for x, zero in ((u, 7), (p, 11)):
        for n, shape in SHAPES.items():
            sizes = 10 ** rng.uniform(-3, 3, size=(STEPS, *[1] * len(shape)))
            sizes[zero] = 0
            x[n] = x[n] * sizes
    return {n: scale * x for n, x in u.items()}, p


def run(tx, u, p):
    """What a sentence makes of all updates, each with its parameters."""
    u, p = jax.tree.map(jnp.asarray, (u, p))

    def one(s, at):
        out, s = tx.update(at[0], s, at[1])
        return s, out

    s = tx.init(jax.tree.map(lambda x: x[0], p))
    return jax.tree.map(np.asarray, jax.jit(lambda s: jax.lax.scan(one, s, (u, p))[1])(s))


def check(got, want, bar=1e-12, size=None):
    """The error of every step, relative to its largest number (and of `size`, where sums cancel)."""
    for n, x in want.items():
        flat = lambda y: np.abs(y).reshape(STEPS, -1).max(axis=1)  # noqa: E731
        largest = np.maximum(flat(x), 0 if size is None else flat(size[n]))
        error = flat(got[n] - x)
        assert np.isfinite(got[n]).all(), n
        assert (error <= bar * largest).all(), (n, (error / np.where(largest, largest, 1)).max())


def per_leaf(oracle):
    return lambda u, p: {n: oracle(u[n], p[n]) for n in u}


def of_u(oracle, **kwargs):
    return per_leaf(lambda u, p: oracle(u, **kwargs))


def of_both(oracle, *args, **kwargs):
    return per_leaf(lambda u, p: oracle(u, p, *args, **kwargs))


WORDS = {
    "mars": (fx.mars(), of_u(papers_of.mars)),
    "mars with all": (
        fx.mars(0.5, 0.9, 3.0),
        of_u(papers_of.mars, gamma=0.5, b1=0.9, max_norm=3.0),
    ),
    "grokfast": (fx.grokfast(), of_u(papers_of.grokfast)),
    "grokfast with all": (fx.grokfast(0.5, 5.0), of_u(papers_of.grokfast, alpha=0.5, lamb=5.0)),
    "centralize": (fx.centralize(), of_u(papers_of.centralize)),
    "centralize kernels": (fx.centralize(-1), of_u(papers_of.centralize, axis=-1)),
    "adaptive_grad_clip": (
        fx.adaptive_grad_clip(0.1),
        of_both(papers_of.adaptive_grad_clip, 0.1),
    ),
    "adaptive_grad_clip with all": (
        fx.adaptive_grad_clip(2.0, 0.5, ()),
        of_both(papers_of.adaptive_grad_clip, 2.0, eps=0.5, axis=()),
    ),
    "cautious_weight_decay": (
        fx.cautious_weight_decay(0.3),
        of_both(papers_of.cautious_weight_decay, 0.3),
    ),
    "clip_by_block_rms": (
        fx.clip_by_block_rms(0.7),
        of_u(papers_of.clip_by_block_rms, threshold=0.7),
    ),
    "clip_update_norm": (fx.clip_update_norm(0.1), of_both(papers_of.clip_update_norm, 0.1)),
    "clip_update_norm with all": (
        fx.clip_update_norm(2.0, 0.5),
        of_both(papers_of.clip_update_norm, 2.0, eps=0.5),
    ),
    "normalize_by_update_norm": (
        fx.normalize_by_update_norm(),
        lambda u, p: papers_of.normalize_by_update_norm(u),
    ),
    "normalize_by_update_norm with all": (
        fx.normalize_by_update_norm(-3.0, 0.1),
        lambda u, p: papers_of.normalize_by_update_norm(u, -3.0, 0.1),
    ),
    "scale_by_param_block_norm": (
        fx.scale_by_param_block_norm(),
        of_both(papers_of.scale_by_param_block_norm),
    ),
    "scale_by_param_block_norm of one": (
        fx.scale_by_param_block_norm(1.0),
        of_both(papers_of.scale_by_param_block_norm, 1.0),
    ),
    "scale_by_param_block_rms": (
        fx.scale_by_param_block_rms(),
        of_both(papers_of.scale_by_param_block_rms),
    ),
    "scale_by_param_block_rms of one": (
        fx.scale_by_param_block_rms(1.0),
        of_both(papers_of.scale_by_param_block_rms, 1.0),
    ),
    "uw_floor": (fx.uw_floor(), of_both(papers_of.uw_floor)),
    "uw_floor of rows": (
        fx.uw_floor(2.0, per_row=True),
        of_both(papers_of.uw_floor, 2.0, per_row=True),
    ),
    "keep_params_nonnegative": (
        fx.keep_params_nonnegative(),
        of_both(papers_of.keep_params_nonnegative),
    ),
    "optimistic": (
        fx.scale_by_optimistic_gradient(0.5, RATE),
        of_u(papers_of._optimistic, alpha=0.5, beta=RATE),
    ),
}
# These end in new parameters: rounded as these are, however small the step.
STEPPED = {
    "hyperball": (fx.hyperball(0.1), of_both(papers_of.hyperball, 0.1)),
    "hyperball by schedule": (fx.hyperball(RATE), of_both(papers_of.hyperball, RATE)),
    "radial_brake": (fx.radial_brake(0.1), of_both(papers_of.radial_brake, 0.1)),
    "radial_brake by schedule": (fx.radial_brake(RATE), of_both(papers_of.radial_brake, RATE)),
}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", WORDS)
def test_a_word_equals_its_paper(name, scale, x64):
    tx, oracle = WORDS[name]
    u, p = inputs(scale)
    # A mean is taken off, a difference amplified: what is lost is of the size of the update.
    check(run(tx, u, p), oracle(u, p), size=u)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", STEPPED)
def test_a_word_that_steps_equals_its_paper(name, scale, x64):
    tx, oracle = STEPPED[name]
    u, p = inputs(scale)
    check(run(tx, u, p), oracle(u, p), size=p)


def test_cautious_compares_with_the_gradient(x64):
    """The first moment is the update, its gradient what it is compared with."""
    g, p = inputs()
    for tx in (fx.scale_by_moments(0.9, None), fx.scale(-1.0), fx.identity()):
        u = run(tx, g, p)
        want = {n: papers_of.cautious(u[n], g[n]) for n in g}
        check(run(fx.chain(tx, fx.cautious()), g, p), want)


def test_cautious_keeps_a_thousandth_at_least(x64):
    """Of 4,000 numbers one is kept: it is multiplied by 1,000, not by 4,000."""
    g = np.ones(4000)
    tx = fx.chain(fx.scale_by_moments(fx.trace(0.5), None), fx.cautious())
    s = tx.init(jnp.asarray(g))
    _, s = tx.update(jnp.asarray(g), s)
    second = -0.1 * g
    second[7] = 0.1
    u, _ = tx.update(jnp.asarray(second), s)
    want = papers_of.cautious((0.5 * g + second)[None], second[None])[0]
    np.testing.assert_allclose(u, want, rtol=1e-12)
    assert want[7] == pytest.approx(0.6 * 1000)


def test_hyperball_keeps_every_radius(x64):
    u, p = inputs()
    moved = run(fx.hyperball(0.3), u, p)
    for n, x in p.items():
        axes = tuple(range(1, x.ndim)) if x.ndim < 3 else (-2, -1)
        norms = [np.sqrt((y * y).sum(axis=axes)) for y in (x, x + moved[n])]
        np.testing.assert_allclose(*norms, rtol=1e-12)


def test_scale_by_path(x64):
    """The first pattern that matches says the factor."""
    u, p = inputs()
    tx = fx.scale_by_path({"w": 2.0, "*o*": 0.5, "row": 100.0}, default=-1.0)
    factors = {"w": 2.0, "row": 0.5, "conv": 0.5, "b": -1.0, "s": -1.0, "k": -1.0}
    check(run(tx, u, p), {n: factors[n] * x for n, x in u.items()})
    with pytest.raises(ValueError, match=r"'kernel' matches no parameter; the paths are \['b'\]"):
        run(fx.scale_by_path({"kernel": 2.0}), u, p)
    with pytest.raises(TypeError, match=r"factors must be a dict of pattern to number"):
        fx.scale_by_path({})


def test_noise_is_of_the_variance_that_it_says():
    """eta / t^gamma, without a mean; apart in every leaf, step and seed; the same once more."""
    eta, gamma, n = 0.3, 0.55, 40_000
    u = {name: np.zeros((STEPS, n), np.float32) for name in "ab"}
    noise = run(fx.add_noise(eta, gamma, seed=3), u, u)
    again, other = (run(fx.add_noise(eta, gamma, seed=s), u, u) for s in (3, 4))
    jax.tree.map(np.testing.assert_array_equal, noise, again)
    x = np.stack([noise["a"], noise["b"], other["a"]], axis=1).astype(np.float64)
    x = x / np.sqrt(eta / np.arange(1, STEPS + 1) ** gamma)[:, None, None]
    bound = 5 / np.sqrt(n)  # five standard deviations
    assert np.abs(x.mean(axis=-1)).max() < bound
    assert np.abs(x.var(axis=-1) - 1).max() < bound * np.sqrt(2)
    x = x.reshape(-1, n)
    correlations = x @ x.T / n - np.eye(len(x))
    assert np.abs(correlations).max() < 1.5 * bound


# ---- schedules -----------------------------------------------------------------------------------

CYCLES = (
    {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 20},
    {
        "init_value": 0.2,
        "peak_value": 0.5,
        "warmup_steps": 0,
        "decay_steps": 11,
        "end_value": 0.1,
        "exponent": 2.0,
    },
    {"init_value": 0.0, "peak_value": 0.3, "warmup_steps": 4, "decay_steps": 10},
)
POINTS = {10: 0.5, 25: 3.0, 40: 0.1}
SCHEDULES = {
    "wsd": (
        fx.warmup_stable_decay_schedule(2.0, 7, 20, 15, 0.5, 0.25),
        papers_of.wsd(2.0, 7, 20, 15, 0.5, 0.25),
    ),
    "wsd to zero": (fx.warmup_stable_decay_schedule(2.0, 7, 0, 9), papers_of.wsd(2.0, 7, 0, 9)),
    "power_cooling": (
        fx.power_cooling_schedule(0.1, 0.002, 50),
        papers_of.power_cooling(0.1, 0.002, 50),
    ),
    "power_cooling of one": (
        fx.power_cooling_schedule(0.1, 0.01, 30, 0.7),
        papers_of.power_cooling(0.1, 0.01, 30, 0.7),
    ),
    "sgdr": (fx.sgdr_schedule(CYCLES), papers_of.sgdr(CYCLES)),
    "lines": (
        fx.piecewise_interpolate_schedule("linear", 0.7, POINTS),
        papers_of.piecewise_interpolate("linear", 0.7, POINTS),
    ),
    "cosines": (
        fx.piecewise_interpolate_schedule("cosine", 0.7, POINTS),
        papers_of.piecewise_interpolate("cosine", 0.7, POINTS),
    ),
    "no boundary": (
        fx.piecewise_interpolate_schedule("cosine", 0.7),
        papers_of.piecewise_interpolate("cosine", 0.7),
    ),
    "power": (fx.power_schedule(0.25, 3.0), lambda count: 3.0 * count**0.25),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_equals_its_paper(name, x64):
    made, oracle = SCHEDULES[name]
    schedule = eval(repr(made), vars(fx))  # its numbers in 64 bits
    assert schedule == made
    counts = np.arange(70, dtype=np.int32)
    want = [oracle(int(n)) for n in counts]
    at_once = schedule(counts)
    one_by_one = jax.jit(functools.partial(jax.lax.map, schedule))(jnp.asarray(counts))
    for got in (at_once, one_by_one):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_what_a_schedule_refuses():
    with pytest.raises(TypeError, match=r"cosine_kwargs must be a list with a dict"):
        fx.sgdr_schedule({})
    with pytest.raises(ValueError, match=r"interpolate_type must be one of 'linear', 'cosine'"):
        fx.piecewise_interpolate_schedule("cubic", 1.0)
    with pytest.raises(ValueError, match=r"total_steps must be a whole number >= 1"):
        fx.power_cooling_schedule(1.0, 1.0, 0)
