"""A reader of LaTeX: evaluates the rows of an update rule in NumPy float64, knowing nothing of the library.

A quantity of the parameters is a list with an array for each leaf; any other is a float. A symbol is kept by
step; before the first step it is what a row such as v_0 = 0.1 says, or 0. 0/0 is 0, as in tests/papers.py.
"""

import re

import numpy as np

TOKEN = re.compile(r"\s*(\\[a-zA-Z]+|\\\||\d+(?:\.\d+)?|[A-Za-z]|.)")
SKIPPED = ("\\left", "\\right", "\\,", "\\displaystyle")


def lift(f):
    def lifted(*xs):
        leaves = next((len(x) for x in xs if isinstance(x, list)), None)
        if leaves is None:
            return f(*xs)
        return [f(*(x[i] if isinstance(x, list) else x for x in xs)) for i in range(leaves)]

    return lifted


def everywhere(f):
    """Of all leaves together, as one number."""
    return lambda *xs: float(sum(np.sum(y) for y in lift(f)(*xs)))


def _divide(a, b):
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return np.divide(a, b, out=np.zeros(a.shape), where=b != 0)


def _over(axis, f):
    def of(x):
        x = np.asarray(x)
        return f(x, axis, keepdims=True) if -axis <= x.ndim else f(x)

    return of


def _mean(x, axis=None):
    return np.mean(x) if axis is None else _over(int(axis), np.mean)(x)


def _cover(x):
    """The least of the largest of each row, column, ... that cover a number; a vector is kept whole."""
    x = np.asarray(x)
    if x.ndim < 2:
        return x
    others = [tuple(j for j in range(x.ndim) if j != i) for i in range(x.ndim)]
    return np.min([np.broadcast_to(x.max(o, keepdims=True), x.shape) for o in others], 0)


def _factored(k):
    """The outer product of the means of rows and columns over the mean of all; small leaves whole."""

    def of(x):
        if x.ndim < 2 or min(x.shape) < k:
            return x
        return _divide(x.mean(1, keepdims=True) * x.mean(0, keepdims=True), x.mean())

    return of


def _unit(x):
    """The axes of the weights of one output."""
    return 0 if x.ndim > 1 and sum(n > 1 for n in x.shape) > 1 else None


def _function(name, below):
    if below == "unit":
        return lambda x: np.sqrt(np.sum(np.square(x), _unit(x), keepdims=True))
    return {
        "sign": np.sign,
        "max": np.maximum,
        "min": np.minimum,
        "log": np.log,
        "exp": np.exp,
        "cos": np.cos,
        "floor": np.floor,
        "mod": np.mod,
        "atan2": np.arctan2,
        "RMS": lambda x, axis=None: np.sqrt(_mean(np.square(x), axis)),
        "norm": lambda x, axis: np.sqrt(_over(int(axis), np.sum)(np.square(x))),
        "mean": _mean,
        "sum": np.sum,
        "size": lambda x, axis: x.shape[int(axis)],
        "cover": _cover,
        "factored": lambda x, k: _factored(k)(x),
    }[name]


