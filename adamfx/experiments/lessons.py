"""The claims of the Adam paper and of the lessons that lead to it, each as a small experiment."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adamfx as fx
from adamfx.experiments import figures, results
from adamfx.experiments.problems import curves, online
from adamfx.experiments.runner import Experiment, Options, Problem, Record, Study

GENERATED = "generated data"


def answer(gradients: Any) -> Problem:
    """Feeds gradients, (steps, size), to an optimizer, whatever it does with them.

    Measured are `x`, the first parameter, from 0 on, and what a monitor says.
    """
    gradients = jnp.asarray(gradients, jnp.float32)
    gradients = gradients[:, None] if gradients.ndim == 1 else gradients

    def loss(params, gradients, t, key):
        return params @ gradients[jnp.minimum(t, len(gradients) - 1)]

    def measure(params, state, gradients):
        return {"x": params[0], **fx.metrics(state)}

    return Problem(gradients, lambda key: jnp.zeros(gradients.shape[1]), loss, measure)


# ---- the lesson's quartic ------------------------------------------------------------------------

STEP_SIZES = [round(0.1 * i, 1) for i in range(1, 111)]


def quartic(options: Options) -> tuple[str, list[Study]]:
    """99 updates from x = -8, in float64, as in the lesson's NumPy program."""
    problem = Problem(
        (),
        lambda key: jnp.float64(-8.0),
        lambda x, data, t, key: curves.quartic(x),
        lambda x, state, data: {"x": x},
    )
    studies = []
    for b2 in (0.999, 0.5):
        compositions = {"Adam": fx.adam(1.0, b2=b2, eps=1e-10)}
        more = {"axes": {"learning_rate": STEP_SIZES}, "float64": True, "together": 110}
        studies.append(
            options.study(
                f"b2 = {b2}" if options.compositions is None else "yours",
                problem,
                compositions,
                99,
                **more,
            )
        )
        if options.compositions is not None:
            break
    return "L(x) = (x - 9) x (x + 1) (x + 6) / 200 + 4 from x = -8", studies


def arrivals(records: list[Record]) -> list[dict[str, float | bool]]:
    """For each step size: does it end on the global minimum's side, and was it ever past that minimum?"""
    return [
        {
            "learning_rate": r["point"]["learning_rate"],
            "end": float(r["x"][-1]),
            "arrives": bool(r["x"][-1] > curves.RIDGE),
            "overshoots": bool(r["x"].max() > curves.GLOBAL),
        }
        for r in records
    ]


def intervals(answers: list[dict[str, float | bool]], question: str) -> str:
    """The step sizes for which the answer is yes: "1.3 to 7.9, 9.6 to 10.1"."""
    runs = itertools.groupby(answers, lambda a: a[question])
    sizes = [[a["learning_rate"] for a in group] for yes, group in runs if yes]
    return ", ".join(f"{x[0]} to {x[-1]}" for x in sizes) or "none"


def draw_quartic(header: Record, records: list[Record]) -> Any:
    notes = {}
    for part, runs in results.group(records, "part").items():
        if all("learning_rate" in r["point"] for r in runs):
            answers = arrivals(runs)
            told = {
                "ends beyond the ridge, where the global minimum is": intervals(answers, "arrives"),
                "was once past that minimum": intervals(answers, "overshoots"),
            }
            notes[part] = "\n".join(f"{q}: {text}" for q, text in told.items())
    return figures.quartic(header, records, notes)


# ---- surfaces ------------------------------------------------------------------------------------


def surface_problem(surface: curves.Surface) -> Problem:
    def measure(p, state, data):
        return {"x": p[0], "y": p[1], "value": surface.function(p)}

    return Problem(
        (),
        lambda key: jnp.array(surface.start),
        lambda p, data, t, key: surface.function(p),
        measure,
    )


ZOO = {
    "SGD": fx.sgd(1.0),
    "Momentum": fx.momentum(1.0),
    "Nesterov": fx.momentum(1.0, nesterov=True),
    "AdaGrad": fx.adagrad(1.0),
    "RMSProp": fx.rmsprop(1.0),
    "Adam": fx.adam(1.0),
}


