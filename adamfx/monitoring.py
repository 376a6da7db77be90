"""What happens inside a step, as numbers in the state: readable, scan-safe, checkpointed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamfx import checks, sentence, trees
from adamfx.clipping import norm
from adamfx.combine import as_transformation
from adamfx.estimators import Recursion
from adamfx.masks import VARIABLE
from adamfx.moments import as_recursion, mass
from adamfx.record import safe_divide, safe_root
from adamfx.schedules import value_at
from adamfx.transformation import GradientTransformation, block

Array = Any


class Observed(NamedTuple):
    """What a metric reads: lists of arrays, of one leaf or of all, and the scalars of the step."""

    gradients: list[Array]
    updates: list[Array]
    params: list[Array]
    ratios: list[Array]  # m_hat / sqrt(v_hat)
    bound: Array  # alpha max(1, (1 - b1) / sqrt(1 - b2))


def _size(arrays: list[Array]) -> Array:
    return _float32(norm(arrays))


def _largest(arrays: list[Array]) -> Array:
    sizes = [_float32(jnp.max(jnp.abs(x), initial=0)) for x in arrays]
    return functools.reduce(jnp.maximum, sizes, jnp.zeros((), jnp.float32))


def _root_mean_square(arrays: list[Array]) -> Array:
    return _size(arrays) / max(sum(x.size for x in arrays), 1) ** 0.5


METRICS: dict[str, Callable[[Observed], Array]] = {
    "gradient_norm": lambda o: _size(o.gradients),
    "update_norm": lambda o: _size(o.updates),
    "param_norm": lambda o: _size(o.params),
    "update_ratio": lambda o: safe_divide(_size(o.updates), _size(o.params)),
    "effective_step": lambda o: _largest(o.updates),
    "effective_step_bound": lambda o: o.bound,
    "signal_to_noise": lambda o: _root_mean_square(o.ratios),
}
DEFAULT = ("gradient_norm", "update_norm", "update_ratio")


@block
def monitor(transformation: Any, metrics: tuple[str, ...] = DEFAULT, per_leaf: bool = False):
    """Keeps numbers about each step of the transformation in the state, by name.

    gradient_norm         |g|, of what comes in
    update_norm           |u|, of what goes out
    param_norm            |p|, before the step
    update_ratio          |u| / |p|
    effective_step        max |u|, the largest step of any parameter
    effective_step_bound  alpha max(1, (1 - b1) / sqrt(1 - b2)), the bound of Adam's effective step
    signal_to_noise       the root mean square of m_hat / sqrt(v_hat): 1 for a steady gradient
    (Kingma & Ba 2015, section 2.1)

    Read them with `metrics(state)`; `fit` puts them into its history. optax's monitor measures the
    updates at one place of a chain, with functions; this one sees both ends of what it wraps.

    Args:
      transformation: what is watched.
      metrics: names of the list above. param_norm and update_ratio need params; the last two need
        exponential averages on both sides of a scale_by_moments, the bound also a scale_by_lr.
      per_leaf: also for each leaf alone, as `leaves`.

    Remembers `inner`, `metrics` and `leaves`: of the last step, zero before the first.
    """
    tx = as_transformation(transformation)
    if isinstance(metrics, str):
        metrics = (metrics,)
    for name in metrics:
        checks.choice("monitor", "metrics", name, tuple(METRICS))
    if "signal_to_noise" in metrics or "effective_step_bound" in metrics:
        _averages(tx)

    def init(params):
        def zero():
            return sentence.replicate(trees.anchor(params), jnp.zeros((), jnp.float32))

        leaves = {n: trees.map_trained(lambda p: zero(), params) for n in metrics if per_leaf}
        return sentence.remember(
            inner=tx.init(params), metrics={n: zero() for n in metrics}, leaves=leaves
        )

    def update(updates, state, params=None, **extra):
        if {"param_norm", "update_ratio"} & set(metrics):
            checks.given_params("update", "monitor", params, updates)
        new, inner = sentence.run(tx.blocks, updates, state.inner, params, extra, "carry")
        o = _observe(tx, metrics, updates, new, inner, params)
        found = {n: _float32(METRICS[n](_all(o))) for n in metrics}
        leaves, structure = {}, trees.flatten(updates)[1]
        for n in state.leaves:
            each = [
                None if u is None else _float32(METRICS[n](_one(o, j)))
                for j, u in enumerate(o.updates)
            ]
            leaves[n] = structure.unflatten(each)
        return new, sentence.remember(inner=inner, metrics=found, leaves=leaves)

    return sentence.Pair(init, update)


PER_LEAF = ("gradients", "updates", "params", "ratios")


def _float32(x: Array) -> Array:
    return jnp.asarray(x).astype(jnp.float32)


def _all(o: Observed) -> Observed:
    fields = {name: [x for x in getattr(o, name) if x is not None] for name in PER_LEAF}
    return o._replace(**fields)


def _one(o: Observed, j: int) -> Observed:
    return o._replace(**{name: getattr(o, name)[j : j + 1] for name in PER_LEAF})


def _observe(
    tx: GradientTransformation, metrics: Any, updates: Any, new: Any, inner: Any, params: Any
) -> Observed:
    g, u = (trees.flatten(x)[0] for x in (updates, new))
    p = [None] * len(g) if params is None else trees.flatten(params)[0]
    p = [None if x is None else y for x, y in zip(g, p, strict=True)]
    if not {"signal_to_noise", "effective_step_bound"} & set(metrics):
        return Observed(g, u, p, [None] * len(g), jnp.zeros((), jnp.float32))

    key, r1, r2 = _averages(tx)
    memory = inner[key]
    m, v = (trees.flatten(x)[0] for x in (memory.mu, memory.nu))
    w1, w2 = mass(memory.mu_log_product), mass(memory.nu_log_product)

    def ratio(m, v):
        m_hat = m / w1.astype(trees.real_dtype(m.dtype))
        return safe_divide(m_hat, safe_root(v / w2.astype(v.dtype)).astype(m.dtype))

    ratios = [None if x is None else ratio(y, z) for x, y, z in zip(g, m, v, strict=True)]
    count = inner["count"] - 1
    gains = [_float32(1 - value_at(r.decay, count)) for r in (r1, r2)]
    rates = [x.learning_rate for x in sentence.memories(inner, "learning_rate")]
    alpha = _float32(rates[0]) if rates else jnp.ones((), jnp.float32)
    bound = alpha * jnp.maximum(1.0, safe_divide(gains[0], safe_root(gains[1])))
    return Observed(g, u, p, ratios, bound)


def _averages(tx: GradientTransformation) -> tuple[str, Recursion, Recursion]:
    """The block of this sentence with averages on both sides: its key and their recursions."""
    for key, value in tx.blocks:
        if value.name == "scale_by_moments":
            r1 = as_recursion(value.arguments["b1"], "value")
            r2 = as_recursion(value.arguments["b2"], "square")
            if r1 is not None and r2 is not None and r1.weighs and r2.weighs:
                return key, r1, r2
    raise ValueError(
        "monitor: signal_to_noise and effective_step_bound need a scale_by_moments with exponential "
        f"averages on both sides, got {tx!r}; where it is inside a wrapper, put the monitor inside too"
    )


# ---- reading -------------------------------------------------------------------------------------

READ = ("learning_rate", "notfinite_count", "total_notfinite", "too_many", "dropped")


def metrics(state: Any) -> dict[str, Array]:
    """The numbers that a state tells of its last step, by name.

    What `monitor` keeps, the learning rate last applied, and the counters of skipped and dropped
    gradients. `gradient_norm` is global, `gradient_norm/dense/kernel` of one leaf. A name that occurs
    more than once is preceded by its path: `partition/embed/scale_by_lr/learning_rate`. `state` may be
    any tree of such states; inside jit too.
    """
    found = list(_told((), state))
    names = [name for _, name, _ in found]
    return {
        name if names.count(name) == 1 else "/".join((*outer, name)): x for outer, name, x in found
    }


def _told(outer: tuple[str, ...], state: Any) -> Iterator[tuple[tuple[str, ...], str, Array]]:
    """(path, name, number) of what blocks tell in a tree of states; their trees of arrays are not entered."""
    holds = sentence.is_memory
    for path, x in jax.tree_util.tree_leaves_with_path(state, is_leaf=holds):
        if not holds(x):
            continue
        here = (*outer, *(_key(k) for k in path))
        for field in x._fields:
            value = getattr(x, field)
            if field in READ:
                yield here, field, trees.the_array(value)
            elif field in ("metrics", "leaves"):
                for inside, y in jax.tree_util.tree_leaves_with_path(value):
                    inside = inside[:-1] if inside[-1:] == (VARIABLE,) else inside  # of Flax nnx
                    yield here, "/".join(map(_key, inside)), trees.the_array(y)
            elif field == "inner":
                yield from _told(here, value)


def _key(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)
