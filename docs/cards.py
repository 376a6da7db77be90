"""What is generated of the documentation: a card for each optimizer, the reference, pictures.

Nothing is typed here that a value can say itself.
"""

import inspect
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from docstrings import argument, common, paragraphs
from matplotlib.figure import Figure

import adamfx as fx
from adamfx import pages
from adamfx.notebook.responses import SURFACES, walk

SIDE = 256  # of the matrix whose state is measured
RATES, STEPS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), 300  # of the paths
FAMILIES = {
    "first_order": "The gradient and its momentum",
    "adaptive": "Adam and its family",
    "refined": "Adam with another word or two",
    "memory_saving": "Less memory",
    "layerwise": "Layer by layer",
    "matrix": "Matrices",
    "parameter_free": "No learning rate",
    "iterates": "No schedule; privacy",
    "second_order": "A loss without noise",
}
ROOMS = {
    "core": "Sentences and values",
    "moments": "Moments: estimators, storages, corrections",
    "blocks": "Blocks",
    "wrappers": "Wrappers",
    "schedules": "Schedules",
    "masks": "Masks",
    "training": "Training",
    "interop": "Other libraries",
}

DATA = {  # what has no docstring
    "Dynamic": "The annotation of a number that is a leaf: a new one compiles nothing.",
    "Exact": "The annotation of a number that stays exact, unless it is given as an array.",
    "Inner": "The annotation of a transformation that a wrapper wraps.",
    "NEWTON_SCHULZ": "The coefficients that ``orthogonalize`` knows, by name.",
    "COUNTERPARTS": "What optax calls otherwise: its name, and the one here.",
}


def optimizers() -> dict[str, list]:
    """The optimizers that have a page, by family."""
    found: dict[str, list] = {family: [] for family in FAMILIES}
    for name in fx.__all__:
        module = getattr(getattr(fx, name), "__module__", "")
        if module.startswith("adamfx.optimizers.") and name != "on_matrices":
            found[module.rpartition(".")[2]].append(getattr(fx, name))
    return found


def broken(text: str, width: int = 80, indent: str = "", end: str = "") -> str:
    """A call, or a dict, with a line for each part where it is longer than the width."""
    opening = min((text.find(c) for c in "([{" if c in text), default=-1)
    if len(indent + text + end) <= width or opening < 0 or text[-1] not in ")]}":
        return indent + text + end
    depth, start, parts, quoted = 0, opening + 1, [], False
    for i, c in enumerate(text[start:], start):
        quoted ^= c in "\"'"
        depth += 0 if quoted else (c in "([{") - (c in ")]}")
        if (c == "," and not depth and not quoted) or depth < 0:
            parts.append(text[start:i].strip())
            start = i + 1
    inner = "".join(broken(part, width, indent + "    ", ",") + "\n" for part in parts)
    return f"{indent}{text[: opening + 1]}\n{inner}{indent}{text[-1]}{end}"


def bytes_per_parameter(tx, *shape: int) -> str:
    """Of the state of float32 parameters of this shape, without the scalars."""
    state = jax.eval_shape(tx.init, {"w": jax.ShapeDtypeStruct(shape, jnp.float32)})
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.size > 64]
    return f"{sum(sizes) / math.prod(shape):.3g}"


def equation(tx) -> list[str]:
    """The update rule, where values can write it."""
    if not hasattr(tx, "_repr_latex_"):
        return []
    return ["## The equation", "", f"$$\n{tx._repr_latex_().strip('$')}\n$$", ""]


def at_its_best(tx):
    """It at the rate with which it is lowest, over surfaces and steps, and that rate; None if it has none."""
    if [name.split(".")[-1] for name in tx.hyperparams].count("learning_rate") != 1:
        return tx, None

    @jax.jit
    @jax.vmap
    def heights(rate):
        ways = [
            (f, walk(tx.replace(learning_rate=rate), f, start, STEPS))
            for f, start, *_ in SURFACES.values()
        ]
        return sum(jnp.mean(jnp.log10(f(*way.T) + 1e-3)) for f, way in ways)

    best = RATES[int(jnp.nanargmin(heights(jnp.array(RATES))))]
    return tx.replace(learning_rate=best), best


def picture(name: str, tx, matrices: bool, folder: Path) -> list[str]:
    """What it makes of a spectrum, if it steps matrices; else its way over surfaces."""
    if matrices:
        figure = fx.plot(tx, "spectrum")
        title, says = (
            "A spectrum",
            "The singular values of a random matrix, before and after a first step.",
        )
    else:
        try:
            tx, rate = at_its_best(tx)
            figure = fx.plot(tx, "paths", steps=STEPS)
        except ValueError:  # private: of the gradients of single examples
            return []
        grid = ", ".join(map(str, RATES))
        at = (
            ""
            if rate is None
            else f" with the learning rate {rate}, the best of {grid} for these three"
        )
        title, says = "A path", f"Its first {STEPS} steps on three surfaces, without noise{at}."
    figure.savefig(folder / f"{name}.png", dpi=100)
    return [f"## {title}", "", says, "", f"![{says}](../pictures/{name}.png)", ""]


