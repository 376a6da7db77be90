"""Every piece of code in the README and in the documentation runs."""

import re

import jax.numpy as jnp
import pytest
from blocks import HANGUL, ROOT, assert_same_code, assert_same_text, blocks, run_as_a_user

import adamfx as fx

# Pages whose blocks stand alone, each to be copied; in all others they build on those before.
ALONE = ["README.md", "docs/optimizers.md"]
# Pages that take more than a CPU and this package, run by tests that bring it.
ELSEWHERE = {"docs/scale.md": "test_scale.py", "docs/coming-from.md": "test_carry.py"}
PAGES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))
PAGES = [p for p in PAGES if p not in ALONE and p not in ELSEWHERE]
NEEDS = {"docs/how-to/resume.md": "orbax.checkpoint"}
TRANSLATED = [page for page in PAGES if page.startswith("docs/ko/")]


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Flax and Equinox
@pytest.mark.parametrize(
    ("page", "block"), [(page, n) for page in ALONE for n in range(len(blocks(page)))]
)
def test_a_block_runs(page, block, at):
    run_as_a_user(page, only=block)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_a_page_runs(page, at):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    assert not [code for code in blocks(page) if "..." in code]
    held = {"fx": fx, "jnp": jnp} if page == "docs/architecture.md" else None
    run_as_a_user(page, held)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short_and_says_what_it_is(page):
    lines = (ROOT / page).read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) < 200 or page == "docs/architecture.md"


@pytest.mark.parametrize(("page", "module"), ELSEWHERE.items())
def test_the_others_are_run_elsewhere(page, module):
    assert f'"{page}"' in (ROOT / "tests" / module).read_text()


@pytest.mark.parametrize("page", TRANSLATED)
def test_a_translation_says_and_does_the_same(page):
    original = page.replace("/ko/", "/")
    for ours, theirs in zip(blocks(original), blocks(page), strict=True):
        assert_same_code(ours, theirs)
    fenced = re.compile("^```.*?^```", re.DOTALL | re.MULTILINE)
    ours, theirs = (fenced.sub("", (ROOT / name).read_text()) for name in (original, page))
    assert HANGUL.search(theirs)
    assert_same_text(ours, theirs)
    assert f"[한국어](ko/{page.rpartition('/')[2]})" in ours
    assert f"[English](../{page.rpartition('/')[2]})" in theirs


def test_there_is_a_translation():
    assert TRANSLATED == ["docs/ko/first-steps.md"]
