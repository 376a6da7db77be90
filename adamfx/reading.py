"""Reading a value back from its text: the inverse of repr.

The text is never executed: its syntax tree is walked, and all it may hold is calls of constructors,
literals, arrays as they are printed, lists, dicts, and `~ & |` between predicates. Whatever the text,
the answer is a value or a SentenceError, and takes time and memory in proportion to its length, which
is limited.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from adamfx.checks import shortened, shown
from adamfx.masks import Predicate
from adamfx.values.value import Value

OPERATORS = {
    ast.Invert: operator.invert,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
NUMBERS = (int, float, complex)
OPERANDS = {ast.Invert: Predicate, ast.USub: NUMBERS, ast.UAdd: NUMBERS}


LONGEST = 100_000  # characters; the longest sentences hold an array of a rate for each run
LARGEST = 1024  # bits of a whole number, as many as the largest float has


class SentenceError(ValueError):
    """The text is not a value of adamfx: where, what stands there, what may."""


def vocabulary() -> dict[str, Callable]:
    """The names that may be called: every public function that makes a value, and no other."""
    package = importlib.import_module("adamfx")
    functions = {name: getattr(package, name) for name in package.__all__}
    return {
        name: function
        for name, function in functions.items()
        if hasattr(function, "constructor")
        or getattr(function, "__annotations__", {}).get("return") == "GradientTransformation"
    }


def read(text: str, names: Mapping[str, Callable] | None = None) -> Any:
    """The value that the text names, as printed by `repr`: `read(repr(tx)) == tx`.

    Args:
      text: a call such as "adam(0.001)"; a leading `fx.` may stand or not. Nothing in it is executed
        but constructors. At most 100,000 characters.
      names: constructors of your own, by the name with which they print.

    Raises:
      SentenceError: a ValueError with the place, what is there, and what is allowed.
    """
    if not isinstance(text, str):
        raise TypeError(f"read: text must be a string such as repr(tx), got {shown(text)}")
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"read: names must be a dict of name to constructor, got {shown(names)}")
    if len(text) > LONGEST:
        raise SentenceError(
            f"a sentence of {len(text):,} characters cannot be read, at most {LONGEST:,} can; build the "
            "value in Python"
        )
    text = re.sub("\r\n?", "\n", text.strip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that strings do not have
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = getattr(error, "msg", None) or str(error) or "nested too deep"
        raise SentenceError(
            f"{shortened(repr(text))} cannot be read ({why}); write a call, such as adam(0.001)"
        ) from None
    try:
        value = _Reader(text, vocabulary() | dict(names or {})).value(tree)
    except RecursionError:
        raise SentenceError(
            f"{shortened(repr(text))} is nested too deep; build the value in Python"
        ) from None
    if not isinstance(value, Value):
        raise SentenceError(
            f"{shortened(repr(text))} is {shortened(repr(value))}, not a call; write a call, such as "
            "adam(0.001)"
        )
    return value


class _Reader:
    def __init__(self, text: str, known: dict[str, Callable]):
        self.text, self.known = text, known

    def value(self, node: ast.expr) -> Any:
        of = self.value
        match node:
            case ast.Constant(value=int() as x) if x.bit_length() > LARGEST:
                raise self.error(node, f"a whole number may have {LARGEST} bits; write a float")
            case ast.Constant(value=int() | float() | complex() | str() | None as x):
                return x  # a bool is an int
            case ast.List(items):
                return [of(x) for x in items]
            case ast.Tuple(items):
                return tuple(of(x) for x in items)
            case ast.Dict(keys, values) if all(keys):
                pairs = [(of(k), of(v)) for k, v in zip(keys, values, strict=True) if k is not None]
                return self.call(node, lambda: dict(pairs))
            case ast.UnaryOp(op, operand) if type(op) in OPERATORS:
                return self.operate(
                    node, OPERATORS[type(op)], of(operand), wanted=OPERANDS[type(op)]
                )
            case ast.BinOp(left, ast.Add() | ast.Sub() as op, ast.Constant(complex() as b)):
                b = b if isinstance(op, ast.Add) else -b  # the two parts of a complex number
                return self.operate(node, lambda a: a + b, of(left), wanted=(int, float))
            case ast.BinOp(left, op, right) if type(op) in OPERATORS:
                return self.operate(node, OPERATORS[type(op)], of(left), of(right))
            case ast.Call(ast.Name("float"), [ast.Constant("nan" | "inf" | "-inf" as x)], []):
                return float(x)
            case ast.Call(
                ast.Attribute(ast.Name("jnp"), "asarray"),
                [numbers, ast.Constant(str() as dtype)],
                [],
            ):
                return self.call(node, lambda: jnp.asarray(of(numbers), dtype))
            case ast.Call(function, args, keywords):
                make = self.function(function)
                positional = [of(x) for x in args]
                if None in (names := [k.arg for k in keywords]):
                    raise self.error(node, "** is not allowed; write the arguments out")
                if len(set(names)) < len(names):
                    raise self.error(node, "an argument stands there twice; take one out")
                named = {str(k.arg): of(k.value) for k in keywords}
                return self.call(node, lambda: make(*positional, **named))
            case ast.Name() | ast.Attribute():
                self.function(node)
                raise self.error(node, f"it is a name; call it: {ast.unparse(node)}(...)")
        raise self.error(
            node, "allowed are calls of adamfx's names, numbers, strings, lists, dicts"
        )

    def call(self, node: ast.expr, make: Callable) -> Any:
        try:
            return make()
        except (SentenceError, RecursionError):
            raise
        except Exception as error:  # what is wrong is said by the constructor
            raise self.error(node, shortened(str(error) or type(error).__name__)) from error

    def function(self, node: ast.expr) -> Callable:
        match node:
            case ast.Name(name) | ast.Attribute(ast.Name("fx" | "adamfx"), name):
                if name in self.known:
                    return self.known[name]
                near = difflib.get_close_matches(name, self.known, 3)
                hint = f"did you mean {' or '.join(near)}?" if near else "see help(adamfx)"
                raise self.error(
                    node,
                    f"adamfx has no optimizer, block or schedule {shortened(name, 60)!r}; {hint}",
                )
        raise self.error(node, "only adamfx's names, and those passed as names=, can be called")

    def operate(
        self, node: ast.expr, function: Callable, *operands: Any, wanted: Any = Predicate
    ) -> Any:
        if not all(isinstance(x, wanted) for x in operands):
            raise self.error(node, "+ - are for numbers; ~ & | are for predicates of parameters")
        return self.call(node, lambda: function(*operands))

    def error(self, node: ast.expr, what: str) -> SentenceError:
        lines = self.text.split("\n")
        within = lines[node.lineno - 1].encode()[: node.col_offset].decode()
        place = sum(len(line) + 1 for line in lines[: node.lineno - 1]) + len(within) + 1
        piece = ast.get_source_segment(self.text, node) or ast.unparse(node)
        text, piece = shortened(repr(self.text)), shortened(repr(piece), 100)
        return SentenceError(f"in {text}, at character {place:,}, {piece}: {what}")
