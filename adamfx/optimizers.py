"""Every optimizer is a sentence over the blocks.

Names, arguments and defaults are optax's where optax has the optimizer. What an argument means is
written at the block it goes to. Learning rates are numbers >= 0 or schedules; decays are numbers in
[0, 1), arrays or schedules. Each docstring says where the libraries differ: the default here, and
the other forms as sentences.
"""

from __future__ import annotations

from typing import Any

from adamfx.combine import chain
from adamfx.corrections import bias_correct, center, rectify, running_max
from adamfx.corrections import nesterov as look_ahead
from adamfx.decay import add_decayed_weights
from adamfx.estimators import decayed_max, ema, total, trace, yogi_ema
from adamfx.moments import scale_by_moments
from adamfx.scaling import scale_by_lr, scale_by_past_rms, scale_by_trust_ratio, sign
from adamfx.schedules import Decay, Rate
from adamfx.transformation import GradientTransformation, identity
from adamfx.values import Exact


def _when(condition: bool, block: GradientTransformation) -> GradientTransformation:
    return block if condition else identity()


# ---- first order ---------------------------------------------------------------------------------


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
        _when(nesterov, look_ahead()),
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


# ---- adaptive ------------------------------------------------------------------------------------


def adagrad(
    learning_rate: Rate, initial_accumulator_value: Exact = 0.1, eps: Exact = 1e-7
) -> GradientTransformation:
    """The gradient over the root of the sum of its squares. Duchi et al. 2011.

    eps is under the root, as in optax and Keras. torch starts at 0 and adds 1e-10 outside:
    `chain(scale_by_moments(None, total(), eps=1e-10), scale_by_lr(lr))`.
    """
    return chain(
        scale_by_moments(None, total(initial_accumulator_value), eps=eps, where="in"),
        scale_by_lr(learning_rate),
    )


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
    """
    where = "in" if eps_in_sqrt else "out"
    return chain(
        scale_by_moments(
            decay if centered else None, ema(decay, initial=initial_scale), eps=eps, where=where
        ),
        _when(bias_correction, bias_correct()),
        _when(centered, center()),
        scale_by_lr(learning_rate),
        identity() if momentum is None else scale_by_moments(trace(momentum), None),
        _when(nesterov and momentum is not None, look_ahead()),
    )


def adadelta(
    learning_rate: Rate | None = None,
    rho: Exact = 0.9,
    eps: Exact = 1e-6,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Any = None,
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


def adam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Any = None,
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
        _when(nesterov, look_ahead()),
        scale_by_lr(learning_rate),
    )


def adamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Any = None,
    weight_decay: Rate = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with decoupled weight decay. Loshchilov & Hutter 2019, algorithm 2.

    The decay is multiplied by the learning rate, as in optax and torch (whose default is 1e-2;
    Keras 4e-3). Independent of it: see `adamfx.decay`.
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        bias_correct(),
        _when(nesterov, look_ahead()),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def nadam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Any = None,
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


def nadamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Any = None,
    weight_decay: Rate = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """NAdam with decoupled weight decay. Dozat 2016; Loshchilov & Hutter 2019."""
    return adamw(
        learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov
    )


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


def adamaxw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    weight_decay: Rate = 1e-4,
    mask: Any = None,
) -> GradientTransformation:
    """AdaMax with decoupled weight decay. Kingma & Ba 2015; Loshchilov & Hutter 2019."""
    return chain(
        scale_by_moments(b1, decayed_max(b2, eps=eps), eps=0.0),
        bias_correct(),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def amsgrad(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    """Adam over the largest second moment so far. Reddi et al. 2018, algorithm 2.

    The maximum is of the corrected moment, as in optax. torch takes it before the correction: swap
    the two words, `chain(scale_by_moments(b1, b2), running_max(), bias_correct(), scale_by_lr(lr))`.
    The paper corrects nothing: bias_correction_mu = bias_correction_nu = False.
    """
    side = None if bias_correction_mu else "second"
    side = side if bias_correction_nu else "first"
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype),
        _when(bias_correction_mu or bias_correction_nu, bias_correct(side)),
        running_max(),
        scale_by_lr(learning_rate),
    )


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
    """
    return chain(
        scale_by_moments(b1, b2, eps=eps, eps_root=eps_root),
        bias_correct(),
        _when(nesterov, look_ahead()),
        rectify(threshold),
        scale_by_lr(learning_rate),
    )


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
        _when(nesterov, look_ahead()),
        scale_by_lr(learning_rate),
    )


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


# ---- layer-wise ----------------------------------------------------------------------------------


def lamb(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-6,
    eps_root: Exact = 0.0,
    weight_decay: Rate = 0.0,
    mask: Any = None,
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


def lars(
    learning_rate: Rate,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Any = True,
    trust_coefficient: Exact = 0.001,
    eps: Exact = 0.0,
    trust_ratio_mask: Any = True,
    momentum: Decay = 0.9,
    nesterov: bool = False,
) -> GradientTransformation:
    """Momentum with a trust ratio per leaf, the learning rate inside the buffer. You et al. 2017.

    The norm is of g + weight_decay p, as in optax; the paper adds the two norms.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_trust_ratio(0.0, trust_coefficient, eps, mask=trust_ratio_mask),
        scale_by_lr(learning_rate),
        scale_by_moments(trace(momentum), None),
        _when(nesterov, look_ahead()),
    )


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
