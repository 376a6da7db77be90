"""Results: JSON lines, written whole or not at all, and the questions figures and tables ask of them.

The first line describes the experiment: {"schema": 1, "experiment", "title", "data", "quick",
"versions"}. Each further line is one run: {"part", "name", "sentence", "point": {hyperparameter:
value}, "seed", "step": [...], "loss": [...], ...}, where every list has one entry for each entry of
`step`. null stands for inf and nan, which JSON does not have. Nothing in the file depends on the
time or on the machine's speed: the same seeds give the same file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]
SCHEMA = 1


class ResultsError(ValueError):
    """A file is not one of results: which, where, and what to do."""


def write(path: Path, to: Callable[[Path], Any]) -> None:
    """Writes a file as a whole or not at all: `to` a file beside it, which is then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        to(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save(path: Path, header: Record, records: Iterable[Record]) -> None:
    """Writes the header and the records as JSON lines."""
    lines = [
        json.dumps(_plain(x), allow_nan=False) for x in ({"schema": SCHEMA, **header}, *records)
    ]
    write(path, lambda beside: beside.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def load(path: Path) -> tuple[Record, list[Record]]:
    """(header, records) with arrays of float64 for the lists, nan for null.

    Raises:
      ResultsError: if the file is missing, cut off or of another schema.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}; run the experiment first") from None
    found = []
    for i, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ResultsError(f"{path}, line {i}: {error}; run the experiment again") from None
    if not found or not isinstance(found[0], dict) or found[0].get("schema") != SCHEMA:
        raise ResultsError(
            f"{path}: the first line must be a header with schema {SCHEMA}; run the experiment again"
        )
    return found[0], [_arrays(record) for record in found[1:]]


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    if isinstance(x, (np.ndarray, np.generic)) or hasattr(x, "__array__"):
        return _plain(np.asarray(x).tolist())
    if isinstance(x, float):
        return float(f"{x:.9g}") if np.isfinite(x) else None
    return x


def _arrays(record: Record) -> Record:
    return {k: np.array(v, np.float64) if isinstance(v, list) else v for k, v in record.items()}


# ---- questions -----------------------------------------------------------------------------------


def group(records: Iterable[Record], *keys: str) -> dict[Any, list[Record]]:
    """The records by what they say for these keys, in the order of appearance.

    A key is a field of the record or of its point; a single key groups by its value, several by tuple.
    """
    found: dict[Any, list[Record]] = {}
    for record in records:
        values = tuple({**record, **record["point"]}.get(k) for k in keys)
        found.setdefault(values[0] if len(keys) == 1 else values, []).append(record)
    return found


def mean_and_std(records: Iterable[Record], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Over these runs, at each step; the deviation of a sample, 0 for a single run."""
    x = np.stack([r[column] for r in records])
    with np.errstate(invalid="ignore"):
        return x.mean(0), x.std(0, ddof=min(1, len(x) - 1))


def final(records: Iterable[Record], column: str, share: float = 1 / 6) -> np.ndarray:
    """For each run, the mean of the last sixth of a column: one measurement alone would be luck."""
    x = np.stack([r[column] for r in records])
    return x[:, -max(1, int(x.shape[1] * share)) :].mean(1)


def at_best(records: Iterable[Record], column: str) -> dict[str, list[Record]]:
    """By composition, the runs at the point whose mean over seeds of the final column is lowest.

    Where every point diverged, the first.
    """
    best = {}
    for name, runs in group(records, "name").items():
        points = list(group(runs, "sentence").values())
        ends = np.array([final(p, column).mean() for p in points])
        best[name] = points[int(np.argmin(np.where(np.isfinite(ends), ends, np.inf)))]
    return best


def table(records: list[Record], column: str) -> str:
    """A line for each composition at its best point, by part: mean and deviation over the seeds."""
    lines = []
    for part, of_part in group(records, "part").items():
        lines.append(f"\n{part}: {column}, mean ± standard deviation over seeds, at the best rate")
        for name, runs in at_best(of_part, column).items():
            ends = final(runs, column)
            accuracy = (
                f"  accuracy {100 * final(runs, 'accuracy').mean():.1f} %"
                if "accuracy" in runs[0]
                else ""
            )
            points = group([r for r in of_part if r["name"] == name], "sentence").values()
            gone = sum(not np.isfinite(final(p, column).mean()) for p in points)
            diverged = f"  {gone} of {len(points)} points diverged" if gone else ""
            spread = ends.std(ddof=min(1, len(ends) - 1))
            sentence = runs[0]["sentence"]
            short = "" if name == sentence else name
            lines.append(f"  {short:<12}{ends.mean():10.4g} ± {spread:<9.2g}{accuracy}{diverged}")
            lines.append(f"  {'':<12}{sentence}")
    return "\n".join(lines)
