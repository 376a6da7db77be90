"""adamfx: an optimizer is a sentence of small blocks, and that sentence is an ordinary value.

>>> import adamfx as fx
>>> tx = fx.chain(fx.scale_by_moments(0.9, 0.999), fx.bias_correct(), fx.scale_by_lr(1e-3))
>>> tx == fx.adam(1e-3)
True
"""

import sys
import typing

if sys.argv[:1] == ["-m"] and "adamfx.experiments" in sys.orig_argv:  # Python imports for a program
    from adamfx.experiments import ctrl_c

    ctrl_c.importing()

from adamfx import interop
from adamfx.blocks.adaptation import scale_by_dadapt_adamw, scale_by_prodigy
from adamfx.blocks.apollo import scale_by_apollo
from adamfx.blocks.caution import (
    cautious,
    cautious_weight_decay,
)
from adamfx.blocks.clipping import (
    adaptive_grad_clip,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    clip_by_norm,
    clip_update_norm,
)
from adamfx.blocks.coin import scale_by_cocob
from adamfx.blocks.decay import add_decayed_weights
from adamfx.blocks.differences import (
    grokfast,
    mars,
    scale_by_optimistic_gradient,
)
from adamfx.blocks.distance import scale_by_dog, scale_by_dowg
from adamfx.blocks.dual_averaging import (
    scale_by_madgrad,
)
from adamfx.blocks.guards import (
    add_noise,
    centralize,
    keep_params_nonnegative,
    zero_nans,
)
from adamfx.blocks.kron import scale_by_kron
from adamfx.blocks.linesearch import (
    scale_by_backtracking_linesearch,
    scale_by_zoom_linesearch,
    value_and_grad_from_state,
)
from adamfx.blocks.loss import reduce_on_plateau, scale_by_momo, scale_by_polyak
from adamfx.blocks.matrices import (
    NEWTON_SCHULZ,
    normalize_columns,
    normalize_over,
    normalize_rows,
    orthogonalize,
    scale_by_shape,
)
from adamfx.blocks.quasi_newton import scale_by_conjugate_gradient, scale_by_lbfgs
from adamfx.blocks.radius import (
    contract,
    damp_outward,
    hyperball,
    radial_brake,
    uw_floor,
)
from adamfx.blocks.rprop import (
    scale_by_rprop,
)
from adamfx.blocks.scaling import (
    normalize_by_update_norm,
    scale,
    scale_by_lr,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_past_rms,
    scale_by_path,
    scale_by_trust_ratio,
    sign,
)
from adamfx.combine import chain, hyperparams, live, named, set_hyperparams
from adamfx.engine.norms import global_norm
from adamfx.engine.placement import along
from adamfx.engine.record import Moments
from adamfx.engine.single_pass import configure
from adamfx.interop.least_squares import least_squares
from adamfx.masks import (
    Predicate,
    all_of,
    any_of,
    complement,
    has_dtype,
    ndim_at_least,
    path_matches,
)
from adamfx.moments.adan import (
    scale_by_adan,
)
from adamfx.moments.bases import eigenbasis, kl_eigenbasis, kronecker
from adamfx.moments.corrections import bias_correct, center, nesterov, rectify, running_max
from adamfx.moments.estimators import (
    Estimator,
    Own,
    Recursion,
    aggregate,
    decayed_max,
    ema,
    estimator,
    mean,
    seldom,
    total,
    trace,
    yogi_ema,
)
from adamfx.moments.mixing import (
    add_gradient,
    add_slow_average,
    arctan2,
    quasi_hyperbolic,
    stabilize,
    undivided,
)
from adamfx.moments.scale_by_moments import scale_by_moments
from adamfx.moments.statistics import Reading, Statistic, given, mean_square, plus_eps, statistic
from adamfx.moments.storages import (
    Form,
    Storage,
    cast,
    cast_stochastically,
    cover,
    factored,
    int8,
    storage,
    uint8,
)
from adamfx.notebook.compare import diff
from adamfx.notebook.plots import plot
from adamfx.notebook.tables import show
from adamfx.notebook.words import explain, find
from adamfx.optimizers.adaptive import (
    adabelief,
    adadelta,
    adagrad,
    adam,
    adamax,
    adamaxw,
    adamw,
    amsgrad,
    nadam,
    nadamw,
    radam,
    rmsprop,
    yogi,
)
from adamfx.optimizers.first_order import (
    aggmo,
    lion,
    momentum,
    noisy_sgd,
    optimistic_gradient_descent,
    qhm,
    rprop,
    sgd,
    sign_sgd,
    signum,
)
from adamfx.optimizers.iterates import dpsgd, schedule_free_adamw, schedule_free_sgd
from adamfx.optimizers.layerwise import (
    fromage,
    lamb,
    lars,
    novograd,
)
from adamfx.optimizers.matrix import (
    adamh,
    apollo,
    galore,
    kl_soap,
    kron,
    muon,
    muonh,
    normuon,
    on_matrices,
    scion,
    shampoo,
    soap,
    whiten,
)
from adamfx.optimizers.memory_saving import (
    adafactor,
    adamini,
    came,
    sm3,
)
from adamfx.optimizers.parameter_free import (
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    ldog,
    momo,
    momo_adam,
    polyak_sgd,
    prodigy,
)
from adamfx.optimizers.refined import (
    acprop,
    adam_atan2,
    adan,
    ademamix,
    adopt,
    laprop,
    madgrad,
    optimistic_adam,
    padam,
    qhadam,
    simplified_ademamix,
    sophia,
    stable_adamw,
)
from adamfx.optimizers.second_order import armijo_sgd, lbfgs, nonlinear_cg
from adamfx.pages import page
from adamfx.reading import SentenceError, read
from adamfx.schedules import (
    Schedule,
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    dozat_schedule,
    exponential_decay,
    inverse_sqrt_schedule,
    join_schedules,
    lambda_decay_schedule,
    linear_onecycle_schedule,
    linear_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    power_cooling_schedule,
    power_schedule,
    schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_schedule,
    warmup_stable_decay_schedule,
)
from adamfx.states import get, set
from adamfx.training.callbacks import Callback, Profile, Summary
from adamfx.training.checkpoints import load, save
from adamfx.training.fit import fit
from adamfx.training.history import History, no_improvement
from adamfx.training.logs import Log, Table, TensorBoard, WandB
from adamfx.training.orbax import Checkpoints
from adamfx.training.population import population
from adamfx.training.prefetch import prefetch
from adamfx.training.run import Fit
from adamfx.training.step import make_step
from adamfx.training.sweep import Sweep, logspace, sweep
from adamfx.training.tune import Tuned, tune
from adamfx.transformation import (
    GradientTransformation,
    block,
    identity,
    leafwise,
    treewise,
)
from adamfx.updates import apply_updates, incremental_update, periodic_update
from adamfx.values.constructor import Dynamic, Exact, Inner
from adamfx.wrappers.accumulation import accumulate
from adamfx.wrappers.averages import average_params, averaged_params, keep_average
from adamfx.wrappers.curvature import gauss_newton_bartlett, hutchinson, with_hessian
from adamfx.wrappers.grafting import graft
from adamfx.wrappers.groups import freeze, masked, partition, set_to_zero
from adamfx.wrappers.iterates import (
    asam,
    average_iterates,
    ema_nesterov,
    keep_samples,
    outer_step,
    sam,
    schedule_free,
    swa,
)
from adamfx.wrappers.lookahead import lookahead
from adamfx.wrappers.mechanic import mechanize
from adamfx.wrappers.meshes import PerMesh, per_mesh
from adamfx.wrappers.monitor import metrics, monitor
from adamfx.wrappers.placement import abstract_state, offload, shard_state
from adamfx.wrappers.precision import compensate, master_weights, round_stochastically
from adamfx.wrappers.privacy import differentially_private_aggregate, per_example_grads
from adamfx.wrappers.skipping import check_finite, skip_nonfinite, skip_spikes
from adamfx.wrappers.stored import stored
from adamfx.wrappers.views import (
    Lens,
    Through,
    as_matrix,
    as_real,
    in_blocks,
    lens,
    low_rank,
    split_real_and_imaginary,
    stacked,
    view,
)

