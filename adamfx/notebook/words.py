"""`explain`: a sentence word by word, in sentences. `find`: the sentence of a name of another library."""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from adamfx.checks import shortened
from adamfx.interop.names import COUNTERPARTS
from adamfx.notebook import html
from adamfx.notebook.compare import Sentence
from adamfx.notebook.facts import ELSEWHERE, PAPERS
from adamfx.notebook.others import FULL, KNOWN, NONE, NOTES, RATE
from adamfx.notebook.sentences import Word, alias, optimizers, words
from adamfx.pages import entries
from adamfx.reading import read
from adamfx.values.arguments import checked
from adamfx.values.grammar import join
from adamfx.values.value import Value, _same, _show

YEAR = r"(?:19|20)\d\d"
PAPER = re.compile(
    rf"[A-Z][\w'’-]+(?: (?:&|and) [A-Z][\w'’-]+| et al\.)?,? {YEAR}(?:, (?:algorithm|section|eq\.) [\w. ]+)?"
)
# Arguments that say nothing where another one is None.
OF_SECOND = ("eps", "eps_root", "where", "power", "lag", "nu_dtype")


class Entry(NamedTuple):
    """What is said of one word."""

    depth: int
    path: str
    text: str  # the word as it is written
    does: str
    arguments: list[tuple[str, str, str]]  # name, value, meaning
    elsewhere: list[tuple[str, str]]  # about which argument, and what
    papers: list[str]


class Explanation:
    """A sentence word by word, as text and in a notebook. `words` holds what is said of each."""

    def __init__(self, value: Value):
        self.value = value
        self.words: list[Entry] = []
        self._told: set[str] = set()
        name = alias(value)
        self.whole = f"{name}: {_paragraph(optimizers()[name])}" if name else ""
        self._sentence(words(value), 0)
        if not self.words:  # the empty chain
            self.whole = f"identity: {_paragraph(value.form.constructor.function)}"

    def _sentence(self, sentence: list[Word], depth: int) -> None:
        for word in sentence:
            self._entry(word.path, word.value, word.arguments, bool(word.inside), depth)
            for path, inner in word.inside.items():
                self._sentence(words(inner, path), depth + 1)

    def _entry(
        self, path: str, value: Value, given: dict, wraps: bool, depth: int, label: str = ""
    ) -> None:
        function = value.form.constructor.function
        meanings = entries(function.__doc__)
        defaults = inspect.signature(function).parameters
        out_of_use = OF_SECOND if given.get("b2", 0) is None else ()
        in_use = [n for n in given if n not in out_of_use]
        changed = [n for n in in_use if not _same(given[n], defaults[n].default)]
        told = [n for n in in_use if n in changed or f"{value.name}.{n}" in ELSEWHERE]
        told = [n for n in told if given[n] is not None]
        about = [f"{value.name}.{n}" for n in told] + [value.name]
        news = [k for k in about if k in ELSEWHERE and k not in self._told]
        self._told.update(news)
        own = [f"{n}={_show(given[n])}" for n in changed]
        doc = inspect.cleandoc(function.__doc__ or "").split("\n\nArgs:")[0]
        papers = list(dict.fromkeys(x.rstrip(". ") for x in PAPER.findall(" ".join(doc.split()))))
        self.words.append(
            Entry(
                depth,
                path,
                f"{value.name}({', '.join(['…', *own])})" if wraps else label + repr(value),
                _does(function),
                [
                    (n, _show(given[n]), meanings.get(n, ""))
                    for n in told
                    if not isinstance(given[n], Value)
                ],
                [(k.partition(".")[2], ELSEWHERE[k]) for k in news],
                papers or [p for p in [PAPERS.get(value.name)] if p],
            )
        )
        for name in in_use:
            inner = given[name]
            if isinstance(inner, Value):
                at = join(path, name)
                self._entry(at, inner, inner.arguments, False, depth + 1, f"{name} = ")

    def __repr__(self) -> str:
        lines = [*textwrap.wrap(self.whole, 100), ""] if self.whole else []
        for e in self.words:
            margin = "    " * e.depth
            lines.append(f"{margin}{e.text}{f'   ({e.path})' * bool(e.depth)}")
            said = [e.does] if e.does else []
            said += [f"{n} = {x}{': ' * bool(m)}{m}" for n, x, m in e.arguments]
            said += [f"Elsewhere{', ' * bool(n)}{n}: {x}" for n, x in e.elsewhere]
            said += [f"Paper: {'; '.join(e.papers)}"] if e.papers else []
            for x in said:
                first, rest = margin + "  ", margin + "    "
                lines += textwrap.wrap(x, 100, initial_indent=first, subsequent_indent=rest)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = []
        for e in self.words:
            said = [html.escaped(e.does)] if e.does else []
            said += [
                f"{html.code(f'{n} = {x}')} {html.escaped(m)}".strip() for n, x, m in e.arguments
            ]
            more = [html.escaped(f"{n}{': ' * bool(n)}{x}") for n, x in e.elsewhere]
            said += [html.folded("where libraries disagree", "<br>".join(more))] * bool(more)
            said += [f'<span class="less">{html.escaped("; ".join(e.papers))}</span>'] * bool(
                e.papers
            )
            rows.append([html.indented(html.code(e.text), e.depth), "<br>".join(said)])
        return html.page(
            f"<p>{html.escaped(self.whole)}</p>" if self.whole else "",
            html.table(["word", "what it does"], rows),
        )


