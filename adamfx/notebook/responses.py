"""What an optimizer makes of gradients, of surfaces and of singular values: the numbers of `plot`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.notebook.sentences import words

SIDE = 16  # of the square matrix that responds to a gradient
MODES = 64  # singular values of a spectrum
BEGIN = 5  # steps before the gradient comes


def updates(label: str, tx: Any, gradients: Any) -> np.ndarray:
    """The updates for these gradients, those of a loss that is linear."""

    @jax.jit
    def run(tx: Any, gradients: Any) -> Any:
        def turn(carry: Any, g: Any) -> Any:
            p, state = carry
            u, state = tx.update({"w": g}, state, p, **_extra(tx, lambda q: jnp.sum(g * q["w"]), p))
            return ({"w": p["w"] + u["w"]}, state), u["w"]

        p = {"w": jnp.eye(*gradients.shape[1:])}
        return jax.lax.scan(turn, (p, tx.init(p)), gradients)[1]

    return computed(label, run, tx, gradients)


def _extra(tx: Any, loss: Callable, p: Any) -> dict[str, Any]:
    """What `fit` passes to an optimizer that reads it."""
    known = {
        "value": lambda: loss(p),
        "grad": lambda: jax.grad(loss)(p),
        "value_fn": lambda: loss,
        "grad_fn": lambda: jax.grad(loss),
    }
    return {n: make() for n, make in known.items() if tx.reads(n)}


def computed(label: str, run: Callable, *args: Any) -> Any:
    """run(*args) as arrays of NumPy. Raises ValueError, which says whose it is."""
    try:
        return jax.tree.map(np.asarray, run(*args))
    except (TypeError, ValueError) as error:
        raise ValueError(f"plot: {label} cannot be shown so: {error}") from error


def step(steps: int, seed: int) -> Any:
    """Zeros, then ones on the diagonal: all numbers of it answer alike, and so do its singular values."""
    return _on_diagonal(np.arange(steps) >= BEGIN)


def impulse(steps: int, seed: int) -> Any:
    """Zeros, but for ones on the diagonal at one step."""
    return _on_diagonal(np.arange(steps) == BEGIN)


def _on_diagonal(signal: np.ndarray) -> Any:
    return jnp.asarray(signal[:, None, None] * np.eye(SIDE), float)


def noise(steps: int, seed: int, drift: float = 0.0) -> Any:
    """Independent normal numbers around the drift."""
    return drift + jax.random.normal(jax.random.key(seed), (steps, SIDE, SIDE))


# ---- surfaces ------------------------------------------------------------------------------------


def _rosenbrock(x: Any, y: Any) -> Any:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _beale(x: Any, y: Any) -> Any:
    return sum((c - x * (1 - y**k)) ** 2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


def _valley(x: Any, y: Any) -> Any:
    along, across = 0.94 * x + 0.34 * y, 0.94 * y - 0.34 * x
    return (along**2 + 50 * across**2) / 2


# The function, where the ways begin, the minimum, and what is seen of it.
SURFACES = {
    "Rosenbrock": (_rosenbrock, (-1.5, 2.0), (1.0, 1.0), (-2.0, 2.0), (-1.0, 3.0)),
    "Beale": (_beale, (1.0, 1.5), (3.0, 0.5), (0.0, 4.0), (-1.0, 2.0)),
    "a narrow valley": (_valley, (-2.5, 0.5), (0.0, 0.0), (-3.0, 1.5), (-2.0, 2.0)),
}


def walk(tx: Any, function: Callable, start: Any, steps: int) -> jax.Array:
    """The points of an optimizer on a surface, the start first: where the model would be used."""

    def loss(p: Any) -> Any:
        return function(*p["x"])

    def turn(carry: Any, _: Any) -> Any:
        p, state = carry
        here = tx.evaluate_at(state, p)["x"]
        grads = jax.grad(loss)(tx.gradient_at(state, p))
        u, state = tx.update(grads, state, p, **_extra(tx, loss, p))
        return ({"x": p["x"] + u["x"]}, state), here

    p = {"x": jnp.asarray(start, float)}
    return jax.lax.scan(turn, (p, tx.init(p)), None, steps + 1)[1]


def way(label: str, tx: Any, function: Callable, start: Any, steps: int) -> np.ndarray:
    """`walk` as numbers, compiled."""
    return computed(label, jax.jit(lambda tx: walk(tx, function, start, steps)), tx)


# ---- spectra -------------------------------------------------------------------------------------


def orthogonalizer(tx: Any) -> Any:
    """The first word `orthogonalize` in a sentence, also inside of wrappers; None for none."""
    for word in words(tx):
        if word.name == "orthogonalize":
            return word.value
        found = [y for x in word.inside.values() if (y := orthogonalizer(x)) is not None]
        if found:
            return found[0]
    return None


def spectrum(label: str, tx: Any, least: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(singular values of a gradient over the largest, what becomes of them).

    Of the orthogonalizer in a sentence: of each by itself. Of any other: those of the first step, over the
    largest.
    """
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(MODES, MODES)))[0] for _ in range(2))
    values = np.logspace(np.log10(least), 0, MODES)
    word = orthogonalizer(tx)
    out = updates(label, word or tx, jnp.asarray(left * values @ right.T, float)[None])[0]
    if word:
        return values, np.einsum("ij,ik,kj->j", left, out, right)
    after = np.linalg.svd(out, compute_uv=False)[::-1]
    return values, after / max(after[-1], 1e-30)
