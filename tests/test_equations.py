"""The equations of values: read as LaTeX by an evaluator of its own, they are what the code does."""

import re

import equations
import jax.numpy as jnp
import numpy as np
import pytest
import table
from conftest import enable_x64

from adamfx.notebook.equations import latex

STEPS = 5
SHAPES = {"b": (4,), "s": (), "w": (3, 4)}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s) for k, s in SHAPES.items()}


def stepped(tx):
    """The parameters after some steps of the code."""
    with enable_x64():
        p = {k: jnp.asarray(x) for k, x in tree(0).items()}
        state = tx.init(p)
        for t in range(STEPS):
            p, state = tx.step({k: jnp.asarray(x) for k, x in tree(t + 1).items()}, state, p)
        return [np.asarray(x) for x in p.values()]


# Said in words, for there is no formula of one line: the noise is random; bases, factors and projections
# come from decompositions; several traces, whose number is an argument.
WORDS = (
    *("noisy_sgd", "aggmo", "muon", "normuon", "muonh", "scion", "shampoo", "soap", "kl_soap"),
    *("kron", "galore", "apollo"),
)


def evaluated(text):
    masks = {"ndim\\_at\\_least(2)": [False, False, True]}
    masks["complement(ndim\\_at\\_least(2))"] = [True, True, False]
    gradients = [list(tree(t + 1).values()) for t in range(STEPS)]
    params, found = list(tree(0).values()), {}
    for mask, part in groups(text):
        chosen = masks[mask] if mask else [j not in found for j in range(len(params))]
        at = [j for j, x in enumerate(chosen) if x]
        mine = {n: [x[j] for j in at] for n, x in masks.items()}
        made = equations.Rows(part)
        assert not made.words, text
        picked = [[g[j] for j in at] for g in gradients]
        found |= dict(zip(at, made.run(picked, [params[j] for j in at], mine), strict=True))
    return [found[j] for j in range(len(params))]


def groups(text):
    """(mask, rows) of each group of leaves, that of all others last."""
    heads = r"& \\text{partition.*\n|& \\text{\w+, (.*):} \\\\\n|& \\text{default:} \\\\\n"
    _, *parts = re.split(heads, text)
    if not parts:
        return [(None, text)]
    return [
        (mask, rows.rstrip("\\\n ")) for mask, rows in zip(parts[::2], parts[1::2], strict=True)
    ][1:]


@pytest.mark.parametrize("name", [n for n in table.OPTIMIZERS if n not in WORDS])
def test_the_equation_is_the_optimizer(name):
    tx = table.OPTIMIZERS[name]
    for found, expected in zip(evaluated(latex(tx)), stepped(tx), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", WORDS)
def test_said_in_words(name):
    assert "\\text{" in latex(table.OPTIMIZERS[name])


def test_every_row_is_a_picture():
    """Of all transformations that there are: mathtext reads each row."""
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("path")
    for name, tx in table.TABLE.items():
        for row in rows(latex(tx)):
            try:
                parser.parse(f"${row}$")
            except ValueError as error:
                raise AssertionError(f"{name}: {row}") from error


def rows(text):
    text = text.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    return [row.replace("&", "") for row in text.split(" \\\\\n")]