def card(function, matrices: bool, pictures: Path) -> str:
    """The page of one optimizer; its picture goes to a folder."""
    name = function.__name__
    text, _, rest = fx.page(function).partition("\n\nArgs:\n")
    example = "\n".join(line.strip() for line in rest.splitlines()[-3:])
    tx = function(**pages._example(function))
    body = []
    for kind, part in paragraphs(text):
        body += [f"```text\n{part}\n```" if kind == "code" else common(part), ""]
    for n, meaning in pages._meanings(function).items():
        body += [argument(n, meaning)]
    return "\n".join([
        f"# {name}",
        "",
        f"::::{{py:function}} adamfx.{name}{_signature(function)}",
        "",
        *body,
        "::::",
        "",
        *equation(tx),
        "## The sentence",
        "",
        f"```python\n{broken(repr(tx))}\n```",
        "",
        "## Memory of the state",
        "",
        "| float32 parameters | bytes per parameter |",
        "| --- | --- |",
        f"| a matrix of {SIDE} x {SIDE} | {bytes_per_parameter(tx, SIDE, SIDE)} |",
        f"| a vector of {SIDE**2:,} | {bytes_per_parameter(tx, SIDE**2)} |",
        "",
        *picture(name, tx, matrices, pictures),
        "## Example",
        "",
        f"```python\n{example}\n```",
        "",
    ])  # fmt: skip


def _signature(function) -> str:
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=p.empty) for p in parameters]
    return str(inspect.Signature(bare))


def first_line(function) -> str:
    return common(inspect.cleandoc(function.__doc__).partition("\n")[0])


def write_cards(folder: Path, pictures: Path) -> None:
    """Cards with pictures, and the page that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    index = ["# Optimizer cards", "", "A card for each optimizer, made from the value.", ""]
    for family, functions in optimizers().items():
        names = [f.__name__ for f in functions]
        for f in functions:
            (folder / f"{f.__name__}.md").write_text(card(f, family == "matrix", pictures))
        index += [f"## {FAMILIES[family]}", ""]
        index += [f"- [`{f.__name__}`]({f.__name__}.md): {first_line(f)}" for f in functions]
        index += ["", "```{toctree}", ":hidden:", "", *names, "```", ""]
    (folder / "index.md").write_text("\n".join(index))


LOOKS = {
    "that warm up": {
        "warmup_cosine_decay_schedule": (0.0, 1.0, 100, 1000),
        "warmup_stable_decay_schedule": (1.0, 100, 600, 300),
        "warmup_exponential_decay_schedule": (0.0, 1.0, 100, 300, 0.3),
        "cosine_onecycle_schedule": (1000, 1.0),
        "linear_onecycle_schedule": (1000, 1.0),
    },
    "that fall": {
        "cosine_decay_schedule": (1.0, 1000),
        "linear_schedule": (1.0, 0.0, 1000),
        "exponential_decay": (1.0, 200, 0.5),
        "piecewise_constant_schedule": (1.0, {300: 0.5, 700: 0.2}),
        "inverse_sqrt_schedule": (1.0,),
        "power_cooling_schedule": (1.0, 500**-1.2, 1000),
    },
}


def write_pictures(folder: Path) -> None:
    """Schedules as curves."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(7, 7), layout="constrained")
    counts = jnp.arange(1001)
    for ax, (title, calls) in zip(figure.subplots(2, 1), LOOKS.items(), strict=True):
        for n, (name, arguments) in enumerate(calls.items()):
            values = jax.vmap(getattr(fx, name)(*arguments))(counts)
            ax.plot(counts, values, "-" if n % 2 else "--", label=name.removesuffix("_schedule"))
        ax.set(title=f"schedules {title}", xlabel="step", ylabel="rate / peak")
        ax.legend(fontsize="small", frameon=False)
    figure.savefig(folder / "schedules.png", dpi=110)


def room(name: str) -> str:
    module = getattr(getattr(fx, name), "__module__", "") or ""
    place = module.removeprefix("adamfx.").partition(".")[0]
    if name == "on_matrices":
        return "wrappers"
    if name == "NEWTON_SCHULZ":
        return "blocks"
    return place if place in ROOMS else "core"


def write_reference(folder: Path) -> None:
    """A page for each room, from the docstrings."""
    folder.mkdir(parents=True, exist_ok=True)
    carded = {f.__name__ for functions in optimizers().values() for f in functions}
    by_room: dict[str, list[str]] = {r: [] for r in ROOMS}
    for name in fx.__all__:
        if name not in carded and name != "interop":
            by_room[room(name)].append(name)
    of_interop = fx.interop.__all__
    index = ["# API reference", "", "Every public name, by what it is for. Optimizers have",
             "[cards](../optimizers/index.md) of their own.", ""]  # fmt: skip
    for r, title in ROOMS.items():
        page = [f"# {title}", "", "```{eval-rst}", ".. currentmodule:: adamfx", ""]
        for name in by_room[r]:
            page += _directive(name, getattr(fx, name))
        if r == "interop":
            page += [".. currentmodule:: adamfx.interop", ""]
            for name in of_interop:
                page += _directive(name, getattr(fx.interop, name))
        (folder / f"{r}.md").write_text("\n".join([*page, "```", ""]))
        names = by_room[r] + (of_interop if r == "interop" else [])
        index += [f"## [{title}]({r}.md)", "", ", ".join(f"`{n}`" for n in names), ""]
    index += ["```{toctree}", ":hidden:", "", *ROOMS, "```", ""]
    (folder / "index.md").write_text("\n".join(index))


def _directive(name: str, x) -> list[str]:
    if inspect.isclass(x):
        return [f".. autoclass:: {name}", "   :members:", ""]
    if callable(x) and inspect.isfunction(x):
        return [f".. autofunction:: {name}", ""]
    return [f".. py:data:: {name}", "", f"   {DATA[name]}", ""]
