"""The committed notebooks show their pictures; that they run from clean is what `make notebooks` is for."""

import importlib.util
import pathlib
import re

import nbformat
import pytest
from blocks import HANGUL, assert_same_code, assert_same_text

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TRANSLATED = [path for path in NOTEBOOKS if path.stem.endswith("_ko")]


def outputs(notebook):
    return [o for cell in notebook.cells for o in cell.get("outputs", ())]


def pictures(notebook):
    return [o for o in outputs(notebook) if "image/png" in o.get("data", {})]


def test_they_are_numbered_and_the_first_two_in_two_languages():
    numbers = sorted(int(re.match(r"\d+", p.name)[0]) for p in NOTEBOOKS)
    assert numbers == [1, 1, 2, 2, *range(3, 13)]
    index = (NOTEBOOKS[0].parents[1] / "docs" / "notebooks" / "index.md").read_text()
    assert not [p.name for p in NOTEBOOKS if f"({p.name})" not in index]


def test_what_a_notebook_needs_and_is_not_there_keeps_it_as_it_is(tmp_path, capsys, monkeypatch):
    pytest.importorskip("nbclient")
    path = NOTEBOOKS[0].with_name("execute.py")
    spec = importlib.util.spec_from_file_location("execute", path)
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    notebook = nbformat.v4.new_notebook(metadata={"adamfx": {"needs": ["json", "no_such_package"]}})
    nbformat.write(notebook, tmp_path / "n.ipynb")
    before = (tmp_path / "n.ipynb").read_bytes()
    monkeypatch.setattr("sys.argv", ["execute.py", str(tmp_path / "n.ipynb")])
    execute.main()
    assert capsys.readouterr().out == "n.ipynb: left as it is, needs no_such_package\n"
    assert (tmp_path / "n.ipynb").read_bytes() == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_opens_where_adamfx_is_not_installed(path):
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    looks = cells[0].index('find_spec("adamfx") is None')
    installs = cells[0].index("%pip install -q 'adamfx[notebooks]'")
    code = "\n".join(cells)
    assert looks < installs < code.index("%matplotlib inline")
    assert installs < code.index("import adamfx")


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
