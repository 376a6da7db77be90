"""Twenty classical problems without constraints, for the tests of L-BFGS, and two peers on them.

PROBLEMS: name -> (value_fn, x0, f_star), value_fn of one array or a dict of arrays, x0 float64,
f_star the exact least value of the basin that x0 leads to, or None where there is no closed form.
MINIMUM: name -> (value, tolerance): where SciPy's L-BFGS-B ends from x0 with gtol 1e-9, or as far
as rounding lets it (0.0 where it found less than 1e-11), and how far from that value a run may be
that stops at |g|_inf <= 1e-5: wide for the flat bottoms (quartic, powell_singular) and logistic.
Numbers of a problem are cast to the dtype of x, so float32 works too (cast x0 first).
Sources: Moré, Garbow & Hillstrom 1981 (MGH, with their numbers), Surjanovic & Bingham 2013.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from conftest import enable_x64
from jax.flatten_util import ravel_pytree


def _as(values, x):
    return jnp.asarray(np.asarray(values), x.dtype)


def rosenbrock(x):
    """The chain of Rosenbrock's valleys; n = 2: MGH 1."""
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def beale(x):
    """MGH 5."""
    a, b = x[0], x[1]
    r1, r2, r3 = 1.5 - a * (1.0 - b), 2.25 - a * (1.0 - b**2), 2.625 - a * (1.0 - b**3)
    return r1**2 + r2**2 + r3**2


def booth(x):
    return (x[0] + 2.0 * x[1] - 7.0) ** 2 + (2.0 * x[0] + x[1] - 5.0) ** 2


def himmelblau(x):
    return (x[0] ** 2 + x[1] - 11.0) ** 2 + (x[0] + x[1] ** 2 - 7.0) ** 2


def powell_singular(x):
    """MGH 13: the Hessian at the minimum has rank 2."""
    a, b, c, d = x[0], x[1], x[2], x[3]
    singular = (b - 2.0 * c) ** 4 + 10.0 * (a - d) ** 4
    return (a + 10.0 * b) ** 2 + 5.0 * (c - d) ** 2 + singular


def wood(x):
    """MGH 14."""
    a, b, c, d = x[0], x[1], x[2], x[3]
    valleys = 100.0 * (b - a**2) ** 2 + (1.0 - a) ** 2 + 90.0 * (d - c**2) ** 2 + (1.0 - c) ** 2
    return valleys + 10.0 * (b + d - 2.0) ** 2 + 0.1 * (b - d) ** 2


def brown_badly_scaled(x):
    """MGH 4: minimum at (1e6, 2e-6)."""
    return (x[0] - 1e6) ** 2 + (x[1] - 2e-6) ** 2 + (x[0] * x[1] - 2.0) ** 2


def freudenstein_roth(x):
    """MGH 2: 0 at (5, 4), and the local minimum 48.98425 that the usual start leads to."""
    a, b = x[0], x[1]
    return (-13.0 + a + ((5.0 - b) * b - 2.0) * b) ** 2 + (
        -29.0 + a + ((b + 1.0) * b - 14.0) * b
    ) ** 2


def helical_valley(x):
    """MGH 7."""
    a, b, c = x[0], x[1], x[2]
    slope = jnp.arctan(b / jnp.where(a == 0.0, 1.0, a)) / (2.0 * np.pi)
    upright = jnp.where(b < 0.0, -0.25, 0.25)
    turn = jnp.where(a > 0.0, slope, jnp.where(a < 0.0, slope + 0.5, upright))
    radius = jnp.sqrt(a**2 + b**2)
    return 100.0 * ((c - 10.0 * turn) ** 2 + (radius - 1.0) ** 2) + c**2


def quartic(x):
    return jnp.sum((x - 1.0) ** 4)


def dixon_price(x):
    i = _as(np.arange(2.0, x.shape[0] + 1), x)
    return (x[0] - 1.0) ** 2 + jnp.sum(i * (2.0 * x[1:] ** 2 - x[:-1]) ** 2)


def ill_conditioned(x):
    """Eigenvalues from 1 to 1e6 in equal ratios."""
    return 0.5 * jnp.sum(_as(np.logspace(0.0, 6.0, x.shape[0]), x) * x**2)


def two_leaves(params):
    """A quadratic in two leaves, tied together by their sums."""
    w, b = params["w"], params["b"]
    away = w - _as(np.linspace(-1.0, 1.0, w.size).reshape(w.shape), w)
    own = jnp.sum(_as([[1.0], [10.0], [100.0]], w) * away**2)
    return own + jnp.sum((b - 3.0) ** 2) + 0.5 * (jnp.sum(w) - jnp.sum(b)) ** 2


_RNG = np.random.default_rng(0)
_X = _RNG.normal(size=(200, 20)) * np.logspace(0.0, 1.0, 20)
_LABELS = np.sign(_X @ (_RNG.normal(size=20) / np.logspace(0.0, 1.0, 20)) + _RNG.normal(size=200))


def logistic(x):
    """Logistic regression on 200 synthetic examples whose features differ 10 times in size."""
    margins = _as(_LABELS, x) * (_as(_X, x) @ x)
    return jnp.mean(jax.nn.softplus(-margins)) + 0.5e-3 * jnp.sum(x**2)


def styblinski_tang(x):
    return 0.5 * jnp.sum(x**4 - 16.0 * x**2 + 5.0 * x)


def variably_dimensioned(x):
    """MGH 25."""
    s = jnp.sum(_as(np.arange(1.0, x.shape[0] + 1), x) * (x - 1.0))
    return jnp.sum((x - 1.0) ** 2) + s**2 + s**4