def surfaces(options: Options) -> tuple[str, list[Study]]:
    axes = {"learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0]}
    studies = []
    for name, surface in curves.SURFACES.items():
        problem = surface_problem(surface)
        studies.append(options.study(name, problem, ZOO, 200, axes=axes))
    return "exact gradients; + minima, * start", studies


def noise(options: Options) -> tuple[str, list[Study]]:
    """The quartic as the mean of many losses that are tilted apart: full batch against one example."""
    tilt = np.random.default_rng(0).normal(size=1000)
    tilts = jnp.asarray(3 * (tilt - tilt.mean()), jnp.float32)

    def problem(batch):
        def loss(x, tilts, t, key):
            drawn = tilts if batch is None else tilts[jax.random.randint(key, (batch,), 0, 1000)]
            return curves.quartic(x) + jnp.mean(drawn) * x

        def measure(x, state, tilts):
            return {"x": x, "value": curves.quartic(x)}

        return Problem(tilts, lambda key: jnp.float32(-8.0), loss, measure)

    compositions = {"SGD": fx.sgd(0.3), "Momentum": fx.momentum(0.3, 0.7), "Adam": fx.adam(0.3)}
    more = {"seeds": 20, "every": 4}
    studies = [
        options.study(part, problem(batch), compositions, 400, **more)
        for part, batch in (("full batch", None), ("mini-batches of 16", 16), ("one example", 1))
    ]
    return "the quartic, tilted by N(0, 9) for each of 1,000 examples", studies


# ---- moving averages -----------------------------------------------------------------------------


def averages(options: Options) -> tuple[str, list[Study]]:
    """The average itself is what a chain of scale_by_moments gives, at a rate of one."""
    t = np.arange(200)
    signal = 1 + 0.5 * np.random.default_rng(0).normal(size=(200, 1)) + 0 * t[:, None]
    compositions = {}
    for b in (0.9, 0.98):
        raw = fx.scale_by_moments(b, None)
        compositions[f"b = {b}"] = raw
        compositions[f"b = {b}, corrected"] = fx.chain(raw, fx.bias_correct())
    problem = answer(signal)
    return "1 + 0.5 N(0, 1)", [options.study("mean of the gradients", problem, compositions, 200)]


def draw_averages(header: Record, records: list[Record]) -> Any:
    fig, axes = figures.figure(header, 1, 2, (7, 4.5))
    look = figures.looks(r["name"] for r in records)
    left, right = axes[0]
    for r in records:
        average = np.diff(r["x"], prepend=0)
        text = figures.label(r["name"], r["sentence"])
        style = {**look[r["name"]], "markevery": 20}
        left.plot(r["step"], average, label=text, **style)
    left.axhline(1, color="grey", linewidth=0.8)
    left.set(xlabel="steps", ylabel="the moving average", title="of a signal with mean 1")
    for name, b in (("b = 0.9", 0.9), ("b = 0.98", 0.98)):
        if name in look:
            t = records[0]["step"]
            right.plot(t, 1 - b**t, label=f"1 - {b}^t", markevery=20, **look[name])
    right.set(
        xlabel="steps", ylabel="sum of the weights", title="mass: what the correction divides by"
    )
    for ax in (left, right):
        ax.grid(alpha=0.3)
    figures.legend(fig, axes)
    return fig


def step_bound(options: Options) -> tuple[str, list[Study]]:
    """Gradients that are zero but once, steady, and noise around zero."""
    steps, rng = 1000, np.random.default_rng(0)
    once = np.zeros(steps)
    once[-100] = 1.0
    streams = {"zero but once": once, "steady": np.ones(steps), "noise": rng.normal(size=steps)}
    watched = functools.partial(fx.monitor, metrics=("effective_step", "effective_step_bound"))
    compositions = {
        "Adam": watched(fx.adam(1.0, eps=0.0)),
        "Adam, b1 = 0": watched(fx.adam(1.0, b1=0.0, eps=0.0)),
    }
    options = options.wrapped(lambda tx: fx.monitor(tx, ("effective_step",)))
    return GENERATED, [
        options.study(part, answer(stream), compositions, steps) for part, stream in streams.items()
    ]


def signal_to_noise(options: Options) -> tuple[str, list[Study]]:
    """A noisy parabola: the ratio falls as the optimum comes near, and with it the step."""

    def loss(x, data, t, key):
        noisy = jax.random.normal(key, x.shape)
        return jnp.sum(x**2) / 2 + jnp.sum(x * noisy)

    def measure(x, state, data):
        return {"distance": jnp.linalg.norm(x), **fx.metrics(state)}

    problem = Problem((), lambda key: jnp.full(20, 5.0), loss, measure)
    metrics = ("signal_to_noise", "update_norm")
    compositions = {"Adam": fx.monitor(fx.adam(0.02), metrics)}
    options = options.wrapped(lambda tx: fx.monitor(tx, ("update_norm",)))
    return "gradients x + N(0, 1) in 20 dimensions from x = 5", [
        options.study("a noisy parabola", problem, compositions, 1500, every=10, seeds=5)
    ]


def rescaling(options: Options) -> tuple[str, list[Study]]:
    """The same surface, its gradients scaled by c; a step that depends on c is no unit."""
    surface = curves.SURFACES["ill-conditioned"]

    def problem(c):
        def measure(p, state, data):
            return {"x": p[0], "y": p[1], "value": surface.function(p)}

        return Problem(
            jnp.float32(c),
            lambda key: jnp.array(surface.start),
            lambda p, c, t, key: c * surface.function(p),
            measure,
        )

    compositions = {
        "SGD": fx.sgd(0.02),
        "Momentum": fx.momentum(0.01),
        "AdaGrad": fx.adagrad(0.3, eps=0.0),
        "RMSProp": fx.rmsprop(0.05, eps=0.0),
        "Adam": fx.adam(0.1, eps=0.0),
    }
    return "the ill-conditioned surface, its value times c", [
        options.study(f"c = {c:g}", problem(c), compositions, 150) for c in (1 / 64, 1.0, 64.0)
    ]


def sparse(options: Options) -> tuple[str, list[Study]]:
    """Least squares where most features are rare: only adaptive methods give them larger steps."""
    size = 100
    often = jnp.asarray(1 / np.arange(1, size + 1), jnp.float32)  # how often feature j is there
    target = jax.random.normal(jax.random.key(1), (size,))

    def loss(w, data, t, key):
        often, target = data
        x = jax.random.bernoulli(key, often, (8, size))
        return jnp.mean((x @ (w - target)) ** 2) / 2

    def measure(w, state, data):
        return {"rare_error": jnp.mean((w - data[1])[50:] ** 2) / jnp.mean(data[1][50:] ** 2)}

    problem = Problem((often, target), lambda key: jnp.zeros(size), loss, measure)
    axes = {"learning_rate": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]}
    compositions = {k: ZOO[k] for k in ("SGD", "Momentum", "AdaGrad", "RMSProp", "Adam")}
    more = {"every": 5, "seeds": 5, "axes": axes}
    return "feature j is there in one example of j, j = 1 ... 100", [
        options.study("sparse gradients", problem, compositions, 200, **more)
    ]


