"""The grammar of values: a constructor call taken apart into a form and its leaves.

A `Form` is the call without its leaves: hashable, one object for equal forms. Its parts are nested
forms, containers of parts, places of leaves, and static arguments. Each part knows how many leaves it
takes, how to become an argument again, and the names of the hyperparameters in it.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamfx.values.reads import may_change, of_library

Walk = Iterator[tuple[str, Any, bool]]  # dotted name, argument, whether it is a leaf


class Leaf:
    """The place of a leaf."""

    size, functions = 1, ()

    def __repr__(self) -> str:
        return "·"

    def __reduce__(self):
        return "LEAF"

    def fill(self, leaves: Iterator) -> Any:
        return next(leaves)

    def walk(self, path: str, leaves: Iterator, inner: bool) -> Walk:
        yield path, next(leaves), True

    def rebuild(self, path: str, leaves: Iterator, changes: dict, inner: bool) -> Any:
        return changes.get(path, next(leaves))


LEAF = Leaf()


class Static:
    """An argument that is part of the form. Compares by type and value, so 1, 1.0 and True differ."""

    __slots__ = ("functions", "key", "value")
    size = 0

    def __init__(self, value: Any):
        self.value, self.key = _snapshot(value), _key(value)
        self.functions = (value,) if may_change(value) else ()

    def __reduce__(self):
        # The key holds types that pickle does not know, such as that of functions.
        return Static, (self.value,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def fill(self, leaves: Iterator) -> Any:
        return self.value

    def walk(self, path: str, leaves: Iterator, inner: bool) -> Walk:
        yield path, self.value, False

    def rebuild(self, path: str, leaves: Iterator, changes: dict, inner: bool) -> Any:
        return changes.get(path, self.value)


class Container:
    """A list, tuple or dict of arguments of which at least one is a value."""

    __slots__ = ("functions", "items", "kind", "names", "size")

    def __init__(self, kind: type, names: tuple, items: tuple):
        self.kind, self.names, self.items = kind, names, items
        self.size = sum(item.size for item in items)
        self.functions = tuple(f for item in items for f in item.functions)

    def __reduce__(self):  # not with the functions: of a block of a user they are what it decorates
        return Container, (self.kind, self.names, self.items)

    def __eq__(self, other: object) -> bool:
        mine = (self.kind, self.names, self.items)
        return isinstance(other, Container) and mine == (other.kind, other.names, other.items)

    def __hash__(self) -> int:
        return hash((self.kind, self.names, self.items))

    def fill(self, leaves: Iterator) -> Any:
        return self._make([item.fill(leaves) for item in self.items])

    def _make(self, items: list) -> Any:
        make: Any = self.kind
        return make(zip(self.names, items, strict=True) if make is dict else items)

    def _labels(self, inner: bool) -> list[str]:
        """Of each item: its key; of transformations in a row, their keys in a state."""
        if inner and self.kind is not dict and all(isinstance(x, Form) for x in self.items):
            return keys(list(self.items))
        return [str(name) for name in self.names]

    def walk(self, path: str, leaves: Iterator, inner: bool) -> Walk:
        for label, item in zip(self._labels(inner), self.items, strict=True):
            yield from item.walk(join(path, label), leaves, inner)

    def rebuild(self, path: str, leaves: Iterator, changes: dict, inner: bool) -> Any:
        pairs = zip(self._labels(inner), self.items, strict=True)
        return self._make(
            [item.rebuild(join(path, label), leaves, changes, inner) for label, item in pairs]
        )


_forms: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a child must not inherit a lock that another thread holds
    os.register_at_fork(after_in_child=_new_lock)


class Form:
    """A call without its leaves. Equal forms are one object, so they compare by identity."""

    __slots__ = ("__weakref__", "arguments", "constructor", "functions", "size")

    constructor: Any  # a values.constructor.Constructor
    arguments: tuple[tuple[str, Any], ...]
    size: int
    functions: tuple[Any, ...]  # of users; what they read may change

    def __new__(cls, constructor: Any, arguments: tuple[tuple[str, Any], ...]) -> Form:
        key = (constructor, arguments)
        with _lock:
            form = _forms.get(key)
            if form is None:
                form = object.__new__(cls)
                form.constructor, form.arguments = constructor, arguments
                form.size = sum(part.size for _, part in arguments)
                made = constructor.function
                mine = () if of_library(made.__module__) else (made,)
                form.functions = (*mine, *(f for _, part in arguments for f in part.functions))
                _forms[key] = form
            return form

    def __reduce__(self):
        return Form, (self.constructor, self.arguments)

    def __deepcopy__(self, memo: Any) -> Form:
        return self

    def build(self, leaves: Any) -> Any:
        """The value of this form with these leaves; nothing is checked."""
        value = object.__new__(self.constructor.kind)
        value.form, value.leaves, value._meaning = self, tuple(leaves), None
        return value

    def fill(self, leaves: Iterator) -> Any:
        return self.build([next(leaves) for _ in range(self.size)])

    def labels(self) -> Iterator[tuple[str, Any, str, bool]]:
        """(argument, its part, what it adds to the names inside, whether it is a transformation inside).

        A lone transformation inside adds no name, but the key of a wrapper; groups add their labels;
        one of several adds the name of its argument.
        """
        declared = self.constructor.inner
        found = [part for name, part in self.arguments if name in declared]
        lone = len([x for x in found if isinstance(x, (Form, Container))]) == 1
        for name, part in self.arguments:
            inner = name in declared and isinstance(part, (Form, Container))
            label = name
            if inner and isinstance(part, Container):
                label = ""
            elif inner and lone and isinstance(part, Form):
                label = keys([part])[0] if part.wraps else ""
            yield name, part, label, inner

    @property
    def wraps(self) -> bool:
        """Whether a transformation is an argument of it."""
        declared = self.constructor.inner
        return any(n in declared and isinstance(x, Form) for n, x in self.arguments)

    def walk(self, path: str, leaves: Iterator, inner: bool) -> Walk:
        if not inner:  # a schedule or an estimator, itself an argument
            mine = [next(leaves) for _ in range(self.size)]
            yield path, self.build(mine), False
            leaves = iter(mine)
        for _, part, label, is_inner in self.labels():
            yield from part.walk(join(path, label), leaves, is_inner)

    def rebuild(self, path: str, leaves: Iterator, changes: dict, inner: bool) -> Any:
        mine = iter([next(leaves) for _ in range(self.size)])
        if not inner and path in changes:
            return changes[path]
        return self.call(path, mine, changes)

    def call(self, path: str, leaves: Iterator, changes: dict) -> Any:
        """The call once more, with changed arguments."""
        arguments = {
            name: part.rebuild(join(path, label), leaves, changes, inner)
            for name, part, label, inner in self.labels()
        }
        positional, keyword = self.constructor.split(arguments)
        return self.constructor(*positional, **keyword)


def keys(forms: list[Form]) -> list[str]:
    """Keys in a state, in order: a block's name, or its argument `name`; then name_2, name_3."""
    found: list[str] = []
    for form in forms:
        given = getattr(dict(form.arguments).get("name"), "value", None)
        name = given if isinstance(given, str) else form.constructor.name
        taken = {"count", *found}
        numbered = (f"{name}_{n}" for n in itertools.count(2))
        found.append(name if name not in taken else next(k for k in numbered if k not in taken))
    return found


