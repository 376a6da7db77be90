"""The tables of the README and of the page of optimizers say what the library does."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import adamfx as fx

README_FILE = pathlib.Path(__file__).parent.parent / "README.md"
README = README_FILE.read_text()
PAGE = (README_FILE.parent / "docs" / "optimizers.md").read_text()
ROWS = re.findall(r"^\| `([a-z0-9_]+\(.*?\))` \| `(.*?)` \|$", README + PAGE, re.MULTILINE)


@pytest.mark.parametrize(("call", "sentence"), ROWS)
def test_table_of_compositions(call, sentence):
    assert eval(call, vars(fx)) == eval(sentence, vars(fx))


def test_every_optimizer_is_in_the_table():
    names = {
        n
        for n, f in vars(fx).items()
        if getattr(f, "__module__", "").startswith("adamfx.optimizers.")
    }
    assert {call.partition("(")[0] for call, _ in ROWS} == names


@pytest.mark.parametrize(
    ("tx", "dtype", "size"),
    [
        (fx.adam(1e-3), "float32", 8),
        (fx.adam(1e-3), "bfloat16", 8),
        (fx.adam(1e-3, mu_dtype="bfloat16"), "bfloat16", 6),
        (fx.momentum(1e-3), "bfloat16", 4),
        (fx.lion(1e-3), "bfloat16", 4),
    ],
)
def test_memory_of_the_state(tx, dtype, size):
    state = tx.init(jnp.ones(1000, dtype))
    assert sum(x.nbytes for x in jax.tree.leaves(state) if x.size > 7) == 1000 * size


def test_every_figure_of_speed_was_measured():
    """What stands as `ratio [low, high]` in the README and on the page is a row of docs/bench.json."""
    rows = json.loads((README_FILE.parent / "docs" / "bench.json").read_text())["rows"]
    rounded = {
        f"{r['value']:.{n}f} [{r['low']:.{n}f}, {r['high']:.{n}f}]"
        for r in rows
        if r["low"] is not None
        for n in (2, 3)
    }
    speed = (README_FILE.parent / "docs" / "speed.md").read_text()
    shown = re.findall(r"\d\.\d+ \[\d\.\d+, \d\.\d+\]", README + speed)
    assert len(shown) > 15
    assert set(shown) <= rounded


def test_every_figure_of_programs_was_measured():
    """Rows of the page that name optimizers stand in docs/scale-programs.json, ours / optax's."""
    docs = README_FILE.parent / "docs"
    rows = json.loads((docs / "scale-programs.json").read_text())["rows"]
    found = {(r["what"], r["column"]): (r["value"], r["peer"]) for r in rows}
    table = re.findall(
        r"^\| (.*) \| (.*) \| (.*) \| (.*) \|$", (docs / "scale-programs.md").read_text(), re.M
    )
    seen = 0
    for names, *cells in table:
        for name in names.split(", "):
            if (f"{name}, FSDP", "peak") not in found:
                continue  # a word for several, or of more than a name
            for column, cell in zip(("collectives", "peak", "moved"), cells, strict=True):
                shown = cell.replace("*", "").split(" / ")
                for text, value in zip(shown, found[f"{name}, FSDP", column], strict=True):
                    digits = len(text.partition(".")[2])
                    assert float(text) == pytest.approx(value, abs=0.51 * 10**-digits), (
                        name,
                        column,
                    )
            seen += 1
    assert seen > 25


def test_it_is_short_and_every_link_leads_somewhere():
    assert len([w for w in README.split() if re.search(r"\w", w)]) <= 900
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (README_FILE.parent / path).exists(), path