def drifting(options: Options) -> tuple[str, list[Study]]:
    """AdaGrad's sum only grows, so its steps die; an average forgets, so RMSProp and Adam follow."""

    def loss(x, data, t, key):
        target = 3 * jnp.sin(t / 300)
        return (x - target) ** 2 / 2 + x * jax.random.normal(key)

    def measure(x, state, data):
        told = fx.metrics(state)
        return {
            "x": x,
            "target": 3 * jnp.sin(state["count"] / 300),
            "step_size": told["update_norm"],
        }

    compositions = {
        name: fx.monitor(tx, ("update_norm",))
        for name, tx in {
            "AdaGrad": fx.adagrad(0.5),
            "RMSProp": fx.rmsprop(0.02, 0.99),
            "Adam": fx.adam(0.05),
        }.items()
    }
    problem = Problem((), lambda key: jnp.float32(0), loss, measure)
    options = options.wrapped(lambda tx: fx.monitor(tx, ("update_norm",)))
    return "a minimum that moves, 3 sin(t / 300), with gradient noise N(0, 1)", [
        options.study("a moving minimum", problem, compositions, 4000, every=20, seeds=5)
    ]


# ---- online learning and averages of parameters --------------------------------------------------

ONLINE = 10_000


def regret(options: Options) -> tuple[str, list[Study]]:
    """Theorem 4.1: alpha / sqrt(t) and b1 lambda^(t-1)."""
    steps = 2000 if options.quick else ONLINE
    stream = online.stream(jax.random.key(0), steps)

    def loss(theta, stream, t, key):
        at = jnp.minimum(t, steps - 1)
        return online.loss(theta, stream[0][at], stream[1][at])

    problem = Problem(stream, lambda key: jnp.zeros(10), loss, lambda p, s, d: {})
    rate = fx.inverse_sqrt_schedule(0.5)
    compositions = {
        "Adam": fx.adam(rate, b1=fx.lambda_decay_schedule(0.9, 0.999)),
        "AdaGrad": fx.adagrad(0.5),
        "SGD": fx.sgd(rate),
    }
    return "a stream of linear regression in 10 dimensions", [
        options.study("online learning", problem, compositions, steps)
    ]


