"""The code of a page: its blocks, and a run of them one after the other."""

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
