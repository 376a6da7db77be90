"""Blocks of a user's own, and what the other blocks promise beyond the laws."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from table import tree

import adamfx as fx


@fx.block
def clumsy(threshold: fx.Dynamic, n: int = 2, mode: str = "up", verbose: bool = False):
    """Branches on its arguments, loops over an integer, prints: the author thinks of one array."""
    if threshold is None or n < 1:
        raise ValueError(f"clumsy: n must be at least 1, got {n}")
    if verbose:
        print("n is", n)

    def leaf(u, here):
        for _ in range(n):
            u = u / 2 if mode == "up" else u * 2
        return jnp.where(jnp.abs(u) > threshold, u, 0)

    return fx.leafwise(leaf)


@fx.block
def count_signs(decay: fx.Exact = 0.5):
    """Remembers an array per leaf and a scalar for all leaves."""

    def init(p):
        return {"signs": jnp.zeros_like(p)}

    def init_shared():
        return {"steps": 0.0}

    def shared(step):
        return None, {"steps": step.memory.steps + 1}

    def leaf(u, here):
        signs = decay * here.memory.signs + jnp.sign(u)
        return u, {"signs": signs}

    return fx.leafwise(leaf, init=init, shared=shared, init_shared=init_shared)


@fx.block
def add_noise(scale: fx.Dynamic):
    """A pair over trees, with an extra argument."""

    def init(params):
        return {"last": jnp.zeros(())}

    def update(updates, state, params=None, *, temperature=1.0, **extra):
        shift = scale * temperature
        return jax.tree.map(lambda u: u + shift, updates), {"last": jnp.asarray(shift, "float32")}

    return init, update


@pytest.mark.parametrize(
    "tx",
    [
        clumsy(0.1),
        clumsy(0.1, 3, mode="down", verbose=True),
        fx.chain(clumsy(0.0, n=1), count_signs(), fx.adam(0.1)),
        count_signs(0.25),
        fx.chain(fx.scale_by_moments(0.9, 0.999), add_noise(0.5), fx.scale_by_lr(0.1)),
    ],
    ids=repr,
)
def test_a_users_block_works_everywhere(tx):
    p, g = tree(), tree(seed=1)
    assert eval(repr(tx), {**vars(fx), **globals()}) == tx
    s = tx.init(p)
    once = tx.update(g, s, p)
    chex.assert_trees_all_close(jax.jit(tx.update)(g, s, p), once, rtol=1e-6)
    chex.assert_trees_all_close(jax.jit(lambda tx: tx.update(g, s, p))(tx), once, rtol=1e-6)
    with jax.disable_jit():
        chex.assert_trees_all_close(tx.update(g, s, p), once, rtol=1e-6)
    (_, s3), _ = jax.lax.scan(lambda c, _: (tx.step(g, c[1], c[0]), None), (p, s), None, length=3)
    assert jax.tree.structure(s3) == jax.tree.structure(s)


def test_memory_is_read_by_name():
    tx = fx.chain(count_signs(), fx.adam(0.1))
    s = tx.init(tree())
    _, s = tx.update(tree(seed=1), s)
    assert s["count_signs"].steps == 1
    chex.assert_trees_all_equal(s["count_signs"].signs, jax.tree.map(jnp.sign, tree(seed=1)))
    with pytest.raises(AttributeError, match="no 'mu' here; this block remembers signs, steps"):
        _ = s["count_signs"].mu


def test_printing_shows_every_line_with_jit_disabled(capsys):
    tx = clumsy(0.1, verbose=True)
    s = tx.init(jnp.ones(2))
    capsys.readouterr()
    with jax.disable_jit():
        tx.update(jnp.ones(2), s)
        tx.update(jnp.ones(2), s)
    assert capsys.readouterr().out.count("n is 2") >= 2


def test_extra_arguments_arrays_and_callables():
    tx = fx.chain(add_noise(0.5), fx.scale(2.0))
    s = tx.init(jnp.zeros(2))
    u, s = tx.update(jnp.zeros(2), s, temperature=jnp.float32(3.0), loss_fn=lambda p: p, name="x")
    np.testing.assert_allclose(u, 3.0)
    u, s = tx.update(jnp.zeros(2), s)
    np.testing.assert_allclose(u, 1.0)


def test_state_keys():
    tx = fx.chain(fx.scale_by_moments(0.9, None), fx.sign(), fx.adam(0.1))
    assert list(tx.init(jnp.ones(2))) == [
        "count",
        "scale_by_moments",
        "scale_by_moments_2",
        "scale_by_lr",
    ]
    slow = fx.chain(fx.named("slow", fx.scale_by_moments(0.9, None)), fx.adam(0.1))
    assert list(slow.init(jnp.ones(2))) == ["count", "slow", "scale_by_moments", "scale_by_lr"]


def test_stateless_blocks_and_schedules_keep_the_checkpoint():
    p = tree()
    plain = fx.adam(1e-3)
    more = fx.chain(
        fx.clip(1.0), fx.adamw(fx.warmup_cosine_decay_schedule(0.0, 1.0, 5, 20)), fx.scale(1.0)
    )
    assert jax.tree.structure(plain.init(p)) == jax.tree.structure(more.init(p))
    more.update(p, plain.init(p), p)


def test_the_rate_last_applied_is_in_the_state():
    tx = fx.adam(fx.piecewise_constant_schedule(1.0, {2: 0.1}))
    s = tx.init(jnp.ones(2))
    seen = []
    for _ in range(4):
        _, s = tx.update(jnp.ones(2), s)
        seen.append(float(s["scale_by_lr"].learning_rate))
    np.testing.assert_allclose(seen, [1.0, 1.0, 0.1, 0.1])


def test_the_counter_stops_and_never_wraps():
    tx = fx.adam(0.1)
    s = tx.init(jnp.ones(2))
    s = fx.set(s, count=2**31 - 2)
    for _ in range(3):
        u, s = tx.update(jnp.ones(2), s)
    assert s["count"] == 2**31 - 2
    assert np.isfinite(u).all()


def test_weight_decay_coupled_decoupled_independent():
    p, g, wd, lr = jnp.full(3, 2.0), jnp.full(3, 0.5), 0.1, 0.25
    sgd = fx.scale_by_lr(lr)
    sentences = {
        "coupled": (
            fx.chain(fx.add_decayed_weights(wd), fx.scale_by_moments(fx.trace(0.5), None), sgd)
        ),
        "decoupled": (
            fx.chain(fx.scale_by_moments(fx.trace(0.5), None), fx.add_decayed_weights(wd), sgd)
        ),
        "independent": fx.chain(
            fx.scale_by_moments(fx.trace(0.5), None),
            fx.scale_by_lr(lr, flip_sign=False),
            fx.add_decayed_weights(wd),
            fx.scale(-1.0),
        ),
    }
    m2 = {"coupled": 1.5 * (0.5 + 0.2), "decoupled": 1.5 * 0.5, "independent": 1.5 * 0.5}
    want = {
        "coupled": -lr * m2["coupled"],
        "decoupled": -lr * (m2["decoupled"] + wd * 2),
        "independent": -lr * m2["independent"] - wd * 2,
    }
    for name, tx in sentences.items():
        s = tx.init(p)
        _, s = tx.update(g, s, p)
        u, _ = tx.update(g, s, p)
        np.testing.assert_allclose(u, want[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "mask",
    [
        {"w": True, "w2": True, "b": False, "s": False},
        fx.ndim_at_least(2),
        fx.path_matches("w*"),
        fx.complement(fx.path_matches("b", "s")),
        lambda params: jax.tree.map(lambda x: x.ndim == 2, params),
    ],
    ids=["tree", "ndim", "path", "complement", "lambda"],
)
def test_masks(mask):
    p = tree()
    u, _ = fx.add_decayed_weights(0.5, mask).update(tree(scale=0.0), {"count": jnp.int32(0)}, p)
    for name, x in u.items():
        chex.assert_trees_all_close(x, 0.5 * p[name] if name[0] == "w" else 0 * p[name])


def test_a_decay_of_zero_reads_no_parameter():
    """Which would be 4 bytes more for each of them. The number that is compiled in, that is."""
    u, p = jnp.ones(2), jnp.array([jnp.inf, 1.0])
    update = jax.jit(fx.add_decayed_weights(0.0).update)
    np.testing.assert_array_equal(update(u, {"count": jnp.int32(0)}, p)[0], u)


def test_global_norm():
    x = np.random.default_rng(0).normal(size=100).astype(np.float32)
    exact = np.linalg.norm(x.astype(float))
    np.testing.assert_allclose(
        fx.global_norm({"a": x[:30], "b": [x[30:], np.arange(3)]}), exact, 1e-6
    )
    for scale in (1e-30, 1e-20, 1e20, 1e30):
        np.testing.assert_allclose(
            fx.global_norm(jnp.asarray(x * np.float32(scale))), exact * scale, 2e-6
        )
    assert fx.global_norm({}) == 0
    assert fx.global_norm(jnp.zeros(3)) == 0
    assert fx.global_norm(jnp.asarray([1.0, jnp.inf])) == jnp.inf
    assert np.isnan(fx.global_norm(jnp.asarray([1.0, jnp.nan])))
    np.testing.assert_allclose(fx.global_norm(jnp.asarray([3 + 4j])), 5, 1e-6)
    assert jax.grad(fx.global_norm)(jnp.zeros(3)).tolist() == [0, 0, 0]
    leaves = [jnp.full(1000, 0.01, jnp.bfloat16)] * 100  # bf16 sums would stop growing
    np.testing.assert_allclose(jax.jit(fx.global_norm)(leaves), 0.01 * 100000**0.5, 2e-3)
    assert fx.global_norm(jnp.full(10, 300, jnp.float16)) < 1000


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25, 1e38])
def test_the_derivative_of_a_norm(scale):
    """x / |x|, where squares overflow or vanish too; the second one is (1 - u u^T) / |x|."""
    x = np.random.default_rng(0).normal(size=5).astype(np.float32) * np.float32(scale)
    unit = x.astype(float) / np.linalg.norm(x.astype(float))
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derivative(fx.global_norm)(x), unit, rtol=1e-5)
    if scale < 1e38:  # where 1 / |x| is a normal number
        second = (np.eye(5) - np.outer(unit, unit)) / np.linalg.norm(x.astype(float))
        found = jax.hessian(fx.global_norm)(x)
        np.testing.assert_allclose(found, second, rtol=1e-4, atol=1e-6 / scale)
    both = jax.vmap(fx.global_norm)(jnp.stack([x, x / np.float32(scale)]))  # each by its own scale
    np.testing.assert_allclose(
        both, np.linalg.norm(x.astype(float)) * np.array([1, 1 / scale]), 1e-5
    )


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e25])
def test_clipping_by_norm(scale):
    g = jax.tree.map(lambda x: x * np.float32(scale), tree(seed=1))
    u, _ = fx.clip_by_global_norm(0.5).update(g, {"count": jnp.int32(0)})
    norm = float(fx.global_norm(g))
    factor = min(1, 0.5 / norm)
    chex.assert_trees_all_close(u, jax.tree.map(lambda x: x * np.float32(factor), g), rtol=1e-5)
    u, _ = fx.clip_by_norm(0.5).update(g, {"count": jnp.int32(0)})
    for name, x in u.items():
        factor = min(1, 0.5 / float(fx.global_norm(g[name])))
        np.testing.assert_allclose(x, g[name] * np.float32(factor), rtol=1e-5)


def test_the_clip_factor_needs_no_pass_of_its_own():
    """clip_by_global_norm adds no call per leaf outside the leaf function."""

    def equations(tx):
        p = {f"w{i}": jnp.zeros(4) for i in range(10)}
        s = tx.init(p)
        return [
            e
            for e in jax.make_jaxpr(tx.update)(p, s, p).eqns
            if e.primitive.name in ("jit", "pjit")
        ]

    plain, clipped = (
        equations(fx.adamw(0.1)),
        equations(fx.chain(fx.clip_by_global_norm(1.0), fx.adamw(0.1))),
    )
    assert len(clipped) == len(plain)


def test_step_rounds_once():
    """bf16 parameters: p + u in float32, then rounded; update rounds u first."""
    p = jnp.asarray([1.0, 256.0], jnp.bfloat16)
    g = jnp.asarray([1.0, 1.0], jnp.float32)
    tx = fx.sgd(1.00390625)  # not a bf16 number
    q, _ = tx.step(g, tx.init(p), p)
    exact = (np.asarray(p, np.float32) - np.float32(1.00390625)).astype(jnp.bfloat16)
    assert q.tolist() == exact.tolist()


def test_low_precision_moments_on_request():
    p = tree(jnp.bfloat16)
    s = fx.adam(0.1, mu_dtype=jnp.bfloat16).init(p)["scale_by_moments"]
    assert s.mu["w"].dtype == jnp.bfloat16
    assert s.nu["w"].dtype == jnp.float32
    tx = fx.chain(fx.scale_by_moments(0.9, 0.999, nu_dtype="bfloat16"), fx.bias_correct())
    s = tx.init(p)
    _, s = tx.update(p, s)
    assert s["scale_by_moments"].nu["w"].dtype == jnp.bfloat16
    assert repr(fx.adam(0.1, mu_dtype=jnp.bfloat16).blocks[0][1]).endswith("mu_dtype='bfloat16')")


def test_bf16_second_moment_follows_falling_gradients():
    """What users run into, row 3: float32 state by default."""
    p = jnp.ones(4, jnp.bfloat16)
    tx = fx.adam(1e-3)
    s = tx.init(p)
    step = jax.jit(tx.update)
    for t in range(3000):
        _, s = step(jnp.full(4, 1.0 if t < 1000 else 0.01, jnp.bfloat16), s, p)
    np.testing.assert_allclose(s["scale_by_moments"].nu[0], 0.632 * 0.1353, rtol=0.01)


def test_hyperparameters_are_never_rounded_below_float32():
    """What users run into, row 2: bf16 parameters, array hyperparameters; b2 must not become 1."""
    p = jnp.ones(4, jnp.bfloat16)
    tx = fx.live(fx.adamw(1e-3, b1=jnp.float32(0.9), b2=jnp.float32(0.999)))
    s = tx.init(p)
    assert {x.dtype for x in fx.hyperparams(s).values()} == {jnp.dtype("float32")}
    u, s = tx.update(p, s, p)
    np.testing.assert_allclose(u.astype("float32"), -1e-3 * (1 + 1e-4), rtol=1e-2)


@pytest.mark.parametrize("how", ["in chain", "around"])
def test_foreign_state_keeps_its_dtype(how):
    """optax.trace under ours gets updates in the parameter's dtype; ours under optax too."""
    p = jnp.ones(4, jnp.bfloat16)
    if how == "in chain":
        tx = fx.chain(fx.scale_by_moments(0.9, 0.999), optax.trace(0.9), fx.scale_by_lr(0.1))
    else:
        tx = optax.chain(fx.scale_by_moments(0.9, 0.999), optax.trace(0.9))
    s = tx.init(p)
    u, after = tx.update(p, s, p)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(s)]
    assert u.dtype == jnp.bfloat16