def regrets(record: Record, points: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(T, R(T)) at about `points` times, spread evenly over the logarithm."""
    steps = len(record["loss"])
    at = np.unique(np.geomspace(20, steps, points).astype(int))
    x, y = map(np.asarray, online.stream(jax.random.key(0), steps))
    return at, online.regret(record["loss"], x, y, at)


def draw_regret(header: Record, records: list[Record]) -> Any:
    fig, axes = figures.figure(header, 1, 2, (6, 4.5))
    look = figures.looks(r["name"] for r in records)
    for r in records:
        at, found = regrets(r)
        style = {**look[r["name"]], "markevery": 8}
        for ax, y in zip(axes[0], (found / np.sqrt(at), found / at), strict=True):
            ax.plot(at, y, label=figures.label(r["name"], r["sentence"]), **style)
    axes[0, 0].set(xscale="log", xlabel="T", ylabel="R(T) / sqrt(T)", title="stays bounded")
    axes[0, 1].set(xscale="log", yscale="log", xlabel="T", ylabel="R(T) / T", title="goes to zero")
    for ax in axes[0]:
        ax.grid(alpha=0.3)
    figures.legend(fig, axes)
    return fig


def averaging(options: Options) -> tuple[str, list[Study]]:
    """Noisy least squares: the last iterate jitters, its averages do not. Excess risk of each."""
    size = 20

    def loss(w, target, t, key):
        k_x, k_noise = jax.random.split(key)
        x = jax.random.normal(k_x, (8, size))
        y = x @ target + jax.random.normal(k_noise, (8,))
        return jnp.mean((x @ w - y) ** 2) / 2

    def measure(w, state, target):
        def risk(w):
            return jnp.sum((w - target) ** 2) / 2

        return {"last_iterate": risk(w), "average": risk(fx.averaged_params(state, w))}

    problem = Problem(
        jax.random.normal(jax.random.key(1), (size,)), lambda key: jnp.zeros(size), loss, measure
    )
    compositions = {
        "Polyak": fx.average_params(fx.adam(0.03), fx.mean()),
        "EMA": fx.average_params(fx.adam(0.03), fx.ema(0.99)),
    }
    options = options.wrapped(lambda tx: fx.average_params(tx, fx.ema(0.99)))
    return "linear regression with noise, in 20 dimensions", [
        options.study("risk above the best", problem, compositions, 2000, every=10, seeds=5)
    ]


EXPERIMENTS = {
    "quartic": Experiment(
        "The one-dimensional lesson: which step sizes end on the side of the global minimum",
        quartic,
        draw_quartic,
    ),
    "surfaces": Experiment(
        "Optimizers on surfaces, each at the best of nine learning rates",
        surfaces,
        figures.surfaces,
        "value",
    ),
    "noise": Experiment(
        "The noise of mini-batches leaves a local minimum that the full batch falls into",
        noise,
        functools.partial(figures.lines, columns=("x", "value")),
        "value",
    ),
    "averages": Experiment(
        "Claim 1: a moving average that starts at zero is too small until its mass is one",
        averages,
        draw_averages,
    ),
    "step_bound": Experiment(
        "Claim 2: the effective step and its bounds, alpha = 1",
        step_bound,
        functools.partial(
            figures.lines,
            columns=("effective_step",),
            reference="effective_step_bound",
            log=True,
        ),
    ),
    "signal_to_noise": Experiment(
        "Claim 3: near the optimum the signal-to-noise ratio falls, and the steps with it",
        signal_to_noise,
        functools.partial(
            figures.lines,
            columns=("distance", "signal_to_noise", "update_norm"),
            log=True,
        ),
    ),
    "rescaling": Experiment(
        "Claim 4: Adam does not see the scale of the gradients",
        rescaling,
        functools.partial(figures.lines, columns=("value",), log=True),
        "value",
    ),
    "sparse": Experiment(
        "Claim 5: adaptive steps suit sparse gradients",
        sparse,
        functools.partial(figures.learning_curves, column="rare_error"),
        "rare_error",
    ),
    "drifting": Experiment(
        "Claim 5: AdaGrad's steps die; RMSProp and Adam follow a moving minimum",
        drifting,
        functools.partial(figures.lines, columns=("x", "step_size"), reference="target"),
    ),
    "regret": Experiment(
        "Claim 6: in online convex learning the regret grows like sqrt(T)", regret, draw_regret
    ),
    "averaging": Experiment(
        "Claim 7: averages of the parameters are better than the last iterate",
        averaging,
        functools.partial(
            figures.lines,
            columns=("average",),
            reference="last_iterate",
            log=True,
        ),
        "average",
    ),
}
