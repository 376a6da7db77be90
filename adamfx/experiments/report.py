"""How an experiment shows its records: a table, a picture, files that are never half written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def print_table(records: list[dict[str, Any]]) -> None:
    """A row for each optimizer under its sentence."""
    line = "{:<9}{:>10}{:>19}{:>17}{:>11}{:>9}   {}"
    heads = ("best rate", "train loss", "test accuracy", "compile", "run", "diverged at")
    print(line.format("", *heads))
    for r in records:
        best, loss, accuracy = "none", "-", "-"
        if r["best_rate"] is not None:
            best = r["best_rate"]
            loss = "{mean:.4f} ± {std:.4f}".format(**r["train_loss"])
            accuracy = "{:.1f} ± {:.1f} %".format(*(100 * x for x in r["test_accuracy"].values()))
        times = (f"{seconds:.1f} s" for seconds in r["seconds"].values())
        by_rate = zip(r["rates"], r["mean_train_loss_by_rate"], strict=True)
        diverged = ", ".join(f"{rate:g}" for rate, mean in by_rate if mean is None)
        print(f"\n{r['sentence']}")
        print(line.format(r["name"], best, loss, accuracy, *times, diverged or "no rate"))


def draw(records: list[dict[str, Any]], title: str, path: Path) -> None:
    """The training curves at the best rates, and the final loss at every rate."""
    from matplotlib.figure import Figure  # without pyplot it draws with Agg and needs no display

    # Line styles and markers tell the optimizers apart without color, too.
    colors = ("black", "#0072b2", "#56b4e9", "#b8860b", "#d55e00", "#cc79a7", "#009e73")
    styles = ("-", "--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), "-")
    looks = zip(colors, styles, "osD^vPX", strict=True)
    figure = Figure(figsize=(12, 7), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, (r, (color, style, marker)) in enumerate(zip(records, looks, strict=False)):
        look = {"color": color, "linestyle": style, "marker": marker, "markersize": 5}
        mean, std = (np.array(x, float) for x in r["train_loss_curve"].values())  # None is nan
        epochs = np.arange(1, len(mean) + 1)
        every = (i % len(epochs), max(7, len(epochs) // 5))  # no marker upon another
        left.plot(epochs, mean, **look, markevery=every, label=f"{r['name']:<9} {r['sentence']}")
        left.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.12, linewidth=0)
        rates, losses = np.array(r["rates"]), np.array(r["mean_train_loss_by_rate"], float)
        right.plot(rates, losses, **look)
        at = rates == r["best_rate"]
        right.plot(rates[at], losses[at], "o", color=color, fillstyle="none", markersize=13)
        gone = rates[np.isnan(losses)]
        right.plot(gone, 0 * gone + 15, "x", color=color)
    right.axhline(np.log(10), color="grey", linewidth=1)
    right.annotate("guessing: ln 10", (0.02, 2.6), color="grey")

    lowest = min((x for r in records for x in r["train_loss_curve"]["mean"] if x), default=1e-3)
    left.set(yscale="log", ylim=(lowest / 2, 20), xlabel="epochs")
    left.set(ylabel="train loss: cross-entropy [nats], mean over seeds")
    left.set(title="At the best learning rate; band: standard deviation")
    right.set(xscale="log", xlabel="learning rate")
    right.set(title="At every learning rate, last epochs averaged; o best, x diverged")
    left.grid(alpha=0.3)
    right.grid(alpha=0.3)
    figure.suptitle(title)
    font = {"family": "monospace", "size": 8}
    figure.legend(loc="outside lower center", handlelength=4, prop=font)
    figure.savefig(path, format="png", dpi=150)


def write(path: Path, to: Callable[[Path], Any]) -> None:
    """Writes a file as a whole or not at all: `to` a file beside it, which is then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        to(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    print(f"wrote {path}")
