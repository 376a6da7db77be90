"""What the architecture page promises: wrappers and blocks written from the documentation alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from table import run, signature, tree

import adamfx as fx


@fx.block
def ema_nesterov(inner: fx.Inner, strength: fx.Dynamic = 0.3, decay: fx.Exact = 0.99):
    """The gradient at p + strength b; b <- decay b + (1 - decay)(p' - p). arXiv 2605.25395."""

    def init(p):
        return {"b": jnp.zeros_like(p)}

    def run(leaves, memory, step):
        leaves, state = inner.run(leaves, memory.inner, step)

        def follow(b, u):
            return b + (1 - decay) * (u.astype(b.dtype) - b)

        return leaves, {"inner": state, "b": leaves.each(follow, memory.b, leaves.updates)}

    def gradient_at(leaves, memory, step):
        def ahead(p, b):
            return p.astype(b.dtype) + jnp.asarray(strength, b.dtype) * b

        return leaves.each(ahead, leaves.params, memory.b)

    return fx.treewise(run, inner, init=init, gradient_at=gradient_at)


@fx.block
def shampoo(decay: fx.Exact = 0.9, eps: fx.Exact = 1e-6):
    """L^(-1/4) g R^(-1/4) for matrices, g / sqrt(v) for the others."""

    def init(p):
        if p.ndim != 2:
            return {"nu": jnp.zeros_like(p)}
        m, n = p.shape
        return {
            "left": fx.along(jnp.zeros((m, m), p.dtype), (0, None)),
            "right": fx.along(jnp.zeros((n, n), p.dtype), (1, None)),
        }

    def root(a):
        w, q = jnp.linalg.eigh(a)
        return (q * jnp.maximum(w, eps)[None] ** -0.25) @ q.T

    def leaf(g, here):
        if g.ndim != 2:
            nu = here.memory.nu + (1 - decay) * (g * g - here.memory.nu)
            return g / jnp.sqrt(nu + eps), {"nu": nu}
        left = here.memory.left + (1 - decay) * (g @ g.T - here.memory.left)
        right = here.memory.right + (1 - decay) * (g.T @ g - here.memory.right)
        return root(left) @ g @ root(right), {"left": left, "right": right}

    return fx.leafwise(leaf, init=init, elementwise=False)


@fx.block
def dog(reps: fx.Exact = 1e-6):
    """DoG: the distance from the start over the root of the sum of squared gradients. Ivgi et al. 2023."""

    def init(p):
        return {"start": jnp.copy(p)}

    def sums(g, here):
        return {"g": jnp.sum(g * g), "d": jnp.sum((here.param - here.memory.start) ** 2)}

    def init_shared():
        return {"distance": reps, "total": 0.0}

    def shared(step):
        distance = jnp.maximum(step.memory.distance, jnp.sqrt(step.sums.d))
        total = step.memory.total + step.sums.g
        return distance / jnp.sqrt(total + 1e-8), {"distance": distance, "total": total}

    def leaf(g, here):
        return -here.shared * g, {"start": here.memory.start}

    return fx.leafwise(
        leaf, init=init, shared=shared, init_shared=init_shared, sums=sums, needs=("params",)
    )


OWN = {
    "ema_nesterov": ema_nesterov(fx.adamw(0.01)),
    "ema_nesterov of a chain": fx.chain(ema_nesterov(fx.adam(0.01)), fx.clip(1.0)),
    "shampoo": fx.chain(shampoo(), fx.sgd(0.1)),
    "dog": dog(),
    "nested": fx.accumulate(ema_nesterov(fx.skip_nonfinite(fx.chain(shampoo(), fx.sgd(0.1)))), 2),
    "lookahead around": fx.lookahead(ema_nesterov(fx.sgd(0.1)), 2, 0.5),
}


every = pytest.mark.parametrize("tx", OWN.values(), ids=OWN)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@fx.block
def polyak(bound: fx.Dynamic = 1.0):
    """u <- -min(bound, loss / |g|^2) g: a step that reads the loss. Loizou et al. 2021."""

    def sums(g, here):
        return {"square": jnp.sum(g * g)}

    def shared(step):
        value = jnp.asarray(step.extra["value"], step.sums.square.dtype)
        return jnp.minimum(bound, value / (step.sums.square + 1e-12))

    return fx.leafwise(lambda g, here: -here.shared * g, shared=shared, sums=sums, needs=("value",))


@fx.block
def layer_rates():
    """A static fact of each leaf: here its rate by depth."""

    def rates(params):
        names = sorted(params) if isinstance(params, dict) else ["x"]
        return {k: 0.1 * (i + 1) for i, k in enumerate(names)}

    return fx.leafwise(lambda u, here: -here.own * u, each=rates)


@every
def test_laws_of_what_users_write(tx):
    names = {f.__name__: f for f in (ema_nesterov, shampoo, dog)}
    assert fx.read(repr(tx), names) == tx
    p, s, u = run(tx, steps=3)
    with jax.disable_jit():
        close(run(tx, steps=3), (p, s, u))
    assert signature(tx.init(tree())) == signature(s)
    grads = jax.tree.map(lambda *x: jnp.stack(x), *[tree(seed=t + 1) for t in range(3)])
    scanned, _ = jax.lax.scan(
        lambda c, g: (tx.step(g, c[1], c[0]), None), (tree(), tx.init(tree())), grads
    )
    close(scanned, (p, s))
    missing, after = tx.step({**tree(seed=1), "w": None}, s, p)
    close(missing["w"], p["w"])
    assert signature(after) == signature(s)
    zero = jax.tree.map(jnp.zeros_like, p)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(tx.step(zero, tx.init(p), p)))
    copies = jax.tree.map(lambda x: jnp.stack([x, x]), (p, s))
    both = jax.vmap(lambda p, s: tx.step(tree(seed=9), s, p))(*copies)
    close(jax.tree.map(lambda x: x[0], both), tx.step(tree(seed=9), s, p))