def _paragraph(function: Callable) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())


def _does(function: Callable) -> str:
    """Its sentences that name no paper."""
    sentences = re.split(r"(?<=[.:)]) (?=[A-Z])", _paragraph(function))
    return " ".join(s for s in sentences if not PAPER.match(s))


@checked
def explain(value: Sentence) -> Explanation:
    """A sentence word by word: what each does, what its numbers mean, where libraries disagree, which paper.

        fx.explain(fx.adamw(1e-3))

    Args:
      value: an optimizer, a block, a schedule, an estimator.

    Print it, or show it in a notebook. Raises TypeError for anything but values.
    """
    return Explanation(value)


@checked
def find(name: str, learning_rate: float | Callable | None = None) -> Any:
    """The sentence of an optimizer of optax, torch or Keras, with the defaults of that library.

        fx.find("torch.optim.AdamW")       # weight decay 1e-2; in optax 1e-4, in Keras 4e-3
        fx.find("keras.optimizers.Adam")   # eps 1e-7, added before the correction

    Args:
      name: as that library writes it. Without a library, the one that spells it so: "NAdam" is torch's,
        "Nadam" Keras's, "nadam" optax's; spelt alike in several, or in none, the first of optax, torch and
        Keras has it.
      learning_rate: in place of the library's default; None: its default, and 1e-3 where it has none, as in
        optax.

    Where the two differ in more than rounding, a UserWarning says in what. Raises KeyError for a name that
    is not known, with the nearest ones, or for one that needs more than a name, with what to write.
    """
    full = _full(name)
    if full in NONE:
        raise KeyError(f"find: {full} is {NONE[full]}")
    if full in NOTES:
        warnings.warn(f"find: {full} is not quite this: {NOTES[full]}", stacklevel=3)
    tx = read(KNOWN[full])
    if learning_rate is None:
        return tx
    rates = [n for n in tx.hyperparams if n.split(".")[-1] in RATE]
    if not rates:
        raise ValueError(f"find: {full} has no learning rate; leave out learning_rate")
    return tx.replace(**dict.fromkeys(rates, learning_rate))


def _full(name: str) -> str:
    """The full name that is meant. Raises KeyError for one that is not known."""
    *library, short = name.strip().split(".")
    first = library[0].lower() if library else ""
    first = {"tf": "keras", "tensorflow": "keras"}.get(first, first)
    there = [full for full in FULL if full.startswith(first)]
    for same in (lambda x: x == short, lambda x: x.lower() == short.lower()):
        found = [full for full in there if same(full.split(".")[-1])]
        if found:
            return found[0]
    if short in COUNTERPARTS and (not library or library[0].lower() == "optax"):
        raise KeyError(f"find: {name} is {COUNTERPARTS[short]} here, which needs more than a name")
    lower = {full.split(".")[-1].lower(): full for full in reversed(there)}
    near = difflib.get_close_matches(short.lower(), lower, 3, 0.5)
    if not there:
        raise KeyError(f"find: {name!r}: known libraries are optax, torch and keras")
    hint = (
        f"did you mean {' or '.join(lower[n] for n in near)}?"
        if near
        else f"known are {shortened(', '.join(there))}"
    )
    raise KeyError(f"find: there is no optimizer {name!r}; {hint}")
