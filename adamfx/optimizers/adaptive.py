"""Optimizers that divide by a second moment of each parameter: Adam and its family."""

from __future__ import annotations

from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.scaling import scale_by_lr, scale_by_past_rms
from adamfx.combine import chain, when
from adamfx.moments.corrections import bias_correct, center, rectify, running_max
from adamfx.moments.corrections import nesterov as look_ahead
from adamfx.moments.estimators import decayed_max, ema, total, trace, yogi_ema
from adamfx.moments.scale_by_moments import scale_by_moments
from adamfx.schedules import Decay, Rate
from adamfx.transformation import GradientTransformation, identity
from adamfx.values.arguments import Floating, Mask, checked
from adamfx.values.constructor import Exact


@checked
def adagrad(
    learning_rate: Rate, initial_accumulator_value: Exact = 0.1, eps: Exact = 1e-7
) -> GradientTransformation:
    """The gradient over the root of the sum of its squares. Duchi et al. 2011.

    eps is under the root, as in optax and Keras. torch starts at 0 and adds 1e-10 outside:
    `chain(scale_by_moments(None, total(), eps=1e-10), scale_by_lr(lr))`.

    Args:
      initial_accumulator_value: >= 0, where v starts.
    """
    return chain(
        scale_by_moments(None, total(initial_accumulator_value), eps=eps, where="in"),
        scale_by_lr(learning_rate),
    )


@checked
def rmsprop(
    learning_rate: Rate,
    decay: Decay = 0.9,
    eps: Exact = 1e-8,
    initial_scale: Exact = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Decay | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransformation:
    """The gradient over the root of its average square. Tieleman & Hinton 2012; Graves 2013.

    eps is under the root and the learning rate inside the momentum, as in optax and Keras. torch:
    decay 0.99, eps outside, the learning rate last:
    `chain(scale_by_moments(None, 0.99), scale_by_moments(trace(momentum), None), scale_by_lr(lr))`,
    with `scale_by_moments(0.99, 0.99), center()` when centered.

    Args:
      decay: of v, in [0, 1), or a schedule.
      initial_scale: >= 0, where v starts.
      eps_in_sqrt: whether eps stands under the root.
      centered: divides by the deviation: the average of the gradient, squared, is taken off v.
      bias_correction: whether v is corrected.
    """
    where = "in" if eps_in_sqrt else "out"
    return chain(
        scale_by_moments(
            decay if centered else None, ema(decay, initial=initial_scale), eps=eps, where=where
        ),
        when(bias_correction, bias_correct()),
        when(centered, center()),
        scale_by_lr(learning_rate),
        identity() if momentum is None else scale_by_moments(trace(momentum), None),
        when(nesterov and momentum is not None, look_ahead()),
    )


@checked
def adadelta(
    learning_rate: Rate | None = None,
    rho: Exact = 0.9,
    eps: Exact = 1e-6,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
) -> GradientTransformation:
    """RMSProp in the units of the past updates. Zeiler 2012, algorithm 1.

    No learning rate means 1 (optax 0.2.8 then goes uphill). The weight decay is coupled, as in optax
    and torch, which agree with learning_rate=1.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_moments(None, rho, eps=eps, where="in"),
        scale_by_past_rms(rho, eps),
        scale_by_lr(1.0 if learning_rate is None else learning_rate),
    )


@checked
def adam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Floating = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """m_hat / (sqrt(v_hat) + eps). Kingma & Ba 2015, algorithm 1.

    optax and torch agree. Keras, and the paper's second form, add eps before the correction:
    `scale_by_moments(b1, b2, eps=1e-7, where="hat")`. Uncorrected: leave out `bias_correct()`.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        bias_correct(),
        when(nesterov, look_ahead()),
        scale_by_lr(learning_rate),
    )


