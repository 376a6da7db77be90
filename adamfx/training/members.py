"""Members of a sweep: which there are, and those of one form as rows of one program."""

from __future__ import annotations

import itertools
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.training.fit import train
from adamfx.training.history import History
from adamfx.training.orbax import Checkpoints
from adamfx.training.run import Fit, by_member
from adamfx.training.stream import Stream
from adamfx.transformation import GradientTransformation

Tree = Any


class Member(NamedTuple):
    """One run of a sweep."""

    values: dict[str, Any]
    seed: int
    tx: GradientTransformation


class Settings(NamedTuple):
    """What all groups of a sweep have in common."""

    caller: str
    loss_fn: Callable
    has_aux: bool
    steps_per_dispatch: int | None
    evaluate: Callable | None
    evaluate_every: int
    progress: bool | None
    checkpoints: str | os.PathLike | None

    def checked(self) -> Settings:
        every = checks.steps(self.caller, "evaluate_every", self.evaluate_every, 1)
        together = self.steps_per_dispatch
        if together is not None:
            together = checks.steps(self.caller, "steps_per_dispatch", together, 1)
        return self._replace(evaluate_every=every, steps_per_dispatch=together)


class Group:
    """Members that are one program, and how far they are."""

    def __init__(
        self,
        name: str,
        rows: list[int],
        members: list[Member],
        values: Mapping,
        params: Any,
        stream: Stream,
    ):
        self.name, self.rows, self.stream = name, rows, stream
        own = [members[i] for i in rows]
        self.tx = stacked([m.tx for m in own], values)
        self.params: Any = _drawn(params, [m.seed for m in own])
        self.state: Any = None
        self.history: History | None = None
        self.steps, self.round, self.reason = 0, 0, "steps"
        self._evaluations: dict[int, Callable] = {}  # by the number of members

    @property
    def goes_on(self) -> bool:
        return bool(self.rows) and self.reason == "steps"

    def train(self, given: Settings, until: float, evaluated: list[str]) -> Fit:
        """Up to so many steps from the beginning, or the end of the batches."""
        folder, kept = None, None
        if given.checkpoints is not None:
            folder = os.path.join(given.checkpoints, f"{self.name}-round-{self.round}")
            with Checkpoints(folder) as there:
                kept = there.latest
        state, history, begun = self.state, self.history, self.steps
        if kept is not None:  # from which the run goes on, not from what is here
            state, history, begun = None, None, 0
            for _ in range(kept - self.steps):
                next(self.stream, None)
        steps = None if until == math.inf else int(until) - begun
        evaluate = given.evaluate and self._evaluation(given.caller, given.evaluate, evaluated)
        run = train(
            given.loss_fn, self.tx, self.params, self.stream, members=True, state=state,
            history=history, has_aux=given.has_aux, steps=steps,
            steps_per_dispatch=given.steps_per_dispatch, evaluate=evaluate,
            evaluate_every=given.evaluate_every, progress=given.progress, checkpoints=folder,
        )  # fmt: skip
        self.params, self.state, self.history, self.reason = run
        self.steps, self.round = run.history.rows, self.round + 1
        return run

    def _evaluation(self, caller: str, evaluate: Callable, evaluated: list[str]) -> Callable:
        """That of all members; as long as they are as many, it is compiled once."""
        n = len(self.rows)
        if n not in self._evaluations:
            self._evaluations = {n: _of_all(caller, evaluate, n, evaluated)}
        return self._evaluations[n]

    def keep(self, rows: list[int]) -> None:
        """Goes on with these members alone."""
        at = [self.rows.index(i) for i in rows]
        self.choose(at)
        self.tx = jax.tree.map(lambda x: x[np.array(at, int)], self.tx)
        columns: dict[str, Any] = {}
        for name, x in (self.history or {}).items():
            column, _, row = name.partition("[")
            if not row:
                columns[name] = x
            elif int(row[:-1]) in at:
                columns[f"{column}[{at.index(int(row[:-1]))}]"] = x
        self.history, self.rows = History(columns), rows

    def choose(self, at: Sequence[int]) -> None:
        """Parameters and state become those of these rows."""
        self.params, self.state = shared_out(
            jax.tree.map(lambda x: x[np.array(at, int)], (self.params, self.state)), len(at)
        )


def sentences(tx: Any) -> list[tuple[GradientTransformation, dict[str, str]]]:
    """(transformation, what tells it from others in a table): one, or several by name."""
    if isinstance(tx, Mapping):
        return [
            (GradientTransformation.given("sweep", f"tx[{name!r}]", x), {"optimizer": name})
            for name, x in tx.items()
        ]
    return [(GradientTransformation.given("sweep", "tx", tx), {})]


