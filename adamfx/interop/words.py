"""What a transformation remembers, in words that another library's state can be compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adamfx.engine.words import Leafwise
from adamfx.moments.estimators import Estimator
from adamfx.moments.statistics import Statistic
from adamfx.transformation import GradientTransformation


def inside(block: Any) -> Mapping[str, GradientTransformation]:
    return getattr(block.meaning, "inside", {})


def blocks_of(tx: GradientTransformation, closed: str | None = None) -> Iterator[Any]:
    """All blocks, with those inside wrappers but the closed one."""
    for _, block in tx.blocks:
        yield block
        for inner in inside(block).values() if block.name != closed else ():
            yield from blocks_of(inner, closed)


def wrappers_of(tx: GradientTransformation) -> set[str]:
    """The names of all wrappers in a transformation."""
    return {block.name for block in blocks_of(tx) if inside(block)}


def words_of(block: Any, fields: tuple[str, ...], passed: frozenset[str]) -> dict[str, str]:
    """What a block remembers under each field. A sum and a mean are two things, and so are moments of the
    gradient and of what an earlier block has divided."""
    sides = {}
    if block.name == "scale_by_moments":
        value = "direction" if "divided" in passed else "value"
        sides = {"mu": _estimate(block.arguments["b1"], value)}
        sides["nu"] = _estimate(block.arguments["b2"], "square")
    if block.name == "keep_average":
        sides = {"average": _estimate(block.arguments["estimator"], "params", "mean")}
    if block.name == "running_max":
        sides = {"nu": "running_max, corrected" if "corrected" in passed else "running_max"}
    return {n: f"{n} ({sides.get(n.split('_')[0], block.name)})" for n in fields}


def _estimate(side: Any, of: str, plain: str = "ema") -> str:
    """The recursion and the statistic of an estimator: ema of square. Its numbers are not told."""
    if not isinstance(side, Estimator):
        return f"{plain} of {of}"
    x = side.arguments.get("of")
    while isinstance(x, Statistic) and x.name == "plus_eps":
        x = x.arguments["of"]
    first = "first-whole " if side.name == "ema" and side.arguments["first_whole"] else ""
    if x is None or (x == "value" and of != "square"):
        return f"{first}{side.name} of {of}"
    return f"{first}{side.name} of {x.name if isinstance(x, Statistic) else x}"


def passed_by(block: Any, passed: frozenset[str]) -> frozenset[str]:
    """What a walk has met behind this block."""
    if block.name == "scale_by_moments":
        divides = block.arguments["b2"] is not None
        return (passed | {"divided"} if divides else passed) - {"corrected"}
    return passed | {"corrected"} if block.name == "bias_correct" else passed


def only_groups(tx: GradientTransformation) -> bool:
    """Whether all that remembers something of a parameter stands in the groups of a partition."""
    outside = list(blocks_of(tx, closed="partition"))
    specs = [block.meaning for block in outside]
    remembers = any(isinstance(spec, Leafwise) and spec.init for spec in specs)
    return "partition" in [block.name for block in outside] and not remembers
