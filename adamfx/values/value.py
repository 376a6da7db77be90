"""A constructor call as a value.

`scale_by_lr(1e-3)`, `ema(0.9)`, `cosine_decay_schedule(1e-3, 100)` and whole optimizers are
values: they print as the call that makes them, compare, hash and pickle by it, and are JAX
pytrees whose leaves are their dynamic hyperparameters.

A value is a form (`values.grammar`) and its leaves, in the order of the arguments, those of nested
values included. So flattening a whole optimizer is one Python call that returns two stored tuples,
and comparing two tree structures compares two pointers.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.core import Tracer

from adamfx.checks import shown
from adamfx.values.grammar import Form, keys

V = TypeVar("V", bound="Value")


class Value:
    """A constructor call; see the head of this file. Made by constructors only."""

    __slots__ = ("__weakref__", "_meaning", "form", "leaves")

    has_keys = False  # whether values of this kind have keys in a state, as transformations do
    example = "a value"  # what errors call one of this kind
    means: tuple[Any, ...] = (object,)  # what the body of a constructor may return
    form: Form
    leaves: tuple
    _meaning: Any

    @classmethod
    def is_one(cls, x: Any) -> bool:
        """Whether `x` may stand where a value of this kind is an argument."""
        return isinstance(x, cls)

    @classmethod
    def as_inner(cls, x: Any) -> Any:
        """What stands for `x` where a value of this kind is an argument declared Inner."""
        return x

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda value: (value._keyed_leaves(), value.form),
            lambda form, leaves: form.build(leaves),
            lambda value: (value.leaves, value.form),
        )

    @property
    def name(self) -> str:
        """The constructor's name."""
        return self.form.constructor.name

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the call by name, defaults included."""
        leaves = iter(self.leaves)
        return {name: part.fill(leaves) for name, part in self.form.arguments}

    @property
    def meaning(self) -> Any:
        """What the body returns for these arguments; it is run once."""
        if self._meaning is None:
            self._meaning = self.form.constructor.run(self.arguments)
        return self._meaning

    def __repr__(self) -> str:
        constructor = self.form.constructor
        parts, by_name = [], False
        arguments = self.arguments
        parameters = constructor.signature.parameters.values()
        rest = any(p.kind is p.VAR_POSITIONAL and arguments[p.name] for p in parameters)
        for name, x in arguments.items():
            parameter = constructor.signature.parameters[name]
            needs_place = parameter.kind is parameter.POSITIONAL_ONLY or (
                rest and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            )
            if parameter.kind is parameter.VAR_POSITIONAL:
                parts.extend(_show(y) for y in x)
            elif parameter.kind is parameter.VAR_KEYWORD:
                parts.extend(f"{k}={_show(y)}" for k, y in x.items())
            elif needs_place:
                parts.append(_show(x))
            elif parameter.default is not parameter.empty and _same(x, parameter.default):
                by_name = True
            elif by_name or parameter.kind is parameter.KEYWORD_ONLY:
                parts.append(f"{name}={_show(x)}")
            else:
                parts.append(_show(x))
        return f"{constructor.name}({', '.join(parts)})"

    def _repr_latex_(self) -> str | None:
        """The update rule, for a notebook; None where there is none to tell."""
        try:
            equations = importlib.import_module("adamfx.notebook.equations")  # a later room
            return f"$$\n{equations.latex(self)}\n$$"
        except Exception:  # looking at a value must never fail
            return None

    def _repr_html_(self) -> str:
        """The words as rows, for a notebook."""
        return importlib.import_module("adamfx.notebook.tables").as_html(self)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """The call with its arguments, each to be folded, where treescope shows values."""
        repr_lib = importlib.import_module("treescope.repr_lib")  # it is there: it asks
        call = type(self.name, (), {"__module__": "adamfx"})
        return repr_lib.render_object_constructor(call, self.arguments, path, subtree_renderer)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value):
            return NotImplemented
        same_leaves = (_same(a, b) for a, b in zip(self.leaves, other.leaves, strict=False))
        return self.form is other.form and all(same_leaves)

    def __hash__(self) -> int:
        for name, leaf in zip(self.leaf_names(), self.leaves, strict=True):
            if not isinstance(leaf, (float, complex)):
                raise TypeError(
                    f"unhashable {self.name}: {name} is {_show(leaf)}, not a Python number; call "
                    ".concrete() to turn array hyperparameters back into numbers, or .replace(...)"
                )
        return hash((self.form, self.leaves))

    def __reduce__(self):
        return Form.build, (self.form, self.leaves)

    # Names and changes of hyperparameters.

    def _prefix(self) -> str:
        """The key of a block or wrapper; nothing for a chain, a schedule, an estimator."""
        form = self.form
        variadic = any(label == "" and n == "transformations" for n, _, label, _ in form.labels())
        return keys([form])[0] if self.has_keys and not variadic else ""

    def _walk(self) -> Iterator[tuple[str, Any, bool]]:
        """(dotted name, argument, is a leaf) of all arguments, those of nested values included."""
        return self.form.walk(self._prefix(), iter(self.leaves), inner=True)

    def leaf_names(self) -> list[str]:
        """The dotted names of the leaves, in their order."""
        return [name for name, _, is_leaf in self._walk() if is_leaf]

    def _keyed_leaves(self) -> list[tuple[Any, Any]]:
        names = self.leaf_names()
        return [(jax.tree_util.GetAttrKey(n), x) for n, x in zip(names, self.leaves, strict=True)]

    @property
    def hyperparams(self) -> dict[str, Any]:
        """All arguments by dotted name, e.g. {'scale_by_moments.b1': 0.9, ...}."""
        return {name: x for name, x, _ in self._walk()}

    def replace(self: V, **changes: Any) -> V:
        """The same call with other arguments.

        A keyword is a dotted name of `hyperparams` or any unambiguous end of one:
        `tx.replace(learning_rate=3e-4)`, `tx.replace(**{"scale_by_moments.b1": 0.8})`.
        Raises KeyError for an unknown or ambiguous name, listing the known ones.
        """
        known = list(self.hyperparams)
        exact = {match_name(name, known, "replace"): x for name, x in changes.items()}
        return self.form.call(self._prefix(), iter(self.leaves), exact)

    def concrete(self: V) -> V:
        """The same call with array hyperparameters turned back into Python numbers.

        Raises ValueError for an array of more than one element (a sweep: index it first).
        """
        numbers = {}
        for name, x in zip(self.leaf_names(), self.leaves, strict=True):
            if np.size(x) != 1:
                raise ValueError(
                    f"concrete: {name} has shape {np.shape(x)}; choose one member of the sweep first, "
                    "with jax.tree.map(lambda x: x[i], tx)"
                )
            numbers[name] = _numbers(np.reshape(x, ()))
        return self.form.call(self._prefix(), iter(self.leaves), numbers)


def match_name(name: str, known: list[str], caller: str, what: str = "hyperparameter") -> str:
    """The one dotted name in `known` that `name` is, or is the end of; `what` it is the name of."""
    if not isinstance(name, str):
        raise TypeError(
            f"{caller}: the name must be a string such as {known[:1]}, got {shown(name)}"
        )
    ends = [k for k in known if k == name or k.endswith("." + name)]
    if name in known:
        return name
    if len(ends) != 1:
        article = "an" if what[0] in "aeiou" else "a"
        why = "is ambiguous: it may be" if ends else f"is not {article} {what}; known are"
        raise KeyError(f"{caller}: {name!r} {why} {', '.join(ends or known) or 'none'}")
    return ends[0]


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tracer) or isinstance(b, Tracer):
        return False
    if isinstance(a, (np.ndarray, jax.Array)) or isinstance(b, (np.ndarray, jax.Array)):
        alike = np.shape(a) == np.shape(b) and getattr(a, "dtype", 0) == getattr(b, "dtype", 1)
        return alike and bool(np.array_equal(a, b))
    return type(a) is type(b) and a == b


def _numbers(x: Any) -> Any:
    """An array as Python numbers: the shortest that it rounds from, 0.01 for float32's 0.00999..."""
    x = np.asarray(x)
    return [_numbers(y) for y in x] if x.ndim else type(x.item())(str(x))


def _show(x: Any) -> str:
    if isinstance(x, Tracer):
        return f"<traced {x.aval.str_short()}>"
    if isinstance(x, (np.ndarray, jax.Array)):
        return f"jnp.asarray({_numbers(x)!r}, {str(x.dtype)!r})"
    if isinstance(x, (list, tuple, dict)) and not hasattr(x, "_fields"):
        if isinstance(x, dict):
            return "{" + ", ".join(f"{k!r}: {_show(y)}" for k, y in x.items()) + "}"
        inside = ", ".join(_show(y) for y in x)
        return f"[{inside}]" if isinstance(x, list) else f"({inside}{',' * (len(x) == 1)})"
    if isinstance(x, float) and not math.isfinite(x):
        return f"float({str(x)!r})"
    return x.__name__ if callable(x) and hasattr(x, "__name__") else repr(x)