def join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _snapshot(x: Any) -> Any:
    """A copy of what the caller may change later: a form must stay what its key says."""
    if type(x) is dict:
        return {k: _snapshot(y) for k, y in x.items()}
    if type(x) in (list, tuple):
        return type(x)(_snapshot(y) for y in x)
    return x.copy() if isinstance(x, np.ndarray) else x


def _key(x: Any) -> Any:
    if isinstance(x, Tracer):
        raise TypeError(
            f"a static argument was given the traced value {x}; declare the parameter Dynamic or "
            "Exact in the signature, or pass a Python number"
        )
    if isinstance(x, (float, complex)):
        return (type(x), repr(x))  # tells 0.0 from -0.0, and nan equals itself
    if isinstance(x, (np.ndarray, jax.Array)) and not is_key(x):
        return ("array", x.shape, str(x.dtype), np.asarray(x).tobytes())
    if isinstance(x, (dict, list, tuple)) and not hasattr(x, "_fields"):
        leaves, structure = jax.tree.flatten(x, is_leaf=lambda y: y is None)
        if len(leaves) == 1 and leaves[0] is x:  # a mapping or list that JAX does not know
            pairs = x.items() if isinstance(x, dict) else enumerate(x)
            return (type(x), tuple((k, _key(y)) for k, y in pairs))
        return ("tree", structure, tuple(_key(y) for y in leaves))
    try:
        hash(x)
    except TypeError:
        return ("object", id(x))
    return (type(x), x)


def is_key(x: Any) -> bool:
    """Whether an array holds random keys, which have no numbers to convert."""
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)
