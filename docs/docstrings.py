"""The plain style of this library's docstrings, for Sphinx.

A docstring says `code` in single backquotes, formulas as they are typed (s <- b s, |p|, g*), its arguments
under "Args:", and indents code. `common` makes of a text what RST and Markdown read alike.
"""

import inspect
import re

from adamfx.pages import ENTRY

SPECIAL = re.compile(r"([*_|<>\[\]{}#~$^\\`])")


def common(text: str, joint: str = "") -> str:
    """The text with its code in double backquotes and all other signs as themselves.

    RST wants a joint between code and the end of a word, `jax.Array`s.
    """
    parts = re.split(r"`([^`]+)`", text)
    for n in range(0, len(parts), 2):
        glued = joint if n and parts[n][:1].isalnum() else ""
        parts[n] = glued + SPECIAL.sub(r"\\\1", parts[n])
    return "".join(f"``{x}``" if n % 2 else x for n, x in enumerate(parts))


def paragraphs(doc: str):
    """(kind, text) of a docstring: "text", "code", or the name of an argument."""
    for part in re.split(r"\n\n+", inspect.cleandoc(doc)):
        lines = part.splitlines()
        if lines[0] == "Args:":
            names, found = "", {}
            for line in lines[1:]:
                if entry := ENTRY.match(line):
                    names = entry[1]
                    found[names] = [entry[2]]
                else:
                    found[names].append(line.strip())
            yield from ((names, " ".join(text)) for names, text in found.items())
        elif part.startswith((" ", ">>>")):
            yield "code", inspect.cleandoc("\n" + part)
        else:
            yield "text", part


def argument(names: str, meaning: str, joint: str = "") -> str:
    """An argument as an item of a list, in RST and Markdown."""
    return f"- ``{'``, ``'.join(names.split(', '))}``: {common(meaning, joint)}"


def _rst(app, what, name, obj, options, lines):
    out = []
    for kind, text in paragraphs("\n".join(lines)):
        if kind == "code":
            out += ["::", "", *("    " + line for line in text.splitlines()), ""]
        elif kind == "text":
            out += [*common(text, "\\ ").splitlines(), ""]
        else:
            out += [argument(kind, text, "\\ "), ""]
    lines[:] = out


def setup(app):
    app.connect("autodoc-process-docstring", _rst)
    return {"parallel_read_safe": True}
