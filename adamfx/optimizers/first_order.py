"""Optimizers of the gradient and its momentum: SGD, Lion, signum and others without a second moment."""

from __future__ import annotations

from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.differences import scale_by_optimistic_gradient
from adamfx.blocks.guards import add_noise
from adamfx.blocks.rprop import scale_by_rprop
from adamfx.blocks.scaling import scale, scale_by_lr, sign
from adamfx.combine import chain, when
from adamfx.moments.corrections import nesterov as look_ahead
from adamfx.moments.estimators import aggregate, trace
from adamfx.moments.mixing import quasi_hyperbolic
from adamfx.moments.scale_by_moments import scale_by_moments
from adamfx.schedules import Decay, Rate
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import Floating, Mask, checked
from adamfx.values.constructor import Dynamic, Exact


@checked
def sgd(
    learning_rate: Rate,
    momentum: Decay | None = None,
    nesterov: bool = False,
    accumulator_dtype: Floating = None,
) -> GradientTransformation:
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum. Robbins & Monro 1951.

    The learning rate is outside the buffer, as in optax and torch. Inside it (Keras):
    `chain(scale_by_lr(lr), scale_by_moments(trace(momentum), None))`. torch's dampening:
    `chain(scale_by_moments(trace(momentum, dampening, first_whole=True), None), scale_by_lr(lr))`.

    Args:
      accumulator_dtype: of the momentum; None: as the parameter, float32 at least.
    """
    if momentum is None:
        return scale_by_lr(learning_rate)
    return chain(
        scale_by_moments(trace(momentum), None, mu_dtype=accumulator_dtype),
        when(nesterov, look_ahead()),
        scale_by_lr(learning_rate),
    )


@checked
def momentum(
    learning_rate: Rate, momentum: Decay = 0.9, nesterov: bool = False
) -> GradientTransformation:
    """Heavy-ball momentum: sgd with momentum 0.9. Polyak 1964; Nesterov 1983."""
    return sgd(learning_rate, momentum, nesterov)


@checked
def lion(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    mu_dtype: Floating = None,
    weight_decay: Rate = 1e-3,
    mask: Mask = None,
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


@checked
def signum(
    learning_rate: Rate, beta: Decay = 0.9, accumulator_dtype: Floating = None
) -> GradientTransformation:
    """The sign of the averaged gradient. Bernstein et al. 2018, algorithm 2."""
    return chain(
        scale_by_moments(beta, None, mu_dtype=accumulator_dtype),
        sign(),
        scale_by_lr(learning_rate),
    )


@checked
def sign_sgd(learning_rate: Rate) -> GradientTransformation:
    """The sign of the gradient. Bernstein et al. 2018, algorithm 1."""
    return chain(sign(), scale_by_lr(learning_rate))


@checked
def noisy_sgd(
    learning_rate: Rate, eta: Rate = 0.01, gamma: Exact = 0.55, seed: int = 0
) -> GradientTransformation:
    """SGD with normal noise of variance eta / t^gamma on the gradient. Neelakantan et al. 2014."""
    return chain(add_noise(eta, gamma, seed), scale_by_lr(learning_rate))


@checked
def optimistic_gradient_descent(
    learning_rate: Rate, alpha: Rate = 1.0, beta: Rate = 1.0
) -> GradientTransformation:
    """(alpha + beta) g - beta g_prev: for games. Mokhtari et al. 2020.

    The first gradient is its own predecessor, as in optax; in Daskalakis et al. 2018 it is zero.
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_lr(learning_rate))


@checked
def qhm(learning_rate: Rate, beta: Decay = 0.999, nu: Exact = 0.7) -> GradientTransformation:
    """A part nu of the averaged gradient, the rest of the gradient itself. Ma & Yarats 2019, QHM.

    Args:
      nu: the share of the momentum in the step, the rest is the gradient's; in [0, 1].
    """
    return chain(scale_by_moments(beta, None), quasi_hyperbolic(nu), scale_by_lr(learning_rate))


@checked
def aggmo(
    learning_rate: Rate, betas: tuple[float, ...] = (0.0, 0.9, 0.99)
) -> GradientTransformation:
    """The mean of several momenta. Lucas et al. 2019."""
    return chain(scale_by_moments(aggregate(betas), None), scale_by_lr(learning_rate))


@checked
def rprop(
    learning_rate: Dynamic,
    eta_minus: Exact = 0.5,
    eta_plus: Exact = 1.2,
    min_step_size: Exact = 1e-6,
    max_step_size: Exact = 50.0,
) -> GradientTransformation:
    """Steps of the sign, each of its own size. Riedmiller & Braun 1993.

    optax moves one step late; torch holds the first step within the bounds, too.
    """
    step = scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size)
    return chain(step, scale(-1.0))
