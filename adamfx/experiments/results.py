"""Results: JSON lines, written whole or not at all, and the questions figures and tables ask of them.

The first line describes the experiment: {"schema": 1, "experiment", "title", "data", "quick",
"versions"}. Each further line is one run: {"part", "name", "sentence", "point": {hyperparameter:
value}, "seed", "step": [...], "loss": [...], ...}, where every list has one entry for each entry of
`step`. null stands for inf and nan, which JSON does not have. Nothing in the file depends on the
time or on the machine's speed: the same seeds give the same file. What is read is checked, and may
come from anyone: a file that is damaged, foreign or too large raises a ResultsError.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from adamfx import reading
from adamfx.checks import shortened
from adamfx.training.archive import whole

Record = dict[str, Any]
SCHEMA = 1
LARGEST = 1 << 26  # bytes of a file
LONGEST = 1 << 22  # bytes of a line; as Python's objects they take up to forty times as much
NAMED = ("part", "name", "sentence")


class ResultsError(ValueError):
    """A file of results cannot be read or written: which, where, and what to do."""


def prepare(folder: Path) -> None:
    """Makes the folder, and sees that files can be written there, before there is something to lose."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ResultsError(
            f"{folder}: {error.strerror}, expected a folder to write in; choose another with --out"
        ) from error


def write(path: Path, to: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file as a whole or not at all."""
    try:
        with whole(path) as file:
            to(file)
    except OSError as error:
        raise ResultsError(
            f"{path}: {error.strerror}, it is as it was; make room or choose another folder with --out"
        ) from error


def save(path: Path, header: Record, records: Iterable[Record]) -> None:
    """Writes the header and the records as JSON lines."""
    lines = [json.dumps(x, allow_nan=False) for x in (headed(header), *map(_plain, records))]
    content = ("\n".join(lines) + "\n").encode()
    if len(content) > LARGEST or max(map(len, lines)) > LONGEST:
        raise ResultsError(
            f"{path}: would have {len(content):,} bytes, expected at most {LARGEST:,} and "
            f"{LONGEST:,} for each run; take fewer seeds, optimizers or experiments"
        )
    write(path, lambda file: file.write(content))


def headed(header: Record) -> Record:
    """The header as it stands in the file."""
    return _plain({"schema": SCHEMA, **header})


def load(path: Path) -> tuple[Record, list[Record]]:
    """(header, records) with arrays of float64 for the lists, nan for null.

    Raises:
      ResultsError: if the file is missing, cut off, of another schema or otherwise not of results.
    """
    header, *records = _read(path, _arrays)
    return header, records


def kept(path: Path, header: Record) -> list[Record]:
    """The records as they stand in the file, if there is one with this very header; otherwise none."""
    if not path.exists():
        return []
    found, *records = _read(path, lambda record: record)
    return records if found == headed(header) else []


def _read(path: Path, made: Callable[[Record], Record]) -> list[Record]:
    """The header and what is made of each record; not more of the file is in memory than a line."""
    found: list[Record] = []
    for i, line in enumerate(_lines(path), 1):
        try:
            if len(line) > LONGEST:
                raise ValueError(f"more than {LONGEST:,} bytes, expected one run")
            read = json.loads(line)
            wrong = _wrong_in_record(read) if found else _wrong_in_header(read)
            if wrong:
                raise ValueError(wrong)
            found.append(made(read) if found else read)
        except (ValueError, OverflowError, RecursionError) as error:
            raise ResultsError(f"{path}, line {i}: {error}; run the experiment again") from error
    if len(found) < 2:
        raise ResultsError(
            f"{path}: {len(found)} lines, expected a header and runs; run the experiment again"
        )
    return found


def _lines(path: Path) -> Iterator[bytes]:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device has no end
            raise ResultsError(f"{path}: not a file; take it away and run the experiment")
        with path.open("rb") as file:
            size = os.stat(file.fileno()).st_size
            if size > LARGEST:
                raise ResultsError(
                    f"{path}: {size:,} bytes, expected at most {LARGEST:,}; run the experiment again"
                )
            yield from iter(lambda: file.readline(LONGEST + 1), b"")
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}; run the experiment first") from error


def _wrong_in_header(x: Any) -> str | None:
    """What is wrong with the first line."""
    if not isinstance(x, dict) or (type(x.get("schema")), x.get("schema")) != (int, SCHEMA):
        return f"expected a header with schema {SCHEMA}"
    texts = ("experiment", "title", "data")
    missing = [k for k in texts if not isinstance(x.get(k), str)]
    return f"expected texts for {', '.join(missing)}" if missing else None


def _wrong_in_record(x: Any) -> str | None:
    """What is wrong with another line."""
    number = (int, float, type(None))
    if not isinstance(x, dict) or not isinstance(x.get("point"), dict):
        return "expected a run with its point"
    if not all(isinstance(x.get(k), str) and len(x[k]) <= reading.LONGEST for k in NAMED):
        return f"expected texts for {', '.join(NAMED)}, of {reading.LONGEST:,} characters at most"
    if not all(isinstance(v, number) for v in (x.get("seed"), *x["point"].values())):
        return "expected numbers for the seed and for what is in the point"
    columns = {k: v for k, v in x.items() if k not in (*NAMED, "point", "seed")}
    steps = x.get("step")
    for name, column in columns.items():
        if not (isinstance(column, list) and all(isinstance(v, number) for v in column)):
            return f"expected a list of numbers for {shortened(repr(name))}"
        if not isinstance(steps, list) or not 0 < len(column) == len(steps):
            return f"expected as many numbers for {shortened(repr(name))} as for 'step', at least 1"
    return None if columns else "expected numbers for 'step'"


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