def test_ema_nesterov_steps_unrounded_and_looks_ahead():
    tx = ema_nesterov(fx.sgd(2.0**-9), strength=0.5, decay=0.5)
    p = jnp.asarray([1.0, 256.0], jnp.bfloat16)
    s = tx.init(p)
    assert tx.gradient_at(s, p).tolist() == p.tolist()
    q, s = tx.step(jnp.ones(2, jnp.bfloat16), s, p)
    np.testing.assert_array_equal(s["ema_nesterov"].b, np.float32([-(2.0**-10)] * 2))
    assert q.dtype == jnp.bfloat16
    wide, s32 = jnp.float32([1.0, 256.0]), tx.init(jnp.ones(2))
    _, s32 = tx.step(jnp.ones(2), s32, wide)
    np.testing.assert_allclose(tx.gradient_at(s32, wide), wide - 2.0**-11)
    around = fx.accumulate(tx, 2)
    state = around.init(wide)
    for _ in range(2):
        wide, state = around.step(jnp.ones(2), state, wide)
    np.testing.assert_allclose(around.gradient_at(state, wide), wide - 2.0**-11)


def test_shampoo_is_its_formula(x64):
    g = {"w": np.random.default_rng(0).normal(size=(3, 4)), "b": np.ones(2)}
    tx = shampoo(0.9, 1e-12)
    s = tx.init(jax.tree.map(jnp.asarray, g))
    assert s["shampoo"].left["w"].shape == (3, 3)
    assert s["shampoo"].left["b"] is None
    u, _ = tx.update(jax.tree.map(jnp.asarray, g), s)

    def root(a):
        w, q = np.linalg.eigh(a)
        return (q * np.maximum(w, 1e-12) ** -0.25) @ q.T

    wanted = root(0.1 * g["w"] @ g["w"].T) @ g["w"] @ root(0.1 * g["w"].T @ g["w"])
    np.testing.assert_allclose(u["w"], wanted, rtol=1e-6)
    np.testing.assert_allclose(u["b"], 1 / np.sqrt(0.1 + 1e-12), rtol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("shape", [(8, 4), (8, 8)], ids=str)
def test_factors_lie_as_the_axes_of_their_parameter(axes, jitted, shape):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axes, axes))
    with jax.set_mesh(mesh):
        p = jax.device_put(np.ones(shape, np.float32), NamedSharding(mesh, P("x", "y")))
        s = (jax.jit(shampoo().init) if jitted else shampoo().init)(p)["shampoo"]
        for x, spec in ((s.left, P("x", None)), (s.right, P("y", None))):
            assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2), x.sharding


