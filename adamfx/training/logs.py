"""The history of a run, written where others look: a table, TensorBoard, Weights & Biases.

fit(loss_fn, tx, params, batches, callbacks=[TensorBoard("runs/first")])
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from typing import Any

import numpy as np

from adamfx.training.archive import whole
from adamfx.training.callbacks import Callback, Running
from adamfx.values.arguments import checked


class Log(Callback):
    """Writes each row of the history once: a class of yours overrides `write`, for instance.

    The last row waits for the next turn, since an evaluation may yet come to it. Of a run that is resumed the
    new rows are written. Process 0 writes.
    """

    written = 0  # the step of the last row

    def begin(self, run: Running) -> None:
        self.written = run.step

    def turn(self, run: Running) -> None:
        self._log(run, 1)

    def end(self, run: Running) -> None:
        self._log(run, 0)

    def _log(self, run: Running, back: int) -> None:
        history = run.history
        steps = history.get("step", np.zeros(0))
        first, last = int(np.searchsorted(steps, self.written, "right")), len(steps) - back
        if run.leads and first < last:
            always = run.columns
            rows = [
                {name: float(x[i]) for name, x in history.items() if name in always or x[i] == x[i]}
                for i in range(first, last)
            ]
            self.write(rows)
            self.written = int(steps[last - 1])

    def write(self, rows: list[dict[str, float]]) -> None:
        """Rows of numbers by column; `step` is one. What was not measured at a step is not there."""
        raise NotImplementedError(f"{type(self).__name__} must define write(rows)")


class Table(Log):
    """A file of comma-separated values, a line for each step as it is done: `pandas.read_csv(path)`.

    What is there of an earlier part of the run stays; of steps that are done again, the new ones count. A
    disk that is full ends no run: it is tried again at every turn, and in the end there is a warning.

    Args:
      path: of the file; its folder exists.
    """

    @checked
    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.names: list[str] = []
        self.size = 0  # of what is surely there

    def begin(self, run: Running) -> None:
        self.names, self.size, self.written, self.warned = [], 0, 0, False
        if not run.leads:
            return
        there = self._there() if run.step else []
        self._anew([row for row in there if float(row["step"]) <= run.step])

    def _log(self, run: Running, back: int) -> None:
        try:
            super()._log(run, back)
        except OSError as error:
            if not self.warned or run.reason:
                warnings.warn(
                    f"Table: {self.path}: {error.strerror or error}; the run goes on, and rows after step "
                    f"{self.written} are written when there is room",
                    stacklevel=2,
                )
            self.warned = True

    def write(self, rows: list[dict[str, float]]) -> None:
        if any(name not in self.names for row in rows for name in row):
            return self._anew([*self._there(), *rows])
        with open(self.path, "r+b") as file:
            file.truncate(self.size)
            file.seek(self.size)
            file.write(self._lines(rows))
            self.size = file.tell()

    def _there(self) -> list[dict[str, Any]]:
        """The rows of the file, without a line of which there was room for a part."""
        try:
            with open(self.path, "rb") as file:
                data = file.read(self.size or -1)
        except FileNotFoundError:
            return []
        text = data[: data.rfind(b"\n") + 1].decode(errors="replace")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        if rows and (None in rows[0] or "step" not in rows[0]):
            raise ValueError(
                f"Table: {self.path} is no table with a column step; name another file"
            )
        return [{name: x for name, x in row.items() if x} for row in rows if row["step"]]

    def _anew(self, rows: list[dict[str, Any]]) -> None:
        """Writes the file whole: at the beginning, and where a column is new."""
        self.names = list(dict.fromkeys(name for row in rows for name in row))
        head = dict(zip(self.names, self.names, strict=True))
        with whole(self.path) as file:
            file.write(self._lines([head, *rows] if rows else []))
            self.size = file.tell()
        self.written = int(float(rows[-1]["step"])) if rows else 0

    def _lines(self, rows: list[dict[str, Any]]) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.names, lineterminator="\n")
        writer.writerows([{name: _short(x) for name, x in row.items()} for row in rows])
        return text.getvalue().encode()


class TensorBoard(Log):
    """Scalars for TensorBoard. Needs tensorboardX, which needs no TensorFlow.

    Args:
      folder: of this run alone, such as "runs/adam-1e-3"; `tensorboard --logdir runs` shows it.

    Raises ImportError, where the run begins, without tensorboardX.
    """

    @checked
    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)

    def begin(self, run: Running) -> None:
        super().begin(run)
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(
                "TensorBoard: it needs tensorboardX; run: pip install tensorboardX"
            ) from None
        # TensorBoard drops what an earlier part of the run wrote of the steps that are done again.
        self.writer = SummaryWriter(self.folder, purge_step=run.step + 1) if run.leads else None

    def write(self, rows: list[dict[str, float]]) -> None:
        for row in rows:
            step = int(row.pop("step"))
            for name, x in row.items():
                self.writer.add_scalar(name, x, step)  # type: ignore[union-attr]

    def end(self, run: Running) -> None:
        super().end(run)
        if self.writer is not None:
            self.writer.close()


class WandB(Log):
    """Scalars for Weights & Biases. Needs wandb.

    Args:
      **settings: for `wandb.init`, such as project, name, config, mode="offline"; for a run that may be
        resumed id and resume="allow". The sentence of the optimizer is added to config.

    Raises ImportError, where the run begins, without wandb.
    """

    def __init__(self, **settings: Any):
        self.settings = settings

    def begin(self, run: Running) -> None:
        super().begin(run)
        self.run: Any = None
        if not run.leads:
            return
        try:
            import wandb
        except ImportError:
            raise ImportError("WandB: it needs wandb; run: pip install wandb") from None
        self.run = wandb.init(**self.settings)
        self.run.config.update({"optimizer": repr(run.tx)}, allow_val_change=True)

    def write(self, rows: list[dict[str, float]]) -> None:
        for row in rows:
            self.run.log(row, step=int(row.pop("step")))

    def end(self, run: Running) -> None:
        try:
            super().end(run)
        finally:
            if self.run is not None:
                self.run.finish(exit_code=int(run.reason == "failed"))


def _short(x: Any) -> Any:
    """A whole number without its point; others so that they are read back the same."""
    if isinstance(x, str):
        return x
    return int(x) if float(x).is_integer() and abs(x) < 2**53 else repr(float(x))
