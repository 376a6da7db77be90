"""The public names: all there, all documented, one place for each, typed."""

import ast
import importlib
import inspect
import pathlib
import pkgutil

import pytest

import adamfx as fx

PACKAGE = pathlib.Path(fx.__file__).parent
PUBLIC = sorted(n for n, x in vars(fx).items() if not n.startswith("_") and not inspect.ismodule(x))
PUBLIC = sorted([*PUBLIC, "interop"])  # the one module that is a name of its own

# Reading order of the layout: a module imports only from those before it.
ORDER = [
    *(
        "values",
        "record",
        "trees",
        "checks",
        "single_pass",
        "sentence",
        "transformation",
        "schedules",
        "clipping",
    ),
    *("decay", "masks", "estimators", "moments", "corrections", "scaling", "combine", "optimizers"),
    *("groups", "wrappers", "averaging", "precision", "monitoring"),
    *("history", "interrupts", "training", "checkpoints", "interop"),
]


def test_contents_page():
    assert sorted(fx.__all__) == PUBLIC


def test_every_public_name_of_a_module_is_exported():
    for name in set(ORDER[ORDER.index("schedules") :]):
        module = importlib.import_module(f"adamfx.{name}")
        made = {
            n
            for n, x in vars(module).items()
            if inspect.isfunction(x) and x.__module__ == module.__name__ and not n.startswith("_")
        }
        inner = {"norm", "value_at", "predicate", "estimator", "square", "rates_of", "foreign"}
        inner |= {"mass", "as_recursion", "as_transformation"}
        assert made - inner <= set(PUBLIC) | set(vars(fx.interop)), name


@pytest.mark.parametrize("name", PUBLIC)
def test_documented(name):
    x = getattr(fx, name)
    if name in ("Dynamic", "Exact"):
        return
    assert x.__doc__
    assert len(x.__doc__) > 20


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    source = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in source.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adamfx"):
            names = (
                [node.module.partition(".")[2]]
                if "." in node.module
                else [a.name for a in node.names]
            )
            for name in names:
                assert ORDER.index(name) < ORDER.index(module), f"{module} imports {name}"


def test_the_order_names_every_module():
    found = {m.name for m in pkgutil.iter_modules([str(PACKAGE)]) if not m.ispkg}
    assert found == set(ORDER)


def test_the_package_needs_only_jax():
    allowed = {"adamfx", "jax", "numpy", "optax", "tqdm", "__future__"}
    import sys

    for module in ORDER:
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
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


def test_an_alias_holds_no_arithmetic():
    """optimizers.py: at most ten lines of code each, and not one arithmetic operation."""
    for node in ast.parse((PACKAGE / "optimizers.py").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            statements = [n for part in body for n in ast.walk(part)]
            assert not [n for n in statements if isinstance(n, (ast.BinOp, ast.AugAssign))], (
                node.name
            )
            assert body[-1].end_lineno - body[0].lineno < 14, node.name