class Rows:
    """The rows of an aligned block of LaTeX, evaluated step by step."""

    def __init__(self, text):
        text = text.removeprefix("\\begin{aligned}\n").removesuffix("\\end{aligned}").strip()
        self.words, self.rows, self.starts = [], [], {}
        for row in text.split(" \\\\\n"):
            left, _, right = row.partition("&")
            again = re.fullmatch(r"\\leftarrow (.*) \\quad \\text{\((\d+) times\)}", right.strip())
            if again is not None:
                key, _ = Parser(left).symbol()
                self.rows += [(key, again[1])] * int(again[2])
                continue
            if not left.strip() or ("\\text" in right and "text{where" not in right):
                self.words.append(right)
                continue
            parser = Parser(left)
            key, at = parser.symbol()
            if at == ("fixed", 0):
                self.starts[key] = Parser(right.strip().removeprefix("="))
            else:
                self.rows.append((key, right.strip().removeprefix("=")))
        self.known, self.t = {}, 0

    def run(self, gradients, params, masks=()):
        """theta after these gradients, each a list of leaves."""
        self.masks = dict(masks)
        self.known["\\theta", 0] = params
        for self.t, g in enumerate(gradients, 1):
            self.known["g", self.t] = g
            for key, right in self.rows:
                self.known[key, self.t] = self.evaluated(right)
        return self.known["\\theta", self.t]

    def evaluated(self, right):
        x, mask, other = re.fullmatch(
            r"(.*?)(?:\\quad \\text{where (.*), else } (.*))?", right
        ).groups()
        found = Parser(x, self).all()
        if mask is None:
            return found
        leaves = zip(self.masks[mask], found, Parser(other, self).all(), strict=True)
        return [a if chosen else b for chosen, a, b in leaves]

    def look(self, key, at):
        """A symbol at a step."""
        if (key, at) in self.known:
            return self.known[key, at]
        if at == 0:
            if key not in self.starts:
                return 0.0
            self.known[key, 0] = Parser(self.starts[key].text, self).all()
            return self.known[key, 0]
        now, self.t = self.t, at  # of a later step: a schedule
        found = self.evaluated(dict(self.rows)[key])
        self.t = now
        return found


