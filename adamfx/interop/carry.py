"""The walk that carries a state over, in both directions.

The state of another library becomes a `Level`: its arrays in `Slot`s, under words that say what is
remembered, "nu (ema of square)". One walk goes through our sentence, its wrappers included, and finds for
each memory the slots that hold the same; `In` reads them, `Out` writes them. What is one number per step
(masses, the rate last applied, counters) stands in no table: on the way in it is computed by going through
the steps done so far, on the way out from the counter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.combine import LIVE
from adamfx.engine import trees
from adamfx.engine.memory import is_memory, remember
from adamfx.engine.packed import as_given
from adamfx.engine.words import Leafwise, Step, Treewise
from adamfx.moments.estimators import Estimator
from adamfx.moments.statistics import Statistic
from adamfx.schedules import value_at
from adamfx.transformation import GradientTransformation

Tree = Any

# What may begin in the middle of a run, as tx.init makes it: blocks, and wrappers with a memory of each
# parameter.
BEGIN_ANEW = (
    *("keep_average", "keep_samples", "compensate", "round_stochastically"),
    *("accumulate", "lookahead", "master_weights", "mechanize", "monitor"),
)
# Wrappers of which nothing is lost with what they remember themselves, always or under a condition.
NOTHING_LOST: dict[str, Callable[[Any], bool]] = {
    "monitor": lambda memory: True,
    "accumulate": lambda memory: int(memory.mini_step) == 0,
}
# The steps of the whole from those inside, where the other library counts only these.
OUTER: dict[str, Callable[[int, Mapping[str, Any], Any], int]] = {
    "accumulate": lambda n, own, block: _micro_steps(block, n) + int(own["mini_step"]),
    "skip_nonfinite": lambda n, own, block: n + int(own["total_notfinite"]),
}
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
SAME_MEANING = ("learning_rate", "weight_decay")  # hyperparameters called alike everywhere


# ---- the other side ------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Slot:
    """One array of the other state: read on the way in, written on the way out."""

    value: Any
    where: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    new: Any = None
    taken: bool = False

    def says_something(self) -> bool:
        """Whether it holds numbers that are not all zero."""
        x = self.value
        numbers = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.number)
        return bool(numbers and np.any(np.asarray(x)))


class Form(NamedTuple):
    """A value that differs by form: (theirs, our memory) -> ours, and the way back."""

    into: Callable[[Any, Any], Any]
    back: Callable[[Any, Any], Any]


class Derived(NamedTuple):
    """A number that follows from the steps done: (steps, options) -> it, and back, where that can be."""

    back: Callable[[int, Any], Any]
    into: Callable[[Any], int] | None = None


class Entry(NamedTuple):
    """A row of a table of correspondences: the word here, and the form where the values differ."""

    word: str
    form: Form | None = None


COUNT = Derived(lambda n, options: n, int)


class Column(NamedTuple):
    """What is remembered of each parameter, or once: a tree of slots, None where there is nothing."""

    theirs: str
    tree: Any
    form: Form | None = None


# One state by word. Where several optimizers share its class, a record has several readings of it.
Reading = dict[str, Column]
Record = list[Reading]


def reading(row: Mapping[str, Any], trees_of: Mapping[str, Tree]) -> Reading:
    """The columns of what is there, {their name: its tree}, under the words of this row of a table."""
    entries = {n: Entry(x) if isinstance(x, str) else x for n, x in row.items()}
    found = [(entries[n], n, x) for n, x in trees_of.items() if isinstance(entries.get(n), Entry)]
    return {entry.word: Column(n, x, entry.form) for entry, n, x in found}


@dataclasses.dataclass
class Wrapped:
    """A wrapper of the other library: ours of this name, what it remembers, the levels inside by label."""

    name: str
    own: Reading  # by field
    inside: dict[str, Level]


@dataclasses.dataclass
class Level:
    """The state of one sentence of the other library, in the order of its blocks."""

    records: list[Record] = dataclasses.field(default_factory=list)
    counts: list[tuple[Any, Derived]] = dataclasses.field(default_factory=list)
    wrapped: list[Wrapped] = dataclasses.field(default_factory=list)
    hyperparams: dict[str, Slot] = dataclasses.field(default_factory=dict)
    passed: frozenset[str] = frozenset()  # what the walk has met of ours so far: see `_words`

    def take(self, words: list[str], needed: list[str]) -> Reading:
        """What one record holds of these words, all that is needed; nothing where there is none.

        The walk goes on there: what another order of blocks has made is something else.
        """
        for i, record in enumerate(self.records):
            fitting = [
                r for r in record if set(needed) <= r.keys() and not r.keys().isdisjoint(words)
            ]
            if fitting:
                taken = [{w: r.pop(w) for w in words if w in r} for r in fitting]
                self.records = [fitting, *self.records[i + 1 :]]
                return taken[0]
        return {}

    def unwrap(self, name: str) -> Wrapped | None:
        """The first wrapper of this name that is left."""
        found = next((w for w in self.wrapped if w.name == name), None)
        self.wrapped = [w for w in self.wrapped if w is not found]
        return found

    def among(self, chosen: list[bool]) -> Level:
        """The same for some of the parameters; the columns here are not taken by it."""

        def part(tree: Any) -> Any:
            found, structure = trees.flatten(tree)
            if len(found) != len(chosen):
                return tree
            pairs = zip(found, chosen, strict=True)
            return structure.unflatten([x if yes else None for x, yes in pairs])

        def parts(r: Reading) -> Reading:
            return {word: c._replace(tree=part(c.tree)) for word, c in r.items()}

        return dataclasses.replace(
            self,
            records=[[parts(r) for r in record] for record in self.records],
            counts=[(part(tree), derived) for tree, derived in self.counts],
        )

    def all(self) -> Iterator[Level]:
        """This one and those inside."""
        yield self
        for wrapped in self.wrapped:
            for level in wrapped.inside.values():
                yield from level.all()


def slots(tree: Any) -> list[Slot]:
    return [x for x in trees.flatten(tree)[0] if x is not None]


# ---- this side -----------------------------------------------------------------------------------


def inside(block: Any) -> Mapping[str, GradientTransformation]:
    return getattr(block.meaning, "inside", {})


def blocks_of(tx: GradientTransformation, closed: str | None = None) -> Iterator[Any]:
    """All blocks, with those inside wrappers but the closed one."""
    for _, block in tx.blocks:
        yield block
        for inner in inside(block).values() if block.name != closed else ():
            yield from blocks_of(inner, closed)


def wrappers_of(tx: GradientTransformation) -> set[str]:
    """The names of all wrappers in a transformation."""
    return {block.name for block in blocks_of(tx) if inside(block)}


def _words(block: Any, fields: tuple[str, ...], passed: frozenset[str]) -> dict[str, str]:
    """What a block remembers under each field. A sum and a mean are two things, and so are moments of the
    gradient and of what an earlier block has divided."""
    sides = {}
    if block.name == "scale_by_moments":
        value = "direction" if "divided" in passed else "value"
        sides = {"mu": _estimate(block.arguments["b1"], value)}
        sides["nu"] = _estimate(block.arguments["b2"], "square")
    if block.name == "keep_average":
        sides = {"average": _estimate(block.arguments["estimator"], "params", "mean")}
    if block.name == "running_max":
        sides = {"nu": "running_max, corrected" if "corrected" in passed else "running_max"}
    return {n: f"{n} ({sides.get(n.split('_')[0], block.name)})" for n in fields}


def _estimate(side: Any, of: str, plain: str = "ema") -> str:
    """The recursion and the statistic of an estimator: ema of square. Its numbers are not told."""
    if not isinstance(side, Estimator):
        return f"{plain} of {of}"
    x = side.arguments.get("of")
    while isinstance(x, Statistic) and x.name == "plus_eps":
        x = x.arguments["of"]
    first = "first-whole " if side.name == "ema" and side.arguments["first_whole"] else ""
    if x is None or (x == "value" and of != "square"):
        return f"{first}{side.name} of {of}"
    return f"{first}{side.name} of {x.name if isinstance(x, Statistic) else x}"


def _passed(block: Any, passed: frozenset[str]) -> frozenset[str]:
    """What a walk has met behind this block."""
    if block.name == "scale_by_moments":
        divides = block.arguments["b2"] is not None
        return (passed | {"divided"} if divides else passed) - {"corrected"}
    return passed | {"corrected"} if block.name == "bias_correct" else passed


# ---- the walk ------------------------------------------------------------------------------------


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
            elif jax.tree.leaves(memory):
                raise self.error(f"{key} is of another library, and cannot be carried over")
            self.within(key, block, now.get(key))
            level.passed = _passed(block, level.passed)
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
        words = _words(block, fields, level.passed)
        known = _by_steps(block.meaning) | ({"key"} if len(fields) > 1 else set())
        needed = [words[n] for n in fields if n not in known]
        found = level.take(list(words.values()), needed)
        if needed and not found:
            if block.name in BEGIN_ANEW:
                self.begins_anew(key, block, fresh, _large(fresh, fresh._fields))
                return fresh
            held = ", then ".join(self.held) or "no moments"
            raise self.error(
                f"{key} of {tx!r} remembers {' and '.join(needed)}; the state given holds {held}; write the "
                "transformation that the run was made with"
            )
        return self.columns_of(memory, {n: found[w] for n, w in words.items() if w in found})

    def columns_of(self, memory: Any, found: Mapping[str, Column]) -> Any:
        # What has a form of its own may read the rest of the memory.
        for name, column in sorted(found.items(), key=lambda pair: pair[1].form is not None):
            ours = getattr(memory, name)
            paths = trees.paths(ours)
            if trees.paths(column.tree) != paths:  # of Flax nnx, the nodes differ
                difference = trees.same_structure(column.tree, ours)
                raise self.error(f"{column.theirs} is another tree than params: {difference}")
            leaves, structure = trees.flatten(ours)
            rows = zip(paths, leaves, trees.flatten(column.tree)[0], strict=True)
            new = [self.one(path, x, slot, column, memory) for path, x, slot in rows]
            memory = _replace(memory, {name: structure.unflatten(new)})
        return memory

    def one(self, path: str, x: Any, slot: Slot | None, column: Column, memory: Any) -> Any:
        if slot is not None:
            slot.taken = True
        if x is None:
            self.passed_over(path, slot, column)
            return None
        if slot is None:
            raise self.error(f"the parameter at {path} has no {column.theirs!r}, others have")
        return self.move(path, x, slot, column.form, memory)

    def wrapper(self, key: str, block: Any, memory: Any, level: Level, done: int) -> Any:
        spec = block.meaning
        if spec.bare:
            return self.bare(block, memory, level, done)
        found = level.unwrap(block.name)
        own = tuple(n for n in memory._fields if n != "inner" and n not in spec.inside)
        if found is None:
            self.begins_anew(key, block, memory, _large(memory, own))
        else:
            words = _words(block, own, level.passed)
            beside = level.take(list(words.values()), [])
            columns = {n: beside[w] for n, w in words.items() if w in beside} | found.own
            missing = [n for n in _large(memory, own) if n not in columns]
            memory = self.columns_of(memory, columns)
            if "acc_value" in own and int(memory.mini_step):  # optax keeps no losses
                missing = ["acc_value"]
            if missing:
                self.not_there(key, block, memory, missing)
        inner = {}
        # Steps of what is inside, where nobody has counted them.
        steps = done - int(memory.total_notfinite) if block.name == "skip_nonfinite" else done
        for label, tx in spec.inside.items():
            state = _inside(memory, label)
            below = self.below(key, block, memory, level, found, label)
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

    def bare(self, block: Any, memory: Any, level: Level, done: int) -> Any:
        """`named` and `live`: their state is that of what is inside."""
        (inner,) = block.meaning.inside.values()
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

    def move(self, path: str, x: Any, slot: Slot, form: Form | None, memory: Any) -> Any:
        raise NotImplementedError

    def begins_anew(self, key: str, block: Any, memory: Any, large: list[str]) -> None:
        """The other side has no such block or wrapper."""
        raise NotImplementedError

    def not_there(self, key: str, block: Any, memory: Any, large: list[str]) -> None:
        """It has this wrapper, without these memories."""
        raise NotImplementedError

    def passed_over(self, path: str, slot: Slot | None, column: Column) -> None: ...

    def not_live(self, name: str, value: Any, given: Any) -> None: ...


class In(Carrier):
    """The other state is read into a new one of ours."""

    def count(self, tx, state, level, given, outer):
        done = self.found(tx, level) if given is None else given
        done = outer if done is None else done
        if done is None:
            raise self.error("the state does not tell how many steps were done; pass count=...")
        return done

    def found(self, tx: GradientTransformation, level: Level) -> int | None:
        """The steps that a level tells of; None where it tells of none."""
        told = {
            derived.into(self.one_run(slot.value))
            for tree, derived in level.counts
            if derived.into
            for slot in slots(tree)
        }
        if len(told) > 1 and not _only_groups(tx):  # each of which has a counter of its own
            raise self.error(self.hint.format(told=sorted(told)))
        if told:
            return max(told)
        for wrapped in level.wrapped:
            inner = [self.found(tx, x) for x in wrapped.inside.values()]
            inner = [n for n in inner if n is not None]
            if inner and wrapped.name in OUTER:
                block = next(b for b in blocks_of(tx) if b.name == wrapped.name)
                own = {n: slots(c.tree)[0].value for n, c in wrapped.own.items()}
                return OUTER[wrapped.name](max(inner), own, block)
            if inner:
                return max(inner)
        return None

    def begin(self, tx, state, done):
        return _replay(tx, state, done)

    def move(self, path, x, slot, form, memory):
        value = np.asarray(slot.value) if form is None else form.into(slot.value, memory)
        if not self.fits(np.shape(value), x.shape):
            raise self.error(
                f"{slot.where} at {path} has shape {np.shape(value)}, here it is {x.shape}"
                + ("; see convert=..." if self.caller == "from_torch" else "")
            )
        # A copy: torch goes on in the memory that a NumPy array of it looks at.
        new = jnp.array(np.asarray(value).reshape(x.shape), x.dtype)
        return jax.device_put(new, x.sharding) if x.committed else new

    def passed_over(self, path, slot, column):
        if slot is not None and slot.says_something():
            raise self.error(f"nothing is remembered here of {column.theirs} at {path}")

    def begins_anew(self, key, block, memory, large):
        if large and block.name not in BEGIN_ANEW:
            self.not_there(key, block, memory, large)

    def not_there(self, key, block, memory, large):
        advice = ADVICE.get(block.name, "begin with tx.init")
        raise self.error(f"{key} remembers {large}, the state given does not hold them; {advice}")


class Out(Carrier):
    """Our state is written into the slots of the other."""

    def count(self, tx, state, level, given, outer):
        done = int(self.one_run(state["count"]))
        for tree, derived in level.counts:
            for slot in slots(tree):
                slot.new = np.asarray(derived.back(done, slot.options))
        return done

    def begin(self, tx, state, done):
        extra = set(state) - {"count", LIVE} - {key for key, _ in tx.blocks}
        if extra:
            raise self.error(
                f"the state holds {', '.join(sorted(extra))}, which {tx!r} does not know; a plain dict of "
                "the other entries may be passed"
            )
        return {**state}

    def move(self, path, x, slot, form, memory):
        new = x if form is None else form.back(x, memory)
        there = None if slot.value is None else np.shape(slot.value)
        if form is None and there is not None and not self.fits(there, np.shape(new)):
            raise self.error(
                f"{slot.where} at {path} has shape {there}, here it is {np.shape(new)}"
            )
        slot.new = new
        return x

    def not_live(self, name, value, given):
        if given is not None and not np.allclose(value, np.asarray(given), 1e-6, 0):
            raise self.error(
                f"{name} is {float(value):g} in the state, {float(given):g} in the transformation, and the "
                "other side holds no such hyperparameter; write the number into both transformations"
            )

    def not_there(self, key, block, memory, large):
        self.begins_anew(key, block, memory, large)

    def begins_anew(self, key, block, memory, large):
        if large and not NOTHING_LOST.get(block.name, lambda memory: False)(memory):
            raise self.error(
                f"{key} remembers {large}, which the other side has no place for and would lose; read them "
                "first, then pass the transformation without that block and a plain dict of the rest"
            )


ADVICE = {
    "lookahead": "pass optax's LookaheadParams as params",
    "accumulate": "carry over where a window begins",
}
OF_MUON = {"muon": "matrix", "adam": "default"}  # the groups of optax's


# ---- helpers -------------------------------------------------------------------------------------


def checked(caller: str, tx: Any) -> None:
    if not isinstance(tx, GradientTransformation):
        raise TypeError(f"{caller}: tx must be a transformation of adamfx, got {tx!r}")


def _described(record: Record) -> list[str]:
    """Their names of what a record holds, and what that is, in all its readings."""
    words: dict[str, list[str]] = {}
    for word, column in (pair for r in record for pair in r.items()):
        words.setdefault(column.theirs, []).append(word)
    return [f"{name}: {' or '.join(dict.fromkeys(found))}" for name, found in words.items()]


def _large(memory: Any, fields: tuple[str, ...]) -> list[str]:
    """Those that hold more than single numbers, which are counted anew without harm, or a random key."""
    large = (n for n in fields if any(np.ndim(x) for x in jax.tree.leaves(getattr(memory, n))))
    return [n for n in large if n != "key"]


def _inside(memory: Any, label: str) -> Any:
    if label in memory._fields:
        return getattr(memory, label)
    return memory.inner[label]


def _with_inside(memory: Any, inner: dict[str, Any]) -> Any:
    own = {label: x for label, x in inner.items() if label in memory._fields}
    rest = {label: x for label, x in inner.items() if label not in own}
    return _replace(memory, own | ({"inner": {**memory.inner, **rest}} if rest else {}))


def _replace(memory: Any, changes: dict[str, Any]) -> Any:
    return remember(**{**memory._asdict(), **changes}) if changes else memory


def _only_groups(tx: GradientTransformation) -> bool:
    """Whether all that remembers something of a parameter stands in the groups of a partition."""
    outside = list(blocks_of(tx, closed="partition"))
    specs = [block.meaning for block in outside]
    remembers = any(isinstance(spec, Leafwise) and spec.init for spec in specs)
    return "partition" in [block.name for block in outside] and not remembers


def _micro_steps(block: Any, emitted: int) -> int:
    every = block.arguments["every"]
    sizes = jax.vmap(lambda i: jnp.round(value_at(every, i)))(jnp.arange(emitted))
    return int(np.asarray(sizes).astype(int).sum())


def _by_steps(spec: Leafwise) -> set[str]:
    """The names of what a block remembers once that follows from the number of steps."""
    names = set(spec.init_shared()) if spec.init_shared else set()
    if spec.whole_tree or not set(spec.needs) <= {"params"}:
        return set()
    return names if spec.sums is None else {n for n in names if n.endswith("log_product")}


class _NoSums:
    """The sums over leaves that are not there; masses do not read them."""

    def __getattr__(self, name: str) -> Any:
        return jnp.zeros(())


def _replay(tx: GradientTransformation, state: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The state with what is computed once per step as it is after `count` steps."""
    blocks = [(k, v.meaning) for k, v in tx.blocks if isinstance(v.meaning, Leafwise)]
    names = {key: _by_steps(spec) for key, spec in blocks}
    blocks = [(key, spec) for key, spec in blocks if names[key] or spec.moments == "opens"]
    shared = {k: s.shared for k, s in blocks if s.shared is not None and not s.whole_tree}
    blocks = [(key, spec) for key, spec in blocks if key in shared]
    held = {key: {n: getattr(state[key], n) for n in names[key]} for key, _ in blocks if names[key]}

    def step(t, held, rest):
        rates: tuple = (None, None)
        for key, spec in blocks:
            own = _replace(rest[key], held[key]) if key in held else remember()
            result = shared[key](Step(t.astype(jnp.int32), own, rates, sums=_NoSums()))
            if key in held:
                result, new = result
                held = held | {key: {n: jnp.asarray(new[n], x.dtype) for n, x in held[key].items()}}
            rates = result if spec.moments == "opens" else rates
        return held

    def run(held, rest):
        return jax.lax.fori_loop(0, count, lambda t, held: step(t, held, rest), held)

    rest = {key: state[key] for key in held}
    done = jax.jit(run)(held, rest)
    new = {key: _replace(state[key], values) for key, values in done.items()}
    return {**state, **new, "count": jnp.asarray(count, jnp.int32) + 0 * state["count"]}
