"""The result as a table, as JSON and as a picture."""

from __future__ import annotations

import itertools
import json
import os
import platform
from pathlib import Path
from typing import Any

from adamfx.experiments import results
from benchmarks.suites import Row


def machine() -> dict[str, Any]:
    """Where it was measured."""
    import importlib.metadata

    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    for package in ("adamfx", "jax", "jaxlib", "optax", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def line(row: Row) -> str:
    interval = "" if row.low is None else f"[{row.low:.3g}, {row.high:.3g}]"
    same = "" if row.same is None else f"{row.same:.2f}"
    bar = "" if row.bar is None else f"{row.bar:.3g}"
    met = {None: "", True: "met", False: "NOT MET"}[row.met]
    value = f"{row.value:.3g} {row.unit}"
    return f"  {row.what:<62} {value:>12} {interval:<16} {same:>5} {bar:>6} {met:<8} {row.note}"


HEAD = f"  {'':<62} {'':>12} {'95 % interval':<16} {'peer':>5} {'bar':>6}"


def columns(rows: list[Row]) -> list[str]:
    """A head, and one line per `what`: ours / the peer's, with a ! where a bar is not met."""
    lines: dict[str, dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(row.what, {})[row.column] = row
    names = list(dict.fromkeys(row.column for row in rows))

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        pair = [x for x in (row.value, row.peer) if x is not None]
        return " / ".join(f"{round(x, 3):.5g}" for x in pair) + ("!" if row.met is False else "")

    head = "".join(f"{name:>17}" for name in names)
    made = [
        f"  {what:<45}" + "".join(f"{cell(found.get(name)):>17}" for name in names)
        for what, found in lines.items()
    ]
    return [f"{f'{rows[0].suite}: ours / peer, ! above the bar':<47}{head}", *made]


def table(rows: list[Row], quick: bool) -> str:
    """All rows under the names of their suites."""
    lines = []
    for suite in dict.fromkeys(row.suite for row in rows):
        here = [row for row in rows if row.suite == suite]
        if here[0].column:
            lines += ["", *columns(here)]
            continue
        lines += ["", f"{suite}{HEAD[len(suite) :]}"]
        lines += [line(row).rstrip() for row in here]
    if quick:
        return "\n".join(
            [*lines, "", "--quick: tiny sizes, a few rounds; it runs, its figures mean nothing."]
        )
    barred = [row for row in rows if row.met is not None]
    met = sum(bool(row.met) for row in barred)
    lines += [
        "",
        f"{met} of {len(barred)} bars met. x: times the peer, less is better; peer: the slowest",
    ]
    lines += ["copy of the peer over its fastest, as far as identical programs are apart."]
    return "\n".join(lines)


def write(folder: Path, device: str, quick: bool, rows: list[Row]) -> None:
    """bench.json, bench.png and bench.svg, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine() | {"device": device}, "quick": quick}
    text = json.dumps(record | {"rows": [row._asdict() for row in rows]}, indent=1)
    results.write(folder / "bench.json", lambda file: file.write(f"{text}\n".encode()))
    picture = figure(rows, f"{device}, JAX {record['machine']['jax']}")
    for kind in ("png", "svg"):
        results.write(
            folder / f"bench.{kind}",
            lambda file, kind=kind: picture.savefig(file, format=kind, dpi=120),
        )


def figure(rows: list[Row], where: str) -> Any:
    """All ratios on one logarithmic axis: points with intervals, bars as ticks, 1 as a line."""
    from matplotlib.figure import Figure  # without pyplot it needs no display

    shown = [row for row in rows if row.unit == "x" and row.low is not None]
    fig = Figure(figsize=(10, 1.8 + 0.23 * len(shown)), layout="constrained")
    ax = fig.subplots()
    suites = dict.fromkeys(row.suite for row in shown)
    marks = dict(zip(suites, itertools.cycle("osD^vPX*p"), strict=False))
    for y, row in enumerate(shown):
        ends: Any = [row.low, row.high]
        ax.plot(ends, [y, y], color="black", linewidth=1)
        met = row.met is not False
        ax.plot(
            row.value,
            y,
            marks[row.suite],
            color="black",
            markersize=5,
            fillstyle="full" if met else "none",
        )
        if row.bar is not None:
            ax.plot(row.bar, y, "|", color="#d55e00", markersize=12, markeredgewidth=2)
        if row.same is not None:
            ax.plot(
                [1 / row.same, row.same], [y, y], color="#56b4e9", linewidth=6, alpha=0.4, zorder=0
            )
    ax.axvline(1, color="black", linewidth=0.8, linestyle="--")
    ax.set_yticks(range(len(shown)), [f"{row.suite}: {row.what}" for row in shown], fontsize=7)
    ax.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    ax.set_xscale("log")
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.grid(axis="x", alpha=0.3)
    ax.set_xlabel("time of adamfx over time of the peer (left of 1: adamfx is faster)")
    ax.set_title(
        f"{where}\npoint: median, line: 95 % interval, hollow: above its bar\n"
        "orange: bar, blue: how far copies of the peer are apart",
        fontsize=9,
    )
    return fig
