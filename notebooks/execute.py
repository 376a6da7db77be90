"""Runs the notebooks from clean, in place: python notebooks/execute.py [FILE ...].

An error, or more than three minutes for one of them, ends it with an exit code. Where others use the machine
too, a notebook may wait for longer than it works; then the time of its processors counts. One whose metadata
name a package that is not installed, {"adamfx": {"needs": ["torch"]}}, stays as it is.
"""

from __future__ import annotations

import importlib.util
import resource
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"
LIMIT = 180  # seconds for one notebook


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, without what changes from run to run."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=5 * LIMIT,  # for one cell
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": path.parent}},
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:  # a widget is dead without its kernel
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    notebook.metadata.pop("widgets", None)
    return notebook


def missing(path: Path) -> list[str]:
    """What the notebook needs that is not installed."""
    needs = nbformat.read(path, as_version=4).metadata.get("adamfx", {}).get("needs", [])
    return [name for name in needs if importlib.util.find_spec(name) is None]


def worked() -> float:
    """Seconds that the processors spent on the kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Executes and writes the files that are named, or all beside this one."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb"))
    for path in paths:
        if lacking := missing(path):
            print(f"{path.name}: left as it is, needs {', '.join(lacking)}", flush=True)
            continue
        began, before = time.perf_counter(), worked()
        notebook = execute(path)
        seconds, work = time.perf_counter() - began, worked() - before
        nbformat.write(notebook, path)
        print(f"{path.name}: {seconds:.0f} s, the processors {work:.0f} s", flush=True)
        if min(seconds, work) > LIMIT:
            sys.exit(f"{path.name} took {seconds:.0f} s, more than {LIMIT}")


if __name__ == "__main__":
    main()
