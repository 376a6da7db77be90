"""HTML for notebooks: no scripts, and the colours of where it is shown, light or dark.

Everything that was not written here is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

STYLE = """<style>
.adamfx table{border-collapse:collapse;background:transparent;color:inherit;margin:.3em 0}
.adamfx tr,.adamfx th,.adamfx td{background:transparent!important;color:inherit;text-align:left!important}
.adamfx th,.adamfx td{border:0;padding:.1em 1.2em .1em 0;vertical-align:top;font-weight:normal}
.adamfx th{border-bottom:1px solid currentColor;opacity:.7}
.adamfx .number{text-align:right!important;font-variant-numeric:tabular-nums}
.adamfx code{font-size:.92em;background:transparent;color:inherit;white-space:pre-wrap}
.adamfx details{display:inline-block}.adamfx summary{cursor:pointer}
.adamfx mtd[columnalign=right]{text-align:right}.adamfx mtd[columnalign=left]{text-align:left}
.adamfx mtd{padding-inline:0}.adamfx .less{opacity:.7}
.adamfx .minus{color:#b3261e}.adamfx .plus{color:#1a7f37}
@media(prefers-color-scheme:dark){.adamfx .minus{color:#ff8a80}.adamfx .plus{color:#7ee787}}
</style>"""
LONG = 100  # characters; what is longer is folded


def escaped(x: Any) -> str:
    return html.escape(str(x))


def page(*parts: str) -> str:
    """These pieces of HTML as one that can stand anywhere."""
    return f'<div class="adamfx">{STYLE}{"".join(parts)}</div>'


def code(text: str) -> str:
    """The text as code, folded where it is long."""
    if len(text) <= LONG:
        return f"<code>{escaped(text)}</code>"
    start = text[: LONG * 2 // 3]
    return (
        f"<details><summary><code>{escaped(start)}…</code></summary>"
        f"<code>{escaped(text)}</code></details>"
    )


def indented(inside: str, depth: float) -> str:
    """HTML further to the right, all lines of it."""
    return f'<div style="padding-left:{1.5 * depth}em">{inside}</div>' if depth else inside


def folded(summary: str, inside: str) -> str:
    """`inside` behind a line to click; both are HTML."""
    return f"<details><summary>{summary}</summary>{inside}</details>"


def equation(latex: str, display: str = "block") -> str:
    """LaTeX as MathML, which browsers draw without a script; without latex2mathml as it is."""
    try:
        from latex2mathml.converter import convert
    except ImportError:
        return escaped(f"$${latex}$$")
    found = convert(
        latex.replace("{aligned}", "{align*}"), display=display
    )  # it knows one of the two
    return found.replace(
        "<mo>&#x0005E;</mo></mover>", "<mo>&#x002C6;</mo></mover>"
    )  # a hat as accent


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML; `numbers` says which columns stand to the right."""

    def line(row: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' * (j in numbers) for j in range(len(row))]
        cells = (f"<{tag}{k}>{x}</{tag}>" for k, x in zip(kinds, row, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    top, body = line([*map(escaped, head)], "th"), "".join(line(row, "td") for row in rows)
    return f"<table><thead>{top}</thead><tbody>{body}</tbody></table>"


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """The same as lines of text, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (zip(row, widths, strict=True) for row in rows)
    return [indent + "  ".join(x.ljust(w) for x, w in row).rstrip() for row in padded]
