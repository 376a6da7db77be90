"""The public names: all there, all documented, one place for each, typed."""

import ast
import importlib
import inspect
import pathlib
import re

import pytest

import adamfx as fx

PACKAGE = pathlib.Path(fx.__file__).parent
PUBLIC = sorted(n for n, x in vars(fx).items() if not n.startswith("_") and not inspect.ismodule(x))
PUBLIC = sorted([*PUBLIC, "interop"])  # the one module that is a name of its own

PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text()
# The reading order, from the table of the architecture page: a module imports only from those before it.
ORDER = re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE)


def source(module):
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())


def test_contents_page():
    assert sorted(fx.__all__) == PUBLIC


def test_every_public_name_of_a_module_is_exported():
    rooms = ("engine.", "values.", "interop.", "notebook.")
    for name in (n for n in ORDER if not n.startswith(rooms) and n != "checks"):
        module = importlib.import_module(f"adamfx.{name}")
        made = {
            n
            for n, x in vars(module).items()
            if inspect.isfunction(x) and x.__module__ == module.__name__ and not n.startswith("_")
        }
        inner = {"value_at", "predicate", "estimator", "square", "rates_of", "foreign", "mass"}
        inner |= {
            "adam_correction",
            "average_of",
            "needs_side",
            "unless_none",
            "matrix_axes",
            "reading",
            "check",
            "shape_of",
            "round_between",
            "as_transformation",
            "pair",
            "when",
            "training_step",
            "vocabulary",
            "program",
            "convolves",
            "named",
            "renamed",
            "check_names",
            "is_history",
            "is_key",
            "copied",
            "write",
            "whole",
            "check_numbers",
            "as_array",
            "train",
            "by_member",
            "members_of",
            "rows_of_groups",
            "sentences",
            "shared_out",
            "seeds_of",
            "is_decay",
            "as_batch",
            "listen",
            "opened",
            "replaced",
            "stacked",
            "entries",
        }
        assert made - inner <= set(PUBLIC), name


@pytest.mark.parametrize("name", PUBLIC)
def test_documented(name):
    x = getattr(fx, name)
    if name in ("Dynamic", "Exact"):
        return
    assert x.__doc__
    assert len(x.__doc__) > 20


def imported(module):
    """The modules of the package that a module imports, wherever in it."""
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adamfx"):
            place = (node.module or "").removeprefix("adamfx").removeprefix(".")
            for alias in node.names:
                inside = f"{place}.{alias.name}" if place else alias.name
                yield inside if inside in ORDER else place


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    for name in imported(module):
        assert ORDER.index(name) < ORDER.index(module), f"{module} imports {name}"


def test_the_architecture_page_names_every_module():
    found = {
        str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and "experiments" not in path.parts
    }
    assert found == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_the_package_needs_only_jax():
    always = {"adamfx", "jax", "numpy", "__future__"}
    inside = {"optax", "optimistix", "orbax", "safetensors", "tqdm"}  # of functions
    inside |= {"latex2mathml", "matplotlib", "tensorboardX", "wandb"}
    import sys

    for module in ORDER:
        tree = source(module)
        for node in ast.walk(tree):
            allowed = always if node in tree.body else always | inside
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, (module, name)


def test_typed():
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("module", [n for n in ORDER if n.startswith("optimizers.")])
def test_an_alias_holds_no_arithmetic(module):
    """At most ten lines of code each, and not one arithmetic operation."""
    for node in source(module).body:
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            statements = [n for part in body for n in ast.walk(part)]
            assert not [n for n in statements if isinstance(n, (ast.BinOp, ast.AugAssign))], (
                node.name
            )
            assert body[-1].end_lineno - body[0].lineno < 14, node.name
