"""Adam with another word or two: slower averages, other numerators, other divisions."""

from __future__ import annotations

from collections.abc import Callable

from adamfx.blocks.clipping import clip
from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.differences import scale_by_optimistic_gradient
from adamfx.blocks.dual_averaging import scale_by_madgrad
from adamfx.blocks.scaling import scale_by_lr
from adamfx.combine import chain, unless_none, when
from adamfx.moments.adan import scale_by_adan
from adamfx.moments.corrections import bias_correct, running_max
from adamfx.moments.corrections import nesterov as look_ahead
from adamfx.moments.estimators import ema, seldom, trace
from adamfx.moments.mixing import (
    add_gradient,
    add_slow_average,
    arctan2,
    quasi_hyperbolic,
    stabilize,
)
from adamfx.moments.scale_by_moments import scale_by_moments
from adamfx.moments.statistics import given
from adamfx.schedules import Decay, Rate, constant_schedule, join_schedules, power_schedule
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import Floating, Mask, checked
from adamfx.values.constructor import Dynamic, Exact
from adamfx.wrappers.curvature import hutchinson, with_hessian

# A clip that lets nothing of the first update pass, and all of the others.
AFTER_THE_FIRST = join_schedules((constant_schedule(0.0), constant_schedule(1e30)), (1,))


