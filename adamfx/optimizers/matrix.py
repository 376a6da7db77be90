"""Optimizers of matrices: orthogonalized, whitened, seen in a basis of their own, on a sphere.

Each steps the leaves that `matrices` names (by default all with two axes and more, the last two being the
matrix) and leaves the others to AdamW at the same rate, in a `partition` that its repr shows. With another
rate, and with embeddings and the last layer left to AdamW too, as the authors do:

    muon(0.02, matrices=ndim_at_least(2) & ~path_matches("embed/*"), others=adamw(3e-4))
"""

from __future__ import annotations

from typing import Any

from adamfx import checks
from adamfx.blocks.apollo import scale_by_apollo
from adamfx.blocks.clipping import clip_by_block_rms
from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.kron import scale_by_kron
from adamfx.blocks.matrices import normalize_over, orthogonalize, scale_by_shape
from adamfx.blocks.radius import hyperball
from adamfx.blocks.scaling import scale as multiply
from adamfx.blocks.scaling import scale_by_lr, sign
from adamfx.combine import chain, unless_none, when
from adamfx.masks import ndim_at_least
from adamfx.moments.bases import eigenbasis, kl_eigenbasis, kronecker
from adamfx.moments.corrections import bias_correct, nesterov
from adamfx.moments.estimators import ema, trace
from adamfx.moments.scale_by_moments import scale_by_moments
from adamfx.moments.statistics import mean_square
from adamfx.optimizers.adaptive import adamw
from adamfx.schedules import Decay, Rate, ScheduleFunction
from adamfx.transformation import GradientTransformation, identity
from adamfx.values.arguments import Mask, checked
from adamfx.values.constructor import Dynamic, Exact
from adamfx.wrappers.grafting import graft
from adamfx.wrappers.groups import partition
from adamfx.wrappers.views import in_blocks, low_rank, view

MATRICES = ndim_at_least(2)


@checked
def on_matrices(
    transformation: GradientTransformation,
    others: GradientTransformation,
    matrices: Mask = MATRICES,
) -> GradientTransformation:
    """The transformation for the matrices, another for all other leaves.

    Args:
      transformation: for the leaves that `matrices` names.
      others: for the rest.
      matrices: a predicate such as ndim_at_least(2), or a callable of the parameters that returns a tree of
        bools.
    """
    return partition({"matrix": transformation}, {"matrix": matrices}, default=others)


@checked
def whiten(decay: Exact = 1.0, every: int = 1, eps: Exact = 1e-12, max_dim: int = 10_000):
    """L^(-1/4) u R^(-1/4), L and R sums (decay 1) or averages of u u^T and u^T u. Gupta et al. 2018.

    `kronecker` says what the arguments are.
    """
    second = kronecker(decay, every, eps, max_dim)
    return chain(scale_by_moments(None, second, eps=0.0), bias_correct())


def _momentum(form: str, beta: Decay, look_ahead: bool, dtype: Any = None):
    """Momentum as the three forms of Muon have it."""
    average = trace(beta) if form == "moonlight" else beta
    return chain(
        scale_by_moments(average, None, mu_dtype=dtype),
        when(form == "optax", bias_correct()),
        when(look_ahead, nesterov()),
    )


