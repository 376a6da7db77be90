"""What the annotations of a function allow for its arguments, checked where it is called.

One rule for all: an argument annotated bool, int, float, str, Callable, Sequence, dict, Dynamic, Exact or a
kind of value is that, or what else its union names. Any allows anything, but for `Annotated[Any, Kind(...)]`.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.checks import floating, shown
from adamfx.values.value import Value

DYNAMIC, EXACT = "dynamic hyperparameter", "exact hyperparameter"
INNER = "transformation inside"

P = ParamSpec("P")
T = TypeVar("T")


class Kind(NamedTuple):
    """A kind of argument: whether a value is of it, and what such values are called."""

    has: Callable[[Any], Any]
    words: tuple[str, ...]


def _is_number(x: Any) -> bool:
    if isinstance(x, (np.ndarray, np.generic, jax.Array)):
        return bool(jnp.issubdtype(x.dtype, jnp.number))
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _is_whole(x: Any) -> bool:
    whole = isinstance(x, (int, np.integer)) or (isinstance(x, float) and x.is_integer())
    return whole and not isinstance(x, bool)


def _is_function(x: Any) -> bool:
    return callable(x) and not isinstance(x, type)


def _is_mask(x: Any) -> bool:
    return x is None or _is_function(x) or all(
        isinstance(m, (bool, np.bool_)) for m in jax.tree.leaves(_plain(x))
    )  # fmt: skip


def _plain(x: Any) -> Any:
    """Mappings that JAX does not know as dicts."""
    return {k: _plain(y) for k, y in x.items()} if isinstance(x, Mapping) else x


def _is_dtype(x: Any) -> bool:
    try:
        floating("", "", x)
    except ValueError:
        return False
    return not isinstance(x, bool)


WHOLE = Kind(_is_whole, ("a whole number",))
NUMBER = Kind(_is_number, ("a number", "an array"))
SCHEDULE = Kind(_is_function, ("a schedule",))
FUNCTION = Kind(callable, ("a function",))
PLAIN = {
    bool: Kind(lambda x: isinstance(x, (bool, np.bool_)), ("True or False",)),
    int: WHOLE,
    float: Kind(
        lambda x: _is_number(x) and np.ndim(x) == 0 and not np.iscomplexobj(x), ("a number",)
    ),
    str: Kind(lambda x: isinstance(x, str), ("a string",)),
    type(None): Kind(lambda x: x is None, ("None",)),
}
KNOWN = ("collections.abc", "os")  # of whose classes isinstance tells
WORDS = {os.PathLike: "a path", collections.abc.Iterable: "an iterable"}
STRING = PLAIN[str]
Mask = Annotated[
    Any,
    Kind(
        _is_mask,
        (
            "a tree of Python bools, True where the block acts",
            "a callable of the parameters that returns one",
        ),
    ),
]
FLOATING = Kind(_is_dtype, ("a floating dtype such as 'bfloat16'",))
Floating = Annotated[Any, FLOATING]


def kinds(annotation: Any) -> list[Kind]:
    """What an annotation allows; nothing where it allows anything."""
    found: list[Kind] = []
    for member in _members(annotation):
        kind = _kind(member)
        if kind is None:
            return []
        is_rate = kind is FUNCTION and {NUMBER, WHOLE, PLAIN[float]} & {*found}
        found.append(SCHEDULE if is_rate else kind)
    return found


def _members(annotation: Any) -> tuple:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return (
        tuple(m for a in typing.get_args(annotation) for m in _members(a))
        if union
        else (annotation,)
    )


def _kind(member: Any) -> Kind | None:
    for data in getattr(member, "__metadata__", ()):
        if data in (DYNAMIC, EXACT):
            return NUMBER
        if isinstance(data, Kind):
            return data
    origin = typing.get_origin(member) or member
    if member is None:
        return PLAIN[type(None)]
    if origin is collections.abc.Callable:
        return FUNCTION
    if not isinstance(origin, type):
        return None
    if origin in PLAIN:
        return PLAIN[origin]
    if origin in (tuple, list, collections.abc.Sequence):
        of = {a for a in typing.get_args(member) if a is not ...}
        return _sequence(of.pop() if len(of) == 1 else Any)
    if origin in (np.ndarray, jax.Array):
        return Kind(lambda x: hasattr(x, "dtype") or _is_number(x), ("an array",))
    if issubclass(origin, Mapping):
        return Kind(lambda x: isinstance(x, Mapping), ("a dict",))
    if issubclass(origin, Value):
        return Kind(origin.is_one, (origin.example,))
    if origin.__module__ in KNOWN or origin.__module__.startswith("adamfx."):
        return Kind(lambda x: isinstance(x, origin), (WORDS.get(origin, f"a {origin.__name__}"),))
    return None


def _sequence(of: Any) -> Kind:
    each = kinds(of)

    def has(x: Any) -> bool:
        rows = isinstance(x, (list, tuple, range)) or (isinstance(x, np.ndarray) and x.ndim == 1)
        return rows and all(not each or any(k.has(y) for k in each) for y in x)

    words = each[0].words[0].split(" ", 1)[-1] if each else ""
    return Kind(has, (f"a list or tuple of {words}s" if words else "a list or tuple",))


class Arguments:
    """The parameters of a function by name, and what each may be."""

    def __init__(self, function: Callable):
        made = function.__name__ == "__init__"
        self.name = function.__qualname__.split(".")[-2] if made else function.__name__
        self.signature = inspect.signature(function)
        names = inspect.unwrap(function).__globals__
        self.annotations = {
            n: _annotation(p.annotation, names) for n, p in self.signature.parameters.items()
        }
        many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self.kinds = {
            n: found
            for n, a in self.annotations.items()
            if self.signature.parameters[n].kind not in many and (found := kinds(a))
        }

        self.words = {
            n
            for n, found in self.kinds.items()
            if {*found} <= {STRING, PLAIN[type(None)]} and STRING in found
        }

    def bind(self, args: Any, kwargs: Any) -> inspect.BoundArguments:
        """Raises TypeError for an argument that is missing, that there is not, or of another kind."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}; the signature is {self.usage()}") from None
        self.check(bound.arguments)
        return bound

    def check(self, arguments: dict[str, Any]) -> None:
        """Raises unless each argument is what its annotation says; whole numbers become ints.

        But for strings: a function says better which it takes, and `check_after` sees them.
        """
        before = {n: x for n, x in arguments.items() if n in self.kinds and n not in self.words}
        self._check(before, arguments)

    def _check(self, these: dict[str, Any], arguments: dict[str, Any]) -> None:
        for name, x in these.items():
            allowed = self.kinds[name]
            if x is self.signature.parameters[name].default:
                continue
            try:  # None stands last, and is asked first
                is_one = any(kind.has(x) for kind in reversed(allowed))
            except TypeError as error:
                raise TypeError(f"{self.name}: {name}: {error}") from None
            if not is_one:
                words = [w for kind in allowed for w in kind.words]
                either = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
                # Of a number that is not whole, and of a dtype, the value is wrong, not the type.
                wrong = FLOATING in allowed or (WHOLE in allowed and isinstance(x, (int, float)))
                raise (ValueError if wrong else TypeError)(
                    f"{self.name}: {name} must be {either}, got {shown(x)}"
                )
            if WHOLE in allowed and _is_whole(x):
                arguments[name] = int(x)

    def check_after(self, arguments: dict[str, Any]) -> None:
        """What is left to check where the function itself has found nothing: strings, and finite numbers.

        A number may be infinite or NaN where the default is.
        """
        if self.words:
            self._check({n: x for n, x in arguments.items() if n in self.words}, {})
        for name, x in arguments.items():
            if isinstance(x, float) and not math.isfinite(x) and name in self.kinds:
                default = self.signature.parameters[name].default
                if not isinstance(default, float) or math.isfinite(default):
                    raise ValueError(f"{self.name}: {name} must be finite, got {x}")

    def told(self, error: Exception, arguments: dict[str, Any]) -> None:
        """Puts the call before the words of an error that speaks of a part of it."""
        of_itself = str(error).startswith((f"{self.name}:", f"{self.name}("))
        if type(error) in (TypeError, ValueError) and not of_itself:
            given = ", ".join(f"{n}={shown(x, 60)}" for n, x in arguments.items())
            error.args = (f"{self.name}({given}): {error}",)

    def usage(self) -> str:
        bare = [p.replace(annotation=p.empty) for p in self.signature.parameters.values()]
        return f"{self.name}{inspect.Signature(bare)}"


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator of a function that makes something: its arguments are what its annotations say.

    An error from within is preceded by the call, so that it names the argument that was given.
    """
    known = Arguments(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = known.bind(args, kwargs)
        try:
            made = function(*bound.args, **bound.kwargs)
        except (TypeError, ValueError) as error:
            known.told(error, bound.arguments)
            raise
        known.check_after(bound.arguments)
        return made

    return call


def check(function: Callable, arguments: dict[str, Any]) -> None:
    """Raises unless these arguments of a function, all of them by name, are what its annotations say."""
    _known(function).check(dict(arguments))
    _known(function).check_after(arguments)


_known = functools.lru_cache(maxsize=64)(Arguments)


def _annotation(annotation: Any, names: dict) -> Any:
    if isinstance(annotation, str):
        try:
            return eval(annotation, names)
        except Exception:  # a name that exists for type checkers only: read as text
            pass
    return annotation