class Parser:
    """Evaluates an expression while it reads it; without rows it only reads symbols."""

    def __init__(self, text, rows=None):
        self.text, self.rows, self.s = text, rows, None
        tokens = [x for x in TOKEN.findall(text.replace("\\,", " ")) if x.strip()]
        self.tokens = [x for x in tokens if x not in SKIPPED]
        self.at, self.closers = 0, []

    def peek(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else ""

    def take(self, *wanted):
        token = self.peek()
        assert token, self.text
        assert not wanted or token in wanted, (wanted, self.tokens[self.at :], self.text)
        self.at += 1
        return token

    def all(self):
        found = self.sum()
        assert not self.peek(), (self.text, self.tokens[self.at :])
        return found

    def braced(self):
        """The raw tokens of {...}, or of a single token."""
        if self.peek() != "{":
            return self.take()
        self.take("{")
        depth, found = 1, []
        while depth:
            token = self.take()
            depth += (token == "{") - (token == "}")
            found.append(token)
        return "".join(found[:-1])

    def group(self):
        self.take("{")
        self.closers.append("}")
        found = self.sum()
        self.closers.pop()
        self.take("}")
        return found

    def inside(self, closer):
        self.closers.append(closer)
        found = [self.sum()]
        while self.peek() == ",":
            self.take()
            found.append(self.sum())
        self.closers.pop()
        self.take(closer)
        return found

    def sum(self):
        sign = self.take() if self.peek() == "-" else ""
        x = self.product()
        x = lift(np.negative)(x) if sign else x
        while self.peek() in ("+", "-"):
            f = np.add if self.take() == "+" else np.subtract
            x = lift(f)(x, self.product())
        return x

    def product(self):
        x = self.power()
        while True:
            if self.peek() == "\\cdot":
                self.take()
                x = lift(_times)(x, self.power())
            elif self.begins(self.peek()):
                x = lift(np.multiply)(x, self.power())
            else:
                return x

    def begins(self, token):
        if token in ("|", "\\|"):
            return not (self.closers and self.closers[-1] == token)
        if token in ("", "\\rangle", "\\geq", "\\leq", "\\quad", "\\cdot"):
            return False
        return token[0] == "\\" or token.isalnum() or token in ("(", "[")

    def power(self):
        x = self.atom()
        while self.peek() == "^":
            self.take()
            if self.peek() == "{" and self.peek(1) == "\\top":
                self.braced()
                x = lift(np.transpose)(x)
            else:
                x = lift(np.power)(x, self.group() if self.peek() == "{" else self.power())
        return x

    def below(self):
        if self.peek() != "_":
            return ""
        self.take()
        return self.braced()

    def atom(self):
        token = self.peek()
        if token[0].isdigit():
            return float(self.take())
        if token == "(":
            self.take()
            return self.inside(")")[0]
        if token == "[":
            return self.condition()
        if token == "|":
            self.take()
            return lift(np.abs)(self.inside("|")[0])
        if token == "\\|":
            self.take()
            return self.norm(self.inside("\\|")[0], self.below())
        if token == "\\langle":
            self.take()
            pair = self.inside("\\rangle")
            dot = lambda a, b: np.sum(a * b)  # noqa: E731
            return everywhere(dot)(*pair) if self.below() else lift(dot)(*pair)
        if token == "\\frac":
            self.take()
            a, b = self.group(), self.group()
            return lift(_divide)(a, b)
        if token == "\\sqrt":
            self.take()
            root = 2
            if self.peek() == "[":
                self.take()
                root = int(self.take())
                self.take("]")
            return lift(lambda x: np.power(x, 1 / root) if root > 2 else np.sqrt(x))(self.group())
        if token == "\\prod":
            return self.over_steps()
        if token == "\\infty":
            self.take()
            return np.inf
        if token == "\\pi":
            self.take()
            return np.pi
        if token == "\\operatorname" or token in ("\\max", "\\min", "\\log", "\\exp", "\\cos"):
            name = self.take()[1:]
            name = self.braced() if name == "operatorname" else name
            below = self.below()
            self.take("(")
            args = self.inside(")")
            if below == "all":
                return everywhere(_function(name, ""))(*args)
            return lift(_function(name, below))(*args)
        return self.looked_up()

    def norm(self, x, kind):
        one, over = "1" in kind, "all" in kind
        f = np.abs if one else np.square
        total = everywhere(f)(x) if over else lift(lambda y: np.sum(f(y)))(x)
        return total if one else lift(np.sqrt)(total)

    def condition(self):
        self.take("[")
        self.closers.append("]")
        a = self.sum()
        op = self.take(">", "<", "=", "\\geq", "\\leq")
        b = self.sum()
        self.closers.pop()
        self.take("]")
        f = {">": np.greater, "<": np.less, "=": np.equal, "\\geq": np.greater_equal}
        return lift(lambda x, y: 1.0 * f.get(op, np.less_equal)(x, y))(a, b)

    def over_steps(self):
        self.take("\\prod")
        self.take("_")
        assert self.braced() == "s=1"
        self.take("^")
        last = self.rows.t + _offset(self.braced())
        begin, found = self.at, 1.0
        for self.s in range(1, last + 1):
            self.at = begin
            found = found * self.power()
        if last < 1:
            self.symbol()
        self.s = None
        return found

    def symbol(self):
        """(its name, which step): of `\\hat{m}_t`, `u'_{t-1}`, `\\beta_{1,t}`, `\\theta_0`."""
        stem = self.take()
        if stem in ("\\hat", "\\bar", "\\tilde", "\\dot", "\\check", "\\mathrm"):
            stem += "{" + self.braced() + "}"
        while self.peek() == "'":
            stem += self.take()
        if self.peek() == "^" and self.peek(2) == "\\mathrm":
            self.take()
            stem += "^" + self.braced()
        while self.peek() == "'":
            stem += self.take()
        *names, at = self.below().split(",")
        return stem + "".join("|" + n for n in names), _index(at)

    def looked_up(self):
        key, (kind, n) = self.symbol()
        if key == "t" and kind == "none":
            return float(self.rows.t)
        at = {"t": self.rows.t + n, "fixed": n, "s": self.s, "none": self.rows.t}[kind]
        return self.rows.look(key, at)


def _times(a, b):
    return np.matmul(a, b) if np.ndim(a) == 2 and np.ndim(b) == 2 else a * b


def _offset(text):
    return int(text[1:] or 0)


def _index(text):
    if text == "":
        return "none", 0
    if text[0] == "t":
        return "t", _offset(text)
    return ("s", 0) if text == "s" else ("fixed", int(text))