def seeds_of(caller: str, seeds: int | Sequence[int], params: Any) -> list[int]:
    """Which seeds, of parameters that they can tell apart."""
    which = (
        [*range(checks.steps(caller, "seeds", seeds, 1))] if isinstance(seeds, int) else [*seeds]
    )
    if not callable(params):
        trees.check_leaves(caller, "params", params)
        if len(which) > 1:
            raise ValueError(
                f"{caller}: params are a tree, so all seeds would be one; give a function params(key) that "
                "draws them"
            )
    return which


def is_decay(name: str, x: float) -> bool:
    """Whether a hyperparameter counts by its distance from one: b1, b2, decay, momentum."""
    end = name.split(".")[-1]
    return 0 < x < 1 and (end in ("decay", "momentum") or (end[:1] == "b" and end[1:].isdigit()))


def members_of(
    caller: str, tx: Any, labels: dict, values: Mapping, seeds: list[int]
) -> list[Member]:
    """A sentence with every combination of the values, from every seed."""
    names = [name for name in values if not labels or _has(tx, name)]
    for name in names:
        if isinstance(values[name], str) or not isinstance(values[name], Iterable):
            raise TypeError(
                f"{caller}: values[{name!r}] must be a list of what {name} is to be, got {values[name]!r}"
            )
    given = {name: list(values[name]) for name in names}
    if empty := [name for name, x in given.items() if not x]:
        raise ValueError(f"{caller}: there are no values of {', '.join(empty)}")
    combinations = [dict(zip(names, x, strict=True)) for x in itertools.product(*given.values())]
    txs = [replaced(tx, x) for x in combinations]
    return [
        Member(labels | x, seed, made)
        for x, made in zip(combinations, txs, strict=True)
        for seed in seeds
    ]


def replaced(tx: GradientTransformation, values: Mapping) -> GradientTransformation:
    """With other numbers; the name of several that are equal now, as all groups' rate, is all of them."""
    known, changes = tx.hyperparams, {}
    for name, x in values.items():
        ends = [n for n in known if n == name or n.endswith("." + name)]
        one = len({repr(known[n]) for n in ends}) == 1 and name not in known
        changes |= dict.fromkeys(ends if one else [name], x)
    return tx.replace(**changes)


def _has(tx: GradientTransformation, name: str) -> bool:
    """Of several sentences each varies what it has."""
    return any(known == name or known.endswith("." + name) for known in tx.hyperparams)


def rows_of_groups(
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


def stacked(txs: list, names: Iterable[str]) -> GradientTransformation:
    """Of one form: a leaf has a row for each."""
    loose = [_loose(tx, names) for tx in txs]
    return jax.tree.map(
        lambda *xs: jnp.stack([x if hasattr(x, "dtype") else jnp.asarray(x, float) for x in xs]),
        *loose,
    )


def _drawn(params: Any, seeds: list[int]) -> Tree:
    """Parameters with a row for each member."""
    if callable(params):
        unique = {seed: at for at, seed in enumerate(dict.fromkeys(seeds))}
        found = [params(jax.random.key(seed)) for seed in unique]
    else:
        found, unique = [params], dict.fromkeys(seeds, 0)
    found = [jax.tree.map(jnp.asarray, tree) for tree in found]
    return shared_out(_rows(found, np.array([unique[seed] for seed in seeds])), len(seeds))


@jax.jit
def _rows(found: list, at: Any) -> Tree:
    """Of several trees, stacked, these rows; one program, not one for each leaf."""
    return jax.tree.map(lambda *xs: jnp.stack(xs)[at], *found)


def shared_out(stacked: Tree, n: int) -> Tree:
    """Rows shared out over the devices, where these divide their number."""
    devices = jax.devices()
    if len(devices) == 1 or n == 0 or n % len(devices):
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


def _of_all(caller: str, evaluate: Callable, n: int, names: list[str]) -> Callable:
    """An evaluation of all members from that of one, traced once or called for each; notes its names."""
    traced = jax.jit(jax.vmap(evaluate))

    def one_by_one(params: Tree, state: Any) -> dict[str, np.ndarray]:
        rows = [jax.tree.map(operator.itemgetter(i), (params, state)) for i in range(n)]
        found = [_named(checks.call(caller, "evaluate", evaluate, *row)) for row in rows]
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
