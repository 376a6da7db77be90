"""Whether training with memory of 8 bits ends where training in float32 does.

Four small problems, whose large leaves are kept in 8 bits; four optimizers; five rates over two decades.
A seed says where a run begins and what it draws. The sweep of one optimizer on one problem is one program.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import adamfx as fx
from adamfx.experiments import data
from adamfx.experiments.problems.autoencoder import autoencoder
from adamfx.experiments.problems.network import network

MAKERS: dict[str, tuple[Callable, float, tuple[str, ...]]] = {  # optimizer, middle rate, memory
    "adamw": (fx.adamw, 3e-3, ("mu", "nu")),
    "lion": (fx.lion, 1e-3, ("mu",)),
    "lamb": (fx.lamb, 1e-2, ("mu", "nu")),
    "momentum": (functools.partial(fx.sgd, momentum=0.9), 3e-2, ("mu",)),
}
ROUNDINGS = {"to the nearest": False, "at random": True}
WIDE = {"embed": (1024, 512), "up": (512, 2048), "down": (2048, 512), "scale": (512,)}


def in_bytes(name: str, stochastic: bool) -> Any:
    """An optimizer with its memory in a byte per number."""
    make, rate, memory = MAKERS[name]
    kinds = {"mu": fx.int8, "nu": fx.uint8}
    return fx.stored(make(rate), **{n: kinds[n](stochastic=stochastic) for n in memory})


def state_bytes(name: str, shapes: Any) -> float:
    """Of the state of an optimizer in 8 bits, per parameter of a tree of these shapes."""
    state = jax.eval_shape(in_bytes(name, True).init, shapes)
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return held / sum(x.size for x in jax.tree.leaves(shapes))


def bytes_per_parameter(held: dict, name: str, of: list[str]) -> dict[str, float]:
    """By model: a wide one, then the problems, whose axes are narrow and some of whose leaves small."""
    wide = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in WIDE.items()}
    models = {"leaves of width 512": wide}
    for n in of:
        models[n] = jax.eval_shape(problem(n).init, jax.random.key(0))
    return {n: state_bytes(name, shapes) for n, shapes in models.items()}


# ---- the problems --------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Where a run begins, and its loss on examples that a key draws.

    Momentum's rates are divided by `steepness`. The other optimizers do not see how large gradients are.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, jax.Array], jax.Array]
    steepness: float = 1.0


def classified() -> Problem:
    """Digits, by a network of two hidden layers."""
    x, y = (jnp.asarray(part) for part in data.digits().train)
    model = network((64, 128, 128, 10))

    def loss(params, key):
        at = jax.random.randint(key, (32,), 0, len(x))
        return model.loss(params, x[at], y[at])

    return Problem(model.init, loss)


def encoded() -> Problem:
    """Digits, by a variational auto-encoder."""
    x = jnp.asarray(data.digits().train[0])
    model = autoencoder(64, 128, 32)

    def loss(params, key):
        draw, noise = jax.random.split(key)
        at = jax.random.randint(draw, (32,), 0, len(x))
        return model.loss(params, x[at], noise)

    return Problem(model.init, loss, steepness=8)


def factors(users: int = 256, items: int = 192, rank: int = 32, batch: int = 256) -> Problem:
    """Some ratings of a matrix of rank 8, by its factors. Few users and items are frequent, most are rare."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(users, 8)), rng.normal(size=(items, 8))
    ratings = left @ right.T * 8**-0.5 + 0.1 * rng.normal(size=(users, items))
    table = jnp.asarray(ratings, jnp.float32)

    def init(key):
        rows = 0.3 * jax.random.normal(key, (users + items, rank))
        return {"users": rows[:users], "items": rows[users:]}

    def loss(params, key):
        u = jax.random.uniform(key, (2, batch))
        i, j = (_zipf(x, n) for x, n in zip(u, table.shape, strict=True))
        error = jnp.sum(params["users"][i] * params["items"][j], 1) - table[i, j]
        return jnp.mean(error**2)

    return Problem(init, loss, steepness=1 / 8)


def _zipf(u: jax.Array, n: int) -> jax.Array:
    """Of u uniform in [0, 1), numbers below n, the i-th with a probability of about 1 / i."""
    return jnp.minimum(jnp.exp(u * math.log(n + 1)).astype(jnp.int32), n) - 1


