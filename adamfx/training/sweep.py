"""Many runs in one program: every combination of some hyperparameters, and several seeds of each.

found = sweep(loss_fn, {"learning_rate": logspace(-4, -1, 7)}, tx, init, batches, seeds=3)
"""

from __future__ import annotations

import itertools
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.notebook.pictures import sweep_figure
from adamfx.training.fit import train
from adamfx.training.history import History
from adamfx.training.run import by_member
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import check, checked

Tree = Any
TAIL = 0.1  # of the steps: over their losses the score is the mean


class Member(NamedTuple):
    """One run of a sweep."""

    values: dict[str, Any]
    seed: int
    tx: GradientTransformation


class Sweep:
    """What a sweep has found; its rows are the members.

    `table` (columns by name: `pandas.DataFrame(found.table)`), `best`, `history`, `params`, `states`.
    """

    def __init__(
        self, members: list[Member], runs: list, where: list[tuple[int, int]], score: str, sign: int
    ):
        self.members, self.score, self._sign = members, score, sign
        self._runs, self._where = runs, where  # of each member: which run, and its row there
        reasons = list(dict.fromkeys(run.reason for run in runs))
        self.reason = next((r for r in ("interrupted", "failed") if r in reasons), reasons[-1])

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
        run, row = self._where[i]
        end, held = f"[{row}]", self._runs[run].history
        own = {name.removesuffix(end): x for name, x in held.items() if name.endswith(end)}
        return History({"step": held.get("step", np.zeros(0))} | own)

    def scores(self) -> np.ndarray:
        """What the members are judged by: of a column of an evaluation the last number, else the mean of the
        last tenth of the steps. NaN where it was not measured, or not finite at the end."""
        return np.array([_score(self.history(i), self.score) for i in range(len(self))])

    @property
    def table(self) -> dict[str, list]:
        """A row for each member: what was varied, the seed, the score."""
        columns = {name: [m.values.get(name) for m in self.members] for name in self.names}
        return columns | {"seed": [m.seed for m in self.members], "score": self.scores().tolist()}

    def means(self) -> list[tuple[dict[str, Any], float, float]]:
        """(values, mean of the scores of the seeds, their spread: least to most), the best first.

        One seed that was not finite makes a mean infinite, or minus infinity where more is better.
        """
        found: dict[Any, list[float]] = {}
        for member, score in zip(self.members, self.scores(), strict=True):
            x = score if math.isfinite(score) else self._sign * math.inf
            found.setdefault(_key(member), []).append(x)
        by_key = {_key(m): m for m in self.members}
        rows = [
            (
                by_key[k].values,
                float(np.mean(x)),
                max(x) - min(x) if math.isfinite(sum(x)) else math.inf,
            )
            for k, x in found.items()
        ]
        return sorted(rows, key=lambda row: self._sign * row[1])

    @property
    def best(self) -> GradientTransformation:
        """The transformation with the best mean over its seeds, an ordinary value of Python numbers."""
        return self.members[self._order()[0]].tx

    def plot(self) -> Any:
        """A matplotlib figure: the score against one of the varied numbers, or a map of two."""
        return sweep_figure(self.table, self.names, self.score)

    def _order(self) -> list[int]:
        """The members: the best values first."""
        rank = {repr(values): n for n, (values, *_) in enumerate(self.means())}
        return sorted(range(len(self)), key=lambda i: rank[repr(self.members[i].values)])

    def _row(self, i: int, what: str) -> Tree:
        run, row = self._where[i]
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
      values: by the name of a hyperparameter, a dotted one or its unambiguous end, what it is to be.
      tx: the sentence to vary; or several by name, which are compared in a column "optimizer".
      params: of all members, or `params(key)` to draw those of a seed.
      batches: as for `fit`. All members see the same; more than one program needs an iterable that starts
        anew.
      seeds: how many, from 0, or which; each gives `jax.random.key(seed)` to `params`.
      steps, epochs, has_aux, evaluate_every, steps_per_dispatch, progress: as for `fit`.
      evaluate: as for `fit`, of one member. If it can be traced it runs once for all of them.
      score: a column to judge by; None: the first one of `evaluate`, or the loss.
      mode: "min" or "max": which score is better.
      at_once: how many members run together; None: as many as half of the device's memory holds, if it is
        known. Several devices share them where their number divides it.
      checkpoints: a folder, from which a sweep that was interrupted goes on, see `fit`.

    Raises KeyError for a name that is not a hyperparameter, ValueError for several seeds of one tree of
    parameters.
    """
    check(sweep, locals())
    checks.choice("sweep", "mode", mode, ("min", "max"))
    counted = isinstance(seeds, int)
    which = [*range(checks.steps("sweep", "seeds", seeds, 1))] if counted else list(seeds)
    if len(which) > 1 and not callable(params):
        raise ValueError(
            "sweep: params are a tree, so all seeds would be one; give a function params(key) that draws "
            "them"
        )
    if not callable(params):
        trees.check_leaves("sweep", "params", params)
    if at_once is not None:
        at_once = checks.steps("sweep", "at_once", at_once, 1)
    members = [m for tx, labels in _sentences(tx) for m in _members(tx, labels, values, which)]
    groups = _groups(members, values, params, at_once)
    if len(groups) > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"sweep: {len(members)} members are {len(groups)} programs, and batches can be gone through "
            "once; give a list or another iterable, that starts anew"
        )
    runs, where, evaluated = [], {}, []
    for n, group in enumerate(groups):
        own = [members[i] for i in group]
        start = _drawn(params, [m.seed for m in own])
        of_all = evaluate and _of_all(evaluate, len(own), evaluated)
        folder = None if checkpoints is None else os.path.join(checkpoints, f"members-{n}")
        run = train(
            *(loss_fn, _stacked([m.tx for m in own], values), start, batches, None, None, has_aux),
            *(
                steps,
                epochs,
                steps_per_dispatch,
                of_all,
                evaluate_every,
                None,
                progress,
                folder,
                (),
            ),
            members=True,
        )
        where |= {i: (n, row) for row, i in enumerate(group)}
        runs.append(run)
        if run.reason == "interrupted":
            break
    columns = {name.partition("[")[0] for run in runs for name in run.history}
    if score is None:
        score = evaluated[0] if evaluated else "loss"
    if score not in columns:
        raise KeyError(
            f"sweep: no column {score!r} to judge by; the histories have {', '.join(sorted(columns))}"
        )
    done = sorted(where)
    better = 1 if mode == "min" else -1
    return Sweep([members[i] for i in done], runs, [where[i] for i in done], score, better)


@checked
def logspace(start: float, stop: float, num: int = 7) -> tuple[float, ...]:
    """`num` numbers from 10^start to 10^stop, each the same factor above the one before, as NumPy's."""
    return tuple(float(f"{x:.4g}") for x in np.logspace(start, stop, num))


