"""The pictures: matplotlib figures from records, readable in grey, with the printed sentences as legend."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np

from adamfx.checks import shortened
from adamfx.experiments import results
from adamfx.experiments.problems import curves
from adamfx.experiments.results import Record

# Line styles and markers tell the compositions apart without color, too.
COLORS = ("black", "#0072b2", "#56b4e9", "#b8860b", "#d55e00", "#cc79a7", "#009e73")
STYLES = ("-", "--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
MARKERS = "osD^vPX"
PANELS = 200  # each takes a tenth of a second


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color, line style and marker of each name."""
    n = len(COLORS)
    found = {}
    for i, name in enumerate(dict.fromkeys(names)):
        k = (i + i // n) % n  # a color comes back with another line
        line = {"linestyle": STYLES[k], "marker": MARKERS[k]}
        found[name] = {"color": COLORS[i % n], **line, "markersize": 4}
    return found


def figure(header: Record, rows: int, columns: int, size: tuple[float, float] = (6, 4)) -> Any:
    """(figure, array of axes) with the title and the data on top."""
    from matplotlib.figure import Figure  # without pyplot it needs no display

    if rows * columns > PANELS:
        raise ValueError(f"{rows} x {columns} panels, expected at most {PANELS}")
    fig = Figure(figsize=(size[0] * columns, size[1] * rows + 1.5), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False)
    lines = (literal(header["title"]), literal(header["data"]))
    width = int(11 * size[0] * columns)  # characters
    fig.suptitle("\n".join(w for line in lines for w in textwrap.wrap(line, width)), size=10)
    return fig, axes


def legend(fig: Any, axes: Any, columns: int = 1) -> None:
    """One legend for all axes, below: each label once; names alone where sentences would fill the page."""
    found: dict = {}
    for ax in np.ravel(axes):
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if sum(label.count("\n") + 1 for label in found) > 24:
        found, columns = {label.split("  ")[0]: handle for label, handle in found.items()}, 6
    font = {"family": "monospace", "size": 7}
    fig.legend(
        found.values(), found, loc="outside lower center", handlelength=5, prop=font, ncols=columns
    )


def label(name: str, sentence: str) -> str:
    """A name, two spaces at least, and its sentence; the sentence alone where it is the name."""
    text = sentence if name == sentence else f"{name:<20}  {sentence}"
    return "\n".join(textwrap.wrap(literal(text), 110))


def literal(text: str) -> str:
    """The text for matplotlib, for which $ begins a formula; without the middle of a very long one."""
    return shortened(text, 2000).replace("$", r"\$")


def band(ax: Any, records: list[Record], column: str, **look: Any) -> None:
    """The mean over the seeds, and one standard deviation around it."""
    mean, std = results.mean_and_std(records, column)
    x = records[0]["step"]
    every = max(1, len(x) // 8)
    ax.plot(x, mean, markevery=every, **look)
    ax.fill_between(x, mean - std, mean + std, color=look["color"], alpha=0.12, linewidth=0)


def logarithmic(ax: Any, values: Iterable[np.ndarray]) -> None:
    """A logarithmic y axis over what is finite and positive, without what blew up."""
    x = np.concatenate([np.ravel(v) for v in values])
    x = x[np.isfinite(x) & (x > 0)]
    ax.set_yscale("log")
    if len(x):
        ax.set_ylim(x.min() / 1.5, min(x.max() * 1.5, np.median(x) * 1e4))


def learning_curves(header: Record, records: list[Record], column: str = "loss") -> Any:
    """By part: the curve of each composition at its best point, and the end of all its points."""
    parts = results.group(records, "part")
    swept = any(len(results.group(r, "learning_rate")) > 1 for r in parts.values())
    fig, axes = figure(header, len(parts), 2 if swept else 1)
    look = looks(r["name"] for r in records)
    for (part, of_part), row in zip(parts.items(), axes, strict=True):
        best = results.at_best(of_part, column)
        for name, runs in best.items():
            band(row[0], runs, column, label=label(name, runs[0]["sentence"]), **look[name])
        logarithmic(row[0], [r[column] for runs in best.values() for r in runs])
        row[0].set(
            title=part, xlabel="steps", ylabel=f"{column.replace('_', ' ')}, mean ± deviation"
        )
        row[0].grid(alpha=0.3)
        if swept:
            at_every_rate(row[1], of_part, column, look)
    legend(fig, axes)
    return fig


def at_every_rate(ax: Any, records: list[Record], column: str, look: dict) -> None:
    """The last sixth of the column against the learning rate; x marks rates that diverged."""
    for name, runs in results.group(records, "name").items():
        by_rate = results.group(runs, "learning_rate")
        rates = np.array([np.nan if x is None else x for x in by_rate], float)
        ends = np.array([results.final(r, column).mean() for r in by_rate.values()])
        ax.plot(rates, ends, **look[name])
        gone = rates[~np.isfinite(ends)]
        ax.plot(gone, np.full_like(gone, 0.97), "x", color=look[name]["color"], transform=_top(ax))
    ax.set_xscale("log")
    logarithmic(ax, [results.final(records, column)])
    ax.set(title="at every rate; x: diverged", xlabel="learning rate", ylabel=f"final {column}")
    ax.grid(alpha=0.3)


def _top(ax: Any) -> Any:
    return ax.get_xaxis_transform()


def bias_correction(header: Record, records: list[Record]) -> Any:
    """Figure 4 of the paper: the loss against log10 of alpha, with and without correction."""
    times = [records[0]["step"][0], records[0]["step"][-1]]
    grids = results.group(records, "b1", "b2")
    if len(grids) == 1:  # compositions of the command line
        return learning_curves(header, records, "train_loss")
    b1s, b2s = ([*dict.fromkeys(k[i] for k in grids)] for i in (0, 1))
    fig, axes = figure(header, 2 * len(b1s), len(b2s), (4, 2.4))
    look = looks(r["name"] for r in records)
    finite = [r["train_loss"][[0, -1]] for r in records]
    for (i, b1), (j, b2), (k, time) in itertools.product(
        enumerate(b1s), enumerate(b2s), enumerate(times)
    ):
        ax, column = axes[2 * i + k, j], [0, -1][k]
        for name, runs in results.group(grids[b1, b2], "name").items():
            by_rate = results.group(runs, "learning_rate")
            rates = np.array(list(by_rate), float)
            ends = np.array([[r["train_loss"][column] for r in rs] for rs in by_rate.values()])
            mean = ends.mean(1)
            ax.plot(rates, mean, **look[name])
            gone = rates[~np.isfinite(mean)]
            ax.plot(
                gone, np.full_like(gone, 0.95), "x", color=look[name]["color"], transform=_top(ax)
            )
        low = np.nanmin(np.concatenate(finite))
        ax.set(
            xscale="log",
            ylim=(0.95 * low, 2.2 * low),
            title=f"b1 = {b1:g}, b2 = {b2:g}, step {time:g}",
        )
        ax.title.set_size(8)
        ax.grid(alpha=0.3)
        if j == 0:
            ax.set_ylabel("loss [nats]")
        if i == len(b1s) - 1 and k == 1:
            ax.set_xlabel("learning rate; x: diverged")
    legend_of_names(fig, look)
    return fig


def legend_of_names(fig: Any, look: dict) -> None:
    """Names and their looks, where the sentences are in the panels' titles."""
    from matplotlib.lines import Line2D

    sentences = {
        "corrected": "chain(scale_by_moments(b1, b2), bias_correct(), scale_by_lr(...))",
        "not corrected": "chain(scale_by_moments(b1, b2), scale_by_lr(...))",
    }
    handles = [
        Line2D([], [], **look[n], label=label(n, sentences.get(str(n), str(n)))) for n in look
    ]
    fig.legend(
        handles=handles,
        loc="outside lower center",
        handlelength=5,
        prop={"family": "monospace", "size": 7},
    )


# ---- one and two numbers -------------------------------------------------------------------------


def quartic(header: Record, records: list[Record], notes: dict[str, str] | None = None) -> Any:
    """The lesson: trajectories on the curve, and where each step size ends and how far it gets.

    `notes` are written over the panels of the step sizes, by part.
    """
    parts = results.group(records, "part")
    fig, axes = figure(header, len(parts), 2)
    x = np.linspace(-8.5, 10.5, 400)
    for (part, of_part), (left, right) in zip(parts.items(), axes, strict=True):
        left.plot(x, curves.quartic(x), color="grey", linewidth=1)
        shown = of_part[:: max(1, len(of_part) // 4)][:4]
        look = looks(r["sentence"] for r in shown)
        for r in shown:
            way = np.concatenate([[-8.0], r["x"]])
            style = {**look[r["sentence"]], "linewidth": 0.8}
            left.plot(way, curves.quartic(way), label=label(r["name"], r["sentence"]), **style)
        left.set(title=part, xlabel="x", ylabel="L(x)", xlim=(-9, 11), ylim=(-8, 20))
        if len(of_part) == len(shown):
            right.set_visible(False)  # nothing was swept
            continue
        rates = np.array([r["point"].get("learning_rate", np.nan) for r in of_part], float)
        right.plot(rates, [r["x"][-1] for r in of_part], "k.", label="x after the last update")
        right.plot(
            rates,
            [r["x"].max() for r in of_part],
            "-",
            color="#0072b2",
            label="largest x on the way",
        )
        right.axhline(curves.GLOBAL, color="grey", linestyle=":", label="global minimum")
        right.set(xlabel="learning rate", ylabel="x", ylim=(-9, 16))
        lines = (notes or {}).get(part, "every step size").splitlines()
        right.set_title("\n".join(textwrap.fill(line, 90) for line in lines), size=7)
        for ax in (left, right):
            ax.grid(alpha=0.3)
    legend(fig, axes)
    return fig


def animation(record: Record, every: int = 1) -> Any:
    """The point moving on the quartic, as a matplotlib animation; a notebook shows `.to_jshtml()`."""
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6, 3.6), layout="constrained")
    ax = fig.subplots()
    x = np.linspace(-8.5, 10.5, 400)
    ax.plot(x, curves.quartic(x), color="grey")
    way = np.concatenate([[-8.0], record["x"]])[::every]
    (trail,) = ax.plot([], [], color="#56b4e9", linewidth=0.8)
    (point,) = ax.plot([], [], "o", color="black")
    ax.set(xlabel="x", ylabel="L(x)")
    ax.set_title(record["sentence"], size=7)

    def draw(i):
        trail.set_data(way[: i + 1], curves.quartic(way[: i + 1]))
        point.set_data(way[i : i + 1], curves.quartic(way[i : i + 1]))
        ax.set_xlabel(f"x; update {i * every}")
        return trail, point

    return FuncAnimation(fig, draw, frames=len(way), interval=80, blit=False)


def surfaces(header: Record, records: list[Record]) -> Any:
    """The contour of each surface and the way of each composition at its best rate."""
    parts = results.group(records, "part")
    columns = min(2, len(parts))
    fig, axes = figure(header, -(-len(parts) // columns), columns, (6.5, 6))
    look = looks(r["name"] for r in records)
    for (part, of_part), ax in zip(parts.items(), axes.flat, strict=False):
        contour(ax, curves.SURFACES[part])
        for name, runs in results.at_best(of_part, "value").items():
            start = curves.SURFACES[part].start
            way = np.concatenate([[start], np.stack([runs[0]["x"], runs[0]["y"]], axis=1)])
            style = {**look[name], "linewidth": 1, "markersize": 3}
            text = label(name, runs[0]["sentence"])
            ax.plot(*way.T, markevery=max(1, len(way) // 25), label=text, **style)
        ax.set(title=part, xlabel="x", ylabel="y")
        font = {"family": "monospace", "size": 6}
        ax.legend(prop=font, loc="upper center", bbox_to_anchor=(0.5, -0.13), handlelength=4)
    return fig


def contour(ax: Any, surface: curves.Surface) -> None:
    """Level lines, the start and the minima of a surface."""
    x0, x1, y0, y1 = surface.view
    x, y = np.meshgrid(np.linspace(x0, x1, 200), np.linspace(y0, y1, 200))
    z = np.asarray(surface.function(np.stack([x, y])), np.float64)
    ax.contour(x, y, np.log10(z + 1e-2), 18, colors="grey", linewidths=0.4)
    ax.plot(*surface.start, "k*", markersize=11)
    for minimum in surface.minima:
        ax.plot(*minimum, "k+", markersize=12, markeredgewidth=2)
    ax.set(xlim=(x0, x1), ylim=(y0, y1))


# ---- several curves ------------------------------------------------------------------------------


def lines(
    header: Record,
    records: list[Record],
    columns: tuple[str, ...],
    reference: str | None = None,
    log: bool = False,
) -> Any:
    """A row for each part, a panel for each column; `reference` is drawn thin beside the first column."""
    parts = results.group(records, "part")
    columns = tuple(c for c in columns if c in records[0])
    fig, axes = figure(header, len(parts), len(columns), (max(5, 9 / len(columns)), 3))
    look = looks(r["name"] for r in records)
    for (part, of_part), row in zip(parts.items(), axes, strict=True):
        for column, ax in zip(columns, row, strict=True):
            for name, runs in results.group(of_part, "name").items():
                band(ax, runs, column, label=label(name, runs[0]["sentence"]), **look[name])
                if reference in runs[0] and column == columns[0]:
                    thin = {"color": look[name]["color"], "linestyle": look[name]["linestyle"]}
                    text = f"thin: the {reference.replace('_', ' ')}"
                    ax.plot(runs[0]["step"], runs[0][reference], linewidth=0.6, label=text, **thin)
            ax.set(title=part, xlabel="steps", ylabel=column.replace("_", " "))
            if log:
                beside = (reference,) if column == columns[0] else ()
                seen = [r[c] for r in of_part for c in (column, *beside) if c in r]
                logarithmic(ax, seen)
            ax.grid(alpha=0.3)
    legend(fig, axes)
    return fig