def sequences(words: int = 128, width: int = 64, context: int = 16, batch: int = 4) -> Problem:
    """The next word of a generated text, by a layer of attention and one of hidden units.

    A word depends on the two before it; as in any language, most words are rare.
    """
    text = jnp.asarray(_text(words, 50_000), jnp.int32)
    shapes = {
        "embed": (words, width),
        "query, key, value": (width, 3 * width),
        "out": (width, width),
        "up": (width, 2 * width),
        "down": (2 * width, width),
        "head": (width, words),
    }

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {
            n: jax.random.normal(k, s) * s[0] ** -0.5
            for k, (n, s) in zip(keys, shapes.items(), strict=True)
        } | {"place": 0.1 * jax.random.normal(key, (context, width))}

    def unit(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def loss(params, key):
        begin = jax.random.randint(key, (batch, 1), 0, len(text) - context)
        x = text[begin + jnp.arange(context + 1)[None]]
        x, wanted = x[:, :-1], x[:, 1:]
        h = params["embed"][x] + params["place"][None]
        q, k, v = jnp.split(unit(h) @ params["query, key, value"], 3, -1)
        seen = jnp.tril(jnp.ones((1, context, context), bool))
        scores = jnp.where(seen, q @ k.mT * width**-0.5, -jnp.inf)
        h = h + jax.nn.softmax(scores) @ v @ params["out"]
        h = h + jax.nn.gelu(unit(h) @ params["up"]) @ params["down"]
        log_p = jax.nn.log_softmax(unit(h) @ params["head"])
        return -jnp.mean(jnp.take_along_axis(log_p, wanted[..., None], -1))

    return Problem(init, loss)


def _text(words: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    zipf = -np.log(1 + np.arange(words))
    last, before = rng.normal(size=(2, words, words))
    draws, found = rng.gumbel(size=(length, words)), [0, 0]
    for draw in draws:
        found.append(int(np.argmax(zipf + 2 * last[found[-1]] + before[found[-2]] + draw)))
    return np.asarray(found)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "classes": classified,
    "auto-encoder": encoded,
    "factors": factors,
    "sequences": sequences,
}


@functools.cache
def problem(name: str) -> Problem:
    """The problem of this name, its data made once."""
    return PROBLEMS[name]()


# ---- the sweep -----------------------------------------------------------------------------------


def losses(tx: Any, of: Problem, rates: Any, seeds: int, steps: int) -> tuple:
    """(at the start, at the end): the losses of runs, of shape (rates, seeds).

    That at the end is the mean over the last tenth of the steps, each on examples of its own.
    """

    def run(rate, seed):
        own = tx.replace(learning_rate=rate)
        keys = jax.random.split(jax.random.key(seed), steps + 1)
        params = of.init(keys[0])

        def step(carry, key):
            params, state = carry
            loss, grads = jax.value_and_grad(of.loss)(params, key)
            params, state = own.step(grads, state, params)
            return (params, state), loss

        _, found = jax.lax.scan(step, (params, own.init(params)), keys[1:])
        return found[0], jnp.mean(found[-max(steps // 10, 1) :])

    sweep = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    start, end = jax.jit(sweep)(jnp.asarray(rates, jnp.float32), jnp.arange(seeds))
    return np.asarray(start, np.float64), np.asarray(end, np.float64)


def rates(name: str, of: Problem, many: int = 5) -> np.ndarray:
    """Over two decades, from too low to too high: chosen by what float32 does, before 8 bits were tried."""
    middle = MAKERS[name][1] / (of.steepness if name == "momentum" else 1)
    return middle * np.geomspace(0.1, 10, many)


class Verdict(NamedTuple):
    """Of the rates of one optimizer on one problem."""

    within: np.ndarray  # by rate, whether the loss ends within the spread
    gaps: np.ndarray  # by rate, mean loss of 8 bits minus that of float32, in spreads
    best: float  # that at the best rate of float32, relative to its loss


def verdict(full: tuple, bits: tuple) -> Verdict:
    """Whether 8 bits end within the spread of float32, of what `losses` found.

    The spread is what three seeds of float32 differ by: their largest minus their least loss, the mean over
    all ways to choose three of the seeds there are. Within it is a rate whose mean loss over the seeds, of
    8 bits, is no further from that of float32 than the spread. There is no tolerance beyond. More seeds
    make the means and the spread steadier; they do not widen it. A mean that is not finite or is above
    that of the start has diverged; two that have are equal.
    """
    (start, ends), (_, found) = full, bits
    one, two = (np.where(np.isfinite(x), x, np.inf).mean(1) for x in (ends, found))
    lost, also = (x > start.mean(1) for x in (one, two))
    threes = itertools.combinations(range(ends.shape[1]), 3)
    with np.errstate(invalid="ignore"):
        spread = np.mean([np.ptp(ends[:, three], axis=1) for three in threes], axis=0)
        gap = two - one
        within = (lost & also) | (np.abs(gap) <= spread)
        best = int(np.argmin(one))
        return Verdict(within, gap / spread, float(gap[best] / one[best]))


def compared(held: dict, name: str, of: str, seeds: int, steps: int, many: int) -> dict:
    """A verdict for each way to round."""
    that, make = problem(of), MAKERS[name][0]
    sweep = rates(name, that, many), seeds, steps
    full = losses(make(1e-3), that, *sweep)
    return {
        how: verdict(full, losses(in_bytes(name, stochastic), that, *sweep))
        for how, stochastic in ROUNDINGS.items()
    }
