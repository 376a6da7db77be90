"""Runs compositions over a grid of hyperparameters and seeds: one compiled program for each composition.

An optimizer is a value, so a grid is the same value with arrays in it, and all runs of a composition
are `jax.vmap` over that value and the seed, under one scan over the steps.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

import adamfx as fx

Params = Any
Record = dict[str, Any]
DISPATCHES = 50  # for one run at most: how often the bar moves and Ctrl-C is heard


class Problem(NamedTuple):
    """A stochastic objective f_t (Adam paper, section 2), t = 0, 1, ...

    `key` is new at every step of every seed, and the same for all compositions and grid points.
    """

    data: Any  # a tree of arrays, handed to both functions
    init: Callable[[jax.Array], Params]  # init(key)
    loss: Callable[
        [Params, Any, jax.Array, jax.Array], jax.Array
    ]  # f_t: loss(params, data, t, key)
    measure: Callable[[Params, Any, Any], dict[str, jax.Array]]  # measure(params, state, data)


class Study(NamedTuple):
    """What is run: compositions x the product of `axes` x seeds, and what is written down."""

    part: str
    problem: Problem
    compositions: Mapping[str, fx.GradientTransformation]
    steps: int
    every: int = 1  # steps between measurements
    axes: Mapping[str, Sequence[Any]] = {}  # hyperparameters by name, see `with_values`
    seeds: int = 1
    together: int = 64  # runs in one program; fewer need less memory
    float64: bool = False
    evaluated: bool = False  # measured where the model is to be used, not at the last iterate


class Options(NamedTuple):
    """What the command line says."""

    quick: bool = False
    seeds: int | None = None
    data_dir: Path | None = None
    compositions: Mapping[str, fx.GradientTransformation] | None = (
        None  # instead of the experiment's
    )

    def wrapped(self, function: Callable[[fx.GradientTransformation], Any]) -> Options:
        """With `function` around each composition of the command line, for what an experiment reads."""
        if self.compositions is None:
            return self
        wrapped = {name: function(tx) for name, tx in self.compositions.items()}
        return self._replace(compositions=wrapped)

    def study(
        self, part: str, problem: Problem, compositions: Any, steps: int, **more: Any
    ) -> Study:
        """The study, or with the compositions of the command line, as they are written there."""
        if self.seeds is not None and more.get("seeds", 1) > 1:
            more["seeds"] = self.seeds
        if self.compositions is not None:
            compositions, more["axes"] = self.compositions, {}
        return Study(part, problem, compositions, steps, **more)


class Experiment(NamedTuple):
    """What `python -m adamfx.experiments run NAME` does."""

    title: str  # what to look at
    studies: Callable[[Options], tuple[str, list[Study]]]  # the name of the data, and what is run
    draw: Callable[[Record, list[Record]], Any]  # draw(header, records): a matplotlib figure
    column: str | None = None  # by which the best point of a grid is chosen, for the table


def with_values(tx: fx.GradientTransformation, point: Mapping[str, Any]) -> Any:
    """`tx` with these hyperparameters.

    A rate that is a schedule keeps its shape: `learning_rate` then is the schedule's `init_value`. Where
    groups have rates of their own, all get this one.
    """
    known = tx.hyperparams
    scheduled = [k for k in known if k.endswith(".learning_rate.init_value")][:1]
    rates = [k for k in known if k.endswith(".learning_rate")]
    names = {"learning_rate": scheduled or rates or ["learning_rate"]}
    return tx.replace(**{n: x for name, x in point.items() for n in names.get(name, [name])})


def grid(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The points of the product of the axes; one empty point where there are none."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run(
    study: Study,
    progress: Callable[[str, int], None] = lambda text, n: None,
) -> Iterator[Record]:
    """The record of every run of the study, composition by composition.

    A record has part, name, sentence, point, seed, `step` (a list) and one list of numbers for `loss`,
    the mean of f_t over the steps since the measurement before, and for whatever `measure` returns.

    Args:
      progress: called as (what it is doing, how many measurements are done since the last call); an
        exception it raises ends the run.
    """
    with _precision(study):
        points = grid(study.axes)
        runs = list(itertools.product(points, range(study.seeds)))
        for name, tx in study.compositions.items():
            written: dict[str, np.ndarray] = {}
            program = _program(study)
            for i in range(0, len(runs), study.together):
                group = runs[i : i + study.together]
                whole = (group + group[-1:] * study.together)[: min(study.together, len(runs))]
                values = _measured(study, program, tx, whole, name, len(group), progress)
                for column, x in values.items():
                    before = [written[column]] if i else []
                    written[column] = np.concatenate([*before, x[: len(group)]])
            for j, (point, seed) in enumerate(runs):
                yield {
                    "part": study.part,
                    "name": name,
                    "sentence": repr(with_values(tx, point)),
                    "point": point,
                    "seed": seed,
                    "step": np.arange(study.every, study.steps + 1, study.every),
                    **{column: x[j] for column, x in written.items()},
                }


def apart(study: Study) -> list[Study]:
    """A study for each composition."""
    return [study._replace(compositions={k: tx}) for k, tx in study.compositions.items()]


def found(study: Study, records: Sequence[Record]) -> list[Record] | None:
    """What `run` would give, from these records; None where a run is missing."""
    steps = list(range(study.every, study.steps + 1, study.every))
    there = {(r["part"], r["name"], r["sentence"], r["seed"]): r for r in records}
    runs = itertools.product(study.compositions.items(), grid(study.axes), range(study.seeds))
    wanted = (
        there.get((study.part, name, repr(with_values(tx, point)), seed))
        for (name, tx), point, seed in runs
    )
    whole = [r for r in wanted if r is not None and r["step"] == steps]
    count = len(study.compositions) * len(grid(study.axes)) * study.seeds
    return whole if len(whole) == count else None


def check(study: Study) -> None:
    """Traces the beginning and a step of each composition, and computes nothing; raises what does not fit."""
    with _precision(study):
        for tx in study.compositions.values():
            txs, keys = _together(tx, [(point, 0) for point in grid(study.axes)[:1]])
            carry = jax.eval_shape(_begin(study), txs, keys)
            starts = jnp.zeros(1, int)
            jax.eval_shape(_program(study), txs, keys, *carry, study.problem.data, starts)


def measurements(study: Study) -> int:
    """How many measurements `run` will report to `progress`."""
    points = math.prod(len(values) for values in study.axes.values())
    return len(study.compositions) * points * study.seeds * (study.steps // study.every)


def _program(study: Study) -> Callable:
    """A number of measurements with the steps before each, as one compiled scan for many runs."""
    problem = study.problem

    def several(tx, key, params, state, data, starts):
        def step(carry, t):
            params, state = carry
            f_t = jax.value_and_grad(problem.loss)
            at = tx.gradient_at(state, params)
            value, grads = f_t(at, data, t, jax.random.fold_in(key, t + 1))
            return tx.step(grads, state, params, value=value), value

        def measure(carry, start):
            carry, losses = jax.lax.scan(step, carry, start + jnp.arange(study.every))
            params, state = carry
            at = tx.evaluate_at(state, params) if study.evaluated else params
            found = problem.measure(at, state, data)
            return carry, {"loss": jnp.mean(losses), **found}

        return jax.lax.scan(measure, (params, state), starts)

    return jax.jit(jax.vmap(several, in_axes=(0, 0, 0, 0, None, None)), donate_argnums=(2, 3))


def _begin(study: Study) -> Callable:
    """The parameters and states that many runs begin with."""

    def begin(tx, key):
        params = study.problem.init(jax.random.fold_in(key, 0))
        return params, tx.init(params)

    return jax.jit(jax.vmap(begin))


def _together(tx: Any, runs: list) -> tuple[Any, jax.Array]:
    """The composition and the key of each of these (point, seed), with an axis for the runs."""
    points = {k: jnp.asarray([point[k] for point, _ in runs]) for k in runs[0][0]}
    # vmap, not just arrays for the axes: every hyperparameter gets the axis of the runs.
    txs = jax.vmap(lambda point, _: with_values(tx, point))(points, jnp.arange(len(runs)))
    return txs, jax.vmap(jax.random.key)(jnp.asarray([seed for _, seed in runs]))


def _measured(
    study: Study,
    program: Callable,
    tx: Any,
    runs: list,
    name: str,
    count: int,
    progress: Callable[[str, int], None],
) -> dict[str, np.ndarray]:
    """The measurements of these runs by column, axes (run, measurement, ...)."""
    txs, keys = _together(tx, runs)
    carry = _begin(study)(txs, keys)
    total = study.steps // study.every
    length = math.ceil(total / DISPATCHES)
    columns: list[dict] = []
    for first in range(0, total, length):
        progress(f"{study.part} {name}", 0)
        # The last scan may run beyond the end, so that one program does for all.
        starts = study.every * (first + jnp.arange(length))
        carry, values = program(txs, keys, *carry, study.problem.data, starts)
        done = min(length, total - first)
        columns.append({k: np.asarray(x)[:, :done] for k, x in values.items()})
        progress(f"{study.part} {name}", done * count)
    return {k: np.concatenate([c[k] for c in columns], axis=1) for k in columns[0]}


def _precision(study: Study) -> Any:
    """64-bit numbers inside, if the study asks for them, whatever the process has chosen."""
    return _float64() if study.float64 else contextlib.nullcontext()


def _float64() -> Any:
    """The name moved in JAX 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return getattr(jax.experimental, "enable_x64")()  # noqa: B009  # unknown to today's types
