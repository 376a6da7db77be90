"""From a plain function to a constructor of values.

Whether an argument is a leaf is declared in the signature and decided once, at the call:

    Dynamic   always a leaf, whatever number it holds (learning rate, weight decay, threshold)
    Exact     a Python number stays a number in double precision; an array or tracer is a leaf
              (decays: 1 - 0.999999 in float32 would be wrong by 7e-3)
    Inner     a transformation inside; one of another library becomes a block. Its state and its
              hyperparameters get its key; a lone one adds no name
    (none)    static: the body sees the very Python object it was given
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
import typing
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.checks import shown
from adamfx.values.arguments import DYNAMIC, EXACT, INNER, Arguments
from adamfx.values.grammar import LEAF, Container, Form, Static, is_key
from adamfx.values.value import Value

Dynamic = Annotated[float | jax.Array | np.ndarray, DYNAMIC]
Exact = Annotated[float | jax.Array | np.ndarray, EXACT]
Inner = Annotated[Any, INNER]

P = ParamSpec("P")
V = TypeVar("V", bound="Value")
as_dtype: Any = jnp.dtype


class Constructor:
    """What the decorators of this package make of a plain function; see `constructor`."""

    def __init__(self, function: Callable, kind: type):
        self.function, self.kind = function, kind
        self.known = Arguments(function)
        self.name, self.signature = self.known.name, self.known.signature
        annotations = self.known.annotations
        self.hyper = {n: _declared(a) for n, a in annotations.items()}
        self.inner = frozenset(
            n for n, a in annotations.items() if self.hyper[n] == INNER or _is_inner_class(a)
        )

    def __reduce__(self):
        place = (self.function.__module__, self.function.__qualname__)
        if "<" in place[1]:
            raise pickle.PicklingError(
                f"{place[1]} is defined inside a function, where unpickling could not find it; define "
                "the block at the top of a module"
            )
        return _find_constructor, place

    def __deepcopy__(self, memo: Any) -> Constructor:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.known.bind(args, kwargs)
        given = dict(bound.arguments)
        bound.apply_defaults()
        leaves: list = []
        parts, arguments = [], {}
        for name, x in bound.arguments.items():
            begin = len(leaves)
            try:
                x = self._inner(name, x) if name in self.inner else x
                parts.append((name, self._template(name, x, leaves)))
            except TypeError as error:
                raise TypeError(f"{self.name}: {name}: {error}") from None
            arguments[name] = _keeping(x, parts[-1][1].fill(iter(leaves[begin:])))
        value = Form(self, tuple(parts)).build(leaves)
        try:
            meaning = self.run(arguments)  # with it the body checks its arguments
        except (TypeError, ValueError) as error:
            self.known.told(error, given)
            raise
        self.known.check_after(given)
        if isinstance(meaning, Value):
            return meaning
        if not isinstance(meaning, self.kind.means):
            word, wanted = (
                self.kind.__name__.lower(),
                " or ".join(c.__name__ for c in self.kind.means),
            )
            raise TypeError(
                f"{self.name}: what {word} decorates must return {wanted}, got {shown(meaning)}"
            )
        value._meaning = meaning
        return value

    def _template(self, name: str, x: Any, leaves: list) -> Any:
        parameter, declared = self.signature.parameters[name], self.hyper[name]
        many = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if many and declared and name not in self.inner:
            items = x.values() if isinstance(x, dict) else x
            names = tuple(x) if isinstance(x, dict) else tuple(range(len(x)))
            return Container(type(x), names, tuple(_template(y, declared, leaves) for y in items))
        return _template(x, None if name in self.inner else declared, leaves)

    def _inner(self, name: str, x: Any) -> Any:
        """The transformation of this library that a given one is, or those in a dict of groups."""
        many = self.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        if isinstance(x, dict):
            return {label: self.kind.as_inner(tx) for label, tx in x.items()}
        if many:
            return tuple(map(self.kind.as_inner, x))
        optional = x is None and self.signature.parameters[name].default is None
        return None if optional else self.kind.as_inner(x)

    def run(self, arguments: dict[str, Any]) -> Any:
        """Calls the body with these arguments."""
        positional, keyword = self.split(arguments)
        return self.function(*positional, **keyword)

    def split(self, arguments: dict[str, Any]) -> tuple[list, dict[str, Any]]:
        positional, keyword = [], {}
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(arguments[name])
            elif parameter.kind is parameter.VAR_KEYWORD:
                keyword.update(arguments[name])
            elif parameter.kind is parameter.KEYWORD_ONLY:
                keyword[name] = arguments[name]
            else:
                positional.append(arguments[name])
        return positional, keyword


def _keeping(given: Any, filled: Any) -> Any:
    """`filled`, with the very values that were given, whose meaning is known already."""
    if isinstance(given, Value):
        return given
    if type(given) is dict and type(filled) is dict:
        return {k: _keeping(given[k], x) for k, x in filled.items()}
    if type(given) in (list, tuple) and type(filled) is type(given):
        return type(given)(_keeping(a, b) for a, b in zip(given, filled, strict=True))
    return filled


def _find_constructor(module: str, qualname: str) -> Constructor:
    package = importlib.import_module("adamfx")
    ours = module.startswith("adamfx.") and getattr(package, qualname, None)
    if ours:  # whatever module held it in the version that pickled it
        return ours.constructor
    return functools.reduce(
        getattr, qualname.split("."), importlib.import_module(module)
    ).constructor


def _declared(annotation: Any) -> str | None:
    """DYNAMIC, EXACT, INNER or None: what a signature's annotation says of its parameter."""
    if isinstance(annotation, str):
        named = {"Dynamic": DYNAMIC, "Exact": EXACT, "Inner": INNER}
        return next((d for word, d in named.items() if word in annotation), None)
    metadata = getattr(annotation, "__metadata__", ())
    found = [m for m in metadata if m in (DYNAMIC, EXACT, INNER)]
    found += [d for a in typing.get_args(annotation) if (d := _declared(a))]
    return found[0] if found else None


