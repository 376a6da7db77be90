"""What functions read besides their arguments: a program made of them is right as long as it is the same."""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

INSTALLED = ("site-packages", "dist-packages")
MOST = 100_000  # things; of more, nobody knows whether they have changed
# What JAX keeps of functions (jit, checkpoint, the body of a scan) it keeps for one value of this alone.
reading = jax.make_user_context(None)
MOST_MET = 300  # functions that are looked at one by one
PLAIN = (bool, int, str, bytes, type(None), type(...), types.CodeType)
# What Python writes into every class.
OWN = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__slots__",
    "_abc_impl",
    "__firstlineno__",
}


class Reads:
    """Functions that compare equal where they would compute the same: equal code that reads equal things.

    Read are closures, defaults, globals and what they hold, attributes of a bound object, arrays of NumPy by
    their numbers; arrays of JAX, which cannot change, and what shows no inside by identity. Of libraries what
    their functions close over, not their globals.

    `known` is False where they read more than can be looked through; such a one is equal to none.
    """

    __slots__ = ("_hash", "found", "functions", "known", "met")

    def __init__(self, *functions: Any):
        self.functions = functions
        walk = _Walk()
        try:
            for function in functions:
                walk.into(function)
            self._hash, self.known = hash(tuple(walk.found)), True
        except Exception:  # too much, or something of a user's that cannot be looked at
            self._hash, self.known = id(self), False
        self.found, self.met = tuple(walk.found), walk.functions

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reads):
            return NotImplemented
        return self is other or (self.known and other.known and self.found == other.found)

    def __hash__(self) -> int:
        return self._hash


class Programs:
    """The last few that `make(reads, *more)` has made, each with a mark to run it under: `reading(mark)`.

    One whose own functions have come to read something else is let go first: JAX goes on with a converted
    array as long as somebody holds it.
    """

    def __init__(self, make: Callable, most: int = 32):
        self.make, self.most = make, most
        self.made: dict[tuple, Any] = {}  # the newest last

    def __call__(self, reads: Reads, *more: Any) -> Any:
        found = self.made.pop((reads, *more), None)
        if found is None:
            for key in [k for k in list(self.made) if k[0] != Reads(*k[0].functions)]:
                self.made.pop(key, None)
            found = self.make(reads, *more), _mark(reads)
        if reads.known:
            self.made[reads, *more] = found
        for key in list(self.made)[: -self.most]:
            self.made.pop(key, None)
        return found


_last: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _mark(reads: Reads) -> Any:
    """What tells these functions from what JAX has kept of the same ones when they read something else.

    None as long as none of them has changed: for every mark JAX keeps its own traces of all that it has.
    """
    if not reads.known or len(reads.met) > MOST_MET:
        return object()
    found = []
    for f in reads.met:
        now = hash(Reads(f))
        before, mark = _last.get(f, (now, None))
        if now != before:
            mark = object()
        _last[f] = now, mark
        found += [] if mark is None else [mark]
    return tuple(found) or None


class _TooMuch(Exception):
    pass


class _Same:
    """A thing, equal to itself alone."""

    __slots__ = ("it",)

    def __init__(self, it: Any):
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.it is other.it

    def __hash__(self) -> int:
        return id(self.it)


