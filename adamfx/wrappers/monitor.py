"""What happens inside a step, as numbers in the state: readable, scan-safe, checkpointed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.arithmetic import safe_divide, safe_root
from adamfx.engine.memory import is_memory
from adamfx.engine.norms import norm
from adamfx.engine.packed import memories, plain
from adamfx.engine.placement import anchor, replicate
from adamfx.engine.trees import VARIABLE
from adamfx.moments.estimators import Recursion
from adamfx.moments.scale_by_moments import average_of, mass
from adamfx.schedules import value_at
from adamfx.transformation import GradientTransformation, block, treewise
from adamfx.values.constructor import Inner

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
def monitor(
    transformation: Inner, metrics: tuple[str, ...] | str = DEFAULT, per_leaf: bool = False
):
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
    tx = transformation
    if isinstance(metrics, str):
        metrics = (metrics,)
    for name in metrics:
        checks.choice("monitor", "metrics", name, tuple(METRICS))
    if "signal_to_noise" in metrics or "effective_step_bound" in metrics:
        _averages(tx)

    def start(leaves):
        def zero():
            return replicate(anchor(leaves.params), jnp.zeros((), jnp.float32))

        each = {n: leaves.tree([zero() for _ in leaves.params]) for n in metrics if per_leaf}
        whole = {n: zero() for n in metrics}
        return {"inner": tx.start(leaves), "metrics": whole, "leaves": each}

    def run(leaves, memory, step):
        new, inner = tx.run(leaves, memory.inner, step)
        o = _observe(tx, metrics, leaves, new, inner)
        found = {n: _float32(METRICS[n](o)) for n in metrics}
        each = {}
        for n in memory.leaves:
            column = [_float32(METRICS[n](_one(o, j))) for j in range(len(leaves))]
            each[n] = leaves.layout.tree(column)
        return new, {"inner": inner, "metrics": found, "leaves": each}

    needs = ("params",) if {"param_norm", "update_ratio"} & set(metrics) else ()
    wrapper = treewise(run, tx, needs=needs)
    return wrapper._replace(start=start, carried=("inner", "metrics", "leaves"))


PER_LEAF = ("gradients", "updates", "params", "ratios")


def _float32(x: Array) -> Array:
    return jnp.asarray(x).astype(jnp.float32)


def _one(o: Observed, j: int) -> Observed:
    return o._replace(**{name: getattr(o, name)[j : j + 1] for name in PER_LEAF})


def _observe(
    tx: GradientTransformation, metrics: Any, leaves: Any, new: Any, inner: Inner
) -> Observed:
    g, u, p = leaves.updates, new.updates, leaves.params or []
    if not ({"signal_to_noise", "effective_step_bound"} & set(metrics)):
        return Observed(g, u, p, [], jnp.zeros((), jnp.float32))

    key, r1, r2 = _averages(tx)
    memory = inner[key]
    m, v = (leaves.layout.column(key, x) for x in (memory.mu, memory.nu))
    w1, w2 = mass(memory.mu_log_product), mass(memory.nu_log_product)

    def ratio(m, v):
        m_hat = m / w1.astype(trees.real_dtype(m.dtype))
        return safe_divide(m_hat, safe_root(v / w2.astype(v.dtype)).astype(m.dtype))

    count = inner["count"] - 1
    gains = [_float32(1 - value_at(r.decay, count)) for r in (r1, r2)]
    rates = [x.learning_rate for x in memories(inner, "learning_rate")]
    alpha = _float32(rates[0]) if rates else jnp.ones((), jnp.float32)
    bound = alpha * jnp.maximum(1.0, safe_divide(gains[0], safe_root(gains[1])))
    return Observed(g, u, p, leaves.each(ratio, m, v), bound)


def _averages(tx: GradientTransformation) -> tuple[str, Recursion, Recursion]:
    """The block of this sentence with averages on both sides: its key and their recursions."""
    for key, value in tx.blocks:
        if value.name == "scale_by_moments":
            r1, r2 = average_of(value.arguments["b1"]), average_of(value.arguments["b2"])
            if r1 is not None and r2 is not None:
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
    found = list(_told((), plain(state)))
    names = [name for _, name, _ in found]
    return {
        name if names.count(name) == 1 else "/".join((*outer, name)): x for outer, name, x in found
    }


def _told(outer: tuple[str, ...], state: Any) -> Iterator[tuple[tuple[str, ...], str, Array]]:
    """(path, name, number) of what blocks tell in a tree of states; their trees of arrays are not entered."""
    holds = is_memory
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
