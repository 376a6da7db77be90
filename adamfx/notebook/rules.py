"""What the docstring of a word says of its rule, for the arguments of a value.

A block's docstring states its rule once, as `name <- expression` (notebook.mathematics): u is the update that
comes in and goes out, p the parameter, p' the next one, g the gradient, m and v the moments between
`scale_by_moments` and the division, t the step, n the steps done before. x_prev is x of the step before, x_0
where it starts (0, where nothing is said). An argument is called by its name, or by the letter with which its
entry among the Args begins (`decay: b in [0, 1)`). What depends on an argument is said in its entry:

    where: "in": u <- m / sqrt(v + eps); ...    in place of the statement of the same name, for this value
    decay: b in [0, 1): m <- ...                in place of it, where anything but None is given
    lag: "second": then v <- v_prev             after all others
    side: "first": m <- m / w1 only             in place of all others
    After `bias_correct`, m <- ...              where that word stands before
    Without b1, m <- g                          where that argument is None
    X <- ... for each (a, b, c) of table        once more for each row
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

from adamfx.notebook.mathematics import Tree, num, rebuilt, statements
from adamfx.pages import entries
from adamfx.reading import vocabulary

Rule = list[tuple[str, Tree]]


def _doc(function: Callable) -> tuple[str, dict[str, str]]:
    """The text before the Args, and the entries of these."""
    doc = inspect.cleandoc(function.__doc__ or "")
    found = dict(entries(doc))
    for name, text in found.items():
        other = re.search(r"as in `(\w+)`", text)
        if other and other[1] in vocabulary():
            found[name] = entries(vocabulary()[other[1]].__doc__).get(name, text)
    return re.split(r"\n\nArgs:", doc)[0], found


def named(function: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are given, by name and by letter: of `decay: b in [0, 1)` both decay and b."""
    found = {n: x for n, x in arguments.items() if x is not None}
    for n, text in _doc(function)[1].items():
        letters = re.match(r"([a-zA-Z]\w*(?:, [a-zA-Z]\w*)*)(?= in [\[(]| >)", text)
        if letters and n in found:
            names, x = letters[1].split(", "), found[n]
            found |= dict(zip(names, x if isinstance(x, tuple) else [x], strict=False))
        if isinstance(found.get(n), tuple) and found[n] and isinstance(found[n][0], str):
            found |= dict.fromkeys(re.findall(r'\("\w+", (\w+)\): ', text), found[n][1])
    return found


def _holds(literal: str | None, value: Any) -> bool:
    """Whether a value is the literal; of a pair such as ("distance", a) the word."""
    if literal is None:
        return value is not None
    if literal[0] == "(":
        return isinstance(value, tuple) and literal.startswith(f'("{value[0]}",')
    return repr(value).replace("'", '"') == literal


def _stands(text: str, arguments: dict[str, Any], before: tuple[str, ...]) -> bool:
    """Whether a statement stands behind this text: after `word`, ...; without argument, ..."""
    after = re.search(r"[Aa]fter\s+`(\w+)`[,:]\s+$", text)
    without = re.search(r"[Ww]ithout\s+(\w+)[,:]\s+$", text)
    absent = without is None or arguments.get(without[1]) is None
    return absent and (after is None or after[1] in before)


def _chosen(text: str, value: Any, stands: Callable[[str], bool]) -> tuple[Rule, Rule, bool]:
    """(in place of others of the name, after all others, whether of all) that an entry says for a value."""
    replaces, then, only, literal, at, last = [], [], False, None, 0, False
    for begin, end, name, tree in statements(text):
        between = text[at:begin]
        found = re.findall(r'("\w*"|True|False|None|\("\w+", \w+\)): ', between)
        literal = found[-1] if found else literal
        last = between.endswith("then ") or (last and not found)
        at = end
        if _holds(literal, value) and stands(text[:begin]):
            (then if last else replaces).append((name, tree))
            only |= text[end:].startswith(" only")
    return replaces, then, only


def rule(function: Callable, arguments: dict[str, Any], before: tuple[str, ...] = ()) -> Rule:
    """The statements of a docstring for these arguments, behind these words."""
    text, said = _doc(function)
    stands = functools.partial(_stands, arguments=arguments, before=before)
    found: dict[str, Tree] = {}
    for begin, end, name, tree in statements(text):
        every = re.match(r"\s*for each \((.*?)\)\s+of\s+(\w+)(?:\[(\w+)\])?", text[end:])
        if every is not None:
            found[f"{name} again"] = _turns(tree, function, arguments, *every.groups())
        elif stands(text[:begin]):
            found[name] = tree
    behind: Rule = []
    for n, entry in said.items():
        replaces, then, only = _chosen(entry, arguments.get(n), stands)
        behind += then
        new = {name: tree for name, tree in replaces if name not in found}
        found = dict(replaces) if only else new | found | dict(replaces)
    return sorted([*found.items(), *behind], key=_order)


def _turns(
    tree: Tree, function: Callable, arguments: dict, letters: str, of: str, at: str | None
) -> Tree:
    """A statement once for each row of numbers: of an argument, or of a table of its module."""
    table: Any = arguments.get(of, inspect.unwrap(function).__globals__.get(of))
    key: Any = arguments.get(at) if at else None
    rows = table[key] if isinstance(key, str) else table if key is None else key
    known = [dict(zip(letters.split(", "), map(num, row), strict=True)) for row in rows]
    return ("each", *(rebuilt(tree, lambda x, k=k: k.get(x[-1])) for k in known))


def _order(statement: tuple[str, Tree]) -> int:
    """First x, which another statement is made of, then where things start."""
    return 0 if statement[0] == "x" else 1 if statement[0].endswith("_0") else 2


def told(value: Any, inside: Any = ()) -> str:
    """A word in words: the first sentence of its docstring, and the arguments that are not the defaults."""
    constructor = value.form.constructor
    doc = " ".join(inspect.cleandoc(constructor.function.__doc__ or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[\w)])(?:: |\. (?=[A-Z]))", doc.rstrip(".") + " ")[0].strip()
    parameters = constructor.signature.parameters
    said = {n: x for n, x in value.arguments.items() if n not in inside}
    spoken = set(re.findall(r"`(\w+)`", sentence)) & {n for n, x in said.items() if x is not None}
    sentence = re.sub(r"`(\w+)`", lambda x: str(said[x[1]]) if x[1] in spoken else x[1], sentence)
    said = {n: x for n, x in said.items() if n not in spoken}
    given = [f"{n}={x!r}" for n, x in said.items() if repr(x) != repr(parameters[n].default)]
    return ", ".join([*([] if "<-" in sentence else [sentence]), *given])