def test_live_hyperparameters():
    tx = fx.chain(fx.clip(1.0), fx.live(fx.adamw(1e-3, weight_decay=0.1)))
    p = tree()
    s = tx.init(p)
    names = {"live.scale_by_lr.learning_rate", "live.add_decayed_weights.weight_decay"}
    assert set(fx.hyperparams(s)) == names
    s = fx.set_hyperparams(s, learning_rate=0.5, weight_decay=0)
    u, s1 = tx.update(tree(seed=1), s, p)
    want = fx.chain(fx.clip(1.0), fx.adamw(0.5, weight_decay=0.0))
    chex.assert_trees_all_close(u, want.update(tree(seed=1), want.init(p), p)[0], rtol=1e-6)
    assert s1["live"]["scale_by_lr"].learning_rate == 0.5
    with pytest.raises(
        KeyError, match="set_hyperparams: 'lr' is not a hyperparameter; known are live"
    ):
        fx.set_hyperparams(s, lr=1.0)
    with pytest.raises(ValueError, match=r"learning_rate has shape \(\) in the state, got \(2,\)"):
        fx.set_hyperparams(s, learning_rate=jnp.ones(2))
    assert fx.hyperparams(fx.adam(0.1).init(p)) == {}


def test_schedules_stand_wherever_a_number_can():
    ramp = fx.linear_schedule(0.0, 1.0, 10)
    assert float(ramp(5)) == 0.5
    np.testing.assert_allclose(ramp(jnp.arange(3)), [0, 0.1, 0.2], rtol=1e-6)
    assert float(fx.inverse_sqrt_schedule(1.0)(jnp.int32(3))) == 0.5
    np.testing.assert_allclose(fx.lambda_decay_schedule(0.9, 0.5)(2), 0.225, rtol=1e-6)
    half = fx.warmup_schedule(0.0, 4, fx.inverse_sqrt_schedule(1.0))
    np.testing.assert_allclose([half(0), half(2), half(4), half(7)], [0, 0.5, 1, 0.5], rtol=1e-6)
    assert jax.grad(lambda s: s(5))(ramp) == fx.linear_schedule(
        jnp.float32(0.5), jnp.float32(0.5), 10
    )
    tx = fx.chain(fx.clip(ramp), fx.add_decayed_weights(ramp), fx.scale_by_lr(ramp))
    assert "scale_by_lr.learning_rate.end_value" in tx.hyperparams
    assert (
        tx.replace(**{"scale_by_lr.learning_rate": 0.1}).hyperparams["scale_by_lr.learning_rate"]
        == 0.1
    )


def test_a_cosine_ends_at_alpha():
    half = fx.cosine_decay_schedule(2.0, 10, alpha=0.25)
    np.testing.assert_allclose(
        [half(0), half(5), half(10), half(99)], [2, 1.25, 0.5, 0.5], rtol=1e-6
    )
