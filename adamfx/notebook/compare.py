"""`diff`: which words and numbers differ between two sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from adamfx.notebook import html
from adamfx.notebook.sentences import Word, words
from adamfx.values.arguments import Kind, checked
from adamfx.values.grammar import join
from adamfx.values.value import Value, _same, _show

Sentence = Annotated[
    Any,
    Kind(lambda x: isinstance(x, Value), ("an optimizer, a schedule, or another value of adamfx",)),
]


class Row(NamedTuple):
    """A number, or another argument, that differs: its name as in `hyperparams`, and what it is in each."""

    name: str
    a: Any
    b: Any


class Block(NamedTuple):
    """A word that only one sentence has, or that stands elsewhere in the other: after which word it stands.

    Where it is not at all, the place is None; at the beginning it is "".
    """

    name: str
    value: Any
    in_a: str | None
    in_b: str | None


class Diff:
    """What differs between two values; false where nothing does.

    `rows` are the arguments that differ, `removed`, `added` and `moved` the words.
    """

    def __init__(self, a: Value, b: Value):
        self.a, self.b = a, b
        self.rows: list[Row] = []
        self.removed: list[Block] = []
        self.added: list[Block] = []
        self.moved: list[Block] = []
        self._sentences(words(a), words(b))
        if a != b and not any((self.rows, self.removed, self.added, self.moved)):
            self.rows.append(Row("", a, b))  # by something that no argument shows

    def _sentences(self, a: list[Word], b: list[Word]) -> None:
        names = [w.name for w in a], [w.name for w in b]
        matcher = difflib.SequenceMatcher(None, *names, autojunk=False)
        old, new = list(range(len(a))), list(range(len(b)))
        for match in matcher.get_matching_blocks():
            for i, j in zip(
                range(match.a, match.a + match.size),
                range(match.b, match.b + match.size),
                strict=True,
            ):
                old.remove(i)
                new.remove(j)
                self._words(a[i], b[j])
        for i in old:
            j = next((j for j in new if names[1][j] == names[0][i]), None)
            if j is None:
                self.removed.append(Block(a[i].path, a[i].value, _before(a, i), None))
            else:
                new.remove(j)
                self.moved.append(Block(a[i].path, b[j].value, _before(a, i), _before(b, j)))
                self._words(a[i], b[j])
        self.added += [Block(b[j].path, b[j].value, None, _before(b, j)) for j in new]

    def _words(self, a: Word, b: Word) -> None:
        """Two words of one name."""
        self._arguments(a.path, a.arguments, b.arguments)
        inside = zip(a.inside.items(), b.inside.items(), strict=False)
        if len(a.inside) == len(b.inside) and not _labelled(a, b):
            for (path, x), (other, y) in inside:
                self._sentences(words(x, path), words(y, other))
            return
        for path in [*a.inside, *(p for p in b.inside if p not in a.inside)]:
            x, y = a.inside.get(path), b.inside.get(path)
            if x is not None and y is not None:
                self._sentences(words(x, path), words(y, path))
            else:
                self.rows.append(Row(path, x, y))

    def _arguments(self, path: str, a: dict[str, Any], b: dict[str, Any]) -> None:
        for name in [*a, *(n for n in b if n not in a)]:
            x, y = a.get(name), b.get(name)
            if isinstance(x, Value) and isinstance(y, Value) and x.name == y.name:
                self._arguments(join(path, name), x.arguments, y.arguments)
            elif not _same(x, y):
                self.rows.append(Row(join(path, name), x, y))

    def __bool__(self) -> bool:
        return bool(self.rows or self.removed or self.added or self.moved)

    def _lines(self) -> Iterator[tuple[str, str, str]]:
        """(sign, word, where) of the words that are not in both at one place."""
        for block in self.removed:
            yield "-", _show(block.value), _place(block.in_a)
        for block in self.added:
            yield "+", _show(block.value), _place(block.in_b)
        for block in self.moved:
            yield "~", block.name, f"{_place(block.in_a)}, now {_place(block.in_b)}"

    def __repr__(self) -> str:
        if not self:
            return "no difference"
        rows = [(r.name or "value", _show(r.a), "->", _show(r.b)) for r in self.rows]
        blocks = [(f"{sign} {word}", where) for sign, word, where in self._lines()]
        return "\n".join(html.aligned(rows) + html.aligned(blocks))

    def _repr_html_(self) -> str:
        if not self:
            return html.page("no difference")
        rows = [
            [html.code(r.name or "value"), html.code(_show(r.a)), html.code(_show(r.b))]
            for r in self.rows
        ]
        colours = {"-": "minus", "+": "plus", "~": ""}
        blocks = [
            [
                f'<span class="{colours[sign]}">{sign} {html.code(word)}</span>',
                f'<span class="less">{html.escaped(where)}</span>',
            ]
            for sign, word, where in self._lines()
        ]
        return html.page(
            html.table(["", "a", "b"], rows) if rows else "",
            html.table(["word", "place"], blocks) if blocks else "",
        )


def _labelled(a: Word, b: Word) -> bool:
    """Whether what is inside goes by labels of a user, as groups do."""
    return len(a.inside) > 1 or len(b.inside) > 1


def _before(sentence: list[Word], i: int) -> str:
    return sentence[i - 1].path if i else ""


def _place(after: str | None) -> str:
    return f"after {after}" if after else "at the beginning"


@checked
def diff(a: Sentence, b: Sentence) -> Diff:
    """Which words and numbers differ between two sentences: print it, or show it in a notebook.

        fx.diff(fx.adam(1e-3), fx.nadam(1e-3, b2=0.99))
        # scale_by_moments.b2  0.999  ->  0.99
        # + nesterov()  after bias_correct

    Args:
      a: an optimizer, a schedule, an estimator or another value.
      b: what it is compared with.

    False where the two are equal. `rows` holds (name, in a, in b), the names those of `hyperparams` of `a`;
    `added`, `removed` and `moved` hold the words. Raises TypeError for anything but values.
    """
    return Diff(a, b)
