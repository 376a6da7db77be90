"""The update rule of a value as LaTeX, put together from what the docstring of each word says of itself.

What flows from word to word is a tree for each of u, g, m, v and others; a word's statements change them, and
write a row for each thing that is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.core import Tracer

import adamfx
from adamfx.moments.estimators import Estimator, Own, Recursion
from adamfx.moments.statistics import reading
from adamfx.notebook.mathematics import Tree, num, parts, rebuilt, shifted, sub
from adamfx.notebook.rules import Rule, first_sentence, named, rule
from adamfx.notebook.typeset import letter, symbol, tex, upright, words
from adamfx.values.value import Value

KNOWN = {"learning_rate": "\\alpha", "decay": "\\beta", "b": "\\beta", "weight_decay": "\\lambda"}
KNOWN |= {f"b{i}": f"\\beta|{i}" for i in (1, 2, 3)} | {"eps": "\\epsilon", "p": "\\theta"}
ACCENTS = ("\\hat", "\\bar", "\\tilde", "\\dot", "\\check")
THETA, LAST = ("sym", "\\theta", 0), ("sym", "\\theta", -1)
GRADIENT = ("sym", "g", 0)
LONG = 160  # characters of an update that gets a row of its own


def _is_around(value: Any) -> bool:
    return bool(value.form.constructor.inner)


def _call(value: Any, inside: dict[str, Any] | None = None) -> str:
    """The word with its arguments, without what is inside."""
    said = {n: x for n, x in value.arguments.items() if n not in (inside or {})}
    parameters = value.form.constructor.signature.parameters
    given = {n: x for n, x in said.items() if repr(x) != repr(parameters[n].default)}
    return f"{value.name}({', '.join(f'{n}={x!r}' for n, x in given.items())})"


def _said_of(label: str, arguments: dict[str, Any]) -> str:
    """What another argument says of a group."""
    found = [x[label] for x in arguments.values() if isinstance(x, dict) and label in x]
    return "".join(f", {x!r}" for x in found if not hasattr(x, "blocks"))


class _Page:
    """The rows of a sentence so far, and what u, g, m, v, ... are behind the words so far."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.taken: set[str] = {"\\theta", "g"}
        self.flow: dict[str, Tree] = {"u": GRADIENT, "g": GRADIENT, "p": LAST, "f": ("sym", "f", 0)}
        self.divides: Callable[[], Tree] | None = None  # what the open moments will be
        self.before: tuple[str, ...] = ()

    def row(self, left: str, right: str) -> None:
        self.rows.append(f"{left} &= {right}")

    def say(self, words: str) -> None:
        self.rows.append(f"& {words}")

    def fresh(self, base: str, accents: bool = False) -> str:
        """A symbol that is not yet taken: with primes, or with accents above."""
        stem, bar, below = base.partition("|")
        plain = re.sub(r"^\\(hat|bar|tilde|dot|check){(.*?)}", r"\2", stem)
        first, rest = re.fullmatch(r"(\\?\w+)(.*)", plain).groups()  # type: ignore[union-attr]
        primes = [stem + "'" * i + bar + below for i in range(9)]
        above = [f"{a}{{{first}}}{rest}{bar}{below}" for a in ACCENTS]
        found = next(x for x in ([*above, *primes] if accents else primes) if x not in self.taken)
        self.taken.add(found)
        return found

    def assign(self, name: str, x: Tree, accents: bool = False) -> Tree:
        """A row of its own for x; what is a symbol already needs none."""
        if x[0] in ("sym", "num"):
            return x
        base = self.fresh(KNOWN.get(name, letter(name)), accents)
        self.row(symbol(base, 0), tex(x))
        return ("sym", base, 0)

    def name_update(self) -> None:
        self.flow["u"] = self.assign("u", self.flow["u"])

    def close(self) -> None:
        """The open moments are divided."""
        if self.divides is not None:
            self.flow["u"], self.divides = self.divides(), None
            self.flow = {n: x for n, x in self.flow.items() if n in ("u", "g", "p", "f")}

    def argument(self, name: str, x: Any) -> Tree:
        """A number, or the symbol of a schedule with a row that says it."""
        if isinstance(x, tuple) and x and isinstance(x[0], str):
            return x
        if isinstance(x, (int, float, np.number)) and not isinstance(x, bool):
            return num(float(x) if isinstance(x, (float, np.floating)) else int(x))
        base = self.fresh(KNOWN.get(name, letter(name)))
        found: Tree = ("sym", base, 0)
        if isinstance(x, Value):
            self.row(symbol(base, 0), _schedule(self, x))
        elif callable(x):
            self.row(symbol(base, 0), words(getattr(x, "__name__", "a schedule")))
        elif isinstance(x, Tracer) or np.size(x) != 1:
            return ("sym", base, None)
        else:
            return num(type(np.asarray(x).item())(str(np.asarray(x).reshape(()))))
        return found

    def sentence(self, tx: Any, ends: bool = True) -> None:
        """All words; at the end of it, the row of the parameter."""
        blocks = [value for _, value in tx.blocks]
        for value in blocks:
            self.block(value, ends and value is blocks[-1])
        self.close()
        if ends and not (blocks and _is_around(blocks[-1])):
            self.end()

    def around(self, value: Any, ends: bool) -> None:
        """A wrapper: words about it, and what is inside under its label."""
        inside = {n: value.arguments[n] for n in value.form.constructor.inner}
        if any(tx.meaning is value.meaning for tx in inside.values() if isinstance(tx, Value)):
            (tx,) = inside.values()
            return self.sentence(tx, ends)
        self.close()
        self.name_update()
        self.say(
            words(_call(value, inside) + ": " + first_sentence(value.form.constructor.function))
        )
        come, made = self.flow, []
        others = any(isinstance(tx, dict) for tx in inside.values())  # each for leaves of its own
        for n, tx in inside.items():
            groups = tx if isinstance(tx, dict) else {n: tx}
            for label, part in groups.items():
                if isinstance(part, Value):
                    if len(inside) > 1:
                        self.say(words(f"{label}{_said_of(label, value.arguments)}:"))
                    self.flow = dict(come)
                    if others:
                        self.taken = {"\\theta", "g"}
                    self.sentence(part, ends)  # type: ignore[arg-type]
                    if not ends:
                        self.name_update()
                        made.append(tex(self.flow["u"]))
        if not ends:
            self.flow = come | {"u": ("sym", self.fresh("u"), 0)}
            self.row(tex(self.flow["u"]), f"{upright(value.name)}({', '.join(made)})")
        return None

    def block(self, value: Any, ends: bool = False) -> None:
        """One word; whether it is the last."""
        if _is_around(value):
            self.around(value, ends)
            return
        moments = getattr(value.meaning, "moments", None)
        if moments != "corrects":
            self.close()
        function, arguments = value.form.constructor.function, value.arguments
        found = rule(function, arguments, self.before)
        self.before = (*self.before, value.name)
        if found == [("u", ("name", "u"))]:
            self.say(words(f"{_call(value)}: {first_sentence(function)}"))
            return
        if not found:
            self.name_update()
            before, self.flow["u"] = tex(self.flow["u"]), ("sym", self.fresh("u"), 0)
            said = words(f"{_call(value)}: {first_sentence(function)}")
            self.row(tex(self.flow["u"]), f"{upright(value.name)}({before}), \\quad {said}")
            return
        names = [x[1] for _, tree in found for x in parts(tree) if x[0] == "name"]
        uses = names.count("u") + 2 * (moments == "opens" or ("g", ("name", "u")) in found)
        uses -= moments == "corrects"
        if uses + 2 * ("u_prev" in names) > 1 or len(tex(self.flow["u"])) > LONG:
            self.name_update()
        if moments == "opens":
            self.flow["g"] = self.flow["u"]
            self.before = (value.name,)
        masked = arguments.get("mask") not in (None, True)
        before = self.divides() if masked and self.divides else self.flow["u"]
        rules = _Rules(self, found, function, arguments)
        for i, (name, tree) in enumerate(found):
            rules.run(name, tree, moments)
            if name == "u" and any(("name", "u") in parts(x) for _, x in found[i + 1 :]):
                self.name_update()
        if masked and self.flow["u"] != before:
            self.masked(arguments["mask"], before)

    def masked(self, mask: Any, before: Tree) -> None:
        inside, base = self.flow["u"], self.fresh("u")
        where = f"\\quad {words('where ' + repr(mask) + ', else ')} {tex(before)}"
        self.row(symbol(base, 0), f"{tex(inside)} {where}")
        self.flow["u"] = ("sym", base, 0)

    def end(self) -> None:
        """The row of the parameter."""
        u = self.flow["u"]
        whole = u[0] == "-" and u[2] == LAST
        self.row(tex(THETA), tex(u[1] if whole else rebuilt(("+", LAST, u), lambda x: None)))