@checked
def adan(
    learning_rate: Rate,
    b1: Decay = 0.98,
    b2: Decay = 0.92,
    b3: Decay = 0.99,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """Averages of the gradient and of its change. Xie et al. 2022, algorithm 1.

    The coefficient of the change is b2, as in the authors' code; optax has 1 - b2, and eps_root 1e-8. The
    authors decay by p / (1 + learning_rate weight_decay), here and in optax the decay is added.
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def ademamix(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay = 0.9999,
    alpha: Rate = 5.0,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Floating = None,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """Adam with a second, much slower first moment. Pagliardini et al. 2024, algorithm 1.

    The authors warm b3 and alpha up: give schedules.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        bias_correct(),
        add_slow_average(b3, alpha),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def simplified_ademamix(
    learning_rate: Rate,
    b1: Decay = 0.99,
    b2: Decay = 0.95,
    alpha: Rate = 0.0,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Floating = None,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """Adam whose first moment is a sum, with the gradient added again. Morwani et al. 2025."""
    return chain(
        scale_by_moments(trace(b1), b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        bias_correct("second"),
        add_gradient(alpha),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def adopt(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.9999,
    eps: Exact = 1e-6,
    mu_dtype: Floating = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Rate = power_schedule(0.25),  # noqa: B008
) -> GradientTransformation:
    """Divides by the second moment BEFORE this gradient, then averages. Taniguchi et al. 2024.

    The first step only fills the second moment. The clip at t^(1/4) is the authors' later form; without it,
    use_clipping=False, their algorithm 1.

    Args:
      use_clipping: False: no clip, and the first moment starts at the second step.
    """
    return chain(
        scale_by_moments(None, ema(b2, first_whole=True), eps=eps, where="floor", lag="second"),
        clip(clip_value_fn if use_clipping else AFTER_THE_FIRST),
        scale_by_moments(b1, None, mu_dtype=mu_dtype),
        when(nesterov, look_ahead()),
        scale_by_lr(learning_rate),
    )


@checked
def laprop(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-15,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """Divides first, then averages. Ziyin et al. 2020, algorithm 1.

    The learning rate is outside the average; the authors have it inside.
    """
    return chain(
        scale_by_moments(None, b2, eps=eps),
        bias_correct(),
        scale_by_moments(b1, None),
        bias_correct(),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def acprop(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-16,
    eps_root: Exact = 1e-16,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """The gradient over the deviation of the gradients BEFORE it. Zhuang et al. 2021.

    The first step divides by one. The deviation is from the average before, as in optax's code; from the
    average after (the authors'): of="deviation".
    """
    return chain(
        scale_by_moments(b1, ema(b2, of="innovation", eps=eps_root), eps=eps, lag="second"),
        bias_correct("second"),
        quasi_hyperbolic(0.0),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def padam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    power: Exact = 0.125,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """AMSGrad that divides by v^power, between SGD (0) and AMSGrad (1/2). Chen et al. 2020, algorithm 1.

    Both moments are corrected, before the maximum; the printed algorithm corrects nothing.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps, power=power),
        bias_correct(),
        running_max(),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def optimistic_adam(
    learning_rate: Rate,
    alpha: Rate = 1.0,
    beta: Rate = 1.0,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Floating = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Twice Adam's direction less the one before: for games. Daskalakis et al. 2018, algorithm 1.

    The learning rate is that of this step on both, as in optax's optimistic_adam_v2, which looks ahead by
    default; the paper does not.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        bias_correct(),
        when(nesterov, look_ahead()),
        scale_by_optimistic_gradient(alpha, beta),
        scale_by_lr(learning_rate),
    )


@checked
def qhadam(
    learning_rate: Rate,
    b1: Decay = 0.995,
    b2: Decay = 0.999,
    nu1: Exact = 0.7,
    nu2: Exact = 1.0,
    eps: Exact = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """Adam with a part of the gradient itself in both moments. Ma & Yarats 2019.

    The defaults are what the authors recommend; nu1 = nu2 = 1 is Adam, nu1 = b1 close to NAdam.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps),
        bias_correct(),
        quasi_hyperbolic(nu1, nu2),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def sophia(
    learning_rate: Rate,
    b1: Decay = 0.965,
    b2: Decay = 0.99,
    eps: Exact = 1e-8,
    weight_decay: Rate = 1e-4,
    weight_decay_mask: Mask = None,
    gamma: Exact = 0.01,
    clip_threshold: Rate | None = 1.0,
    update_interval: int = 10,
    estimator: Callable | None = hutchinson,
) -> GradientTransformation:
    """Momentum over the diagonal of the Hessian, clipped. Liu et al. 2023, algorithm 3.

    The estimate comes from `value_fn=` every update_interval steps; with estimator=None pass `hessian=`, a
    tree like the parameters. The step divides by the newest average, as in the paper; optax by the one
    before.

    Args:
      clip_threshold: the largest number of the step before the rate, > 0.
      gamma: the factor of the Hessian.
    """
    curvature = seldom(b2, update_interval, of=given("hessian", 1, gamma))
    direction = chain(
        scale_by_moments(b1, curvature, eps=eps, where="floor"),
        bias_correct("first"),
        unless_none(clip, clip_threshold),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_lr(learning_rate),
    )
    return direction if estimator is None else with_hessian(direction, estimator, update_interval)


@checked
def stable_adamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    eps: Exact = 1e-6,
    weight_decay: Rate = 1e-2,
    mask: Mask = None,
    *,
    clip_threshold: Exact = 1.0,
) -> GradientTransformation:
    """AdamW with Adafactor's clipping, so that v cannot lag behind. Wortsman et al. 2023, algorithm 2.

    The weight decay is not scaled down with the step, as in the authors' code; the printed algorithm, and
    optimi, do.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps),
        bias_correct(),
        stabilize(eps, clip_threshold),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def adam_atan2(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    a: Dynamic = 1.0,
    b: Exact = 1.0,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """Adam without eps: a atan2(m_hat, b sqrt(v_hat)). Everett et al. 2024.

    a = 1.27 = 4 / pi, b = 1 is common: then |m| = sqrt(v) moves as in Adam.

    Args:
      a: the factor of the arctangent.
      b: the factor of the root within it.
    """
    return chain(
        scale_by_moments(b1, b2, eps=0.0),
        bias_correct(),
        arctan2(a, b),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def madgrad(
    learning_rate: Rate, momentum: Exact = 0.9, weight_decay: Rate = 0.0, eps: Exact = 1e-6
) -> GradientTransformation:
    """Dual averaging with the cube root of the summed squares. Defazio & Jelassi 2021, algorithm 1.

    The weight decay is coupled, as in optax and the authors' code.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))
