"""Norms of extreme numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import enable_x64

import adamfx as fx
from adamfx.engine import norms


def test_norms_up_to_the_largest_number():
    for x in (1e37, 1e38, 3e38):
        g = jnp.array([x, 0.0])
        np.testing.assert_allclose(fx.global_norm(g), x, rtol=1e-5)
        u, _ = fx.clip_by_global_norm(1.0).update(g, {"count": jnp.int32(0)})
        # A factor below 1.2e-38 would be flushed to 0; the smallest there is leaves u up to 3.6.
        assert 0.99 < u[0] < 4
        assert u[1] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_sums_where_there_is_no_float64(dtype):
    tiny, largest = (float(x) for x in (jnp.finfo(dtype).tiny, jnp.finfo(dtype).max))
    least, most = {"float32": (1e-32, 2e35), "float64": (1e-295, 1e303)}[dtype]
    with enable_x64():
        meet = (1e-4, 0.1, 1.0, 10.0, 100.0, 1e4)  # where the one sum takes over from the other
        for size in (least, 1e-30, 1e-25, 1e-16, 1e-14, *meet, 1e18, 1e20, 1e30, most):
            x = np.array([3, -4, 0, 0.5, 2], dtype) * np.asarray(size, dtype)
            wanted = np.sqrt(np.sum(np.square(x / size, dtype=np.longdouble))) * np.longdouble(size)
            for xs in ([x], [x[:2], x[2:]], list(x.reshape(5, 1))):
                found = norms._in_own_dtype([jnp.asarray(y) for y in xs])
                assert found.dtype == dtype
                np.testing.assert_allclose(
                    np.longdouble(found), wanted, rtol=1e-6, err_msg=str(size)
                )
        for x in (np.inf, np.nan):
            found = norms._in_own_dtype([jnp.asarray([1, x, 1e30], dtype)])
            assert not np.isfinite(found)
        assert norms._in_own_dtype([jnp.full(3, largest, dtype)]) == np.inf
        assert norms._in_own_dtype([jnp.full(3, tiny, dtype)]) <= 2 * tiny
        assert norms._in_own_dtype([jnp.zeros(3, dtype)]) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_single_number_in_a_compiled_program(dtype):
    """(c x)(c x) is not (c c)(x x), where c c is infinite."""
    with enable_x64():
        for norm in (lambda x: norms._in_own_dtype([x]), fx.global_norm):
            for x in (0.0, 1e-32, 1e-30, 1.0, 1e30, 1e36):
                for shape in ((), (1,), (1, 1)):
                    found = jax.jit(norm)(jnp.full(shape, x, dtype))
                    np.testing.assert_allclose(np.float64(found), x, rtol=1e-6)


def test_a_tpu_whose_float64_is_narrow_gets_no_float64():
    def program(platform):
        traced = jax.jit(fx.global_norm).trace(jnp.ones((3, 3)))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "f64" in program("cpu")
    assert "f64" in program("cuda")
    assert "f64" not in program("tpu")


def test_vectors_taken_together_count_all():
    rng = np.random.default_rng(0)
    sizes = [7] * 40 + [3] * 5 + [5000]
    leaves = [rng.normal(size=n).astype(np.float32) for n in sizes]
    wanted = np.sqrt(sum(np.sum(np.square(x, dtype=float)) for x in leaves))
    for norm in (fx.global_norm, jax.jit(fx.global_norm)):
        np.testing.assert_allclose(norm(leaves), wanted, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-25, 1.0, 1e25])
def test_constants_in_a_compiled_program(value):
    """Of which the compiler squares the scales instead."""
    x = np.full((2, 3), value, np.float32)
    want = value * np.sqrt(2)
    for norm in (lambda x: norms.norm_over(x, 0)[0, 0], lambda x: norms.norm_over(x[:, :1])):
        np.testing.assert_allclose(jax.jit(lambda f=norm: f(jnp.asarray(x)))(), want, rtol=1e-6)
    one = jax.jit(lambda: norms._in_own_dtype([jnp.asarray(x[:, 0])]))
    np.testing.assert_allclose(one(), want, rtol=1e-6)


def test_a_quotient_is_not_divided_again():
    """Of (a / b) / c a compiler makes a / (b c), which is 0 / 0 where b c vanishes."""

    @jax.jit
    def size(a, b):
        return norms.norm_over(a / b)

    a, b = jnp.zeros(2), jnp.full(2, 1e-18)
    assert size(a, b) == 0
    assert jax.grad(size, argnums=1)(a, b).tolist() == [0, 0]