def test_parameters_with_reduced_axes():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        try:
            spec = P(None, reduced={"x"})
        except TypeError:
            pytest.skip("this JAX has no reduced axes")
        p = jax.device_put(jnp.ones(4), NamedSharding(mesh, P()))

        @jax.jit
        def init(p):
            return fx.adam(0.1).init(jax.sharding.reshard(p, spec))

        assert init(p)["scale_by_moments"].mu.shape == (4,)


def test_dog_sums_over_all_leaves(x64):
    tx, p = dog(), tree(np.float64)
    s, total, distance, start = tx.init(p), 0.0, 1e-6, p
    for t in range(4):
        g = tree(np.float64, seed=t + 1)
        total += sum(float((x**2).sum()) for x in g.values())
        moved = sum(float(((p[k] - start[k]) ** 2).sum()) for k in p)
        distance = max(distance, moved**0.5)
        u, s = tx.update(g, s, p)
        for k in p:
            np.testing.assert_allclose(u[k], -distance / np.sqrt(total + 1e-8) * g[k], rtol=1e-12)
        p = fx.apply_updates(p, u)


def test_a_block_that_reads_the_loss():
    tx, p = polyak(), {"a": jnp.ones(2), "b": jnp.ones(3)}
    s = tx.init(p)
    with pytest.raises(ValueError, match=r"update: polyak reads the loss; .*value=loss.*fx.fit"):
        tx.update(p, s, p)
    u, _ = tx.update(p, s, p, value=2.0)
    np.testing.assert_allclose(u["a"], -0.4, rtol=1e-6)
    wrapped = fx.chain(fx.skip_nonfinite(polyak()), fx.clip(10.0))
    u, _ = wrapped.update(p, wrapped.init(p), p, value=2.0)
    np.testing.assert_allclose(u["b"], -0.4, rtol=1e-6)
    result = fx.fit(
        lambda p, x: jnp.sum((p["a"] - x) ** 2), tx, p, [jnp.zeros(2)] * 9, progress=False
    )
    assert result.history["loss"][-1] < 0.01


def test_accumulate_averages_the_loss_that_goes_with_the_mean_gradient():
    tx, p = fx.accumulate(polyak(), 2), {"a": jnp.ones(2)}
    s = tx.init(p)
    _, s = tx.update({"a": jnp.asarray([1.0, 0.0])}, s, p, value=1.0)
    u, s = tx.update({"a": jnp.asarray([3.0, 0.0])}, s, p, value=2.0)
    np.testing.assert_allclose(u["a"], [-1.5 / 4 * 2, 0.0], rtol=1e-6)


def test_facts_of_each_leaf():
    p = tree()
    u, _ = layer_rates().update(p, layer_rates().init(p), p)
    for i, k in enumerate(sorted(p)):
        np.testing.assert_allclose(u[k], -0.1 * (i + 1) * p[k], rtol=1e-6)
    with pytest.raises(ValueError, match="layer_rates: the tree of facts does not match"):
        layer_rates().update([p], {"count": jnp.int32(0)}, [p])