def _is_inner_class(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Value) and annotation.has_keys


def _template(x: Any, declared: str | None, leaves: list) -> Any:
    """The place of argument `x` in the form; appends its leaves."""
    if isinstance(x, Value):
        leaves.extend(x.leaves)
        return x.form
    if type(x) in (list, tuple, dict) and _has_value(x):
        names = tuple(x) if isinstance(x, dict) else tuple(range(len(x)))
        items = x.values() if isinstance(x, dict) else x
        return Container(type(x), names, tuple(_template(y, declared, leaves) for y in items))
    if isinstance(x, (np.dtype, type(jnp.float32))) or _is_scalar_type(x):
        return Static(as_dtype(x).name)  # prints as code: mu_dtype='bfloat16'
    if declared:
        if isinstance(x, (bool, np.bool_)):
            raise TypeError(f"expected a number, an array or a schedule, got {x!r}")
        if isinstance(x, (int, float, np.number)):
            x = complex(x) if np.iscomplexobj(x) else float(x)  # type: ignore
            if declared is EXACT:
                return Static(x)
        elif isinstance(x, (np.ndarray, jax.Array)) and not (is_key(x) or x.dtype == bool):
            x = x if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.asarray(x, float)
        elif x is None or callable(x):
            return Static(x)
        else:
            raise TypeError(f"expected a number, an array or a schedule, got {x!r}")
        leaves.append(x)
        return LEAF
    return Static(x)


def _is_scalar_type(x: Any) -> bool:
    return isinstance(x, type) and issubclass(x, np.generic)


def _has_value(x: Any) -> bool:
    return any(isinstance(y, Value) for y in (x.values() if isinstance(x, dict) else x))


def constructor(kind: type[V]) -> Callable[[Callable[P, Any]], Callable[P, V]]:
    """A decorator that turns a plain function into a constructor of `kind` values.

    The function's body is run when the constructor is called, so that it can check concrete
    arguments, and again, with tracers in place of the leaves, whenever a program is traced. A body
    that returns another value makes the call an alias of that value.
    """

    def decorate(function: Callable[P, Any]) -> Callable[P, V]:
        if not inspect.isfunction(function):
            word = kind.__name__.lower()
            raise TypeError(
                f"{word}: it decorates a function, whose name and signature make the constructor, got "
                f"{shown(function)}; write def name(...): return ..."
            )
        made = Constructor(function, kind)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> V:
            return made(*args, **kwargs)

        call.constructor = made  # type: ignore[attr-defined]
        return call

    return decorate
