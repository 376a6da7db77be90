"""The code of a page: its blocks, a run of them one after the other, and a page beside its translation."""

import ast
import pathlib
import re

import jax

ROOT = pathlib.Path(__file__).parents[1]


def blocks(page):
    """The Python in a page, named from the root of the repository."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def run(page, held=None, only=None):
    """Runs what stands in the blocks and returns its names. A block with `...` is no whole program.

    Args:
      held: names that the page takes for granted.
      only: the number of the one block to run.
    """
    held = {"__name__": "__main__"} if held is None else held
    for n, code in enumerate(blocks(page)):
        if "..." not in code and only in (None, n):
            exec(compile(code, f"{page}, block {n}", "exec"), held)
    return held


def run_as_a_user(page, held=None, only=None):
    """The same without the strictness of the tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return run(page, held, only)


# ---- translations --------------------------------------------------------------------------------

HANGUL = re.compile("[\uac00-\ud7a3]")


def facts(text):
    """What every language says alike: code in backquotes, and numbers of more than one digit."""
    text = re.sub(r"\]\([^)]*\)", "]", text)  # where a link leads is another matter
    return set(re.findall(r"`[^`]+`|\d[\d.]*\d", text))


def assert_same_code(original, translated):
    """The two programs are one but for comments, and for Hangul in the place of other words."""

    def nodes(code):
        code = re.sub(
            "^( *)(%.*)$", lambda magic: magic[1] + repr(magic[2]), code, flags=re.MULTILINE
        )
        return list(ast.walk(ast.parse(code)))

    pairs = list(zip(nodes(original), nodes(translated), strict=True))
    for ours, theirs in pairs:
        words = isinstance(theirs, ast.Constant) and isinstance(theirs.value, str)
        if words and HANGUL.search(theirs.value):
            assert isinstance(ours, ast.Constant)
            assert isinstance(ours.value, str)
            assert " " in ours.value  # a sentence, no key
            assert not facts(ours.value) ^ facts(theirs.value), theirs.value
            theirs.value = ours.value
    assert ast.dump(pairs[0][0]) == ast.dump(pairs[0][1])


def assert_same_text(original, translated):
    """Headings at the same places, the same code in the sentences and the same numbers."""
    headings = [re.findall("^#+ ", text, re.MULTILINE) for text in (original, translated)]
    assert headings[0] == headings[1]
    only = facts(original) ^ facts(translated)
    assert not only, f"in one of the two only: {only}"
