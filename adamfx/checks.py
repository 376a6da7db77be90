"""Errors of one form: what was received, what is allowed, what to do.

Arguments are checked when a constructor is called, and only concrete Python numbers for their
range: what a tracer holds is not known. Trees and shapes are checked while a program is traced, so
once per signature and not on every call.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np


def number(
    block: str, name: str, x: Any, *, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raises unless x is an array, a schedule, or a number that is finite and low <= x <= high."""
    if not (isinstance(x, (int, float, np.ndarray, jax.Array)) or callable(x)):
        raise TypeError(f"{block}: {name} must be a number, an array or a schedule, got {x!r}")
    if isinstance(x, (int, float)) and not (math.isfinite(x) and low <= x <= high):
        raise ValueError(f"{block}: {name} must {_interval(low, high)}, got {x}")


def decay(block: str, x: Any, name: str = "decay") -> None:
    """Raises unless x is an array, a schedule, or a number in [0, 1)."""
    if not (isinstance(x, (int, float, np.ndarray, jax.Array)) or callable(x)):
        raise TypeError(f"{block}: {name} must be a number, an array or a schedule, got {x!r}")
    if isinstance(x, (int, float)) and not 0 <= x < 1:
        raise ValueError(f"{block}: {name} must lie in [0, 1), got {x}")


def choice(block: str, name: str, x: Any, allowed: Any) -> None:
    """Raises ValueError unless `x` is one of `allowed`."""
    if not any(isinstance(x, type(a)) and x == a for a in allowed):
        raise ValueError(
            f"{block}: {name} must be one of {', '.join(map(repr, allowed))}, got {shown(x)}"
        )


def floating(block: str, name: str, dtype: Any) -> None:
    """Raises ValueError unless `dtype` is None or names floating or complex numbers."""
    try:
        good = dtype is None or jax.numpy.issubdtype(jax.numpy.dtype(dtype), jax.numpy.inexact)
    except Exception:  # NumPy reads much as a dtype, and fails in many ways
        good = False
    if not good:
        raise ValueError(
            f"{block}: {name} must be a floating dtype such as 'bfloat16', got {dtype!r}"
        )


def steps(block: str, name: str, x: Any, low: int = 0) -> int:
    """`x` as an int; raises ValueError unless it is a whole number >= low, such as 1000 or 1e3."""
    whole = isinstance(x, (int, np.integer)) or (isinstance(x, float) and x.is_integer())
    if isinstance(x, bool) or not (whole and x >= low):
        raise ValueError(f"{block}: {name} must be a whole number >= {low}, got {x!r}")
    return int(x)


def shown(x: Any, limit: int = 200) -> str:
    """The text of anything, without its middle where it is long; for messages."""
    try:
        return shortened(" ".join(repr(x).split()), limit)
    except Exception:  # a repr that fails
        return object.__repr__(x)


def shortened(text: str, limit: int = 400) -> str:
    """The text, without its middle where it is longer; for messages."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 3 // 4]} ... {text[-limit // 4 :]}"


def _interval(low: float, high: float) -> str:
    if high == math.inf:
        return "be finite" if low == -math.inf else f"be finite and >= {low:g}"
    return f"lie in [{low:g}, {high:g}]"
