"""Optimizers without a schedule, and private ones."""

from __future__ import annotations

from typing import Any

from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.scaling import scale_by_lr
from adamfx.combine import chain, unless_none
from adamfx.moments.corrections import bias_correct
from adamfx.moments.scale_by_moments import scale_by_moments
from adamfx.optimizers.first_order import sgd
from adamfx.schedules import Decay, Rate, linear_schedule
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import checked
from adamfx.values.constructor import Dynamic, Exact
from adamfx.wrappers.iterates import schedule_free
from adamfx.wrappers.privacy import differentially_private_aggregate


def _warmed_up(learning_rate: Any, steps: int | None) -> Rate:
    """0 at the first step, whole after so many."""
    return learning_rate if steps is None else linear_schedule(0.0, learning_rate, steps)


@checked
def schedule_free_sgd(
    learning_rate: Rate = 1.0,
    warmup_steps: int | None = None,
    b1: Exact = 0.9,
    weight_decay: Rate | None = None,
    weight_lr_power: Exact = 2.0,
) -> GradientTransformation:
    """SGD whose averages replace a schedule. Defazio et al. 2024.

    Use the model at `tx.evaluate_at(state, params)`. The warm-up begins at 0, as in optax; the authors' at
    1 / steps.
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    base = chain(unless_none(add_decayed_weights, weight_decay), scale_by_lr(rate))
    return schedule_free(base, rate, b1, weight_lr_power)


@checked
def schedule_free_adamw(
    learning_rate: Rate = 0.0025,
    warmup_steps: int | None = None,
    b1: Exact = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    weight_decay: Rate = 0.0,
    weight_lr_power: Exact = 2.0,
) -> GradientTransformation:
    """AdamW without a first moment, whose averages replace a schedule. Defazio et al. 2024.

    Use the model at `tx.evaluate_at(state, params)`. The decay is at the parameters, as in the authors'
    code; the paper's algorithm 1 has sqrt(1 - b2^t) in the weights, the decay and the step in place of the
    correction.
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    base = chain(
        scale_by_moments(None, b2, eps=eps),
        bias_correct(),
        add_decayed_weights(weight_decay),
        scale_by_lr(rate),
    )
    return schedule_free(base, rate, b1, weight_lr_power)


@checked
def dpsgd(
    learning_rate: Rate,
    l2_norm_clip: Dynamic,
    noise_multiplier: Dynamic,
    seed: int,
    momentum: Decay | None = None,
    nesterov: bool = False,
) -> GradientTransformation:
    """SGD of gradients of single examples, clipped and hidden in noise. Abadi et al. 2016.

    grads = per_example_grads(loss, microbatch_size=8)(params, batch)
    params, state = dpsgd(0.1, 1.0, 1.1, seed).step(grads, state, params)
    """
    aggregate = differentially_private_aggregate(l2_norm_clip, noise_multiplier, seed)
    return chain(aggregate, sgd(learning_rate, momentum, nesterov))
