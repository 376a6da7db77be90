"""Optimizers that find their own learning rate: from distances, bets, or the value of the loss."""

from __future__ import annotations

from adamfx.blocks.adaptation import scale_by_dadapt_adamw, scale_by_prodigy
from adamfx.blocks.coin import scale_by_cocob
from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.distance import scale_by_dog, scale_by_dowg
from adamfx.blocks.loss import scale_by_momo, scale_by_polyak
from adamfx.blocks.scaling import scale_by_lr
from adamfx.combine import chain, unless_none
from adamfx.schedules import Rate
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import Mask, checked
from adamfx.values.constructor import Dynamic, Exact


@checked
def dog(
    learning_rate: Rate = 1.0,
    init_step: tuple[str, float] = ("heuristic", 1e-6),
    eps: Exact = 1e-8,
    weight_decay: Rate | None = None,
    mask: Mask = None,
) -> GradientTransformation:
    """SGD at the distance travelled over the root of the gradients' squares. Ivgi et al. 2023.

    The authors use it with an average of the parameters: `average_params(dog())`.
    """
    return chain(
        unless_none(add_decayed_weights, weight_decay, mask),
        scale_by_dog(init_step, eps),
        scale_by_lr(learning_rate),
    )


@checked
def ldog(
    learning_rate: Rate = 1.0,
    init_step: tuple[str, float] = ("heuristic", 1e-6),
    eps: Exact = 1e-8,
    weight_decay: Rate | None = None,
    mask: Mask = None,
) -> GradientTransformation:
    """DoG for every leaf on its own. Ivgi et al. 2023, L-DoG."""
    return chain(
        unless_none(add_decayed_weights, weight_decay, mask),
        scale_by_dog(init_step, eps, per_layer=True),
        scale_by_lr(learning_rate),
    )


@checked
def dowg(
    learning_rate: Rate = 1.0,
    init_estim_sq_dist: Exact | None = None,
    eps: Exact = 1e-4,
    weight_decay: Rate | None = None,
    mask: Mask = None,
) -> GradientTransformation:
    """DoG with gradients weighed by the distance. Khaled et al. 2023."""
    return chain(
        unless_none(add_decayed_weights, weight_decay, mask),
        scale_by_dowg(init_estim_sq_dist, eps),
        scale_by_lr(learning_rate),
    )


@checked
def prodigy(
    learning_rate: Rate = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: Exact | None = None,
    eps: Exact = 1e-8,
    estim_lr0: Exact = 1e-6,
    estim_lr_coef: Dynamic = 1.0,
    weight_decay: Dynamic = 0.0,
    safeguard_warmup: bool = False,
) -> GradientTransformation:
    """Adam that estimates its learning rate: `scale_by_prodigy`. Mishchenko & Defazio 2023."""
    return scale_by_prodigy(
        learning_rate,
        betas,
        beta3,
        eps,
        estim_lr0,
        estim_lr_coef,
        weight_decay,
        safeguard_warmup=safeguard_warmup,
    )


@checked
def dadapt_adamw(
    learning_rate: Rate = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: Exact = 1e-8,
    estim_lr0: Exact = 1e-6,
    weight_decay: Dynamic = 0.0,
) -> GradientTransformation:
    """AdamW that estimates its learning rate. Defazio & Mishchenko 2023 (D-Adaptation)."""
    return scale_by_dadapt_adamw(learning_rate, betas, eps, estim_lr0, weight_decay)


@checked
def cocob(
    learning_rate: Rate = 1.0,
    alpha: Dynamic = 100.0,
    eps: Exact = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """Bets on the gradient, without a learning rate. Orabona & Tommasi 2017.

    As in optax `learning_rate` multiplies the gradient, not the step: a constant one changes almost nothing.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )


@checked
def momo(
    learning_rate: Rate = 1.0,
    beta: Exact = 0.9,
    lower_bound: Dynamic = 0.0,
    weight_decay: Dynamic = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformation:
    """Momentum at the rate that a model of the loss allows; needs `value=`. Schaipp et al. 2024."""
    bound = {"lower_bound": lower_bound, "adapt_lower_bound": adapt_lower_bound}
    return scale_by_momo(learning_rate, beta, weight_decay=weight_decay, **bound)


@checked
def momo_adam(
    learning_rate: Rate = 1e-2,
    b1: Exact = 0.9,
    b2: Exact = 0.999,
    eps: Exact = 1e-8,
    lower_bound: Dynamic = 0.0,
    weight_decay: Dynamic = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformation:
    """Adam at the rate that a model of the loss allows; needs `value=`. Schaipp et al. 2024, algorithm 2."""
    bound = {"lower_bound": lower_bound, "adapt_lower_bound": adapt_lower_bound}
    return scale_by_momo(learning_rate, b1, b2, eps, weight_decay=weight_decay, **bound)


@checked
def polyak_sgd(
    max_learning_rate: Dynamic = 1.0,
    scaling: Rate = 1.0,
    f_min: Dynamic = 0.0,
    eps: Exact = 0.0,
    variant: str = "sps",
) -> GradientTransformation:
    """SGD with Polyak's step size; needs `value=`, the loss. Loizou et al. 2021.

    scaling multiplies the step, as optax says; its code squares it into the norm too.

    Args:
      scaling: the factor of the step, a number or a schedule.
    """
    return chain(scale_by_polyak(max_learning_rate, f_min, eps, variant), scale_by_lr(scaling))
