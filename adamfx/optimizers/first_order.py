"""Optimizers of the gradient and its momentum: SGD, Lion, signum."""

from __future__ import annotations

from typing import Any

from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.scaling import scale_by_lr, sign
from adamfx.combine import chain, when
from adamfx.moments.corrections import nesterov as look_ahead
from adamfx.moments.estimators import trace
from adamfx.moments.scale_by_moments import scale_by_moments
from adamfx.schedules import Decay, Rate
from adamfx.transformation import GradientTransformation


def sgd(
    learning_rate: Rate,
    momentum: Decay | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> GradientTransformation:
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum. Robbins & Monro 1951.

    The learning rate is outside the buffer, as in optax and torch. Inside it (Keras):
    `chain(scale_by_lr(lr), scale_by_moments(trace(momentum), None))`. torch's dampening:
    `chain(scale_by_moments(trace(momentum, dampening, first_whole=True), None), scale_by_lr(lr))`.
    """
    if momentum is None:
        return scale_by_lr(learning_rate)
    return chain(
        scale_by_moments(trace(momentum), None, mu_dtype=accumulator_dtype),
        when(nesterov, look_ahead()),
        scale_by_lr(learning_rate),
    )


def momentum(
    learning_rate: Rate, momentum: Decay = 0.9, nesterov: bool = False
) -> GradientTransformation:
    """Heavy-ball momentum: sgd with momentum 0.9. Polyak 1964; Nesterov 1983."""
    return sgd(learning_rate, momentum, nesterov)


def lion(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    mu_dtype: Any = None,
    weight_decay: Rate = 1e-3,
    mask: Any = None,
) -> GradientTransformation:
    """The sign of b1 m + (1 - b1) g, m the average BEFORE this step. Chen et al. 2023, algorithm 2.

    Keras has no weight decay by default: weight_decay=0.
    """
    return chain(
        scale_by_moments(b2, None, lag="first", mu_dtype=mu_dtype),
        look_ahead(b1),
        sign(),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def signum(
    learning_rate: Rate, beta: Decay = 0.9, accumulator_dtype: Any = None
) -> GradientTransformation:
    """The sign of the averaged gradient. Bernstein et al. 2018, algorithm 2.

    signSGD: `chain(sign(), scale_by_lr(lr))`.
    """
    return chain(
        scale_by_moments(beta, None, mu_dtype=accumulator_dtype),
        sign(),
        scale_by_lr(learning_rate),
    )
