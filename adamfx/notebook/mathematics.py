"""The mathematics of docstrings: `u <- u min(1, max_norm / |u|)` as a tree.

A statement is `name <- expression` and ends where something follows that cannot belong to it: a comma, a
full stop, a colon, a word of prose such as "for" or "where", the next statement, an empty line. Products are
written side by side, and bind as divisions do, from the left. `|x|` is the 2-norm of a leaf, `|x|_1` the sum
of its magnitudes, `abs(x)` is elementwise, `<a, b>` the inner product; `_all` behind them says over all
leaves. `norm(x, axis)`, `RMS` and `mean` may be over an axis. `[a > b]` is 1 or 0, `^T` transposes, `@` is
the product of matrices. `prod(b)` is the product of b over the steps so far, `root` the square root, or
nothing where a moment is of degree one.

A tree is a tuple with its operation in front:
    ("num", Decimal), ("name", str) not yet resolved, ("sym", base, index), ("t", k) the step t + k,
    ("+", a, b), ("-", a, b), ("*", a, b), ("@", a, b), ("/", a, b), ("^", a, b), ("neg", a), ("T", a),
    ("call", name, *args), ("norm", kind, x), ("inner", kind, a, b), ("is", comparison, a, b), ("prod", b, k)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

Tree = tuple
TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?(?:e-?\d+)?)|([A-Za-z]\w*'?)|(<-|>=|<=|_1_all\b|_all\b|_1\b|[-+*@/^(),|<>=\[\]]))"
)
PROSE = (
    *(
        "and",
        "as",
        "at",
        "by",
        "each",
        "else",
        "for",
        "from",
        "held",
        "in",
        "is",
        "of",
        "on",
        "only",
    ),
    *("or", "over", "the", "where", "which", "with"),
)
COMPARISONS = (">", "<", ">=", "<=", "=")
ZERO, ONE = ("num", Decimal(0)), ("num", Decimal(1))


# ---- text to trees -------------------------------------------------------------------------------


class _Parser:
    """Reads one expression, as far as it goes."""

    def __init__(self, text: str, at: int):
        self.text, self.at = text, at
        self.closers: list[str] = []  # of what is open: in |...| a bar closes

    def peek(self) -> tuple[str, str]:
        """(kind, token) of what comes next; nothing at an empty line, or before `name <-`."""
        found = TOKEN.match(self.text, self.at)
        if found is None or "\n\n" in found[0] or re.match(r"\s*\w+'? <-", self.text[self.at :]):
            return "", ""
        kind = next(k for k, x in zip(("num", "name", "sign"), found.groups(), strict=True) if x)
        token = found[0].strip()
        return ("", "") if token in PROSE else (kind, token)

    def take(self, *wanted: str) -> str:
        token = self.peek()[1]
        if not token or (wanted and token not in wanted):
            raise ValueError(f"{wanted or 'something'} expected at {self.text[self.at :][:40]!r}")
        self.at = TOKEN.match(self.text, self.at).end()  # type: ignore[union-attr]
        return token

    def sum(self) -> Tree:
        x = neg(self._after_sign()) if self.peek()[1] == "-" else self.product()
        while self.peek()[1] in ("+", "-"):
            x = BUILD[self.take()](x, self.product())
        return x

    def _after_sign(self) -> Tree:
        self.take("-")
        return self.product()

    def product(self) -> Tree:
        x = self.power()
        while True:
            token = self.peek()[1]
            if token in ("*", "/", "@"):
                x = BUILD[self.take()](x, self.power())
            elif self._begins(*self.peek()):
                x = mul(x, self.power())
            else:
                return x

    def _begins(self, kind: str, token: str) -> bool:
        if token == "|":
            return not (self.closers and self.closers[-1] == "|")
        if token == "<":
            return not (self.closers and self.closers[-1] == "]")
        return kind in ("num", "name") or token in ("(", "[")

    def power(self) -> Tree:
        x = self.atom()
        while self.peek()[1] == "^":
            self.take()
            if self.peek()[1] == "T":
                self.take()
                x = ("T", x)
            elif self.peek()[1] == "-":
                self.take()
                x = pow_(x, neg(self.atom()))
            else:
                x = pow_(x, self.atom())
        return x

    def inside(self, closer: str, read: Callable[[], Any]) -> Any:
        self.closers.append(closer)
        found = read()
        self.closers.pop()
        self.take(closer)
        return found

    def list(self) -> list[Tree]:
        found = [self.sum()]
        while self.peek()[1] == ",":
            self.take()
            found.append(self.sum())
        return found

    def kind(self) -> str:
        """What stands behind a norm: "", "1", "all", "1_all"."""
        return self.take()[1:] if self.peek()[1] in ("_all", "_1", "_1_all") else ""

    def atom(self) -> Tree:
        kind, _ = self.peek()
        token = self.take()
        if kind == "num":
            return ("num", Decimal(token))
        if kind == "name":
            if self.text[self.at : self.at + 1] != "(":
                return ("name", token)
            self.take("(")
            return call(token, *self.inside(")", self.list))
        if token == "(":
            return self.inside(")", self.sum)
        if token == "|":
            x = self.inside("|", self.sum)
            return ("norm", self.kind(), x)
        if token == "<":
            a, b = self.inside(">", self.list)
            return ("inner", self.kind(), a, b)
        if token == "[":
            return self.inside("]", self.condition)
        raise ValueError(f"{token!r} begins nothing, at {self.text[self.at :][:40]!r}")

    def condition(self) -> Tree:
        a = self.sum()
        return condition(self.take(*COMPARISONS), a, self.sum())


def statements(text: str) -> Iterator[tuple[int, int, str, Tree]]:
    """(where it begins, where it ends, name, tree) of every `name <- expression` in a text."""
    for found in re.finditer(r"(?<![\w`])([A-Za-z]\w*'?) <- ", text):
        parser = _Parser(text, found.end())
        tree = parser.sum()
        yield found.start(), parser.at, found[1], tree


# ---- trees, simplified as they are built ---------------------------------------------------------


def num(x: Any) -> Tree:
    return ("num", Decimal(repr(x)) if isinstance(x, float) else Decimal(str(x)))


def _numbers(*xs: Tree) -> bool:
    return all(x[0] == "num" for x in xs)


def _folded(x: Decimal) -> bool:
    return x.is_finite() and len(x.normalize().as_tuple().digits) <= 12


def neg(x: Tree) -> Tree:
    if x[0] == "num":
        return ("num", -x[1])
    return x[1] if x[0] == "neg" else ("neg", x)


def add(a: Tree, b: Tree) -> Tree:
    if ZERO in (a, b):
        return b if a == ZERO else a
    if _numbers(a, b) and _folded(a[1] + b[1]):
        return ("num", a[1] + b[1])
    if b[0] == "neg":
        return sub(a, b[1])
    return ("+", a, b)


def sub(a: Tree, b: Tree) -> Tree:
    if b == ZERO:
        return a
    if a == ZERO:
        return neg(b)
    if _numbers(a, b) and _folded(a[1] - b[1]):
        return ("num", a[1] - b[1])
    return add(a, b[1]) if b[0] == "neg" else ("-", a, b)


def mul(a: Tree, b: Tree) -> Tree:
    if ZERO in (a, b):
        return ZERO
    if ONE in (a, b):
        return b if a == ONE else a
    if a[0] == "num" and a[1] < 0:
        return neg(mul(neg(a), b))
    if a[0] == "neg":
        return neg(mul(a[1], b))
    if b[0] == "neg":
        return neg(mul(a, b[1]))
    if _numbers(a, b) and _folded(a[1] * b[1]):
        return ("num", a[1] * b[1])
    if b[0] == "*" and _numbers(a, b[1]) and _folded(a[1] * b[1][1]):
        return mul(("num", a[1] * b[1][1]), b[2])
    return mul(b, a) if b[0] == "num" and a[0] not in ("num", "*", "/") else ("*", a, b)


def matmul(a: Tree, b: Tree) -> Tree:
    return neg(matmul(a[1], b)) if a[0] == "neg" else ("@", a, b)


def div(a: Tree, b: Tree) -> Tree:
    if b == ONE or a == ZERO:
        return a
    if a[0] == "neg":
        return neg(div(a[1], b))
    if _numbers(a, b) and b != ZERO and _folded(a[1] / b[1]):
        return ("num", a[1] / b[1])
    return ("/", a, b)


def pow_(a: Tree, b: Tree) -> Tree:
    if b == ONE or a in (ZERO, ONE):
        return a
    return ONE if b == ZERO else ("^", a, b)


def call(name: str, *args: Tree) -> Tree:
    if name == "norm" and len(args) == 1:
        return ("norm", "", *args)
    if name == "max" and len(args) == 2 and args[0][0] == "norm" and args[1] == ZERO:
        return args[0]
    return ONE if (name, args) == ("sqrt", (ONE,)) else ("call", name, *args)


def condition(op: str, a: Tree, b: Tree) -> Tree:
    """1 or 0, said at once where it is known: the mass 1 - b^t is 0 before the first step only."""
    if _numbers(a, b):
        holds = {">": a[1] > b[1], "<": a[1] < b[1], ">=": a[1] >= b[1], "<=": a[1] <= b[1]}
        return ONE if holds.get(op, a[1] == b[1]) else ZERO
    if (op, b) == ("=", ZERO) and a[0] == "-" and a[2][0] == "prod":
        return ("is", "=", ("t", 0), ONE) if a[2][2] == -1 else ZERO
    return ("is", op, a, b)


BUILD: dict[str, Callable] = {"+": add, "-": sub, "*": mul, "/": div, "^": pow_, "neg": neg}
BUILD |= {"@": matmul, "call": call, "is": condition}


def rebuilt(x: Tree, change: Callable[[Tree], Tree | None]) -> Tree:
    """The tree with every part for which `change` returns one replaced, from the outside in."""
    found = change(x)
    if found is not None:
        return found
    parts = [rebuilt(y, change) if isinstance(y, tuple) else y for y in x[1:]]
    return BUILD[x[0]](*parts) if x[0] in BUILD else (x[0], *parts)


def parts(x: Tree) -> Iterator[Tree]:
    yield x
    for y in x[1:]:
        if isinstance(y, tuple):
            yield from parts(y)


def shifted(x: Tree, by: int) -> Tree:
    """The same `by` steps later."""

    def change(x: Tree) -> Tree | None:
        if x[0] == "t":
            return ("t", x[1] + by)
        if x[0] == "sym" and isinstance(x[2], int):
            return ("sym", x[1], x[2] + by)
        return ("prod", x[1], x[2] + by) if x[0] == "prod" else None

    return rebuilt(x, change)
