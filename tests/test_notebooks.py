"""The committed notebooks show their pictures; that they run from clean is what `make notebooks` is for."""

import pathlib

import nbformat
import pytest
from blocks import HANGUL, assert_same_code, assert_same_text

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TRANSLATED = [path for path in NOTEBOOKS if path.stem.endswith("_ko")]


def outputs(notebook):
    return [o for cell in notebook.cells for o in cell.get("outputs", ())]


def pictures(notebook):
    return [o for o in outputs(notebook) if "image/png" in o.get("data", {})]


def test_there_are_ten_and_the_first_two_in_two_languages():
    numbers = sorted(int(p.name.split("_")[0]) for p in NOTEBOOKS)
    assert numbers == [1, 1, 2, 2, *range(3, 11)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_opens_where_adamfx_is_not_installed(path):
    cells = nbformat.read(path, as_version=4).cells
    first = next(c.source for c in cells if c.cell_type == "code")
    looks, installs = (
        first.index(x)
        for x in ('find_spec("adamfx") is None', "%pip install -q 'adamfx[notebooks]'")
    )
    assert looks < installs < first.index("%matplotlib inline") < first.index("import adamfx")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert pictures(notebook)
    assert not [
        o for o in outputs(notebook) if o.output_type == "error" or o.get("name") == "stderr"
    ]
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 2_000_000


def texts(notebook):
    """What cells print and what they return as text; pictures and widgets apart."""
    found = [(o.get("text"), o.get("data", {}).get("text/plain")) for o in outputs(notebook)]
    return [pair for pair in found if any(pair)]


@pytest.mark.parametrize("path", TRANSLATED, ids=lambda p: p.stem)
def test_a_translation_says_and_does_the_same(path):
    translated = nbformat.read(path, as_version=4)
    original = nbformat.read(path.with_stem(path.stem.removesuffix("_ko")), as_version=4)
    for ours, theirs in zip(original.cells, translated.cells, strict=True):
        assert (theirs.id, theirs.cell_type) == (ours.id, ours.cell_type)
        if ours.cell_type == "code":
            assert_same_code(ours.source, theirs.source)
        else:
            assert HANGUL.search(theirs.source)
            assert_same_text(ours.source, theirs.source)
    assert texts(translated) == texts(original)
