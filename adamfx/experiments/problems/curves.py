"""Functions of one and two numbers with known minima, for trajectories that can be drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Array = Any  # of JAX or NumPy


# Where the derivative of the quartic, (2 x^3 - 3 x^2 - 57 x - 27) / 100, is zero.
LOCAL, RIDGE, GLOBAL = -4.3446257, -0.4904865, 6.3351122


def quartic(x: Array) -> Array:
    """(x - 9) x (x + 1) (x + 6) / 200 + 4: least at GLOBAL, and on the other side of RIDGE at LOCAL."""
    return (x - 9) * x * (x + 1) * (x + 6) / 200 + 4


def beale(p: Array) -> Array:
    """Beale's function: steep walls around a long flat valley; 0 at (3, 0.5)."""
    x, y = p
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def rosenbrock(p: Array) -> Array:
    """(1 - x)^2 + 100 (y - x^2)^2: a bent narrow valley; 0 at (1, 1)."""
    x, y = p
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def saddle(p: Array) -> Array:
    """(y^2 - 1)^2 / 4 + x^2 / 2: flat along y at the saddle (0, 0); 0 at (0, -1) and (0, 1)."""
    x, y = p
    return (y**2 - 1) ** 2 / 4 + x**2 / 2


def ill_conditioned(p: Array) -> Array:
    """(x^2 + 50 y^2) / 2: curvatures 1 and 50; 0 at (0, 0)."""
    x, y = p
    return (x**2 + 50 * y**2) / 2


class Surface(NamedTuple):
    """A function of two numbers, where to begin, where it is least, and what to look at."""

    function: Callable[[Array], Array]
    start: tuple[float, float]
    minima: tuple[tuple[float, float], ...]
    view: tuple[float, float, float, float]  # x from, to, y from, to


SURFACES = {
    "Beale": Surface(beale, (1.0, 1.5), ((3.0, 0.5),), (-0.5, 4.5, -1.5, 2.0)),
    "Rosenbrock": Surface(rosenbrock, (-1.2, 1.0), ((1.0, 1.0),), (-2.0, 2.0, -1.0, 3.0)),
    "saddle": Surface(saddle, (-1.5, 1e-3), ((0.0, -1.0), (0.0, 1.0)), (-2.0, 1.0, -1.6, 1.6)),
    "ill-conditioned": Surface(ill_conditioned, (-4.0, 1.0), ((0.0, 0.0),), (-4.5, 2.0, -1.6, 1.6)),
}