def _sentences(tx: Any) -> list[tuple[GradientTransformation, dict[str, str]]]:
    if isinstance(tx, Mapping):
        return [
            (GradientTransformation.given("sweep", f"tx[{name!r}]", x), {"optimizer": name})
            for name, x in tx.items()
        ]
    return [(GradientTransformation.given("sweep", "tx", tx), {})]


def _members(tx: Any, labels: dict, values: Mapping, seeds: list[int]) -> list[Member]:
    names = [name for name in values if not labels or _has(tx, name)]
    for name in names:
        if isinstance(values[name], str) or not isinstance(values[name], Iterable):
            raise TypeError(
                f"sweep: values[{name!r}] must be a list of what {name} is to be, got {values[name]!r}"
            )
    given = {name: list(values[name]) for name in names}
    if empty := [name for name, x in given.items() if not x]:
        raise ValueError(f"sweep: there are no values of {', '.join(empty)}")
    combinations = [dict(zip(names, x, strict=True)) for x in itertools.product(*given.values())]
    txs = [tx.replace(**x) for x in combinations]
    return [
        Member(labels | x, seed, made)
        for x, made in zip(combinations, txs, strict=True)
        for seed in seeds
    ]


def _has(tx: GradientTransformation, name: str) -> bool:
    """Of several sentences each varies what it has."""
    return any(known == name or known.endswith("." + name) for known in tx.hyperparams)


