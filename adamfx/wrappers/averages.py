"""Averages of the parameters over the steps, by the estimators of the gradient's moments."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from adamfx.combine import chain
from adamfx.engine import trees
from adamfx.engine.arithmetic import safe_divide
from adamfx.engine.packed import memories
from adamfx.moments.estimators import Estimator, mean
from adamfx.moments.scale_by_moments import mass, rates_of
from adamfx.transformation import GradientTransformation, block, leafwise
from adamfx.values.arguments import checked
from adamfx.values.constructor import Inner


@block
def keep_average(estimator: Estimator | None = None):
    """The average s + gain (p' - s) of p', the parameter after this step. Leaves the update, u <- u.

    p' is rounded as `step` rounds it; `update` rounds u as well, which for parameters below float32 may
    move p' by one more rounding.

    Needs params. Stands last in a chain. Read it with `tx.evaluate_at(state, params)`, or from the state
    alone with `averaged_params(state, params)`.

    Args:
      estimator: `mean()`, the default, all steps alike (Polyak & Juditsky 1992); or `ema(decay)`, with
        the bias of its start corrected when it is read (Kingma & Ba 2015, section 7.2).

    Remembers `average`, float32 at least, and for `ema` the log of the product of its decays.
    """
    estimator = mean() if estimator is None else estimator
    if not isinstance(estimator, Estimator) or estimator.name not in ("ema", "mean"):
        raise TypeError(
            f"keep_average: the estimator must be mean() or ema(decay), got {estimator!r}"
        )
    if estimator.arguments["of"] not in (None, "value"):
        raise ValueError(f"keep_average: it averages the parameters themselves, got {estimator!r}")
    r = estimator.meaning

    def init(p):  # the mean's first gain is one: where it starts does not matter
        return {"average": jnp.full_like(p, r.initial) if r.weighs else p}

    def init_shared():
        return {"average_log_product": np.zeros(2)} if r.weighs else {}

    def shared(step):
        old = step.memory.average_log_product if r.weighs else None
        rates, new = rates_of(r, step.count, old, lags=False)
        return rates, {"average_log_product": new} if r.weighs else {}

    def leaf(u, here):
        after = trees.round_to(here.param + u, here.dtype)
        return u, {"average": r.update(here.memory.average, after, here.shared)}

    def evaluate_at(p, here):
        if not here.memory._fields:  # a leaf that was frozen when the state was made
            return p
        w = mass(here.shared.memory.average_log_product) if r.weighs else jnp.ones(())
        return _unbiased(here.memory.average, w, p)

    return leafwise(
        leaf,
        init=init,
        shared=shared,
        init_shared=init_shared,
        needs_params=True,
        evaluate_at=evaluate_at,
    )


def _unbiased(average: Any, mass: Any, p: Any) -> Any:
    """The average over its mass; before the first step p."""
    w = mass.astype(trees.real_dtype(average.dtype))
    return jnp.where(w == 0, p.astype(average.dtype), safe_divide(average, w))


@checked
def average_params(
    transformation: Inner, estimator: Estimator | None = None
) -> GradientTransformation:
    """The transformation, followed by `keep_average(estimator)`.

        tx = average_params(adamw(1e-3), ema(0.999))
        ...
        evaluate(averaged_params(state, params))

    Inside `accumulate` it averages over the emitted steps.
    """
    return chain(transformation, keep_average(estimator))


def averaged_params(state: Any, params: Any) -> Any:
    """The average that `keep_average` holds in this state, in the dtype of the parameters.

    Before the first step, and for frozen leaves, the parameters themselves. `state` may be any tree
    with one such state in it. Raises ValueError where there is none, or more than one for a leaf.
    """
    found = memories(state, "average")
    if not found:
        raise ValueError(
            "averaged_params: this state holds no average; wrap the transformation in average_params, or "
            "end its chain with keep_average()"
        )
    trees.check_leaves("averaged_params", "params", params)
    result, structure = trees.flatten(params)
    taken = [False] * len(result)
    for memory in found:
        if trees.paths(memory.average) != trees.paths(params):  # Flax nnx has its own node types
            difference = trees.same_structure(memory.average, params)
            raise ValueError(
                f"averaged_params: the average is another tree than params: {difference}"
            )
        weighs = "average_log_product" in memory._fields
        w = mass(trees.the_array(memory.average_log_product)) if weighs else jnp.ones(())
        for j, s in enumerate(trees.flatten(memory.average)[0]):
            if s is None:
                continue
            if taken[j]:
                raise ValueError(
                    f"averaged_params: more than one average of {trees.paths(params)[j]} in this state; "
                    "pass the part of the state that you mean"
                )
            taken[j] = True
            p = jnp.asarray(result[j])
            if p.shape != s.shape:
                raise ValueError(
                    f"averaged_params: params at {trees.paths(params)[j]} have shape {p.shape}, the average "
                    f"{s.shape}"
                )
            result[j] = _unbiased(s, w, p).astype(p.dtype)
    return structure.unflatten(result)
