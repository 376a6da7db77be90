"""Population-based training: many runs at once, the worse of which go on from the better, changed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from adamfx import checks
from adamfx.training.members import (
    Group,
    Settings,
    is_decay,
    members_of,
    replaced,
    rows_of_groups,
    seeds_of,
    stacked,
)
from adamfx.training.stream import Stream
from adamfx.training.sweep import Sweep
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import check

Tree = Any


class Move(NamedTuple):
    """At a step, a member took over parameters, state and numbers of another, and changed the numbers."""

    step: int
    member: int
    parent: int
    values: dict[str, float]


def population(
    loss_fn: Callable,
    values: Mapping[str, Iterable],
    tx: GradientTransformation,
    params: Tree | Callable[[jax.Array], Tree],
    batches: Iterable,
    *,
    explore_every: int,
    seeds: int | Sequence[int] = 1,
    steps: int | None = None,
    epochs: int = 1,
    quantile: float = 0.25,
    factors: tuple[float, float] = (0.8, 1.25),
    seed: int = 0,
    has_aux: bool = False,
    evaluate: Callable[[Tree, Any], Any] | None = None,
    evaluate_every: int = 100,
    score: str | None = None,
    mode: str = "min",
    steps_per_dispatch: int | None = None,
    progress: bool | None = None,
    checkpoints: str | os.PathLike | None = None,
) -> tuple[Sweep, list[Move]]:
    """Trains a population that learns its hyperparameters as it goes. Jaderberg et al. 2017.

    Begins as `sweep` does, with every combination of the values from every seed, all in one program. After
    every `explore_every` steps each member of the worst quantile goes on with parameters and state of one of
    the best quantile, drawn at random, and with its numbers, each multiplied by one of the factors. Nothing
    compiles for it.

    Args:
      explore_every: steps between two such moments, >= 1.
      quantile: which part is the worst, and which the best, in (0, 0.5].
      factors: by one of which a number is multiplied, drawn at random; decays (b1, b2, decay, momentum)
        change their distance from 1.
      seed: of what is drawn.
      The others as for `sweep`. The values are numbers, such that all members have one form.

    Returns the members as they ended, with the numbers that they ended with, and the moves in their order.
    """
    check(population, locals())
    explore_every = checks.steps("population", "explore_every", explore_every, 1)
    epochs = checks.steps("population", "epochs", epochs, 1)
    checks.choice("population", "mode", mode, ("min", "max"))
    if not 0 < quantile <= 0.5:
        raise ValueError(f"population: quantile must be in (0, 0.5], got {quantile}")
    which = seeds_of("population", seeds, params)
    tx = GradientTransformation.given("population", "tx", tx)
    members = members_of("population", tx, {}, values, which)
    for name, x in ((name, x) for m in members for name, x in m.values.items()):
        if isinstance(x, bool) or not isinstance(x, (int, float)):
            raise TypeError(
                f"population: values[{name!r}] must be numbers, one is {x!r}; or use sweep"
            )
    each = rows_of_groups(members, values, params, len(members))
    if len(each) > 1:
        raise ValueError(
            f"population: the values make {len(each)} different forms; give numbers alone, or use sweep"
        )
    numbers = {n for m in members for n in m.values}
    ((rows),) = each
    group = Group("population", rows, members, values, params, Stream(batches, epochs))
    given = Settings(
        *("population", loss_fn, has_aux),
        *(steps_per_dispatch, evaluate, evaluate_every, progress, checkpoints),
    ).checked()
    found = Sweep(members, score, 1 if mode == "min" else -1)
    evaluated: list[str] = []
    last = math.inf if steps is None else checks.steps("population", "steps", steps)
    until, moves, draw = min(explore_every, last), [], np.random.default_rng(seed)
    before, where = list(members), found.where
    while True:
        begun = group.steps
        found.train(group, given, until, evaluated)
        if moves and group.steps == begun:  # the batches had ended: the last moves trained nobody
            members[:], found.where = before, where
            moves = [move for move in moves if move.step < begun]
        if not group.goes_on or until == last:
            return found, moves
        order, n = found.ranked(rows), max(1, round(quantile * len(rows)))
        at = list(rows)
        for loser in order[-n:] if len(rows) > 1 else []:
            at[loser] = parent = int(draw.choice(order[:n]))
            changed = {
                name: _changed(name, members[parent].values[name], float(draw.choice(factors)))
                for name in sorted(numbers)
            }
            moves.append(Move(group.steps, loser, parent, changed))
        before, where = list(members), found.where
        for move in moves[-n:] if len(rows) > 1 else []:
            members[move.member] = before[move.member]._replace(
                values=move.values, tx=replaced(before[move.parent].tx, move.values)
            )
        group.choose(at)
        group.tx = stacked([members[i].tx for i in rows], values)
        until = min(until + explore_every, last)


def _changed(name: str, x: float, factor: float) -> float:
    """x times the factor; of a decay, its distance from 1, which stays a distance."""
    return float(f"{1 - min((1 - x) * factor, 1) if is_decay(name, x) else x * factor:.6g}")
