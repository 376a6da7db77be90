"""Pictures by matplotlib; they show in a notebook, and `figure.savefig(path)` keeps them."""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import numpy as np


def new_figure(width: float = 6.4, height: float = 4.0) -> Any:
    """An empty figure, which a notebook shows. Raises ImportError without matplotlib."""
    return _kind()(figsize=(width, height), layout="constrained")


@functools.cache
def _kind() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot: it needs matplotlib; run: pip install matplotlib") from None

    class Picture(Figure):
        """Without pyplot: it needs no display, and nobody has to close it."""

        def _repr_png_(self) -> bytes:
            FigureCanvasAgg(self)
            self.savefig(file := io.BytesIO(), format="png", dpi=100)
            return file.getvalue()

    return Picture


def sweep_figure(table: dict[str, list], names: list[str], score: str) -> Any:
    """What a sweep has found, by one or two of the names that were varied.

    One number: the score against it, a line for each other combination, the spread of the seeds as a band.
    Two numbers, and nothing else: a map of colours. Runs that were not finite are crosses at the top.
    """
    numbers = [n for n in names if all(_is_number(x) for x in table[n]) and len(set(table[n])) > 1]
    figure = new_figure()
    ax = figure.subplots()
    if len(numbers) == 2 and set(numbers) == set(names):
        _map(figure, ax, table, numbers, score)
    elif numbers:
        _lines(ax, table, numbers[0], [n for n in names if n != numbers[0]], score)
    else:
        _bars(ax, table, names, score)
    return figure


def _lines(ax: Any, table: dict[str, list], x: str, others: list[str], score: str) -> None:
    lines: dict[tuple, dict[float, list[float]]] = {}
    for i, at in enumerate(table[x]):
        label = tuple(table[n][i] for n in others)
        lines.setdefault(label, {}).setdefault(float(at), []).append(table["score"][i])
    finite = [y for y in table["score"] if math.isfinite(y)]
    for label, points in lines.items():
        at = sorted(points)
        there = [[y for y in points[a] if math.isfinite(y)] or [math.nan] for a in at]
        name = ", ".join(f"{n} {_text(v)}" for n, v in zip(others, label, strict=True))
        (line,) = ax.plot(at, [np.mean(y) for y in there], marker="o", ms=4, label=name or None)
        low, high = [min(y) for y in there], [max(y) for y in there]
        ax.fill_between(at, low, high, color=line.get_color(), alpha=0.2, lw=0)
        lost = [a for a in at if not all(map(math.isfinite, points[a]))]
        if lost and finite:
            ax.plot(lost, [max(finite)] * len(lost), "x", color=line.get_color())
    _scale(ax.set_xscale, list(map(float, table[x])))
    _scale(ax.set_yscale, finite)
    ax.set(xlabel=x, ylabel=score)
    if others:
        ax.legend(fontsize="small", frameon=False)


def _map(figure: Any, ax: Any, table: dict[str, list], names: list[str], score: str) -> None:
    x, y = names
    columns, rows = sorted(set(table[x])), sorted(set(table[y]))
    cells = np.full((len(rows), len(columns)), np.nan)
    for r, b in enumerate(rows):
        for c, a in enumerate(columns):
            found = [
                s
                for s, p, q in zip(table["score"], table[x], table[y], strict=True)
                if (p, q) == (a, b)
            ]
            cells[r, c] = np.mean(found) if found else np.nan
    image = ax.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
    upright = 90 if len(columns) > 8 else 0  # narrow cells have no room side by side
    for (r, c), value in np.ndenumerate(cells):
        text = f"{value:.3g}" if math.isfinite(value) else "x"
        ax.text(
            *(c, r, text), ha="center", va="center", fontsize="small", rotation=upright,
            color=_readable(image, value),
        )  # fmt: skip
    ax.set_xticks(range(len(columns)), [_text(a) for a in columns], rotation=upright)
    ax.set_yticks(range(len(rows)), [_text(b) for b in rows])
    ax.set(xlabel=x, ylabel=y)
    figure.colorbar(image, ax=ax, label=score)


def _bars(ax: Any, table: dict[str, list], names: list[str], score: str) -> None:
    found: dict[str, list[float]] = {}
    for i, y in enumerate(table["score"]):
        label = ", ".join(_text(table[n][i]) for n in names) or "all"
        found.setdefault(label, []).append(y)
    for at, (_, scores) in enumerate(found.items()):
        ax.plot(scores, [at] * len(scores), "o", alpha=0.6)
    ax.set_yticks(range(len(found)), list(found))
    ax.set(xlabel=score)


def _readable(image: Any, value: float) -> str:
    if not math.isfinite(value):
        return "black"
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"


def _scale(to: Any, numbers: list[float]) -> None:
    there = [x for x in numbers if math.isfinite(x)]
    if there and min(there) > 0 and max(there) > 20 * min(there):
        to("log")


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float, np.number)) and not isinstance(x, bool)


def _text(x: Any) -> str:
    return f"{x:.3g}" if _is_number(x) else str(x)
