"""The state of another library, as the walk reads or fills it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from adamfx.engine import trees

Tree = Any


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
    own: Reading
    inside: dict[str, Level]


@dataclasses.dataclass
class Level:
    """The state of one sentence of the other library, in the order of its blocks."""

    records: list[Record] = dataclasses.field(default_factory=list)
    counts: list[tuple[Any, Derived]] = dataclasses.field(default_factory=list)
    wrapped: list[Wrapped] = dataclasses.field(default_factory=list)
    hyperparams: dict[str, Slot] = dataclasses.field(default_factory=dict)
    passed: frozenset[str] = frozenset()  # what the walk has met of ours so far: see `words_of`

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