class _Walk:
    """Notes what is found, each thing once and in the order in which it is met."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.met: dict[int, tuple[int, Any]] = {}  # the thing, too: an id is of the living
        self.functions: list[Any] = []  # of which JAX may keep a trace

    def note(self, *what: Any) -> None:
        if len(self.found) > MOST:
            raise _TooMuch
        self.found.append(what)

    def into(self, x: Any) -> None:
        kind = type(x)
        if kind in PLAIN:
            return self.note(kind, x)
        if kind in (float, complex):
            return self.note(kind, repr(x))  # tells 0.0 from -0.0, and nan equals itself
        if id(x) in self.met:
            return self.note("met", self.met[id(x)][0])
        self.met[id(x)] = len(self.met), x
        if callable(x) and not isinstance(x, (type, types.BuiltinFunctionType)) and _can_be_kept(x):
            self.functions.append(x)
        if isinstance(x, (np.ndarray, np.generic)) and x.dtype != object:
            numbers = np.ascontiguousarray(x).view(np.uint8).data if x.size else b""
            return self.note(kind, x.shape, x.dtype, hashlib.blake2b(numbers).digest())
        if isinstance(x, (jax.Array, types.ModuleType)):
            return self.note(_Same(x))
        if isinstance(x, types.FunctionType):
            return self.function(x)
        if isinstance(x, type):
            return self.type(x)
        if isinstance(x, (dict, types.MappingProxyType)):
            self.note(kind, len(x))
            return self.all(y for pair in list(x.items()) for y in pair)
        if isinstance(x, np.ndarray):
            x = x.tolist()
        if isinstance(x, (list, tuple, set, frozenset)):
            self.note(kind, len(x))
            return self.all(list(x))
        self.object(x)

    def all(self, things: Iterable) -> None:
        for x in things:
            self.into(x)

    def function(self, f: types.FunctionType) -> None:
        self.note(f.__code__, _Same(f.__globals__))
        self.all((f.__defaults__, f.__kwdefaults__, f.__dict__))
        for cell in f.__closure__ or ():
            try:
                self.into(cell.cell_contents)
            except ValueError:  # not yet filled
                self.note("empty")
        if not of_library(f.__globals__.get("__name__", "")):
            self.globals(f)

    def globals(self, f: types.FunctionType) -> None:
        names, attributes = _names(f.__code__)
        for name in names:
            x = f.__globals__.get(name, sys.modules.get(name))
            self.into(x)
            if isinstance(x, types.ModuleType) and not of_library(x.__name__):
                self.all(vars(x)[a] for a in attributes if a in vars(x))

    def type(self, x: type) -> None:
        self.note(_Same(x))
        if not of_library(x.__module__):
            self.all(x.__bases__)
            self.all(y for name, y in list(vars(x).items()) if name not in OWN)

    def object(self, x: Any) -> None:
        self.into(type(x))
        if isinstance(
            x, (types.MethodType, functools.partial, property, staticmethod, classmethod)
        ):
            parts = ("__func__", "__self__", "func", "args", "keywords", "fget")
            return self.all(getattr(x, name) for name in parts if hasattr(type(x), name))
        if (form := getattr(x, "form", None)) is not None and hasattr(form, "functions"):
            self.note(_Same(form))  # one of our values: what it has made of itself is not read
            return self.all((x.leaves, *form.functions))
        state = dict(getattr(x, "__dict__", ()))
        for declared in (c.__dict__.get("__slots__", ()) for c in type(x).__mro__):
            names = (declared,) if isinstance(declared, str) else tuple(declared)
            state |= {s: getattr(x, s) for s in names if s not in OWN and hasattr(x, s)}
        if state:
            return self.all((len(state), *(y for pair in state.items() for y in pair)))
        if type(x).__hash__ not in (object.__hash__, None):
            return self.note(type(x), x)  # a dtype, a device, a date
        try:  # a deque, a random generator: what pickle would keep
            made = x.__reduce_ex__(4)
        except Exception:  # a lock, a file, a connection
            return self.note(_Same(x))
        self.all(list(y) if isinstance(y, Iterator) else y for y in made)


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The globals, and the attributes, that a function and those written inside it read."""
    found: tuple[dict, dict] = {}, {}
    for at in dis.get_instructions(code):
        if at.opname in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"):
            found[0][at.argval] = None
        elif at.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            found[1][at.argval] = None
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            for mine, names in zip(found, _names(inner), strict=True):
                mine |= dict.fromkeys(names)
    return tuple(found[0]), tuple(found[1])


def of_library(module: str) -> bool:
    """Whether a module is installed, so that nobody changes what it holds."""
    root = module.partition(".")[0]
    if root in ("adamfx", *sys.stdlib_module_names):
        return root != "__main__"
    there = sys.modules.get(root)
    place = str(getattr(there, "__path__", "") or getattr(there, "__file__", ""))
    return any(part in place for part in INSTALLED)


def _can_be_kept(x: Any) -> bool:
    """Whether JAX can keep a trace of a function: it does by a weak reference to it."""
    if isinstance(x, types.FunctionType) and of_library(x.__module__ or "") and not x.__closure__:
        return False
    try:
        return isinstance(hash(x), int) and type(x).__weakrefoffset__ > 0
    except Exception:
        return False


def may_change(x: Any) -> bool:
    """Whether an argument of a value holds a function or object that can come to mean another thing."""
    if isinstance(x, (list, tuple)):
        return any(map(may_change, x))
    if isinstance(x, dict):
        return any(map(may_change, x.values()))
    if isinstance(x, types.FunctionType):
        return not of_library(x.__module__) or bool(x.__closure__)
    if isinstance(x, (np.ndarray, np.generic, jax.Array, type)) or hasattr(x, "dtype"):
        return False
    return callable(x) or type(x).__hash__ is None