@checked
def muon(
    learning_rate: Rate,
    beta: Decay = 0.95,
    weight_decay: Rate = 0.0,
    *,
    form: str = "optax",
    coefficients: Any = "jordan",
    nesterov: bool = True,
    consistent_rms: Dynamic | None = None,
    eps: Exact = 1e-7,
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """Momentum, orthogonalized. Jordan et al. 2024; Liu et al. 2025 (Moonlight).

    The forms differ in the momentum: "jordan" an average, never corrected; "moonlight" a sum; "optax" a
    corrected average with Dozat's look-ahead, up to 5 % apart from the others in the first steps. The scale
    is sqrt(max(1, outputs / inputs)), or consistent_rms sqrt(max(inputs, outputs)): 0.2 in Moonlight and
    Keras, where rates of AdamW carry over. eps is added to the norm: 1e-7 with Jordan, 1e-8 in optax.

    Args:
      form: "jordan", "moonlight" or "optax".
      consistent_rms: the factor of sqrt(max(inputs, outputs)); None: sqrt(max(1, outputs / inputs)).
    """
    checks.choice("muon", "form", form, ("jordan", "moonlight", "optax"))
    by_shape = unless_none(lambda c: scale_by_shape("max", c), consistent_rms)
    direction = chain(
        _momentum(form, beta, nesterov),
        orthogonalize(coefficients, eps=eps),
        scale_by_shape("fan") if consistent_rms is None else by_shape,
        add_decayed_weights(weight_decay),
        scale_by_lr(learning_rate),
    )
    return on_matrices(direction, others or adamw(learning_rate), matrices)


@checked
def normuon(
    learning_rate: Rate,
    beta: Decay = 0.95,
    b2: Decay = 0.95,
    weight_decay: Rate = 0.0,
    *,
    coefficients: Any = "jordan",
    eps: Exact = 1e-10,
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """Muon with one second moment per output, at the norm it had. Li et al. 2025, as the authors' code."""
    per_output = scale_by_moments(None, ema(b2, of=mean_square(-2)), eps=eps)
    direction = chain(
        _momentum("jordan", beta, look_ahead=True),
        orthogonalize(coefficients),
        graft(per_output, eps=eps),
        scale_by_shape("fan"),
        add_decayed_weights(weight_decay),
        scale_by_lr(learning_rate),
    )
    return on_matrices(direction, others or adamw(learning_rate), matrices)


@checked
def muonh(
    learning_rate: Rate = 0.014,
    beta: Decay = 0.95,
    *,
    coefficients: Any = "record",
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """Muon whose steps turn each matrix on the sphere where it began. modded-nanogpt, track 3."""
    direction = chain(
        _momentum("jordan", beta, look_ahead=True),
        orthogonalize(coefficients),
        hyperball(learning_rate),
    )
    return on_matrices(direction, others or adamw(learning_rate), matrices)


@checked
def adamh(
    learning_rate: Rate = 0.005,
    b1: Decay = 0.9,
    b2: Decay = 0.95,
    eps: Exact = 1e-8,
    *,
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """Adam whose steps turn each matrix on the sphere where it began. modded-nanogpt, track 3."""
    direction = chain(scale_by_moments(b1, b2, eps=eps), bias_correct(), hyperball(learning_rate))
    return on_matrices(direction, others or adamw(learning_rate), matrices)


@checked
def scion(
    learning_rate: Rate,
    beta: Decay = 0.9,
    weight_decay: Rate = 1.0,
    *,
    coefficients: Any = "jordan",
    radius: Dynamic = 50.0,
    last: Mask = None,
    last_radius: Dynamic = 3000.0,
    matrices: Mask = MATRICES,
) -> GradientTransformation:
    """The step of one length in the norm of each layer: spectral, rms for vectors, signs for the last.

    Pethick et al. 2025, algorithm 2; weight_decay=0 is the unconstrained form. `last` names the layer that
    takes signs over its inputs (None: no leaf). Vectors step by lr times their direction over its rms.

    Args:
      radius: the factor of the hidden matrices' steps.
      last: which leaves are the last layer, by a predicate; None: none.
      last_radius: the factor of the last layer's steps.
    """
    after = (add_decayed_weights(weight_decay), scale_by_lr(learning_rate))
    average = scale_by_moments(beta, None)
    spectral = chain(orthogonalize(coefficients), scale_by_shape("ratio", radius))
    signs = chain(sign(), scale_by_shape("inputs", last_radius))
    vectors = chain(average, normalize_over(rms=True, eps=1e-8), *after)
    hidden = on_matrices(chain(average, spectral, *after), vectors, matrices)
    if last is None:
        return hidden
    return partition({"last": chain(average, signs, *after)}, {"last": last}, default=hidden)


@checked
def shampoo(
    learning_rate: Rate,
    b1: Decay | None = 0.9,
    b2: Exact = 0.999,
    eps: Exact = 1e-12,
    every: int = 10,
    weight_decay: Rate = 0.0,
    *,
    block_size: int = 1024,
    magnitude: GradientTransformation | None = None,
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """L^(-1/4) m R^(-1/4), with the size of another sentence's update. Gupta et al. 2018; Anil et al. 2020.

    Both axes are cut into blocks. `magnitude` grafts its size; None: Adam's. identity() is none.

    Args:
      block_size: the longest side of a block.
    """
    moments = scale_by_moments(b1, kronecker(b2, every, eps), eps=0.0)
    whitened = view(chain(moments, bias_correct()), in_blocks(block_size))
    size = chain(scale_by_moments(b1, 0.999), bias_correct()) if magnitude is None else magnitude
    direction = chain(
        whitened if size == identity() else graft(whitened, size),
        add_decayed_weights(weight_decay),
        scale_by_lr(learning_rate),
    )
    return on_matrices(direction, others or adamw(learning_rate), matrices)


@checked
def soap(
    learning_rate: Rate = 3e-3,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: Exact = 1e-8,
    weight_decay: Rate = 0.01,
    precondition_frequency: int = 10,
    *,
    shampoo_beta: Exact | None = None,
    max_precond_dim: int = 10_000,
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """Adam in the eigenbasis of Shampoo. Vyas et al. 2024, algorithm 3.

    The first gradient only makes the basis. The author decays the stepped parameters; here the decay is
    that of AdamW, of those before the step.
    """
    second = eigenbasis(
        b2, precondition_frequency, gram_decay=shampoo_beta, max_dim=max_precond_dim
    )
    direction = chain(
        scale_by_moments(b1, second, eps=eps, where="hat"),
        bias_correct(),
        add_decayed_weights(weight_decay),
        scale_by_lr(learning_rate),
    )
    return on_matrices(direction, others or adamw(learning_rate), matrices)


@checked
def kl_soap(
    learning_rate: Rate = 1e-4,
    b1: Decay = 0.9,
    b2: Decay = 0.98,
    eps: Exact = 1e-8,
    weight_decay: Rate = 0.01,
    precondition_frequency: int = 10,
    *,
    factored: bool = False,
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """SOAP in the basis that is nearest by Kullback-Leibler; factored: KL-Shampoo. Lin et al. 2025.

    Nothing is corrected, as in the authors' code; the decay is that of AdamW, of the parameters before the
    step.
    """
    second = kl_eigenbasis(b2, precondition_frequency, factored=factored)
    direction = chain(
        scale_by_moments(b1, second, eps=eps),
        add_decayed_weights(weight_decay),
        scale_by_lr(learning_rate),
    )
    return on_matrices(direction, others or adamw(learning_rate), matrices)


@checked
def kron(
    learning_rate: Rate = 1e-3,
    b1: Decay = 0.9,
    weight_decay: Rate = 0.0,
    precond_lr: Dynamic = 0.1,
    *,
    every: int | ScheduleFunction = 1,
    max_dim: int = 8192,
    clip: Rate = 1.1,
    seed: int = 0,
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """Momentum, whitened by factors that learn. Li 2018 (PSGD Kron), as psgd_jax.

    psgd_jax steps its factors in every step at first and seldom later, for which `every` may be a schedule,
    and takes vectors too.
    """
    direction = chain(
        scale_by_moments(b1, None),
        bias_correct(),
        scale_by_kron(precond_lr, every=every, max_dim=max_dim, seed=seed),
        clip_by_block_rms(clip),
        add_decayed_weights(weight_decay),
        scale_by_lr(learning_rate),
    )
    return on_matrices(direction, others or adamw(learning_rate), matrices)


@checked
def galore(
    learning_rate: Rate,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Dynamic = 1.0,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Exact = 1e-6,
    weight_decay: Rate = 0.0,
    *,
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """Adam of the gradient's leading singular vectors. Zhao et al. 2024, algorithm 2.

    The shorter side is projected, as by the authors; optax projects the larger one away.

    Args:
      scale: the factor of the update.
    """
    moments = chain(scale_by_moments(b1, b2, eps=eps, where="hat"), bias_correct())
    direction = chain(
        view(moments, low_rank(rank, update_proj_gap)),
        multiply(scale),
        add_decayed_weights(weight_decay),
        scale_by_lr(learning_rate),
    )
    return on_matrices(direction, others or adamw(learning_rate), matrices)


@checked
def apollo(
    learning_rate: Rate = 1e-3,
    rank: int = 256,
    update_proj_gap: int = 200,
    scale: Dynamic = 1.0,
    b1: Exact = 0.9,
    b2: Exact = 0.999,
    eps: Exact = 1e-6,
    weight_decay: Rate = 0.0,
    *,
    per_tensor: bool = False,
    seed: int = 0,
    matrices: Mask = MATRICES,
    others: GradientTransformation | None = None,
) -> GradientTransformation:
    """SGD with Adam's rate for every channel, seen in random directions. Zhu et al. 2024.

    APOLLO-Mini is rank=1, per_tensor=True, scale=128.
    """
    direction = chain(
        scale_by_apollo(
            rank, update_proj_gap, b1, b2, eps, scale, per_tensor=per_tensor, seed=seed
        ),
        add_decayed_weights(weight_decay),
        scale_by_lr(learning_rate),
    )
    return on_matrices(direction, others or adamw(learning_rate), matrices)
