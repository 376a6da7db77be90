"""The update rule of a value as LaTeX, put together from what the docstring of each word says of itself.

What flows from word to word is a tree for each of u, g, m, v and others; a word's statements change them, and
write a row for each thing that is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.core import Tracer

from adamfx.moments.estimators import Own, Recursion, ema
from adamfx.notebook.mathematics import Tree, num, parts, rebuilt
from adamfx.notebook.rules import Rule, rule, told
from adamfx.notebook.statements import Statements, schedule
from adamfx.notebook.typeset import letter, symbol, tex, upright, words
from adamfx.schedules import Schedule
from adamfx.values.value import Value

ACCENTS = ("\\hat", "\\bar", "\\tilde", "\\dot", "\\check")
THETA, LAST = ("sym", "\\theta", 0), ("sym", "\\theta", -1)
GRADIENT = ("sym", "g", 0)
LONG = 160  # characters of an update that gets a row of its own


def _is_around(value: Any) -> bool:
    return bool(value.form.constructor.inner)


def _flat(tx: Any) -> Iterator[Any]:
    """The words of a sentence, those within `named` and `live` too, which only hand on."""
    for _, value in tx.blocks:
        meaning = value.meaning
        only_hands_on = getattr(meaning, "bare", False) and meaning.hands_on
        if _is_around(value) and (only_hands_on or not hasattr(meaning, "inside")):
            yield from _flat(value.arguments["transformation"])
        else:
            yield value


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
        base = self.fresh(letter(name), accents)
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
        if isinstance(x, (int, float, np.number)) and not isinstance(x, bool):
            return num(float(x) if isinstance(x, (float, np.floating)) else int(x))
        if isinstance(x, str):  # the name of an extra argument
            return ("sym", upright(x), 0)
        base = self.fresh(letter(name))
        found: Tree = ("sym", base, 0)
        if isinstance(x, Schedule):
            self.row(symbol(base, 0), schedule(self, x))
        elif callable(x):
            self.row(symbol(base, 0), words(getattr(x, "__name__", "a schedule")))
        elif isinstance(x, Tracer) or np.size(x) != 1:
            return ("sym", base, None)
        else:
            return num(type(np.asarray(x).item())(str(np.asarray(x).reshape(()))))
        return found

    def sentence(self, tx: Any, ends: bool = True) -> None:
        """All words; at the end of it, the row of the parameter."""
        blocks = list(_flat(tx))
        for value in blocks:
            self.block(value, ends and value is blocks[-1])
        self.close()
        if ends and not (blocks and _is_around(blocks[-1])):
            self.end()

    def around(self, value: Any, ends: bool) -> None:
        """A wrapper: its rule for what is inside; or words about it, and what is inside under its label."""
        function, arguments = value.form.constructor.function, value.arguments
        inside = {n: x for n, x in arguments.items() if n in value.form.constructor.inner}
        found = rule(function, arguments, self.before)
        found = found if "u" in dict(found) else []
        self.close()
        self.name_update()
        if not found:
            self.say(words(f"{value.name}: {told(value, inside)}".removesuffix(": ")))
        come, made = self.flow, {}
        others = any(isinstance(tx, dict) for tx in inside.values())  # each for leaves of its own
        for n, tx in inside.items():
            for label, part in (tx if isinstance(tx, dict) else {n: tx}).items():
                if isinstance(part, Value):
                    if len(inside) > 1 and not found:
                        self.say(words(f"{label}{_said_of(label, arguments)}:"))
                    self.flow = dict(come)
                    self.taken = {"\\theta", "g"} if others else self.taken
                    self.sentence(part, ends and not found)
                    if found or not ends:
                        self.name_update()
                        made[label] = self.flow["u"]
        if found:
            self.flow, rules = dict(come), Statements(self, found, function, arguments, **made)
            for name, tree in found:
                rules.run(name, tree)
        elif not ends:
            self.flow = come | {"u": ("sym", self.fresh("u"), 0)}
            what = ", ".join(map(tex, made.values()))
            self.row(tex(self.flow["u"]), f"{upright(value.name)}({what})")
        if found and ends:
            self.end()

    def block(self, value: Any, ends: bool = False) -> None:
        """One word; whether it is the last."""
        if _is_around(value):
            self.around(value, ends)
            return
        if getattr(value.meaning, "moments", None) != "corrects":
            self.close()
        kept = list(self.rows), set(self.taken), dict(self.flow), self.divides
        try:
            found = rule(value.form.constructor.function, value.arguments, self.before)
            self.before = (*self.before, value.name)
            if found and found != [("u", ("name", "u"))]:
                self.ruled(value, found)
                return
        except ValueError:  # a docstring that has no rule after all: a user's
            found = []
            self.rows, self.taken, self.flow, self.divides = kept
        if found:
            self.say(words(f"{value.name}: {told(value)}"))
            return
        self.close()
        self.name_update()
        before, self.flow["u"] = tex(self.flow["u"]), ("sym", self.fresh("u"), 0)
        self.row(
            tex(self.flow["u"]), f"{upright(value.name)}({before}),\\quad {words(told(value))}"
        )

    def ruled(self, value: Any, found: Rule) -> None:
        """One word by its statements."""
        moments, arguments = getattr(value.meaning, "moments", None), value.arguments
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
        rules = Statements(self, found, value.form.constructor.function, arguments)
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


def latex(tx: Any) -> str:
    """The update rule of a transformation, an estimator or a schedule, in the letters of Adam's paper."""
    page = _Page()
    if hasattr(tx, "blocks"):
        page.sentence(tx)
    elif isinstance(tx.meaning, (Own, Recursion)):
        Statements(page, [], ema, {}).estimate("m", "", tx, GRADIENT)
    elif isinstance(tx, Schedule):
        page.argument("learning_rate", tx)
    else:
        raise TypeError(f"latex: {tx!r} has no update rule")
    rows = " \\\\\n".join(page.rows)
    return f"\\begin{{aligned}}\n{rows}\n\\end{{aligned}}"
