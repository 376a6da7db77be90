"""A sentence taken apart for looking at it: its words, what each was given, what stands inside of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from adamfx.pages import _example
from adamfx.reading import vocabulary
from adamfx.transformation import GradientTransformation, Sentence
from adamfx.values.grammar import Container, Form, Static, join, keys
from adamfx.values.value import Value


class Word(NamedTuple):
    """One word of a sentence.

    `path` is the beginning of the names of its hyperparameters, `arguments` what it was given but for
    transformations, and `inside` those, by the beginning of their names.
    """

    path: str
    value: Any
    arguments: dict[str, Any]
    inside: dict[str, Any]

    @property
    def name(self) -> str:
        return self.value.name

    def argument_path(self, name: str) -> str:
        return join(self.path, name)


def words(value: Any, path: str | None = None) -> list[Word]:
    """The words of a sentence in order; a value that is no chain is one word.

    Args:
      value: a transformation, a schedule, an estimator, or another value.
      path: the beginning of the names inside; None for a whole sentence.
    """
    if isinstance(value, GradientTransformation) and isinstance(value.meaning, Sentence):
        return [_word(join(path or "", key), block) for key, block in value.blocks]
    if path is None:
        path = keys([value.form])[0] if value.has_keys else ""
    return [_word(path, value)]


def _word(path: str, value: Any) -> Word:
    given = value.arguments
    arguments: dict[str, Any] = {}
    inside: dict[str, Any] = {}
    for name, part, label, inner in value.form.labels():
        x = given[name]
        if inner and isinstance(part, Form):
            inside[join(path, label)] = x
        elif inner and isinstance(part, Container):
            named = x.items() if isinstance(x, dict) else enumerate(x)
            inside |= {join(join(path, label), str(k)): y for k, y in named}
        else:
            arguments[name] = x
    return Word(path, value, arguments, inside)


def parts(x: Any) -> list[Any]:
    """The constructors in a value, and what strings and bools they were given; no numbers."""
    if isinstance(x, Value):
        x = x.form
    if isinstance(x, Form):
        found = [(name, parts(y)) for name, y in x.arguments]
        return [x.constructor.name, *(pair for pair in found if pair[1])]
    if isinstance(x, Container):
        return [p for y in x.items for p in parts(y)]
    return [x.value] if isinstance(x, Static) and isinstance(x.value, (str, bool)) else []


def alias(value: Any) -> str:
    """The optimizer of this library whose words these are, whatever the numbers; "" for none."""
    try:
        return _aliases().get(repr(parts(value)), "")
    except Exception:  # of a value that tells nothing of itself
        return ""


@functools.cache
def _aliases() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, make in optimizers().items():
        try:
            found.setdefault(repr(parts(make(**_example(make)))), name)
        except KeyError:  # `on_matrices`, which is told what to build
            continue
    return found


def optimizers() -> dict[str, Callable]:
    """The optimizers of this library by name, in reading order."""
    return {n: f for n, f in vocabulary().items() if f.__module__.startswith("adamfx.optimizers.")}
