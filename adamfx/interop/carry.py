"""The walk that carries a state over, in both directions.

The state of another library is a `Level`: its arrays in `Slot`s, under words that say what is remembered,
"nu (ema of square)". One walk goes through our sentence, its wrappers included, and finds for each memory
the slots that hold the same. What is one number per step (masses, the rate last applied, counters) stands in
no table: on the way in it is computed by going through the steps done so far, on the way out from the
counter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adamfx.combine import LIVE
from adamfx.engine import trees
from adamfx.engine.memory import is_memory
from adamfx.engine.packed import as_given
from adamfx.engine.words import Treewise
from adamfx.interop.level import Column, Form, Level, Record, Slot, Wrapped, slots
from adamfx.interop.replay import by_steps, replaced
from adamfx.interop.words import blocks_of, inside, passed_by, words_of
from adamfx.schedules import value_at
from adamfx.transformation import GradientTransformation

# What may begin in the middle of a run, as tx.init makes it: blocks, and wrappers with a memory of each
# parameter.
BEGIN_ANEW = (
    *("keep_average", "keep_samples", "compensate", "round_stochastically"),
    *("accumulate", "lookahead", "master_weights", "mechanize", "monitor"),
)
# Counters that begin anew: below this argument of the block, or so much above it.
WINDOWS: dict[str, dict[str, tuple[str, int]]] = {
    "accumulate": {"mini_step": ("every", 0)},
    "lookahead": {"steps_since_sync": ("sync_period", 0)},
    "reduce_on_plateau": {
        "seen": ("accumulation_size", 0),
        "misses": ("patience", 0),
        "cooling": ("cooldown", 1),
    },
}
OF_MUON = {"muon": "matrix", "adam": "default"}  # the groups of optax's
SAME_MEANING = ("learning_rate", "weight_decay")  # hyperparameters called alike everywhere


class Carrier:
    """One walk through a transformation and its state, against a level of another library."""

    def __init__(self, caller: str, level: Level, hint: str = ""):
        self.caller, self.level, self.hint = caller, level, hint
        records = [record for x in level.all() for record in x.records]
        own = [c for x in level.all() for w in x.wrapped for c in w.own.values()]
        self.columns = [c for record in records for c in record[0].values()] + own
        self.held = [what for record in records for what in _described(record)]
        self.hyperparams = [pair for x in level.all() for pair in x.hyperparams.items()]

    def fits(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        """Whether these shapes are one; those of optax but for axes of length 1."""
        if "torch" in self.caller:
            return a == b
        return [n for n in a if n != 1] == [n for n in b if n != 1]

    def error(self, words: str) -> ValueError:
        return ValueError(f"{self.caller}: {words}")

    def one_run(self, x: Any) -> Any:
        """A counter as an array. Raises ValueError for those of several runs in one state."""
        if np.ndim(x):
            raise self.error(
                f"the state holds {np.shape(x)} runs; carry over one at a time: "
                "jax.tree.map(lambda x: x[i], state)"
            )
        return np.asarray(x)

    def whole(self, tx: GradientTransformation, state: Any, count: int | None = None) -> Any:
        """The state after the walk. Raises ValueError where something of the other state is left."""
        new = self.sentence(tx, state, self.level, count, None)
        left = [c.theirs for c in self.columns if not all(s.taken for s in slots(c.tree))]
        if left:
            raise self.error(
                f"the state given holds {left} beyond what {tx!r} remembers; write the transformation that "
                "the run was made with, or carry over a part of it"
            )
        for name, slot in self.hyperparams:
            self.same_hyperparam(tx, name, slot)
        return new

    def sentence(
        self, tx: GradientTransformation, state: Any, level: Level, count: Any, outer: int | None
    ) -> Any:
        done = self.count(tx, state, level, count, outer)
        now = self.begin(tx, state, done)
        for key, block in tx.blocks:
            memory = now.get(key)
            if isinstance(block.meaning, Treewise) and key in now:
                now[key] = self.wrapper(key, block, memory, level, done)
            elif is_memory(memory):
                now[key] = self.leafwise(key, tx, block, memory, state[key], level)
            self.within(key, block, now.get(key))
            level.passed = passed_by(block, level.passed)
        return as_given(state, now)

    def within(self, key: str, block: Any, memory: Any) -> None:
        """That no counter is beyond the number at which it begins anew."""
        for field, (argument, more) in WINDOWS.get(block.name, {}).items():
            emitted = memory.inner["count"] if block.name == "accumulate" else 0
            most = round(float(value_at(block.arguments[argument], emitted))) + more
            if int(getattr(memory, field)) >= most:
                raise self.error(
                    f"{field} is {int(getattr(memory, field))}, which {key} with {argument}={most - more} "
                    f"never reaches; write the {argument} that the run was made with"
                )

    def leafwise(self, key: str, tx: Any, block: Any, memory: Any, fresh: Any, level: Level) -> Any:
        """A block's memory: what it remembers of each parameter must be found, and, where it is computed
        from the gradients, what it remembers once."""
        fields = tuple(n for n in memory._fields if jax.tree.leaves(getattr(memory, n)))
        words = words_of(block, fields, level.passed)
        known = by_steps(block.meaning) | ({"key"} if len(fields) > 1 else set())
        needed = [words[n] for n in fields if n not in known]
        found = level.take(list(words.values()), needed)
        if needed and not found:
            if block.name in BEGIN_ANEW:
                self.begin_anew(key, block, fresh, fresh._fields)
                return fresh
            held = ", then ".join(self.held) or "no moments"
            raise self.error(
                f"{key} of {tx!r} remembers {' and '.join(needed)}; the state given holds {held}; write the "
                "transformation that the run was made with"
            )
        return self.columns_of(memory, {n: found[w] for n, w in words.items() if w in found})

    def columns_of(self, memory: Any, found: Mapping[str, Column]) -> Any:
        ours = [getattr(memory, name) for name in found]
        kept = {p for x in ours for p, leaf in _rows(x) if leaf is not None}
        # What has a form of its own may read the rest of the memory.
        for name, column in sorted(found.items(), key=lambda pair: pair[1].form is not None):
            of = getattr(memory, name)
            if trees.paths(column.tree) != trees.paths(of):  # of Flax nnx, the nodes differ
                difference = trees.same_structure(column.tree, of)
                raise self.error(f"{column.theirs} is another tree than params: {difference}")
            pairs = zip(_rows(of), trees.flatten(column.tree)[0], strict=True)
            new = [
                self.one(path, x, slot, column, memory, path in kept) for (path, x), slot in pairs
            ]
            memory = replaced(memory, {name: trees.flatten(of)[1].unflatten(new)})
        return memory

    def one(
        self, path: str, x: Any, slot: Slot | None, column: Column, memory: Any, kept: bool
    ) -> Any:
        """One array; `kept` tells whether anything is remembered of this parameter here."""
        if slot is not None:
            slot.taken = True
        if x is None:
            if slot is not None:
                self.passed_over(path, slot, column, kept)
            return None
        if slot is None:
            raise self.error(f"the parameter at {path} has no {column.theirs!r}, others have")
        return self.move(path, x, slot, column.form, memory)

    def wrapper(self, key: str, block: Any, memory: Any, level: Level, done: int) -> Any:
        spec = block.meaning
        if spec.bare:
            return self.bare(key, block, memory, level, done)
        found = level.unwrap(block.name)
        own = tuple(n for n in memory._fields if n != "inner" and n not in spec.inside)
        if found is None:
            self.begin_anew(key, block, memory, own)
        else:
            words = words_of(block, own, level.passed)
            held = level.take(list(words.values()), []) | found.own
            columns = {n: held[w] for n, w in words.items() if w in held}
            missing = [n for n in large_of(memory, own) if n not in columns]
            memory = self.columns_of(memory, columns)
            if "acc_value" in own and int(memory.mini_step):  # optax keeps no losses
                missing = ["acc_value"]
            if missing:
                self.lacks(key, block, memory, missing)
        inner, before = {}, level.passed
        # Steps of what is inside, where nobody has counted them.
        steps = done - int(memory.total_notfinite) if block.name == "skip_nonfinite" else done
        for label, tx in spec.inside.items():
            state = getattr(memory, label) if label in memory._fields else memory.inner[label]
            below = self.below(key, block, memory, level, found, label)
            below.passed = before
            # On the same level the steps are known; below it they may be counted anew.
            inner[label] = self.sentence(tx, state, below, steps if below is level else None, steps)
        return _with_inside(memory, inner)

    def below(
        self, key: str, block: Any, memory: Any, level: Level, found: Wrapped | None, label: str
    ) -> Level:
        """The level of what is inside."""
        if found is None:
            if block.name != "partition":
                return level
            return level.among([x == label for x in memory.labels.of])
        if list(found.inside) == [""]:
            return found.inside[""]
        theirs, ours = found.inside, inside(block)
        if set(theirs) - set(ours):
            theirs = {OF_MUON.get(name, name): x for name, x in theirs.items()}
        if set(theirs) - set(ours):
            raise self.error(
                f"{key} has the groups {', '.join(ours)}, the state given {', '.join(found.inside)}; give "
                "them the same labels"
            )
        return theirs.get(label, Level())

    def bare(self, key: str, block: Any, memory: Any, level: Level, done: int) -> Any:
        """`named` and `live`: their state is that of what is inside."""
        if not inside(block):
            raise self.error(
                f"{key} is of another library; write the block of adamfx that does the same"
            )
        (inner,) = inside(block).values()
        new = {**self.sentence(inner, memory, level, done, None)}
        if LIVE in memory:
            new[LIVE] = self.live(inner, memory[LIVE], level)
        return as_given(memory, new)

    def live(self, tx: Any, values: dict[str, Any], level: Level) -> dict[str, Any]:
        new, ends = dict(values), [name.split(".")[-1] for name in values]
        for name, end in zip(values, ends, strict=True):
            slot = level.hyperparams.get(end)
            if slot is None or ends.count(end) > 1:
                self.not_live(name, values[name], tx.hyperparams.get(name))
                continue
            slot.taken = True
            new[name] = self.move(name, values[name], slot, None, None)
        return new

    def same_hyperparam(self, tx: GradientTransformation, name: str, slot: Slot) -> None:
        """That a hyperparameter which is no part of our state is that of `tx`."""
        if slot.taken or name not in SAME_MEANING:
            return
        values = [pair for b in blocks_of(tx) if not inside(b) for pair in b.hyperparams.items()]
        ours = [x for n, x in values if n.split(".")[-1] == name]
        if len(ours) != 1 or not isinstance(ours[0], (int, float, jax.Array, np.ndarray)):
            return  # none, several, a schedule
        here, there = float(ours[0]), float(slot.value)
        if not np.isclose(here, there, 1e-6, 0):
            raise self.error(
                f"hyperparams holds {name}={there:g}, the transformation has {here:g}; write that number, or "
                "keep it in the state: live(transformation)"
            )

    # What differs by direction.

    def count(self, tx: Any, state: Any, level: Level, given: Any, outer: int | None) -> int:
        raise NotImplementedError

    def begin(self, tx: GradientTransformation, state: Any, done: int) -> dict[str, Any]:
        raise NotImplementedError

    def begin_anew(self, key: str, block: Any, memory: Any, fields: tuple[str, ...]) -> None:
        """What one side has not, where nothing hangs on it."""
        raise NotImplementedError

    def move(self, path: str, x: Any, slot: Slot, form: Form | None, memory: Any) -> Any:
        raise NotImplementedError

    def lacks(self, key: str, block: Any, memory: Any, large: list[str]) -> None:
        """The other side has no such block, or a wrapper without these memories of it."""
        raise NotImplementedError

    def passed_over(self, path: str, slot: Slot, column: Column, kept: bool) -> None:
        """There it is remembered, here not."""
        raise NotImplementedError

    def not_live(self, name: str, value: Any, given: Any) -> None: ...


# ---- helpers -------------------------------------------------------------------------------------


def _described(record: Record) -> list[str]:
    """Their names of what a record holds, and what that is, in all its readings."""
    words: dict[str, list[str]] = {}
    for word, column in (pair for r in record for pair in r.items()):
        words.setdefault(column.theirs, []).append(word)
    return [f"{name}: {' or '.join(dict.fromkeys(found))}" for name, found in words.items()]


def _rows(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of all leaves, None where nothing is remembered."""
    return list(zip(trees.paths(tree), trees.flatten(tree)[0], strict=True))


def _with_inside(memory: Any, inner: dict[str, Any]) -> Any:
    own = {label: x for label, x in inner.items() if label in memory._fields}
    rest = {label: x for label, x in inner.items() if label not in own}
    return replaced(memory, own | ({"inner": {**memory.inner, **rest}} if rest else {}))


def large_of(memory: Any, fields: tuple[str, ...]) -> list[str]:
    """Those that hold more than single numbers, which are counted anew without harm, or a random key."""
    large = (n for n in fields if any(np.ndim(x) for x in jax.tree.leaves(getattr(memory, n))))
    return [n for n in large if n != "key"]
