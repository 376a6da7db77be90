"""Words that keep a part of the update only: cautious masks."""

from __future__ import annotations

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import agree
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise


@block
def cautious():
    """u <- u [u g > 0] / max(mean([u g > 0]), 0.001): what agrees with g, over the part that is kept.

    g is the gradient as the moments before it saw it, the mean that of the leaf. The normaliser is that of
    the authors' C-AdamW and of timm; the paper's is size / (kept + 1). Stands before the weight decay and
    the learning rate:
    `chain(scale_by_moments(0.9, 0.999), bias_correct(), cautious(), scale_by_lr(lr))`. Liang et al. 2024.
    """

    def leaf(u, here):
        kept = agree(u, here.gradient).astype(u.real.dtype)
        return u * (kept / jnp.maximum(jnp.mean(kept), 1e-3))

    return leafwise(leaf)


@block
def cautious_weight_decay(weight_decay: Rate):
    """u <- u + weight_decay p [u p > 0]: decay only where the step shrinks p anyway.

    Needs params. In place of `add_decayed_weights`. Chen et al. 2025.

    Args:
      weight_decay: >= 0, or a schedule.
    """
    checks.number("cautious_weight_decay", "weight_decay", weight_decay, low=0)

    def leaf(u, here):
        return u + here.shared * jnp.where(agree(u, here.param), here.param, 0)

    shared = lambda step: value_at(weight_decay, step.count)  # noqa: E731
    return leafwise(leaf, shared=shared, needs_params=True)
