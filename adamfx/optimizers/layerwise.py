"""Optimizers with one step size per layer: LAMB, LARS, NovoGrad, Fromage."""

from __future__ import annotations

from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.radius import contract
from adamfx.blocks.scaling import scale_by_lr, scale_by_trust_ratio
from adamfx.combine import chain, when
from adamfx.moments.corrections import bias_correct
from adamfx.moments.corrections import nesterov as look_ahead
from adamfx.moments.estimators import ema, trace
from adamfx.moments.scale_by_moments import scale_by_moments
from adamfx.schedules import Decay, Rate
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import Mask, checked
from adamfx.values.constructor import Exact


@checked
def lamb(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-6,
    eps_root: Exact = 0.0,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """AdamW with a trust ratio per leaf. You et al. 2020, algorithm 2.

    The weight decay is inside the ratio, as in the paper and optax. Keras has it outside: put
    `add_decayed_weights` after `scale_by_trust_ratio()`.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root),
        bias_correct(),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_lr(learning_rate),
    )


@checked
def lars(
    learning_rate: Rate,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: Exact = 0.001,
    eps: Exact = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: Decay = 0.9,
    nesterov: bool = False,
) -> GradientTransformation:
    """Momentum with a trust ratio per leaf, the learning rate inside the buffer. You et al. 2017.

    The norm is of g + weight_decay p, as in optax; the paper adds the two norms.

    Args:
      trust_ratio_mask: a tree of bools, or a predicate: which leaves have a trust ratio.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_trust_ratio(0.0, trust_coefficient, eps, mask=trust_ratio_mask),
        scale_by_lr(learning_rate),
        scale_by_moments(trace(momentum), None),
        when(nesterov, look_ahead()),
    )


@checked
def novograd(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.25,
    eps: Exact = 1e-6,
    eps_root: Exact = 0.0,
    weight_decay: Rate = 0.0,
) -> GradientTransformation:
    """Momentum over gradients normalised per leaf; one number per leaf. Ginsburg et al. 2019.

    Nothing is corrected, as in the paper and optax; NVIDIA's apex averages and corrects both:
    `scale_by_moments(None, ema(b2, of="norm_square")), bias_correct()`, then
    `scale_by_moments(b1, None), bias_correct()`.
    """
    return chain(
        scale_by_moments(
            None, ema(b2, of="norm_square", first_whole=True), eps=eps, eps_root=eps_root
        ),
        add_decayed_weights(weight_decay),
        scale_by_moments(trace(b1), None),
        scale_by_lr(learning_rate),
    )


@checked
def fromage(learning_rate: Rate, min_norm: Exact = 1e-6) -> GradientTransformation:
    """A step of this part of each layer's norm, which keeps that norm. Bernstein et al. 2020, algorithm 1."""
    return chain(
        scale_by_trust_ratio(min_norm), scale_by_lr(learning_rate), contract(learning_rate)
    )
