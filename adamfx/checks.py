"""Validation: every message says what came, what is allowed, and what to do.

Arguments are checked when a constructor is called, and only concrete Python numbers for their
range: what a tracer holds is not known. Trees and shapes are checked while a program is traced, so
once per signature and not on every call.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax
import numpy as np


def number(
    block: str, name: str, x: Any, *, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raises unless x is an array, a schedule, or a number that is finite and low <= x <= high."""
    _check_is_number(block, name, x)
    if isinstance(x, (int, float)) and not (math.isfinite(x) and low <= x <= high):
        raise ValueError(f"{block}: {name} must {_interval(low, high)}, got {x}")


def _check_is_number(block: str, name: str, x: Any) -> None:
    known = isinstance(x, (int, float, np.number, np.ndarray, jax.Array)) and not isinstance(
        x, bool
    )
    if not (known or (callable(x) and not isinstance(x, type))):
        raise TypeError(f"{block}: {name} must be a number, an array or a schedule, got {shown(x)}")


def decay(block: str, x: Any, name: str = "decay") -> None:
    """Raises unless x is an array, a schedule, or a number in [0, 1)."""
    _check_is_number(block, name, x)
    if isinstance(x, (int, float)) and not 0 <= x < 1:
        raise ValueError(f"{block}: {name} must lie in [0, 1), got {x}")


def ordered(block: str, x: Any) -> None:
    """Raises TypeError for complex numbers, of which none is the larger one."""
    if np.iscomplexobj(x):
        raise TypeError(
            f"{block}: complex numbers have no order and no sign; it acts on real and imaginary parts in "
            f"split_real_and_imaginary({block.removeprefix('scale_by_')}(...))"
        )


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
        raise ValueError(f"{block}: {name} must be a whole number >= {low}, got {shown(x)}")
    return int(x)


def loss(who: str, name: str, found: Any, has_aux: bool) -> None:
    """Raises TypeError unless a function has returned a loss: one real number, with has_aux a pair."""
    wanted = (
        "a pair (loss, aux)" if has_aux else "one real number, or with has_aux=True (loss, aux)"
    )
    value: Any = found
    if has_aux:
        value = found[0] if isinstance(found, tuple) and len(found) == 2 else None
    is_number = isinstance(value, float) or (hasattr(value, "dtype") and hasattr(value, "shape"))
    if not is_number or np.shape(value) or not jax.numpy.issubdtype(
        jax.numpy.result_type(value), jax.numpy.floating
    ):  # fmt: skip
        raise TypeError(f"{who}: {name} must return {wanted}, got {shown(found)}")


def call(who: str, name: str, function: Any, *args: Any, more: str = "") -> Any:
    """function(*args); raises TypeError, with the names, where it does not take so many."""
    try:
        return function(*args)
    except TypeError:
        check_takes(who, name, function, len(args), more)
        raise


def check_takes(who: str, name: str, function: Any, n: int, more: str = "") -> None:
    """Raises TypeError where a function, as its signature says, does not take n arguments."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # of one that tells nothing
        return
    try:
        signature.bind(*range(n))
    except TypeError:
        raise TypeError(
            f"{who}: {name} is called with {n} arguments{more}, and takes {signature}; give a function of "
            "these"
        ) from None


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


def holds_none(block: str, tx: Any, is_wrong: Any, why: str) -> None:
    """Raises ValueError for a transformation with a word, also deep inside, that does not belong there."""
    wrong = next((word for word in tx.words() if is_wrong(word)), None)
    if wrong is not None:
        raise ValueError(f"{block}: {wrong.name} does not work inside of it: {why}")


def holds_no_copies(block: str, tx: Any) -> None:
    """Raises ValueError for copies inside of a wrapper that moves parameters itself: they would undo that."""
    why = f"its copies do not see where {block} puts the parameters; write master_weights({block}(...))"
    holds_none(block, tx, lambda word: word.name == "master_weights", why)


def evaluates(word: Any) -> bool:
    """Whether a word asks for the loss or the gradient at parameters of its own."""
    return bool({"value_fn", "grad_fn"} & set(word.meaning.needs))


def _interval(low: float, high: float) -> str:
    if high == math.inf:
        return "be finite" if low == -math.inf else f"be finite and >= {low:g}"
    return f"lie in [{low:g}, {high:g}]"
