"""A tree of mathematics as LaTeX, which KaTeX, MathJax and matplotlib read."""

from __future__ import annotations

import re
from decimal import Decimal

from adamfx.notebook.mathematics import Tree, rebuilt

GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "kappa", "lambda", "mu", "nu"),
    *("rho", "sigma", "tau", "phi", "pi"),
}
KNOWN = {"learning_rate": "\\alpha", "decay": "\\beta", "b": "\\beta", "weight_decay": "\\lambda"}
KNOWN |= {f"b{i}": f"\\beta|{i}" for i in (1, 2, 3)} | {"eps": "\\epsilon", "p": "\\theta"}
SPOKEN = {"\\": "/", "{": "(", "}": ")", "`": "", "~": "not "}


def words(text: str) -> str:
    """Prose within mathematics. Signs that mean something stand between the texts: within, not two renderers
    agree about them. What is raised or lowered is so: P^T, Q_L.
    """
    for sign, spoken in SPOKEN.items():
        text = text.replace(sign, spoken)
    text = re.sub(r"\^(\([^()]*\)|-?\w+)", r"}^{\\text{\1}}\\text{", text)
    text = re.sub(r"\b([A-Za-z])_([A-Za-z0-9]+)", r"\1}_{\\text{\2}}\\text{", text)
    text = re.sub(r"([%#&$]|_(?!{))", r"}\\\1\\text{", text)
    for sign, said in {"<=": "\\leq ", ">=": "\\geq ", "<": "<", ">": ">"}.items():
        text = text.replace(sign, f"}}{said}\\text{{")
    return f"\\text{{{text}}}".replace("\\text{}", "")


def upright(name: str) -> str:
    """A name of several letters."""
    return "\\mathrm{" + name.replace("_", "\\_") + "}"


def letter(name: str) -> str:
    """A name as LaTeX: alpha as a Greek letter, p_0 apart, v_max with a word above it, words upright."""
    if name in KNOWN:
        return KNOWN[name]
    stem, _, below = name.partition("_")
    if stem in GREEK or len(stem) == 1:
        return (
            ("\\" if stem in GREEK else "") + stem + (f"^{{\\mathrm{{{below}}}}}" if below else "")
        )
    found = re.fullmatch(r"([a-z]|" + "|".join(GREEK) + r")(\d)", name)
    if found:
        return letter(found[1]) + "|" + found[2]
    return upright(name)


def step(k: int) -> str:
    return "t" if k == 0 else f"t{k:+d}"


def symbol(base: str, index: int | str | None) -> str:
    """With its index behind, if it has one; `\\beta|1` is a symbol with an index of its own."""
    stem, _, below = base.partition("|")
    at = step(index) if isinstance(index, int) else index or ""
    below = ",".join(filter(None, (below, at)))
    return f"{stem}_{{{below}}}" if len(below) > 1 else f"{stem}_{below}" if below else stem


def number(x: Decimal) -> str:
    """0.001, 10^{-8}, 2.5 \\cdot 10^{-7}."""
    if x.is_infinite():
        return "\\infty"
    exponent = x.adjusted() if x else 0
    if -5 < exponent < 6 or (exponent < 9 and x == x.to_integral_value()):
        return f"{x.normalize():f}"
    digits = f"{x.scaleb(-exponent).normalize():f}"
    power = f"10^{{{exponent}}}"
    return {"1": power, "-1": "-" + power}.get(digits, f"{digits} \\cdot {power}")


def _level(x: Tree) -> int:
    """How tightly it binds: sums 1, products 2, powers 3, what needs no brackets 4."""
    if x[0] == "num":
        return 1 if x[1] < 0 else 2 if "cdot" in number(x[1]) else 3 if "^" in number(x[1]) else 4
    if x[0] == "prod":
        return 3 if x[1][0] == "num" else 2
    if x[0] == "t":
        return 1 if x[1] else 4
    if x[0] == "sym":
        return 3 if "^" in x[1] or "'" in x[1] else 4
    known = {"+": 1, "-": 1, "neg": 1, "*": 2, "@": 2, "/": 2, "^": 3, "T": 3}
    return known.get(x[0], 4)


def _at_level(x: Tree, level: int) -> str:
    return tex(x) if _level(x) >= level else f"\\left({tex(x)}\\right)"


def _product(a: Tree, b: Tree, dot: str = "") -> str:
    left = _at_level(a, 2)
    right = _at_level(b, 2)
    between = "\\cdot " if dot or right[0].isdigit() else "\\," if a[0] == "num" else ""
    return f"{left} {between}{right}"


FUNCTIONS = {"max": "\\max", "min": "\\min", "log": "\\log", "exp": "\\exp", "cos": "\\cos"}


def _call(name: str, *args: Tree) -> str:
    if name == "sqrt":
        return f"\\sqrt{{{tex(args[0])}}}"
    if name == "cbrt":
        return f"\\sqrt[3]{{{tex(args[0])}}}"
    if name == "abs":
        return f"|{tex(args[0])}|"
    word, _, below = name.partition("_")
    found = FUNCTIONS.get(word, f"\\operatorname{{{word}}}") + (f"_{{{below}}}" if below else "")
    inside = ", ".join(map(tex, args))
    return f"{found}\\left({inside}\\right)" if "frac" in inside else f"{found}({inside})"


def _norm(kind: str, x: Tree) -> str:
    below = ",".join(filter(None, ("1" * ("1" in kind), "\\mathrm{all}" * ("all" in kind))))
    return f"\\|{tex(x)}\\|" + (f"_{{{below}}}" if below else "")


def tex(x: Tree) -> str:
    """LaTeX of a tree whose names are resolved."""
    op = x[0]
    if op == "num":
        return number(x[1])
    if op == "sym":
        return symbol(x[1], x[2])
    if op == "t":
        return step(x[1])
    if op == "neg":
        return f"-{_at_level(x[1], 2)}"
    if op in ("+", "-"):
        return f"{tex(x[1])} {op} {_at_level(x[2], 1 if op == '+' and x[2][0] != 'neg' else 2)}"
    if op in ("*", "@"):
        return _product(x[1], x[2], "@" if op == "@" else "")
    if op == "/":
        return f"\\frac{{{tex(x[1])}}}{{{tex(x[2])}}}"
    if op == "^":
        return f"{_at_level(x[1], 4)}^{{{tex(x[2])}}}"
    if op == "T":
        return f"{_at_level(x[1], 4)}^{{\\top}}"
    if op == "call":
        return _call(*x[1:])
    if op == "norm":
        return _norm(*x[1:])
    if op == "inner":
        below = "_{\\mathrm{all}}" if x[1] else ""
        return f"\\langle {tex(x[2])}, {tex(x[3])} \\rangle{below}"
    if op == "is":
        sign = {">=": "\\geq", "<=": "\\leq"}.get(x[1], x[1])
        return f"[{tex(x[2])} {sign} {tex(x[3])}]"
    if op == "prod":
        if x[1][0] == "num":
            return f"{_at_level(x[1], 4)}^{{{step(x[2])}}}"
        return f"\\prod_{{s=1}}^{{{step(x[2])}}} {tex(rebuilt(x[1], _at_s))}"
    raise ValueError(f"{x!r} is not resolved")


def _at_s(x: Tree) -> Tree | None:
    return ("sym", x[1], "s") if x[0] == "sym" and isinstance(x[2], int) else None
