"""The statements of one word at work on what flows through a sentence; names become numbers and symbols."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from adamfx.moments.estimators import Estimator, Own, ema
from adamfx.moments.statistics import reading
from adamfx.notebook.mathematics import Tree, call, num, parts, rebuilt, shifted, sub
from adamfx.notebook.rules import Rule, named, rule, told
from adamfx.notebook.typeset import letter, symbol, tex, upright, words
from adamfx.values.value import Value


class Statements:
    """The statements of one word at work: names become numbers and symbols."""

    def __init__(self, page: Any, found: Rule, function: Callable, arguments: dict, **known: Any):
        self.page, self.optional, self.known = page, arguments, known
        self.arguments = named(function, arguments)
        self.made = {name for name, _ in found}
        self.bases: dict[str, str] = known.pop("bases", {})
        self.done: set[str] = set()

    def base(self, name: str) -> str:
        if name not in self.bases:
            self.bases[name] = self.page.fresh(letter(name))
        return self.bases[name]

    def resolve(self, x: Tree) -> Tree | None:
        if x[0] == "call" and x[1] == "prod":
            return ("prod", rebuilt(x[2], self.resolve), 0)
        if x[0] == "call" and x[1] == "root":
            inside = rebuilt(x[2], self.resolve)
            return inside if self.page.flow.get("degree") == num(1) else ("call", "sqrt", inside)
        if x[0] == "call" and any(self.is_absent(y) for y in x[2:]):
            return rebuilt(call(x[1], *(y for y in x[2:] if not self.is_absent(y))), self.resolve)
        return self.named(x[1]) if x[0] == "name" else None

    def is_absent(self, x: Tree) -> bool:
        """Whether it is an argument that is not given; a function does without."""
        return x[0] == "name" and self.optional.get(x[1], 0) is None and x[1] not in self.made

    def named(self, name: str) -> Tree:
        flow = self.page.flow
        stem, _, when = name.rpartition("_")
        if name in self.known:
            return self.known[name]
        if name in self.arguments and name not in self.made:
            self.known[name] = self.page.argument(name, self.arguments[name])
            return self.known[name]
        if name in ("t", "n"):
            return ("t", 0 if name == "t" else -1)
        if name == "pi":
            return ("sym", "\\pi", None)
        if when in ("prev", "next") and stem:
            known = stem in self.known or stem in self.arguments or stem in flow
            now = self.named(stem) if known else None
            if now is None:
                return ("sym", self.base(stem), -1 if when == "prev" else 1)
            return shifted(now, -1 if when == "prev" else 1)
        if when == "0":
            return ("sym", "\\theta" if stem == "p" else self.base(stem), "0")
        if name == "u" and self.page.divides:
            return self.page.divides()
        if name in flow:
            return flow[name]
        if name in self.made and name not in self.done and f"{name}_prev" in self.known:
            return self.known[f"{name}_prev"]
        if name in self.made:
            return ("sym", self.base(name), 0 if name in self.done else -1)
        raise ValueError(f"{name} is no argument and nothing that flows")

    def run(self, name: str, tree: Tree, moments: str | None = None) -> None:
        """One statement; of words that open or correct moments, m and v are those that flow."""
        page, opens = self.page, moments == "opens"
        if opens and name == "u":
            page.divides = lambda: rebuilt(tree, self.resolve)
            return
        absent = {"m": "w1" not in page.flow, "v": "w2" not in page.flow, "e": "e" not in page.flow}
        if moments == "corrects" and absent.get(name):
            return
        if tree[0] == "call" and tree[1] in self.optional:
            side = self.optional[tree[1]]
            own = isinstance(side, Estimator) and isinstance(side.meaning, Own)
            if side is not None:  # one of its own form sees the gradient
                x = page.flow["g"] if own else rebuilt(tree[2], self.resolve)
                self.estimate(name, tree[1], side, x)
            return
        if tree[0] == "each":
            self.again(name.removesuffix(" again"), tree[1:])
            return
        x = rebuilt(tree, self.resolve)
        if name == "u":
            page.flow["u"], page.divides = x, None
        elif name == "p'":
            page.flow["u"] = ("-", x, page.flow["p"])
        elif name in ("m", "v") and moments == "corrects":
            page.flow[name] = page.assign(name, x, accents=True)
        elif name in ("e", "w", "w1", "w2"):  # what is never seen by itself
            page.flow[name] = x
        elif name.endswith("_0"):
            self.start(name[:-2], x)
        elif opens and name in ("m", "v") and x[0] == "sym":
            page.flow[name] = x
            return
        elif name == "x" or (x[0] in ("sym", "num") and name not in self.bases):
            self.known[name] = x
        else:
            if not any(y[0] in ("sym", "t", "prod") for y in parts(x)):  # one number for all steps
                self.known[name] = ("sym", self.base(name), None)
            page.row(
                tex(self.named(name) if name in self.known else ("sym", self.base(name), 0)), tex(x)
            )
        self.done.add(name)
        if opens and name in ("m", "v"):
            page.flow[name] = self.named(name)

    def again(self, name: str, turns: tuple[Tree, ...]) -> None:
        """What is done to a symbol several times within a step; like turns in one row."""
        for tree, same in itertools.groupby(turns):
            times = words(f"({len(list(same))} times)")
            right = f"{tex(rebuilt(tree, self.resolve))} \\quad {times}"
            self.page.rows.append(f"{tex(self.named(name))} &\\leftarrow {right}")

    def start(self, name: str, x: Tree) -> None:
        """The row of where something starts; nothing is said of zero."""
        now = self.page.flow.get(name)
        base = now[1] if now is not None else self.base(name)
        if x != num(0):
            self.page.row(symbol(base, "0"), tex(rebuilt(x, _first)))

    def estimate(self, name: str, argument: str, side: Any, x: Tree) -> None:
        """The moment that an estimator makes of x, with its mass w, decay b and gain c."""
        page, which, known = self.page, {"m": "1", "v": "2"}[name], {"x": x}
        if not isinstance(side, Estimator):
            known["b"] = page.argument(argument, side)
            side = ema(0.0)
        arguments, function = side.arguments, side.form.constructor.function
        base = page.fresh(letter(name))
        found, of, kept = rule(function, arguments), arguments.get("of"), arguments.get("storage")
        found = [(n, tree) for n, tree in found if n != "x" or not isinstance(of, Value)]
        made = Statements(page, found, function, arguments, bases={"s": base}, **known)
        page.flow |= {"w": num(1)}
        if not found:
            said = words(told(side))
            page.row(symbol(base, 0), f"{upright(side.name)}({tex(x)}),\\quad {said}")
            if side.meaning.weighs:
                page.flow["w"] = sub(num(1), ("prod", made.named("decay"), 0))
        for value in (of, kept):
            if isinstance(value, Value):
                made.also(value)
        for n, tree in found:
            if n == "s":
                page.flow["c" + which] = made.coefficient(tree, "x")
                page.flow["b" + which] = made.coefficient(tree, "s")
            made.run(n, tree)
        page.flow |= {name: ("sym", base, 0), "w" + which: page.flow.pop("w")}
        page.flow["degree"] = num(_degree(side))
        if isinstance(kept, Value):
            made.read(kept, name)

    def also(self, value: Value) -> None:
        """A statistic, which says x; a storage, which says what the s before has become."""
        function = value.form.constructor.function
        found = rule(function, value.arguments)
        inner = Statements(self.page, found, function, value.arguments)
        inner.known, inner.bases = {"x": self.known["x"]}, self.bases
        for name, tree in found:
            if name in ("x", "s_prev"):
                inner.known[name] = self.known[name] = rebuilt(tree, inner.resolve)

    def read(self, value: Value, name: str) -> None:
        """What the division reads of a storage that says so, as y of s."""
        function = value.form.constructor.function
        for n, tree in rule(function, value.arguments):
            if n == "y":
                inner = Statements(self.page, [], function, value.arguments)
                inner.known["s"] = self.page.flow[name]
                self.page.flow[name] = self.page.assign(
                    name, rebuilt(tree, inner.resolve), accents=True
                )

    def coefficient(self, tree: Tree, of: str) -> Tree:
        """That of x or s in a recursion which is linear in them, without the eps that it adds."""
        ones = {"x": num(0), "s": num(0), "eps": num(0), of: num(1)}
        found = rebuilt(tree, lambda y: ones.get(y[1]) if y[0] == "name" else None)
        return rebuilt(found, self.resolve)


def _first(x: Tree) -> Tree | None:
    """What is of this step in the words of the first one."""
    if x[0] == "sym" and x[2] in (0, -1):
        return ("sym", x[1], str(x[2] + 1))
    return None


def _degree(side: Any) -> int:
    """Of a second moment in g: the division takes its root."""
    if not isinstance(side, Estimator):
        return 2
    found = side.meaning
    return found.degree if isinstance(found, Own) else reading(found.of or "square").degree


def schedule(page: Any, x: Value) -> str:
    """A schedule by its formula y, of what else it says; or by its call."""
    function = x.form.constructor.function
    found = rule(function, x.arguments)
    made = Statements(page, [], function, x.arguments)
    for name, tree in sorted(found, key=lambda statement: statement[0] == "y"):
        made.known[name] = rebuilt(tree, made.resolve)
    return tex(made.known["y"]) if found else words(repr(x))
