"""Many runs in one program: every combination of some hyperparameters, and several seeds of each.

found = sweep(loss_fn, {"learning_rate": logspace(-4, -1, 7)}, tx, init, batches, seeds=3)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adamfx import checks
from adamfx.notebook.pictures import sweep_figure
from adamfx.training.history import History
from adamfx.training.members import (
    Group,
    Member,
    Settings,
    members_of,
    rows_of_groups,
    seeds_of,
    sentences,
)
from adamfx.training.stream import Stream
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import check, checked

Tree = Any
TAIL = 0.1  # of the steps: over their losses the score is the mean


class Sweep:
    """What a sweep has found; its rows are the members.

    `table` (columns by name: `pandas.DataFrame(found.table)`), `best`, `history`, `params`, `state`.
    """

    def __init__(self, members: list[Member], score: str | None, sign: int):
        self.members, self.score, self._sign = members, score, sign
        self._runs: list = []
        self.where: dict[int, tuple[int, int]] = {}  # of each member: which run, and its row there
        self.reason = "steps"

    def train(self, group: Group, given: Settings, until: float, evaluated: list[str]) -> None:
        """Lets a group go on, and takes in what came of it; of an error, too: `error.result`."""
        try:
            run = group.train(given, until, evaluated)
        except BaseException as error:
            if hasattr(error, "result"):
                self._add(group.rows, error.result)  # type: ignore[attr-defined]
                error.result = self.ended()  # type: ignore[attr-defined]
            raise
        self._add(group.rows, run)
        columns = {name.partition("[")[0] for name in run.history}
        if self.score is None:
            self.score = evaluated[0] if evaluated else "loss"
        if self.score not in columns and columns:
            raise KeyError(
                f"sweep: no column {self.score!r} to judge by; the histories have "
                f"{', '.join(sorted(columns))}"
            )

    def _add(self, rows: Sequence[int], run: Any) -> None:
        self.where = self.where | {i: (len(self._runs), row) for row, i in enumerate(rows)}
        self._runs.append(run)
        self.reason = run.reason

    def ended(self) -> Sweep:
        """Itself, without members that have not begun."""
        begun = sorted(self.where)
        self.members = [self.members[i] for i in begun]
        self.where = {new: self.where[i] for new, i in enumerate(begun)}
        return self

    def ranked(self, rows: Iterable[int]) -> list[int]:
        """These members, the best first."""
        found = {i: _score(self.history(i), self.score or "loss") for i in rows}
        bad = math.inf
        return sorted(
            found, key=lambda i: self._sign * found[i] if math.isfinite(found[i]) else bad
        )

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        best = self.means()[0][1]
        return f"<Sweep of {len(self)} runs, {self.reason}; best {self.score} {best:.4g}: {self.best!r}>"

    @property
    def names(self) -> list[str]:
        """What was varied."""
        return list(dict.fromkeys(name for m in self.members for name in m.values))

    def params(self, i: int) -> Tree:
        """The parameters of a member."""
        return self._row(i, "params")

    def state(self, i: int) -> Tree:
        """The state of a member, with which `fit(loss_fn, found.members[i].tx, ...)` goes on."""
        return self._row(i, "state")

    def history(self, i: int) -> History:
        """The history of a member."""
        run, row = self.where[i]
        end, held = f"[{row}]", self._runs[run].history
        own = {name.removesuffix(end): x for name, x in held.items() if name.endswith(end)}
        return History({"step": held.get("step", np.zeros(0))} | own)

    def scores(self) -> np.ndarray:
        """What the members are judged by: of a column of an evaluation the last number, else the mean of the
        last tenth of the steps. NaN where it was not measured, or not finite at the end."""
        return np.array([_score(self.history(i), self.score or "loss") for i in range(len(self))])

    @property
    def table(self) -> dict[str, list]:
        """A row for each member: what was varied, the seed, the steps done, the score."""
        columns = {name: [m.values.get(name) for m in self.members] for name in self.names}
        steps = [self.history(i).rows for i in range(len(self))]
        seeds = [m.seed for m in self.members]
        return columns | {"seed": seeds, "steps": steps, "score": self.scores().tolist()}

    def means(self) -> list[tuple[dict[str, Any], float, float]]:
        """(values, mean of the scores of the seeds, their spread: least to most), the best first; before all,
        what went on longest.

        One seed that was not finite makes a mean infinite, or minus infinity where more is better.
        """
        table, found = self.table, {}
        for member, steps, score in zip(self.members, table["steps"], table["score"], strict=True):
            x = score if math.isfinite(score) else self._sign * math.inf
            found.setdefault(repr(member.values), (member.values, []))[1].append((steps, x))
        rows = []
        for values, scores in found.values():
            longest = max(steps for steps, _ in scores)
            x = [score for steps, score in scores if steps == longest]
            spread = max(x) - min(x) if math.isfinite(sum(x)) else math.inf
            rows.append((longest, values, float(np.mean(x)), float(spread)))
        rows.sort(key=lambda row: (-row[0], self._sign * row[2]))
        return [row[1:] for row in rows]

    @property
    def best(self) -> GradientTransformation:
        """The transformation with the best mean over its seeds, an ordinary value of Python numbers."""
        values = repr(self.means()[0][0])
        return next(m.tx for m in self.members if repr(m.values) == values)

    def plot(self) -> Any:
        """A matplotlib figure: the score against one of the varied numbers, or a map of two."""
        return sweep_figure(self.table, self.names, self.score or "loss")

    def _row(self, i: int, what: str) -> Tree:
        run, row = self.where[i]
        return jax.tree.map(lambda x: x[row], getattr(self._runs[run], what))


def sweep(
    loss_fn: Callable,
    values: Mapping[str, Iterable],
    tx: GradientTransformation | Mapping[str, GradientTransformation],
    params: Tree | Callable[[jax.Array], Tree],
    batches: Iterable,
    *,
    seeds: int | Sequence[int] = 1,
    steps: int | None = None,
    epochs: int = 1,
    has_aux: bool = False,
    evaluate: Callable[[Tree, Any], Any] | None = None,
    evaluate_every: int = 100,
    score: str | None = None,
    mode: str = "min",
    halve_every: int | None = None,
    at_once: int | None = None,
    steps_per_dispatch: int | None = None,
    progress: bool | None = None,
    checkpoints: str | os.PathLike | None = None,
) -> Sweep:
    """Trains with every combination of the values, from every seed, and returns what came of it.

    Members that differ in numbers alone are one program, under vmap, and take each batch together; those that
    differ in more (a flag, a schedule, a sentence) are a program for each form, one after the other. Ctrl-C
    ends it after the running dispatch and returns what is complete.

    Args:
      loss_fn: `loss_fn(params, *batch)`, as for `fit`.
      values: by the name of a hyperparameter, a dotted one or its end, what it is to be. An end that several
        have whose numbers are equal, such as the rate of all groups of `muon(0.1)`, is all of them.
      tx: the sentence to vary; or several by name, which are compared in a column "optimizer".
      params: of all members, or `params(key)` to draw those of a seed.
      batches: as for `fit`. All members see the same; more than one program needs an iterable that starts
        anew.
      seeds: how many, from 0, or which; each gives `jax.random.key(seed)` to `params`.
      steps, epochs, has_aux, evaluate_every, steps_per_dispatch, progress: as for `fit`.
      evaluate: as for `fit`, of one member. If it can be traced it runs once for all of them.
      score: a column to judge by; None: the first one of `evaluate`, or the loss.
      mode: "min" or "max": which score is better.
      halve_every: after so many steps, and again and again, the worse half of the members ends (successive
        halving, Jamieson & Talwalkar 2016), until one is left, which goes on to the end. Each round compiles
        a program for fewer.
      at_once: how many members run together; None: as many as half of the device's memory holds, if it is
        known. Several devices share them where their number divides it.
      checkpoints: a folder, from which the same call goes on where it was interrupted; batches that were
        trained on before are passed over.

    Raises KeyError for a name that is not a hyperparameter, ValueError for several seeds of one tree of
    parameters.
    """
    check(sweep, locals())
    checks.choice("sweep", "mode", mode, ("min", "max"))
    which = seeds_of("sweep", seeds, params)
    if at_once is not None:
        at_once = checks.steps("sweep", "at_once", at_once, 1)
    if halve_every is not None:
        halve_every = checks.steps("sweep", "halve_every", halve_every, 1)
    steps = None if steps is None else checks.steps("sweep", "steps", steps)
    epochs = checks.steps("sweep", "epochs", epochs, 1)
    members = [
        m for tx, labels in sentences(tx) for m in members_of("sweep", tx, labels, values, which)
    ]
    each = rows_of_groups(members, values, params, at_once)
    if len(each) > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"sweep: {len(members)} members are {len(each)} programs, and batches can be gone through once; "
            "give a list or another iterable, that starts anew"
        )
    groups = [
        Group(f"members-{n}", rows, members, values, params, Stream(batches, epochs))
        for n, rows in enumerate(each)
    ]
    given = Settings(
        *("sweep", loss_fn, has_aux),
        *(steps_per_dispatch, evaluate, evaluate_every, progress, checkpoints),
    ).checked()
    found = Sweep(members, score, 1 if mode == "min" else -1)
    evaluated: list[str] = []
    last = math.inf if steps is None else steps
    until = last if halve_every is None else min(halve_every, last)
    while True:
        for group in groups:
            if group.goes_on:
                found.train(group, given, until, evaluated)
            if group.reason == "interrupted":
                return found.ended()
        left = [group for group in groups if group.goes_on]
        if not left or until == last:
            return found
        rows = [i for group in left for i in group.rows]
        best = set(found.ranked(rows)[: math.ceil(len(rows) / 2)])
        for group in left:
            group.keep([i for i in group.rows if i in best])
        until = min(until + (halve_every or 0), last)


@checked
def logspace(start: float, stop: float, num: int = 7) -> tuple[float, ...]:
    """`num` numbers from 10^start to 10^stop, each the same factor above the one before, as NumPy's."""
    return tuple(float(f"{x:.4g}") for x in np.logspace(start, stop, num))


def _score(history: History, column: str) -> float:
    loss, x = history.get("loss", np.zeros(0)), history.get(column, np.zeros(0))
    if not len(loss) or not np.isfinite(loss[-1]):
        return math.nan
    if column == "loss":
        return float(np.mean(loss[-max(1, round(TAIL * len(loss))) :]))
    there = x[~np.isnan(x)]
    return float(there[-1]) if len(there) else math.nan