class _Rules:
    """The statements of one word at work: names become numbers and symbols."""

    def __init__(self, page: _Page, found: Rule, function: Callable, arguments: dict, **known: Any):
        self.page, self.optional, self.known = page, arguments, known
        self.arguments = named(function, arguments)
        self.made = {
            name for name, _ in found
        }  # symbols of its own, of this step or the one before
        self.bases: dict[str, str] = known.pop("bases", {})
        self.done: set[str] = set()

    def base(self, name: str) -> str:
        if name not in self.bases:
            self.bases[name] = self.page.fresh(KNOWN.get(name, letter(name)))
        return self.bases[name]

    def resolve(self, x: Tree) -> Tree | None:
        if x[0] == "call" and x[1] == "prod":
            return ("prod", rebuilt(x[2], self.resolve), 0)
        if x[0] == "call" and x[1] == "root":
            inside = rebuilt(x[2], self.resolve)
            return inside if self.page.flow.get("degree") == num(1) else ("call", "sqrt", inside)
        return self.named(x[1]) if x[0] == "name" else None

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
            if side is not None:
                self.estimate(name, tree[1], side, rebuilt(tree[2], self.resolve))
            return
        x = rebuilt(tree, self.resolve)
        if name == "u":
            page.flow["u"], page.divides = x, None
        elif name == "p'":
            page.flow["u"] = ("-", x, LAST)
        elif name in ("m", "v") and moments == "corrects":
            page.flow[name] = page.assign(name, x, accents=True)
        elif name in ("e", "w", "w1", "w2", "W1", "W2"):  # what is never seen by itself
            page.flow[name] = x
        elif name.endswith("_0"):
            self.start(name[:-2], x)
        elif opens and name in ("m", "v") and x[0] == "sym":
            page.flow[name] = x
            return
        elif name == "x" or (x[0] in ("sym", "num") and name not in self.bases):
            self.known[name] = x
        else:
            page.row(symbol(self.base(name), 0), tex(x))
        self.done.add(name)
        if opens and name in ("m", "v"):
            page.flow[name] = self.named(name)

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
            side = adamfx.ema(0.0)
        arguments, function = side.arguments, side.form.constructor.function
        base = page.fresh(letter(name))
        found, of, kept = rule(function, arguments), arguments.get("of"), arguments.get("storage")
        found = [(n, tree) for n, tree in found if n != "x" or not isinstance(of, Value)]
        made = _Rules(page, found, function, arguments, bases={"s": base}, **known)
        page.flow |= {"w": num(1)}
        if not found:
            said = f"{_call(side)}: {first_sentence(function)}"
            page.row(symbol(base, 0), f"{upright(side.name)}({tex(x)}), \\quad {words(said)}")
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
        page.flow |= {name: ("sym", base, 0), "w" + which: page.flow.pop("w"), "W" + which: num(1)}
        page.flow["degree"] = num(_degree(side))
        if isinstance(kept, Value):
            made.read(kept, name)

    def also(self, value: Value) -> None:
        """A statistic, which says x; a storage, which says what the s before has become."""
        function = value.form.constructor.function
        found = rule(function, value.arguments)
        inner = _Rules(self.page, found, function, value.arguments)
        inner.known, inner.bases = {"x": self.known["x"]}, self.bases
        for name, tree in found:
            if name in ("x", "s_prev"):
                inner.known[name] = self.known[name] = rebuilt(tree, inner.resolve)

    def read(self, value: Value, name: str) -> None:
        """What the division reads of a storage that says so, as y of s."""
        function = value.form.constructor.function
        for n, tree in rule(function, value.arguments):
            if n == "y":
                inner = _Rules(self.page, [], function, value.arguments)
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


def _schedule(page: _Page, x: Value) -> str:
    found = rule(x.form.constructor.function, x.arguments)
    if not found:
        return words(repr(x))
    rules = _Rules(page, found, x.form.constructor.function, x.arguments)
    return tex(rebuilt(found[-1][1], rules.resolve))


def latex(tx: Any) -> str:
    """The update rule of a transformation, an estimator or a schedule as LaTeX, in the letters of Adam's paper."""
    page = _Page()
    if hasattr(tx, "blocks"):
        page.sentence(tx)
    elif isinstance(tx.meaning, (Own, Recursion)):
        _Rules(page, [], adamfx.identity, {}).estimate("m", "", tx, GRADIENT)
    else:
        page.argument("learning_rate", tx)
    rows = " \\\\\n".join(page.rows)
    return f"\\begin{{aligned}}\n{rows}\n\\end{{aligned}}"