def _groups(
    members: list[Member], values: Iterable[str], params: Any, at_once: int | None
) -> list[list[int]]:
    """Who runs together: those of one form, no more than there is room for."""
    by_form: dict[Any, list[int]] = {}
    for i, member in enumerate(members):
        by_form.setdefault(_loose(member.tx, values).form, []).append(i)
    found = []
    for group in by_form.values():
        most = at_once or _room(members[group[0]], params)
        found += [group[i : i + most] for i in range(0, len(group), most)]
    return found


def _loose(tx: GradientTransformation, names: Iterable[str]) -> GradientTransformation:
    """The same with the numbers of these names as arrays, also where they are part of the form."""
    for known, x in tx.hyperparams.items():
        if isinstance(x, float) and any(known == n or known.endswith("." + n) for n in names):
            try:
                tx = tx.replace(**{known: jnp.asarray(x, float)})
            except (TypeError, ValueError):  # a number that the block needs to know
                continue
    return tx


def _stacked(txs: list, names: Iterable[str]) -> GradientTransformation:
    """Of one form: a leaf has a row for each."""
    loose = [_loose(tx, names) for tx in txs]
    return jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x, float) for x in xs]), *loose)


def _drawn(params: Any, seeds: list[int]) -> Tree:
    """Parameters with a row for each member; shared out over the devices where they divide them."""
    if callable(params):
        unique = {seed: params(jax.random.key(seed)) for seed in dict.fromkeys(seeds)}
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(unique[seed] for seed in seeds))
    else:
        stacked = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * len(seeds)), params)
    devices = jax.devices()
    if len(devices) == 1 or len(seeds) % len(devices):
        return stacked
    mesh = jax.sharding.Mesh(np.array(devices), ("members",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("members"))
    return jax.device_put(stacked, rows)


def _room(member: Member, params: Any) -> int:
    """How many members fit in half of the device's memory: params, gradients, updates, state."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return 1 << 30
    of_params = jax.eval_shape(params, jax.random.key(0)) if callable(params) else params
    state = jax.eval_shape(member.tx.init, of_params)
    size = 3 * _nbytes(of_params) + 2 * _nbytes(state)
    return max(1, int(stats["bytes_limit"] * jax.device_count() / 2 / max(size, 1)))


def _nbytes(tree: Tree) -> int:
    return sum(
        math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype")
    )


def _of_all(evaluate: Callable, n: int, names: list[str]) -> Callable:
    """An evaluation of all members from that of one, traced once or called for each; notes its names."""
    traced = jax.jit(jax.vmap(evaluate))

    def one_by_one(params: Tree, state: Any) -> dict[str, np.ndarray]:
        rows = [jax.tree.map(operator.itemgetter(i), (params, state)) for i in range(n)]
        found = [_named(checks.call("sweep", "evaluate", evaluate, *row)) for row in rows]
        return {name: np.array([float(x[name]) for x in found]) for name in found[0]}

    how = [lambda params, state: _named(traced(params, state)), one_by_one]

    def all_of_them(params: Tree, state: Any) -> dict[str, float]:
        try:
            found = how[0](params, state)
        except (jax.errors.JAXTypeError, TypeError, ValueError):
            if len(how) == 1:
                raise
            how.pop(0)
            found = how[0](params, state)
        names.extend(name for name in found if name not in names)
        return {name: float(x) for name, x in by_member(found).items()}

    return all_of_them


def _named(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {"evaluation": found}


def _score(history: History, column: str) -> float:
    loss, x = history.get("loss", np.zeros(0)), history.get(column, np.zeros(0))
    if not len(loss) or not np.isfinite(loss[-1]):
        return math.nan
    if column == "loss":
        return float(np.mean(loss[-max(1, round(TAIL * len(loss))) :]))
    there = x[~np.isnan(x)]
    return float(there[-1]) if len(there) else math.nan


def _key(member: Member) -> str:
    return repr(member.values)
