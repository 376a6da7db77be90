"""`plot`: pictures of what a sentence or a schedule does, each by one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.notebook.pictures import new_figure
from adamfx.notebook.responses import (
    SURFACES,
    computed,
    impulse,
    noise,
    orthogonalizer,
    spectrum,
    step,
    updates,
    way,
)
from adamfx.notebook.sentences import alias, words
from adamfx.schedules import Schedule, value_at
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import Kind, checked
from adamfx.values.value import Value, _show

Named = dict[str, Any]


def _is_shown(x: Any) -> bool:
    many = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else [x]
    return len(many) > 0 and all(
        isinstance(y, GradientTransformation) or (callable(y) and not isinstance(y, type))
        for y in many
    )


Shown = Annotated[
    Any, Kind(_is_shown, ("an optimizer, a schedule", "a list or dict of some, not empty"))
]


@checked
def plot(x: Shown, kind: str | None = None, *, steps: int | None = None, seed: int = 0) -> Any:
    """A picture of what a sentence or a schedule does; of several, one picture with a legend.

        fx.plot(fx.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000))
        fx.plot([fx.adam(1e-2), fx.lion(1e-3)], "paths")

    Args:
      x: an optimizer or a schedule; a list of them, or a dict by the words of the legend.
      kind: None: "schedule" of schedules, "step" of optimizers.
        "schedule": the numbers of a schedule; of an optimizer, all schedules in it.
        "step": the steps, -u, where the gradient is 0 for 5 steps, then 1.
        "impulse": the same where it is 1 once.
        "noise": the same for a gradient of 0.3 plus normal noise.
        "effective_rate": the size of a step over that of the gradient, both as root of the mean square, for
        normal noise.
        "paths": the ways on three surfaces with level lines: Rosenbrock's, Beale's, and a narrow valley.
        "spectrum": what becomes of the singular values of a gradient: by the orthogonalizer in the sentence,
        else those of the first step, over the largest.
      steps: how many; None: as many as the schedule has, or 100, 300 for paths.
      seed: of the noise.

    A matplotlib figure, which a notebook shows. Raises ImportError without matplotlib, ValueError for a
    sentence that has nothing of the kind or needs more than gradients and a loss.
    """
    named = x if isinstance(x, dict) else _labels(x if isinstance(x, (list, tuple)) else [x])
    named = {str(label): y for label, y in named.items()}
    optimizers = [isinstance(y, GradientTransformation) for y in named.values()]
    kind = kind or ("step" if all(optimizers) else "schedule")
    checks.choice("plot", "kind", kind, tuple(KINDS))
    if kind != "schedule" and not all(optimizers):
        raise ValueError(f"plot: {kind!r} is of optimizers; of schedules there is 'schedule'")
    if steps is not None:
        steps = checks.steps("plot", "steps", steps, 1)
    figure = new_figure(*((12.0, 4.2) if kind == "paths" else (6.4, 4.0)))
    KINDS[kind](figure, named, steps, seed)
    return figure


def _labels(many: Any) -> Named:
    """Short names: the optimizer that it is, and the numbers in which those of one name differ."""
    names = [_name(x) for x in many]
    found: Named = {}
    for name, x in zip(names, many, strict=True):
        alike = [y for n, y in zip(names, many, strict=True) if n == name]
        label = ", ".join([name, *_numbers(x, alike)])
        found[label if label not in found else f"{label} ({len(found) + 1})"] = x
    return found


def _name(x: Any) -> str:
    if isinstance(x, GradientTransformation):
        return alias(x) or checks.shortened(", ".join(word.name for word in words(x)), 50)
    return getattr(x, "name", "") or getattr(x, "__name__", "") or "schedule"


def _numbers(x: Any, alike: list[Any]) -> list[str]:
    if len(alike) < 2 or not isinstance(x, Value):
        return []
    own, tables = x.hyperparams, [y.hyperparams for y in alike]
    differ = [n for n in own if len({_show(t.get(n)) for t in tables}) > 1]
    return [f"{n.split('.')[-1]}={checks.shown(own[n], 30)}" for n in differ[:3]]


# ---- kinds ---------------------------------------------------------------------------------------


def _over_steps(figure: Any, ylabel: str, title: str = "") -> Any:
    ax = figure.subplots()
    ax.set(xlabel="step", ylabel=ylabel)
    ax.set_title(title, fontsize="medium")
    _plain(ax)
    return ax


def _plain(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)


def _legend(figure: Any, ax: Any, named: Named) -> None:
    """Within the picture where there is room, else beside it."""
    if len(named) > 5:
        lines, labels = ax.get_legend_handles_labels()
        figure.legend(lines, labels, fontsize="small", frameon=False, loc="outside right upper")
    elif len(named) > 1:
        ax.legend(fontsize="small", frameon=False)


def _response(title: str, signal: Callable[[int, int], Any]) -> Callable:
    def draw(figure: Any, named: Named, steps: int | None, seed: int) -> None:
        gradients = signal(steps or 100, seed)
        ax = _over_steps(figure, "step against the gradient, −u", title)
        for label, tx in named.items():
            ax.plot(-updates(label, tx, gradients)[:, 0, 0], label=label, lw=1.5)
        ax.axhline(0, color="black", lw=0.6)
        _legend(figure, ax, named)

    return draw


def _effective_rate(figure: Any, named: Named, steps: int | None, seed: int) -> None:
    gradients = noise(steps or 100, seed)
    ax = _over_steps(figure, "size of the step / size of the gradient", "normal noise")

    def size(x: Any) -> Any:
        return np.sqrt(np.mean(np.square(x), (1, 2)))

    for label, tx in named.items():
        rate = size(updates(label, tx, gradients)) / size(np.asarray(gradients))
        ax.plot(np.where(rate > 0, rate, np.nan), label=label, lw=1.5)
    ax.set_yscale("log")
    _legend(figure, ax, named)


def _schedules(figure: Any, named: Named, steps: int | None, seed: int) -> None:
    """A panel for each hyperparameter of optimizers; one for schedules."""
    panels: dict[str, Named] = {}
    for label, x in named.items():
        for name, y in (_inside(x) if isinstance(x, GradientTransformation) else {"": x}).items():
            panels.setdefault(name, {})[label] = y
    if not panels:
        raise ValueError(f"plot: no schedule in {', '.join(named)}; kind='step' shows what it does")
    counts = jnp.arange(
        steps or max(_length(x) for panel in panels.values() for x in panel.values())
    )
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, panel) in zip(axes, panels.items(), strict=True):
        for label, x in panel.items():
            at = jax.vmap(lambda n, x=x: jnp.asarray(value_at(x, n), float))
            ax.plot(computed(label, at, counts), label=label, lw=1.5)
        ax.set_title(name, fontsize="medium")
        _plain(ax)
    axes[-1].set(xlabel="step")
    _legend(figure, axes[0], named)


def _inside(tx: Any) -> Named:
    """The schedules in an optimizer by name, not those that a schedule is made of."""
    found: Named = {}
    for name, x in tx.hyperparams.items():
        if isinstance(x, Schedule) and not any(name.startswith(f"{n}.") for n in found):
            found[name] = x
    return found


def _length(x: Any) -> int:
    """How many steps a schedule has, as its arguments say; 1000 where they do not."""
    if not isinstance(x, Value):
        return 1000
    given = list(x.hyperparams.items())
    whole = [n for name, n in given if "steps" in name.split(".")[-1] and isinstance(n, int)]
    whole += [n for name, x in given if name.endswith("boundaries") for n in x]
    return max(10, round(1.1 * sum(whole))) if whole else 1000


def _paths(figure: Any, named: Named, steps: int | None, seed: int) -> None:
    for ax, (title, surface) in zip(figure.subplots(1, 3), SURFACES.items(), strict=True):
        function, start, minimum, xlim, ylim = surface
        x, y = np.meshgrid(np.linspace(*xlim, 200), np.linspace(*ylim, 200))
        height = np.log10(function(x, y) + 1e-3)
        ax.contour(x, y, height, 14, colors="gray", linewidths=0.5, linestyles="solid", alpha=0.6)
        for label, tx in named.items():
            points = way(label, tx, function, start, steps or 300)
            points = np.where(np.abs(points) < 1e3, points, np.nan)
            (line,) = ax.plot(*points.T, label=label, lw=1.4)
            ax.plot(*points[-1], "o", color=line.get_color(), ms=5)
        ax.plot(*start, "o", color="black", ms=4)
        ax.plot(*minimum, "*", color="black", ms=10)
        ax.set(xlim=xlim, ylim=ylim, title=title, xticks=[], yticks=[])
    lines, labels = figure.axes[0].get_legend_handles_labels()
    options = {"fontsize": "small", "frameon": False, "ncols": min(len(named), 5)}
    if len(named) > 1:
        figure.legend(lines, labels, loc="outside lower center", **options)


def _spectrum(figure: Any, named: Named, steps: int | None, seed: int) -> None:
    # Of sentences that divide by roots of squares in float32, what is far below the largest is rounding.
    least = 1e-4 if all(map(orthogonalizer, named.values())) else 1e-2
    ax = figure.subplots()
    for label, tx in named.items():
        ax.plot(*spectrum(label, tx, least, seed), label=label, marker=".", ms=3, lw=1.2)
    ax.axhline(1, color="black", lw=0.6)
    ax.set(xscale="log", xlabel="singular value of the gradient, over the largest")
    ax.set(ylabel="what it becomes", ylim=(min(0, ax.get_ylim()[0]), None))
    _plain(ax)
    _legend(figure, ax, named)


KINDS: dict[str, Callable] = {
    "schedule": _schedules,
    "step": _response("a gradient of 1, from step 5 on", step),
    "impulse": _response("a gradient of 1, once, at step 5", impulse),
    "noise": _response("a gradient of 0.3 and normal noise", lambda n, seed: noise(n, seed, 0.3)),
    "effective_rate": _effective_rate,
    "paths": _paths,
    "spectrum": _spectrum,
}
