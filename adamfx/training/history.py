"""What a run has measured, as a table, and a question to ask of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from adamfx import checks
from adamfx.values.arguments import checked

_NONE = np.zeros(0)


class History(dict):
    """A table by column: `history["loss"]` is an array with one number per step.

    `pandas.DataFrame(history)` and `plt.plot(history["step"], history["loss"])` read it; `save` and
    `load` keep it. What was not measured at a step, such as an evaluation, is NaN there.
    """

    def __init__(self, columns: Any = ()):
        try:
            found = {name: np.array(x, np.float64) for name, x in dict(columns).items()}
        except (TypeError, ValueError):
            found = None
        if found is None or not _is_table(found):
            raise TypeError(
                "History: columns must be a dict of name to numbers, one for each step, equally many, got "
                f"{checks.shown(columns)}"
            )
        super().__init__(found)
        self._room = dict(self)

    def __reduce__(self):  # with its numbers once, not also with the room beyond them
        return History, (dict(self),)

    def __copy__(self) -> History:
        return History(self)

    def _repr_html_(self) -> str:
        """Its last numbers and a line of the loss, for a notebook."""
        return importlib.import_module("adamfx.notebook.tables").as_html(self)

    @property
    def rows(self) -> int:
        """How many steps are in it."""
        return max(map(len, self.values()), default=0)

    def measured(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, numbers) of a column where it has some: `plt.plot(*history.measured("val"))`."""
        there = ~np.isnan(self[column])
        return self.get("step", np.arange(self.rows) + 1)[there], self[column][there]

    def shown(self) -> History:
        """The same numbers for others to read: nothing they change is changed here."""
        seen = History()
        for name, x in self.items():
            seen[name] = x.view()
            seen[name].flags.writeable = False
        return seen

    def extend(self, columns: dict[str, Any]) -> None:
        """Appends rows: arrays of one length, or numbers for the last of the rows there are."""
        old, new = self.rows, max(map(np.size, columns.values()), default=0)
        for name in {**self, **columns}:
            room = self._room.get(name, _NONE)
            if len(room) < old + new:
                grown = np.full(max(2 * (old + new), 64), np.nan)
                grown[: len(room)] = room
                room = self._room[name] = grown
            room[old : old + new] = columns.get(name, np.nan)
            self[name] = room[: old + new]

    def record(self, values: dict[str, Any]) -> None:
        """Writes these numbers into the last row."""
        for name, x in values.items():
            if name not in self:
                self._room[name] = np.full(max(2 * self.rows, 64), np.nan)
                self[name] = self._room[name][: self.rows]
            self[name][-1:] = float(x)


def _is_table(columns: dict) -> bool:
    names = all(isinstance(name, str) for name in columns)
    shapes = {x.shape for x in columns.values()}
    return names and len(shapes) < 2 and all(len(shape) == 1 for shape in shapes)


@checked
def no_improvement(
    column: str = "loss", patience: int = 10, min_delta: float = 0.0, mode: str = "min"
) -> Callable[[History], bool]:
    """An early stop for `fit`: true when the column has not improved for `patience` of its numbers.

    Args:
      column: of the history; rows without a number in it are passed over, so for a column that an
        evaluation writes, `patience` counts evaluations.
      patience: >= 1.
      min_delta: how far beyond the best so far counts as better, >= 0.
      mode: "min" where less is better, as for a loss; "max" where more is, as for an accuracy.
    """
    patience = checks.steps("no_improvement", "patience", patience, 1)
    checks.number("no_improvement", "min_delta", min_delta, low=0)
    checks.choice("no_improvement", "mode", mode, ("min", "max"))

    def stop(history: History) -> bool:
        if column not in history:
            raise KeyError(
                f"no_improvement: no column {column!r}; the history has {', '.join(history)}"
            )
        x = history.measured(column)[1] * (1 if mode == "min" else -1)
        return len(x) > patience and not x[-patience:].min() < x[:-patience].min() - min_delta

    return stop
