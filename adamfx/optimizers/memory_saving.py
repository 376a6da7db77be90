"""Optimizers that keep rows and columns, or one number per output, in place of a second moment."""

from __future__ import annotations

from adamfx.blocks.clipping import clip_by_block_rms
from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.scaling import scale, scale_by_lr, scale_by_param_block_rms
from adamfx.combine import chain, unless_none, when
from adamfx.masks import ndim_at_least
from adamfx.moments.corrections import bias_correct
from adamfx.moments.estimators import ema, mean, total
from adamfx.moments.mixing import undivided
from adamfx.moments.scale_by_moments import scale_by_moments
from adamfx.moments.statistics import mean_square, plus_eps
from adamfx.moments.storages import cover
from adamfx.moments.storages import factored as rows_and_columns
from adamfx.schedules import Decay, Rate
from adamfx.transformation import GradientTransformation
from adamfx.values.arguments import Floating, Mask, checked
from adamfx.values.constructor import Exact


@checked
def adafactor(
    learning_rate: Rate | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Exact = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Rate | None = 1.0,
    momentum: Decay | None = None,
    dtype_momentum: Floating = None,
    weight_decay_rate: Rate | None = None,
    eps: Exact = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask = None,
) -> GradientTransformation:
    """RMSProp of rows and columns, in steps relative to the parameter. Shazeer & Stern 2018.

    The two largest axes are factored, and only where both have min_dim_size_to_factor; torch and Keras take
    the last two of any size (Keras keeps all of v besides), and cap the rate at 1 / sqrt(t). The weight decay
    is not multiplied by the learning rate, as in optax.

    Args:
      learning_rate: a number or a schedule; None: the step has the size that the parameter's RMS gives.
      min_dim_size_to_factor: the two longest axes are factored where both are this long.
      decay_rate: c > 0: the average of step t has the gain t^-c.
      decay_offset: steps that t is behind, >= 0: for a count that goes on from another run's.
      multiply_by_parameter_scale: each leaf's step is multiplied by its parameter's RMS.
      clipping_threshold: > 0, the largest RMS of a leaf's update; None: no clip.
      weight_decay_rate: >= 0, or a schedule, not multiplied by the learning rate; None: none.
      factored: False: v is kept whole.
    """
    kept = rows_and_columns(min_dim_size_to_factor) if factored else None
    squares = mean(decay_rate, decay_offset, of=plus_eps("square", eps), storage=kept)
    return chain(
        scale_by_moments(None, squares, eps=0.0),
        unless_none(clip_by_block_rms, clipping_threshold),
        unless_none(scale_by_lr, learning_rate, flip_sign=False),
        when(multiply_by_parameter_scale, scale_by_param_block_rms()),
        unless_none(scale_by_moments, momentum, None, mu_dtype=dtype_momentum),
        unless_none(add_decayed_weights, weight_decay_rate, weight_decay_mask),
        scale(-1.0),
    )


@checked
def sm3(
    learning_rate: Rate, momentum: Decay | None = 0.9, eps: Exact = 1e-8
) -> GradientTransformation:
    """AdaGrad that keeps the largest of each row and column. Anil et al. 2019, SM3-II.

    momentum=None leaves out the average, which is as large as the parameter.
    """
    return chain(
        scale_by_moments(None, total(storage=cover()), eps=eps, where="in"),
        unless_none(lambda b: scale_by_moments(b, None), momentum),
        scale_by_lr(learning_rate),
    )


@checked
def adamini(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """AdamW with one number of v per output of a kernel, and one of a vector. Zhang et al. 2024, Adam-mini.

    A block is what reaches one output, axis -2. The authors choose blocks by the names of the layers, such as
    one per attention head: `view` and `partition` say that.
    """
    return chain(
        scale_by_moments(b1, ema(b2, of=mean_square(-2)), eps=eps),
        bias_correct(),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


@checked
def came(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay = 0.9999,
    eps: tuple[float, float] = (1e-30, 1e-16),
    clip_threshold: Rate = 1.0,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
    """Adafactor, divided by how far its updates stray from their average. Luo et al. 2023, algorithm 2.

    Vectors keep v whole, and take the average as it is.

    Args:
      b3: the decay of the squared deviation, in [0, 1), or a schedule.
    """
    kept = rows_and_columns(1)
    squares, strays = plus_eps("square", eps[0]), plus_eps("deviation", eps[1])
    return chain(
        scale_by_moments(None, ema(b2, of=squares, storage=kept), eps=0.0),
        clip_by_block_rms(clip_threshold),
        scale_by_moments(b1, ema(b3, of=strays, storage=kept), eps=0.0),
        undivided(~ndim_at_least(2)),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )
