"""A constructor call as a value.

`scale_by_lr(1e-3)`, `ema(0.9)`, `cosine_decay_schedule(1e-3, 100)` and whole optimizers are
values: they print as the call that makes them, compare, hash and pickle by it, and are JAX
pytrees whose leaves are their dynamic hyperparameters.

A value is a `Form` (the call without its leaves: hashable, one object for equal forms) and the
leaves, in the order of the arguments, those of nested values included. So flattening a whole
optimizer is one Python call that returns two stored tuples, and comparing two tree structures
compares two pointers.

Whether an argument is a leaf is declared in the signature and decided once, at the call:

    Dynamic   always a leaf, whatever number it holds (learning rate, weight decay, threshold)
    Exact     a Python number stays a number in double precision; an array or tracer is a leaf
              (decays: 1 - 0.999999 in float32 would be wrong by 7e-3)
    (none)    static: the body sees the very Python object it was given
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pickle
import threading
import typing
import weakref
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

DYNAMIC, EXACT = "dynamic hyperparameter", "exact hyperparameter"
Dynamic = Annotated[float | jax.Array | np.ndarray, DYNAMIC]
Exact = Annotated[float | jax.Array | np.ndarray, EXACT]

P = ParamSpec("P")
V = TypeVar("V", bound="Value")


class _Leaf:
    """Marks the place of a leaf in a form."""

    def __repr__(self) -> str:
        return "·"

    def __reduce__(self):
        return "LEAF"


LEAF = _Leaf()
as_dtype: Any = jnp.dtype


class Static:
    """An argument that is part of the form. Compares by type and value, so 1, 1.0 and True differ."""

    __slots__ = ("key", "value")

    def __init__(self, value: Any):
        self.value, self.key = _snapshot(value), _key(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class Container:
    """A list, tuple or dict of arguments of which at least one is a value."""

    __slots__ = ("items", "kind", "names")

    def __init__(self, kind: type, names: tuple, items: tuple):
        self.kind, self.names, self.items = kind, names, items

    def __eq__(self, other: object) -> bool:
        mine = (self.kind, self.names, self.items)
        return isinstance(other, Container) and mine == (other.kind, other.names, other.items)

    def __hash__(self) -> int:
        return hash((self.kind, self.names, self.items))

    def make(self, items: list) -> Any:
        make: Any = self.kind
        return make(zip(self.names, items, strict=True) if make is dict else items)


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
    if isinstance(x, (np.ndarray, jax.Array)) and not _is_key(x):
        return ("array", x.shape, str(x.dtype), np.asarray(x).tobytes())
    if isinstance(x, (dict, list, tuple)) and not hasattr(x, "_fields"):
        leaves, structure = jax.tree.flatten(x, is_leaf=lambda y: y is None)
        return ("tree", structure, tuple(_key(y) for y in leaves))
    try:
        hash(x)
    except TypeError:
        return ("object", id(x))
    return (type(x), x)


def _is_key(x: Any) -> bool:
    """Whether an array holds random keys, which have no numbers to convert."""
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)


_forms: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_forms_lock = threading.Lock()


class Form:
    """A call without its leaves. Equal forms are one object, so they compare by identity."""

    __slots__ = ("__weakref__", "arguments", "constructor", "size")

    constructor: Constructor
    arguments: tuple[tuple[str, Any], ...]
    size: int

    def __new__(cls, constructor: Constructor, arguments: tuple[tuple[str, Any], ...]) -> Form:
        key = (constructor, arguments)
        with _forms_lock:
            form = _forms.get(key)
            if form is None:
                form = object.__new__(cls)
                form.constructor, form.arguments = constructor, arguments
                form.size = sum(_size(template) for _, template in arguments)
                _forms[key] = form
            return form

    def __reduce__(self):
        return Form, (self.constructor, self.arguments)

    def __deepcopy__(self, memo: Any) -> Form:
        return self

    def build(self, leaves: Any) -> Any:
        """The value of this form with these leaves; nothing is checked."""
        value = object.__new__(self.constructor.kind)
        value._form, value._leaves = self, tuple(leaves)
        return value


def _size(template: Any) -> int:
    if isinstance(template, Form):
        return template.size
    if isinstance(template, Container):
        return sum(_size(item) for item in template.items)
    return int(template is LEAF)


def _fill(template: Any, leaves: Iterator) -> Any:
    """The argument that `template` stands for; takes its leaves from the iterator."""
    if isinstance(template, Form):
        return template.build([next(leaves) for _ in range(template.size)])
    if isinstance(template, Container):
        return template.make([_fill(item, leaves) for item in template.items])
    return next(leaves) if template is LEAF else template.value


class Constructor:
    """What the decorators of this package make of a plain function; see `constructor`."""

    def __init__(self, function: Callable, kind: type):
        self.function, self.kind = function, kind
        self.name = function.__name__
        self.signature = inspect.signature(function)
        names = inspect.unwrap(function).__globals__
        self.hyper = {
            n: _declared(_annotation(p.annotation, names))
            for n, p in self.signature.parameters.items()
        }

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
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}; the signature is {self.usage()}") from None
        bound.apply_defaults()
        leaves: list = []
        arguments = []
        for name, x in bound.arguments.items():
            try:
                arguments.append((name, self._template(name, x, leaves)))
            except TypeError as error:
                raise TypeError(f"{self.name}: {name}: {error}") from None
        value = Form(self, tuple(arguments)).build(leaves)
        meaning = value.meaning  # runs the body, and with it the checks of its arguments
        return meaning if isinstance(meaning, Value) else value

    def _template(self, name: str, x: Any, leaves: list) -> Any:
        parameter, declared = self.signature.parameters[name], self.hyper[name]
        many = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if many and declared:
            items = x.values() if isinstance(x, dict) else x
            names = tuple(x) if isinstance(x, dict) else tuple(range(len(x)))
            return Container(type(x), names, tuple(_template(y, declared, leaves) for y in items))
        return _template(x, declared, leaves)

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

    def usage(self) -> str:
        bare = [p.replace(annotation=p.empty) for p in self.signature.parameters.values()]
        return f"{self.name}{inspect.Signature(bare)}"


def _find_constructor(module: str, qualname: str) -> Constructor:
    return functools.reduce(
        getattr, qualname.split("."), importlib.import_module(module)
    ).constructor


def _annotation(annotation: Any, names: dict) -> Any:
    if isinstance(annotation, str):
        try:
            return eval(annotation, names)
        except Exception:  # a name that exists for type checkers only: read as text
            pass
    return annotation


def _declared(annotation: Any) -> str | None:
    """DYNAMIC, EXACT or None: what a signature's annotation says of its parameter."""
    if isinstance(annotation, str):
        return DYNAMIC if "Dynamic" in annotation else EXACT if "Exact" in annotation else None
    metadata = getattr(annotation, "__metadata__", ())
    found = [m for m in metadata if m in (DYNAMIC, EXACT)]
    found += [d for a in typing.get_args(annotation) if (d := _declared(a))]
    return found[0] if found else None


