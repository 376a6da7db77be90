"""How values, states and runs look in a notebook: sentences as rows, states without a wall of arrays.

`show` says the same as text. Nothing here raises: what cannot be told of a deleted or traced array is left
out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adamfx.checks import shown
from adamfx.combine import hyperparams
from adamfx.engine.memory import is_memory
from adamfx.engine.packed import State, is_state
from adamfx.notebook import html
from adamfx.notebook.sentences import Word, words
from adamfx.states import entries
from adamfx.training.history import History
from adamfx.values.arguments import checked
from adamfx.values.value import Value, _same, _show

SIDE = 1024  # of the square matrix in whose bytes a sentence's memory is told
MOST = 30  # rows; of more the rest is folded
SMALL = 1_000_000  # numbers; a norm of more is computed where they lie
STATE = ("name", "shape", "dtype", "bytes", "sharding", "norm")


class Shown:
    """A tree to look at: a table in a notebook, and as text where it is printed."""

    def __init__(self, tree: Any):
        self.tree = tree

    def __repr__(self) -> str:
        return as_text(self.tree)

    def _repr_html_(self) -> str:
        return as_html(self.tree)


@checked
def show(tree: Any) -> Shown:
    """A value, a state, parameters or a history to look at: what is in it, and how large.

        fx.show(params)    # a row for each leaf: shape, dtype, bytes, sharding, norm

    Args:
      tree: an optimizer, a state, a history, or any tree of arrays.
    """
    return Shown(tree)


def as_html(x: Any) -> str:
    """A value, state, history or tree as a table of HTML."""
    try:
        if isinstance(x, Value):
            return html.page(_sentence(x))
        if isinstance(x, History):
            return html.page(_history(x))
        rows = _rows(x)
        cells = [[html.code(row[0]), *map(html.escaped, row[1:])] for row in rows[:-1]]
        first, rest = cells[:MOST], cells[MOST:]
        more = html.folded(f"{len(rest)} more", html.table(STATE, rest, (3, 5))) if rest else ""
        return html.page(html.table(STATE, first, (3, 5)), more, f"<div>{rows[-1][0]}</div>")
    except Exception:  # a picture must not stop a notebook
        return html.page(html.code(shown(x)))


def as_text(x: Any) -> str:
    """The same as lines of text."""
    try:
        if isinstance(x, Value):
            return repr(x)
        if isinstance(x, History):
            return "\n".join(html.aligned(_last(x)))
        *rows, total = _rows(x)
        more = [f"... {len(rows) - MOST} more"] if len(rows) > MOST else []
        return "\n".join([*html.aligned([STATE, *rows[:MOST]]), *more, total[0]])
    except Exception:
        return shown(x)


# ---- sentences -----------------------------------------------------------------------------------


def _sentence(value: Value) -> str:
    held = _held(value)
    rows = [row for word in words(value) for row in _word(word, 0, held)]
    rule = _rule(value)
    if not value.has_keys:
        return html.table(["word", "arguments"], [row[:2] for row in rows]) + rule
    total = f"{_number(sum(held.values()))} bytes of state per parameter" if held else ""
    note = f"of a float32 matrix, {SIDE} x {SIDE}" if total else ""
    size = f'<div>{total} <span class="less">{note}</span></div>' if total else ""
    return html.table(["word", "arguments", "bytes"], rows, (2,)) + size + rule


def _rule(value: Value) -> str:
    """The equations, folded: where there is HTML, notebooks do not show the LaTeX beside it."""
    latex = value._repr_latex_()
    return html.folded("update rule", html.equation(latex.strip("$\n"))) if latex else ""


def _word(word: Word, depth: int, held: dict[str, float]) -> Iterable[list[str]]:
    defaults = word.value.form.constructor.signature.parameters
    given = [
        html.code(f"{name}={_show(x)}")
        for name, x in word.arguments.items()
        if not _same(x, defaults[name].default)
    ]
    bytes_of = _number(held[word.path]) if held.get(word.path) and not depth else ""
    yield [html.indented(html.code(word.name), depth), ", ".join(given), bytes_of]
    labelled = len(word.inside) > 1
    for path, inner in word.inside.items():
        if labelled:
            label = f'<span class="less">{html.escaped(path)}</span>'
            yield [html.indented(label, depth + 0.5), "", ""]
        for w in words(inner, path):
            yield from _word(w, depth + 1, held)


def _held(value: Value) -> dict[str, float]:
    """Bytes that each block remembers, per parameter of a large matrix; nothing where it needs another."""
    try:
        p = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
        state = jax.eval_shape(value.init, {"w": p})  # type: ignore[attr-defined]
        return {
            key: _bytes(part) / SIDE**2
            for key, part in state.items()
            if key != "count" and isinstance(key, str)
        }
    except Exception:
        return {}


def _number(x: float) -> str:
    return f"{x:.3g}" if x >= 0.1 or not x else "< 0.1"


# ---- states and trees ----------------------------------------------------------------------------


def _rows(tree: Any) -> list[tuple[str, ...]]:
    """A row for each entry of a state or leaf of a tree, and one of the whole."""
    named = _named(tree)
    rows = [(name, *_about(part)) for name, part in named]
    sizes = [x for _, part in named for x in jax.tree.leaves(part)]
    numbers = sum(_guard(lambda x=x: math.prod(x.shape), 0) for x in sizes)
    whole = f"{numbers:,} numbers, {_memory(sum(map(_bytes, sizes)))}"
    return [*rows, (whole,)]


def _named(tree: Any) -> list[tuple[str, Any]]:
    """(dotted name, what stands there): the entries of states, the leaves of other trees."""
    if isinstance(tree, State) or is_memory(tree) or (isinstance(tree, dict) and is_state(tree)):
        found = _guard(lambda: _of_state(tree), None)
        if found is not None:
            return found
    # A state whose scalars are deleted has names for its parts only.
    whole = (lambda x: False) if isinstance(tree, State) else lambda x: isinstance(x, State)
    found = []
    for path, x in jax.tree_util.tree_flatten_with_path(tree, is_leaf=whole)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        inner = _named(x) if isinstance(x, State) else [("", x)]
        found += [(".".join(filter(None, (name, n))), y) for n, y in inner]
    return found


def _of_state(state: Any) -> list[tuple[str, Any]]:
    live = ((f"{name} (live)", x) for name, x in hyperparams(state).items())
    return [*entries(state, ""), *live]


def _about(part: Any) -> tuple[str, ...]:
    """(shape, dtype, bytes, sharding, norm) of one array, or of several together."""
    leaves = jax.tree.leaves(part)
    shapes = [_guard(lambda x=x: f"{tuple(x.shape)}".replace(",)", ")"), "") for x in leaves]
    shapes = ["" if s == "()" else s for s in shapes]
    kinds = dict.fromkeys(_guard(lambda x=x: str(x.dtype), type(x).__name__) for x in leaves)
    places = dict.fromkeys(map(_sharding, leaves))
    norms = [_norm(x) for x in leaves]
    norm = math.hypot(*(n for n in norms if isinstance(n, float)))
    words_of = dict.fromkeys(n for n in norms if isinstance(n, str))
    return (
        shapes[0] if len(leaves) == 1 else f"{len(leaves)} arrays, {_some(shapes)}",
        ", ".join(kinds),
        _memory(sum(map(_bytes, leaves))),
        ", ".join(filter(None, places)),
        ", ".join(words_of) if words_of else f"{norm:.4g}",
    )


def _some(shapes: Sequence[str]) -> str:
    different = [s or "scalar" for s in dict.fromkeys(shapes)]
    return ", ".join(different[:3]) + " ..." * (len(different) > 3)


def _norm(x: Any) -> float | str:
    """The norm of an array, or why there is none."""
    if isinstance(x, Tracer):
        return "traced"
    if getattr(x, "is_deleted", bool)():
        return "deleted"
    if isinstance(x, jax.ShapeDtypeStruct) or not hasattr(x, "dtype"):
        return "" if not isinstance(x, (int, float)) else float(abs(x))
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return "key"

    def norm() -> float:
        if isinstance(x, jax.Array) and (x.size > SMALL or not x.is_fully_addressable):
            return float(jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x.astype(jnp.float32))))))
        y = np.asarray(x)
        y = y if np.iscomplexobj(y) else y.astype(np.float64)
        return float(np.linalg.norm(y.ravel()))

    return _guard(norm, "")


def _sharding(x: Any) -> str:
    def told() -> str:
        spec = getattr(x.sharding, "spec", None)
        devices = len(x.sharding.device_set)
        if spec is not None and any(spec):
            return f"{tuple(spec)} on {devices}".replace("'", "").replace(",)", ")")
        return f"on {devices}" if devices > 1 else ""

    return _guard(told, "")


def _bytes(tree: Any) -> float:
    return sum(
        _guard(lambda x=x: math.prod(x.shape) * x.dtype.itemsize, 0) for x in jax.tree.leaves(tree)
    )


def _memory(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}"
        size /= 1000
    return ""


def _guard(tell: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return tell()
    except Exception:  # deleted, abstract, on another machine
        return otherwise


# ---- histories -----------------------------------------------------------------------------------


def _last(history: Any) -> list[tuple[str, ...]]:
    """(column, last number, least, most) of each column."""
    rows: list[tuple[str, ...]] = [("column", "last", "least", "most")]
    for name in history:
        numbers = history.measured(name)[1]
        told = (numbers[-1], numbers.min(), numbers.max()) if len(numbers) else ()
        rows.append((name, *(f"{n:.6g}" for n in told), *[""] * (3 - len(told))))
    return rows


def _history(history: Any) -> str:
    head, *rows = _last(history)
    cells = [[html.code(row[0]), *row[1:]] for row in rows]
    column = next((n for n in ("loss", *history) if n in history and n != "step"), "")
    return html.table(head, cells, (1, 2, 3)) + (_line(history, column) if column else "")


def _line(history: Any, column: str, width: int = 320, height: int = 80) -> str:
    """A column as a line in SVG, on a scale of powers of ten where it spans more than one."""
    x, y = history.measured(column)
    there = np.isfinite(y)
    x, y = x[there], y[there]
    if len(y) < 2:
        return ""
    powers = y.min() > 0 and y.max() > 20 * y.min()
    y = np.log10(y) if powers else y
    few = np.unique(np.linspace(0, len(y) - 1, 400).astype(int))
    across = (x[few] - x[0]) / max(x[-1] - x[0], 1e-30) * width
    down = (y.max() - y[few]) / max(y.max() - y.min(), 1e-30) * height
    points = " ".join(f"{a:.1f},{b + 2:.1f}" for a, b in zip(across, down, strict=True))
    note = f"{column}, steps {x[0]:g} to {x[-1]:g}" + ", powers of ten" * bool(powers)
    return (
        f'<svg width="{width}" height="{height + 4}" viewBox="0 0 {width} {height + 4}" role="img" '
        f'aria-label="{html.escaped(note)}"><polyline points="{points}" fill="none" '
        'stroke="currentColor" stroke-width="1.5"/></svg>'
        f'<div class="less">{html.escaped(note)}</div>'
    )
