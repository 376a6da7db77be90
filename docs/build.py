"""Builds the site: python docs/build.py [FOLDER], by default out/docs. Warnings are errors.

The sources are put together in a folder beside it: this one, the notebooks as they are stored, and the pages
and pictures that cards.py makes.
"""

import shutil
import sys
from pathlib import Path

import cards
from sphinx.cmd.build import main

DOCS = Path(__file__).parent
ROOT = DOCS.parent


def gather(folder: Path) -> None:
    """All sources of the site, in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "SECURITY.md", folder)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(path, folder / "notebooks")
    for path in (
        *folder.glob("*.md"),
        *folder.glob("notebooks/*.ipynb"),
    ):  # links, from where they lie now
        text = path.read_text()
        path.write_text(
            text.replace("](../SECURITY.md", "](SECURITY.md").replace("](../docs/", "](../")
        )
    cards.write_cards(folder / "optimizers", folder / "pictures")
    cards.write_reference(folder / "api")
    cards.write_pictures(folder / "pictures")


def build(out: Path) -> int:
    sources = out.with_name(out.name + "-source")
    gather(sources)
    shutil.rmtree(out, ignore_errors=True)
    return main(["-b", "html", "-W", "--keep-going", "-q", str(sources), str(out)])


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "out" / "docs"))
