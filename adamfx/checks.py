"""Errors of one form: what was received, what is allowed, what to do.

Only concrete Python numbers are checked for their range; arrays and tracers pass, since their
values are not known while a program is traced.
"""

from __future__ import annotations

import math
from typing import Any


def number(
    block: str, name: str, x: Any, *, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raises ValueError unless the concrete number `x` is finite and low <= x <= high."""
    if isinstance(x, (int, float)) and not (math.isfinite(x) and low <= x <= high):
        raise ValueError(f"{block}: {name} must {_interval(low, high)}, got {x}")


def decay(block: str, x: Any, name: str = "decay") -> None:
    """Raises ValueError unless the concrete number `x` lies in [0, 1)."""
    if isinstance(x, (int, float)) and not 0 <= x < 1:
        raise ValueError(f"{block}: {name} must lie in [0, 1), got {x}")


def choice(block: str, name: str, x: Any, allowed: Any) -> None:
    """Raises ValueError unless `x` is one of `allowed`."""
    if x not in allowed:
        raise ValueError(
            f"{block}: {name} must be one of {', '.join(map(repr, allowed))}, got {x!r}"
        )


def steps(block: str, name: str, x: Any, low: int = 0) -> None:
    """Raises ValueError unless the concrete number of steps `x` is a whole number >= low."""
    if isinstance(x, (int, float)) and not (x == int(x) and x >= low):
        raise ValueError(f"{block}: {name} must be a whole number of steps >= {low}, got {x}")


def _interval(low: float, high: float) -> str:
    if high == math.inf:
        return "be finite" if low == -math.inf else f"be finite and >= {low:g}"
    return f"lie in [{low:g}, {high:g}]"