def trigonometric(x):
    """MGH 26."""
    n, c = x.shape[0], jnp.cos(x)
    i = _as(np.arange(1.0, n + 1), x)
    return jnp.sum((n - jnp.sum(c) + i * (1.0 - c) - jnp.sin(x)) ** 2)


def _problems():
    def at(*values):
        return jnp.asarray(np.asarray(values, np.float64))

    def valley(n):
        return at(*np.tile([-1.2, 1.0], n // 2))

    leaves = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(5)}
    n20 = np.arange(1.0, 21)
    return {
        "rosenbrock_2": (rosenbrock, valley(2), 0.0),
        "rosenbrock_10": (rosenbrock, valley(10), 0.0),
        "rosenbrock_50": (rosenbrock, valley(50), 0.0),
        "rosenbrock_100": (rosenbrock, valley(100), 0.0),
        "beale": (beale, at(1.0, 1.0), 0.0),
        "booth": (booth, at(0.0, 0.0), 0.0),
        "himmelblau": (himmelblau, at(0.0, 0.0), 0.0),
        "powell_singular": (powell_singular, at(3.0, -1.0, 0.0, 1.0), 0.0),
        "wood": (wood, at(-3.0, -1.0, -3.0, -1.0), 0.0),
        "brown_badly_scaled": (brown_badly_scaled, at(1.0, 1.0), 0.0),
        "freudenstein_roth": (freudenstein_roth, at(0.5, -2.0), None),
        "helical_valley": (helical_valley, at(-1.0, 0.0, 0.0), 0.0),
        "quartic": (quartic, at(*np.linspace(-2.0, 3.0, 20)), 0.0),
        "dixon_price": (dixon_price, at(*np.ones(10)), 0.0),
        "ill_conditioned": (ill_conditioned, at(*np.ones(50)), 0.0),
        "two_leaves": (two_leaves, leaves, None),
        "logistic": (logistic, at(*np.zeros(20)), None),
        "styblinski_tang": (styblinski_tang, at(*np.linspace(-4.5, -0.5, 10)), -391.6616570377142),
        "variably_dimensioned": (variably_dimensioned, at(*(1.0 - n20 / 20)), 0.0),
        "trigonometric": (trigonometric, at(*np.full(10, 0.1)), None),
    }


with enable_x64():
    PROBLEMS = _problems()

MINIMUM = {
    **{name: (0.0, 1e-8) for name, (_, _, f_star) in PROBLEMS.items() if f_star == 0.0},
    "powell_singular": (0.0, 1e-6),
    "quartic": (0.0, 1e-6),
    "freudenstein_roth": (48.984253679240005, 1e-8),
    "two_leaves": (19.667832167832163, 1e-8),
    "logistic": (0.12699324602766476, 1e-6),
    "styblinski_tang": (-391.6616570377141, 1e-8),
    "trigonometric": (2.7950561218782725e-05, 1e-8),
}


def scipy_run(name, gtol=1e-5, maxiter=20000):
    """(f, function evaluations, converged) of SciPy's L-BFGS-B in float64, memory 10; it stops at
    |g|_inf <= gtol (its test on the change of f is off). Each evaluation is value and gradient."""
    value_fn, x0, _ = PROBLEMS[name]
    with enable_x64():
        start, unravel = ravel_pytree(x0)
        value_and_grad = jax.jit(jax.value_and_grad(lambda x: value_fn(unravel(x))))

        def fun(x):
            value, grad = value_and_grad(jnp.asarray(x))
            return float(value), np.asarray(grad, np.float64)

        options = dict(gtol=gtol, ftol=0.0, maxcor=10, maxiter=maxiter, maxfun=10 * maxiter)
        result = scipy.optimize.minimize(
            fun, np.asarray(start), method="L-BFGS-B", jac=True, options=options
        )
        return float(result.fun), int(result.nfev), bool(np.max(np.abs(result.jac)) <= gtol)


def optax_run(name, gtol=1e-5, maxiter=20000):
    """(f, function evaluations, converged) of optax.lbfgs() (zoom line search) in float64, stopped
    at |g|_inf <= gtol. Evaluations: one at x0, then num_linesearch_steps an iteration: optax hands
    value and gradient of the accepted point on, so an iteration has no further one of its own."""
    value_fn, x0, _ = PROBLEMS[name]
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(value_fn)

    def body(carry):
        x, state, value, grad, count, steps = carry
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=value_fn)
        x = optax.apply_updates(x, updates)
        spent = optax.tree.get(state, "num_linesearch_steps")
        count = count + jnp.asarray(spent, jnp.int32)
        value, grad = value_and_grad(x, state=state)
        return x, state, value, grad, count, steps + 1

    def more(carry):
        _, _, value, grad, _, steps = carry
        size = jnp.max(jnp.abs(ravel_pytree(grad)[0]))
        return (size > gtol) & jnp.isfinite(value) & (steps < maxiter)

    @jax.jit
    def run(x):
        value, grad = jax.value_and_grad(value_fn)(x)
        one, zero = jnp.asarray(1, jnp.int32), jnp.asarray(0, jnp.int32)
        carry = (x, optimizer.init(x), value, grad, one, zero)
        _, _, value, grad, count, _ = jax.lax.while_loop(more, body, carry)
        return value, count, jnp.max(jnp.abs(ravel_pytree(grad)[0]))

    with enable_x64(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        value, count, size = run(x0)
        return float(value), int(count), bool(size <= gtol)
