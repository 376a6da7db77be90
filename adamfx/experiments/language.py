"""Reads an optimizer from text, such as "chain(scale_by_moments(0.9, None), scale_by_lr(0.1))".

The text is never executed: its syntax tree is walked, and all it may hold is calls of adamfx's
constructors, literals, lists, dicts, and `~ & |` between predicates.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable
from typing import Any

import adamfx as fx
from adamfx.values.value import Value

OPERATORS = {
    ast.Invert: operator.invert,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class SentenceError(ValueError):
    """The text is not a sentence of adamfx: where, what stands there, what may."""


def vocabulary() -> dict[str, Callable]:
    """The names a sentence may call: every public function that makes a value, and no other."""
    functions = {name: getattr(fx, name) for name in fx.__all__}
    return {
        name: function
        for name, function in functions.items()
        if hasattr(function, "constructor")
        or getattr(function, "__annotations__", {}).get("return") == "GradientTransformation"
    }


def parse(text: str) -> fx.GradientTransformation:
    """The optimizer that the text names, as printed by `repr`; a leading `fx.` may stand or not.

    Raises:
      SentenceError: with the place, what is there, and what is allowed.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SentenceError(
            f"{text!r} cannot be read ({error}); write a call, such as adam(0.001)"
        ) from None
    try:
        value = _value(tree, text.strip())
    except RecursionError:
        raise SentenceError(f"the sentence of {len(text)} characters is nested too deep") from None
    if not isinstance(value, fx.GradientTransformation):
        raise SentenceError(
            f"{text!r} is {_kind(value)}, not an optimizer; write a call, such as adam(0.001)"
        )
    return value


def _value(node: ast.expr, text: str) -> Any:
    def of(child: ast.expr) -> Any:
        return _value(child, text)

    match node:
        case ast.Constant(value=int() | float() | str() | None as x):  # a bool is an int
            return x
        case ast.List(items):
            return [of(x) for x in items]
        case ast.Tuple(items):
            return tuple(of(x) for x in items)
        case ast.Dict(keys, values) if all(keys):
            return {of(k): of(v) for k, v in zip(keys, values, strict=True) if k is not None}
        case ast.UnaryOp(op, operand) if type(op) in OPERATORS:
            return _operate(node, text, OPERATORS[type(op)], of(operand))
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            return _operate(node, text, OPERATORS[type(op)], of(left), of(right))
        case ast.Call(function, args, keywords):
            make = _function(function, text)
            positional = [of(x) for x in args]
            named = {k.arg: of(k.value) for k in keywords if k.arg is not None}
            if len(named) < len(keywords):
                raise _error(node, text, "** is not allowed; write the arguments out")
            try:
                return make(*positional, **named)
            except Exception as error:  # what is wrong is said by the constructor
                raise _error(node, text, str(error)) from error
        case ast.Name() | ast.Attribute():
            make = _function(node, text)
            raise _error(node, text, f"it is a name; call it: {ast.unparse(node)}(...)")
    raise _error(node, text, "allowed are calls of adamfx's names, numbers, strings, lists, dicts")


def _function(node: ast.expr, text: str) -> Callable:
    match node:
        case ast.Name(name) | ast.Attribute(ast.Name("fx" | "adamfx"), name):
            known = vocabulary()
            if name in known:
                return known[name]
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see help(adamfx)"
            raise _error(node, text, f"adamfx has no optimizer, block or schedule {name!r}; {hint}")
    raise _error(
        node, text, "only adamfx's names can be called; arrays become numbers by .concrete()"
    )


def _operate(node: ast.expr, text: str, function: Callable, *operands: Any) -> Any:
    wanted = (int, float) if function in (operator.neg, operator.pos) else fx.Predicate
    if not all(isinstance(x, wanted) for x in operands):
        raise _error(node, text, "- is for numbers; ~ & | are for predicates of parameters")
    return function(*operands)


def _error(node: ast.expr, text: str, what: str) -> SentenceError:
    piece = ast.get_source_segment(text, node) or ast.unparse(node)
    return SentenceError(f"in {text!r}, at character {node.col_offset + 1}, {piece!r}: {what}")


def _kind(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Value) else repr(value)
