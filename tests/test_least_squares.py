"""Sums of squares by Optimistix, against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import adamfx as fx

if tuple(map(int, jax.__version__.split(".")[:2])) < (0, 10):
    pytest.skip("the extra least-squares needs JAX 0.10", allow_module_level=True)
optimistix = pytest.importorskip("optimistix")

X = np.linspace(0.0, 2.0, 30)
Y = 1.7 * np.exp(-1.3 * X) + 0.05 * np.cos(9 * X)  # no fit is exact


def residuals(p, batch):
    x, y = batch
    return {"fit": p["a"] * jnp.exp(p["b"] * x) - y, "prior": 0.1 * p["b"]}


START = {"a": jnp.asarray(1.0), "b": jnp.asarray(0.0)}
METHODS = ["levenberg_marquardt", "gauss_newton", "dogleg"]


@pytest.mark.parametrize("method", METHODS)
def test_finds_what_scipy_finds(x64, method):
    def plain(v):
        return np.append(v[0] * np.exp(v[1] * X) - Y, 0.1 * v[1])

    want = scipy.optimize.least_squares(plain, [1.0, 0.0], xtol=1e-12, ftol=1e-12, gtol=1e-12)
    start = jax.tree.map(lambda x: x.astype(jnp.float64), START)
    found = fx.least_squares(residuals, start, (X, Y), method=method, rtol=1e-10, atol=1e-10)
    assert found.reason == "converged"
    np.testing.assert_allclose([found.params["a"], found.params["b"]], want.x, rtol=1e-7)
    np.testing.assert_allclose(found.loss, want.cost, rtol=1e-10)
    assert found.steps <= 3 * want.nfev


def test_what_is_no_float_stays_and_steps_are_counted():
    start = {**START, "n": jnp.arange(3), "text": "as it was"}
    batch = (jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32))
    found = fx.least_squares(residuals, start, batch)
    assert found.reason == "converged"
    assert found.params["text"] == "as it was"
    np.testing.assert_array_equal(found.params["n"], [0, 1, 2])
    assert found.params["a"].dtype == jnp.float32
    short = fx.least_squares(residuals, start, batch, max_steps=2)
    assert (short.reason, short.steps) == ("steps", 2)
    assert short.loss > found.loss


def test_a_solver_of_ones_own():
    batch = (jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32))
    solver = optimistix.LevenbergMarquardt(rtol=1e-4, atol=1e-4)
    assert fx.least_squares(residuals, START, batch, method=solver).reason == "converged"
    with pytest.raises(ValueError, match="give the tolerances to the solver"):
        fx.least_squares(residuals, START, batch, method=solver, rtol=1e-3)


def test_misuse_is_named():
    batch = (jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32))
    with pytest.raises(ValueError, match="params hold no array of floats"):
        fx.least_squares(residuals, {"a": 1}, batch)
    with pytest.raises(ValueError, match="not finite at the start"):
        fx.least_squares(residuals, {**START, "a": jnp.asarray(jnp.inf)}, batch)
    with pytest.raises(ValueError, match="method must be one of 'levenberg_marquardt'"):
        fx.least_squares(residuals, START, batch, method="newton")


def test_our_sentences_minimize_inside_optimistix():
    def loss(x, _):
        return jnp.sum((x - 3.0) ** 2)

    solver = optimistix.OptaxMinimiser(fx.adam(0.1), rtol=1e-4, atol=1e-4)
    with jax.numpy_dtype_promotion("standard"):
        found = optimistix.minimise(loss, solver, jnp.zeros(2), max_steps=1000)
    np.testing.assert_allclose(found.value, 3.0, atol=0.05)