__version__ = "0.2.0"

__all__ = [
    # transformations, and how to write one
    "GradientTransformation",
    "block",
    "leafwise",
    "treewise",
    "along",
    "Moments",
    "Dynamic",
    "Exact",
    "Inner",
    "identity",
    "chain",
    "named",
    "apply_updates",
    "incremental_update",
    "periodic_update",
    "live",
    "read",
    "SentenceError",
    "get",
    "set",
    "hyperparams",
    "set_hyperparams",
    # moments: statistic, recursion, storage; the block that opens the record, corrections
    "Statistic",
    "statistic",
    "Reading",
    "mean_square",
    "plus_eps",
    "given",
    "Storage",
    "storage",
    "Form",
    "cast",
    "cast_stochastically",
    "factored",
    "cover",
    "int8",
    "uint8",
    "Estimator",
    "estimator",
    "Recursion",
    "Own",
    "ema",
    "trace",
    "total",
    "mean",
    "decayed_max",
    "yogi_ema",
    "seldom",
    "eigenbasis",
    "kl_eigenbasis",
    "kronecker",
    "aggregate",
    "scale_by_moments",
    "bias_correct",
    "nesterov",
    "running_max",
    "center",
    "rectify",
    "quasi_hyperbolic",
    "add_gradient",
    "add_slow_average",
    "arctan2",
    "stabilize",
    "undivided",
    "scale_by_adan",
    # other blocks
    "scale",
    "scale_by_lr",
    "sign",
    "scale_by_trust_ratio",
    "scale_by_past_rms",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "normalize_by_update_norm",
    "scale_by_path",
    "scale_by_optimistic_gradient",
    "scale_by_rprop",
    "scale_by_apollo",
    "zero_nans",
    "scale_by_backtracking_linesearch",
    "scale_by_zoom_linesearch",
    "value_and_grad_from_state",
    "scale_by_lbfgs",
    "scale_by_conjugate_gradient",
    "scale_by_polyak",
    "scale_by_momo",
    "reduce_on_plateau",
    "scale_by_cocob",
    "scale_by_prodigy",
    "scale_by_dadapt_adamw",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_kron",
    "scale_by_madgrad",
    "mars",
    "grokfast",
    "centralize",
    "cautious",
    "uw_floor",
    "hyperball",
    "damp_outward",
    "NEWTON_SCHULZ",
    "orthogonalize",
    "scale_by_shape",
    "normalize_over",
    "normalize_rows",
    "normalize_columns",
    "radial_brake",
    "contract",
    "add_noise",
    "keep_params_nonnegative",
    "add_decayed_weights",
    "cautious_weight_decay",
    "clip",
    "clip_by_norm",
    "clip_by_global_norm",
    "clip_by_block_rms",
    "clip_update_norm",
    "adaptive_grad_clip",
    "global_norm",
    "Predicate",
    "ndim_at_least",
    "path_matches",
    "has_dtype",
    "complement",
    "all_of",
    "any_of",
    # parameter groups
    "masked",
    "partition",
    "set_to_zero",
    "freeze",
    # wrappers
    "accumulate",
    "skip_nonfinite",
    "skip_spikes",
    "check_finite",
    "lookahead",
    "as_real",
    "split_real_and_imaginary",
    "differentially_private_aggregate",
    "per_example_grads",
    "schedule_free",
    "average_iterates",
    "ema_nesterov",
    "swa",
    "keep_samples",
    "outer_step",
    "sam",
    "asam",
    "with_hessian",
    "hutchinson",
    "gauss_newton_bartlett",
    "mechanize",
    "stored",
    "shard_state",
    "offload",
    "per_mesh",
    "PerMesh",
    "abstract_state",
    "view",
    "stacked",
    "Lens",
    "lens",
    "Through",
    "in_blocks",
    "as_matrix",
    "low_rank",
    "graft",
    "average_params",
    "keep_average",
    "averaged_params",
    "monitor",
    "metrics",
    # parameters below float32
    "compensate",
    "round_stochastically",
    "master_weights",
    # training
    "configure",
    "make_step",
    "fit",
    "least_squares",
    "page",
    "show",
    "plot",
    "explain",
    "find",
    "diff",
    "Fit",
    "History",
    "no_improvement",
    "save",
    "load",
    "Checkpoints",
    "Callback",
    "Log",
    "Table",
    "TensorBoard",
    "WandB",
    "Summary",
    "Profile",
    "prefetch",
    "sweep",
    "Sweep",
    "population",
    "logspace",
    "tune",
    "Tuned",
    "interop",
    # schedules
    "Schedule",
    "schedule",
    "constant_schedule",
    "polynomial_schedule",
    "linear_schedule",
    "exponential_decay",
    "inverse_sqrt_schedule",
    "lambda_decay_schedule",
    "dozat_schedule",
    "cosine_decay_schedule",
    "piecewise_constant_schedule",
    "join_schedules",
    "warmup_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "warmup_stable_decay_schedule",
    "power_cooling_schedule",
    "power_schedule",
    "sgdr_schedule",
    "piecewise_interpolate_schedule",
    "linear_onecycle_schedule",
    "cosine_onecycle_schedule",
    # optimizers
    "sgd",
    "momentum",
    "lion",
    "signum",
    "sign_sgd",
    "noisy_sgd",
    "optimistic_gradient_descent",
    "qhm",
    "aggmo",
    "rprop",
    "adagrad",
    "rmsprop",
    "adadelta",
    "adam",
    "adamw",
    "nadam",
    "nadamw",
    "adamax",
    "adamaxw",
    "amsgrad",
    "radam",
    "adabelief",
    "yogi",
    "adan",
    "ademamix",
    "simplified_ademamix",
    "adopt",
    "laprop",
    "acprop",
    "padam",
    "optimistic_adam",
    "qhadam",
    "stable_adamw",
    "adam_atan2",
    "madgrad",
    "lamb",
    "lars",
    "novograd",
    "fromage",
    "adafactor",
    "sm3",
    "adamini",
    "lbfgs",
    "nonlinear_cg",
    "armijo_sgd",
    "schedule_free_sgd",
    "schedule_free_adamw",
    "dpsgd",
    "sophia",
    "dog",
    "ldog",
    "dowg",
    "prodigy",
    "dadapt_adamw",
    "cocob",
    "momo",
    "momo_adam",
    "polyak_sgd",
    "muon",
    "normuon",
    "muonh",
    "adamh",
    "scion",
    "shampoo",
    "whiten",
    "soap",
    "kl_soap",
    "kron",
    "galore",
    "apollo",
    "on_matrices",
    "came",
]

if not typing.TYPE_CHECKING:  # a type checker would take any name for known

    def __getattr__(name):
        other = interop.COUNTERPARTS.get(name)
        hint = f"; what optax calls so is {other} here" if other else ""
        raise AttributeError(f"adamfx has no {name!r}{hint}")