@checked
def adamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Floating = None,
    weight_decay: Rate = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with decoupled weight decay. Loshchilov & Hutter 2019, algorithm 2.

    The decay is multiplied by the learning rate, as in optax and torch (whose default is 1e-2;
    Keras 4e-3). Independent of a constant one: weight_decay / learning_rate.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        bias_correct(),
        when(nesterov, look_ahead()),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def nadam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Floating = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """Adam with Nesterov's look-ahead. Dozat 2016.

    The look-ahead uses the constant b1, as in optax. torch's has a decay of its own; give that
    schedule to the block: with `mu = lambda n: b1 * (1 - 0.5 * 0.96 ** ((n + 1.0) * 4e-3))`, n the
    steps done before, `chain(scale_by_moments(b1, b2), bias_correct(), nesterov(mu),
    scale_by_lr(2e-3))`.
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


@checked
def nadamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Floating = None,
    weight_decay: Rate = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """NAdam with decoupled weight decay. Dozat 2016; Loshchilov & Hutter 2019."""
    return adamw(
        learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov
    )


@checked
def adamax(
    learning_rate: Rate, b1: Decay = 0.9, b2: Decay = 0.999, eps: Exact = 1e-8
) -> GradientTransformation:
    """m_hat over the decaying maximum of |g|. Kingma & Ba 2015, algorithm 2.

    eps is inside the maximum, as in optax and torch. Keras adds it to the maximum:
    `scale_by_moments(b1, decayed_max(b2), eps=1e-7)`.
    """
    return chain(
        scale_by_moments(b1, decayed_max(b2, eps=eps), eps=0.0),
        bias_correct(),
        scale_by_lr(learning_rate),
    )


@checked
def adamaxw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    weight_decay: Rate = 1e-4,
    mask: Mask = None,
) -> GradientTransformation:
    """AdaMax with decoupled weight decay. Kingma & Ba 2015; Loshchilov & Hutter 2019."""
    return chain(
        scale_by_moments(b1, decayed_max(b2, eps=eps), eps=0.0),
        bias_correct(),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def amsgrad(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Floating = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    """Adam over the largest second moment so far. Reddi et al. 2018, algorithm 2.

    The maximum is of the corrected moment, as in optax. torch takes it before the correction: swap
    the two words, `chain(scale_by_moments(b1, b2), running_max(), bias_correct(), scale_by_lr(lr))`.
    The paper corrects nothing: bias_correction_mu = bias_correction_nu = False.

    Args:
      bias_correction_mu: whether the first moment is corrected.
      bias_correction_nu: whether the second one is, before its maximum is taken.
    """
    side = None if bias_correction_mu else "second"
    side = side if bias_correction_nu else "first"
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        when(bias_correction_mu or bias_correction_nu, bias_correct(side)),
        running_max(),
        scale_by_lr(learning_rate),
    )


@checked
def radam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    threshold: Exact = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam that waits for the variance of v to be tractable. Liu et al. 2020, algorithm 2.

    eps is added after the correction, as in optax. torch adds it before:
    `chain(scale_by_moments(b1, b2, where="hat"), bias_correct(), rectify(), scale_by_lr(lr))`.

    Args:
      threshold: > 4: where rho_t, the length of the average, is below, the step is not divided.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root),
        bias_correct(),
        when(nesterov, look_ahead()),
        rectify(threshold),
        scale_by_lr(learning_rate),
    )


@checked
def adabelief(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-16,
    eps_root: Exact = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam over the deviation of g from its average. Zhuang et al. 2020, algorithm 2.

    eps_root is added to the stored moment at every step, as in the paper and optax.
    """
    return chain(
        scale_by_moments(b1, ema(b2, of="deviation", eps=eps_root), eps=eps),
        bias_correct(),
        when(nesterov, look_ahead()),
        scale_by_lr(learning_rate),
    )


@checked
def yogi(
    learning_rate: Rate, b1: Decay = 0.9, b2: Decay = 0.999, eps: Exact = 1e-3
) -> GradientTransformation:
    """Adam whose second moment moves by at most (1 - b2) g^2. Zaheer et al. 2018, algorithm 2.

    v starts at 1e-6, m at 0 as in the paper. optax starts m at 1e-6 too, so that a zero gradient
    moves the parameters: `chain(scale_by_moments(ema(b1, initial=1e-6), yogi_ema(b2), eps=1e-3),
    bias_correct(), scale_by_lr(lr))`.
    """
    return chain(
        scale_by_moments(b1, yogi_ema(b2), eps=eps),
        bias_correct(),
        scale_by_lr(learning_rate),
    )