def _template(x: Any, declared: str | None, leaves: list) -> Any:
    """The place of argument `x` in the form; appends its leaves."""
    if isinstance(x, Value):
        leaves.extend(x._leaves)
        return x._form
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
        elif isinstance(x, (np.ndarray, jax.Array)):
            is_number = jnp.issubdtype(x.dtype, jnp.inexact) or _is_key(x)
            x = x if is_number else jnp.asarray(x, float)
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


class Value:
    """A constructor call; see the head of this file. Made by constructors only."""

    __slots__ = ("__weakref__", "_form", "_leaves")

    _form: Form
    _leaves: tuple

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda value: (value._keyed_leaves(), value._form),
            lambda form, leaves: form.build(leaves),
            lambda value: (value._leaves, value._form),
        )

    @property
    def name(self) -> str:
        """The constructor's name."""
        return self._form.constructor.name

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the call by name, defaults included."""
        leaves = iter(self._leaves)
        return {name: _fill(template, leaves) for name, template in self._form.arguments}

    @property
    def meaning(self) -> Any:
        """What the body returns for these arguments."""
        return self._form.constructor.run(self.arguments)

    def __repr__(self) -> str:
        constructor = self._form.constructor
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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value):
            return NotImplemented
        same_leaves = (_same(a, b) for a, b in zip(self._leaves, other._leaves, strict=False))
        return self._form is other._form and all(same_leaves)

    def __hash__(self) -> int:
        for name, leaf in zip(self._leaf_names(), self._leaves, strict=True):
            if not isinstance(leaf, (float, complex)):
                raise TypeError(
                    f"unhashable {self.name}: {name} is {_show(leaf)}, not a Python number; call "
                    ".concrete() to turn array hyperparameters back into numbers, or .replace(...)"
                )
        return hash((self._form, self._leaves))

    def __reduce__(self):
        return Form.build, (self._form, self._leaves)

    # Names and changes of hyperparameters.

    def _child_names(self) -> dict[tuple, str]:
        """What is put before the names of nested arguments, by (argument, index)."""
        return {}

    def _walk(self, prefix: str) -> Iterator[tuple[str, Any, bool]]:
        """(dotted name, argument, is a leaf) of all arguments, those of nested values included."""
        leaves = iter(self._leaves)
        for name, template in self._form.arguments:
            yield from _walk(template, leaves, prefix, name, self._child_names(), (name,))

    def _leaf_names(self) -> list[str]:
        return [name for name, _, is_leaf in self._walk(self._prefix()) if is_leaf]

    def _keyed_leaves(self) -> list[tuple[Any, Any]]:
        names = self._leaf_names()
        return [(jax.tree_util.GetAttrKey(n), x) for n, x in zip(names, self._leaves, strict=True)]

    def _prefix(self) -> str:
        return ""

    @property
    def hyperparams(self) -> dict[str, Any]:
        """All arguments by dotted name, e.g. {'scale_by_moments.b1': 0.9, ...}."""
        return {name: x for name, x, _ in self._walk(self._prefix())}

    def replace(self: V, **changes: Any) -> V:
        """The same call with other arguments.

        A keyword is a dotted name of `hyperparams` or any unambiguous end of one:
        `tx.replace(learning_rate=3e-4)`, `tx.replace(**{"scale_by_moments.b1": 0.8})`.
        Raises KeyError for an unknown or ambiguous name, listing the known ones.
        """
        known = list(self.hyperparams)
        exact = {match_name(name, known, "replace"): x for name, x in changes.items()}
        return self._rebuild(self._prefix(), exact)

    def concrete(self: V) -> V:
        """The same call with array hyperparameters turned back into Python numbers.

        Raises ValueError for an array of more than one element (a sweep: index it first).
        """
        numbers = {}
        for name, x in zip(self._leaf_names(), self._leaves, strict=True):
            if np.size(x) != 1:
                raise ValueError(
                    f"concrete: {name} has shape {np.shape(x)}; choose one member of the sweep first, "
                    "with jax.tree.map(lambda x: x[i], tx)"
                )
            numbers[name] = _numbers(np.reshape(x, ()))
        return self._rebuild(self._prefix(), numbers)

    def _rebuild(self: V, prefix: str, changes: dict[str, Any]) -> V:
        leaves = iter(self._leaves)
        arguments = {
            name: _rebuild(template, leaves, prefix, name, self._child_names(), (name,), changes)
            for name, template in self._form.arguments
        }
        positional, keyword = self._form.constructor.split(arguments)
        return self._form.constructor(*positional, **keyword)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _walk(
    template: Any, leaves: Iterator, prefix: str, name: str, names: dict, place: tuple
) -> Iterator[tuple[str, Any, bool]]:
    path = _join(prefix, names.get(place, name))
    if isinstance(template, Form):
        value = _fill(template, leaves)
        if place not in names:  # a schedule or an estimator, itself an argument
            yield path, value, False
        yield from value._walk(path)
    elif isinstance(template, Container):
        for i, item in zip(template.names, template.items, strict=True):
            yield from _walk(item, leaves, path, str(i), names, (*place, i))
    else:
        yield path, _fill(template, leaves), template is LEAF


def _rebuild(
    template: Any,
    leaves: Iterator,
    prefix: str,
    name: str,
    names: dict,
    place: tuple,
    changes: dict,
) -> Any:
    path = _join(prefix, names.get(place, name))
    if isinstance(template, Form):
        value = _fill(template, leaves)
        return changes[path] if path in changes else value._rebuild(path, changes)
    if isinstance(template, Container):
        items = zip(template.names, template.items, strict=True)
        return template.make(
            [_rebuild(x, leaves, path, str(i), names, (*place, i), changes) for i, x in items]
        )
    x = _fill(template, leaves)
    return changes.get(path, x)


def match_name(name: str, known: list[str], caller: str) -> str:
    """The one dotted name in `known` that `name` is, or is the end of."""
    ends = [k for k in known if k == name or k.endswith("." + name)]
    if name in known:
        return name
    if len(ends) != 1:
        what = "is ambiguous: it may be" if ends else "is not a hyperparameter; known are"
        raise KeyError(f"{caller}: {name!r} {what} {', '.join(ends or known) or 'none'}")
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


def constructor(kind: type[V]) -> Callable[[Callable[P, Any]], Callable[P, V]]:
    """A decorator that turns a plain function into a constructor of `kind` values.

    The function's body is run when the constructor is called, so that it can check concrete
    arguments, and again, with tracers in place of the leaves, whenever a program is traced. A body
    that returns another value makes the call an alias of that value.
    """

    def decorate(function: Callable[P, Any]) -> Callable[P, V]:
        made = Constructor(function, kind)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> V:
            return made(*args, **kwargs)

        call.constructor = made  # type: ignore[attr-defined]
        return call

    return decorate
