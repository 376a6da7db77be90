"""The one list of all public transformations that drives the laws, and a tree to run them on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.wrappers.monitor import METRICS

OPTIMIZERS = {
    "sgd": fx.sgd(0.1),
    "sgd nesterov": fx.sgd(0.1, momentum=0.9, nesterov=True),
    "momentum": fx.momentum(0.1),
    "adagrad": fx.adagrad(0.1),
    "rmsprop": fx.rmsprop(0.01),
    "rmsprop with all": fx.rmsprop(
        0.01, centered=True, momentum=0.9, nesterov=True, initial_scale=0.1, bias_correction=True
    ),
    "adadelta": fx.adadelta(1.0, weight_decay=1e-3),
    "adam": fx.adam(0.01),
    "adam nesterov": fx.adam(0.01, eps_root=1e-8, nesterov=True),
    "adamw": fx.adamw(0.01, mask=fx.ndim_at_least(2)),
    "nadam": fx.nadam(0.01),
    "nadamw": fx.nadamw(0.01),
    "adamax": fx.adamax(0.01),
    "adamaxw": fx.adamaxw(0.01),
    "amsgrad": fx.amsgrad(0.01),
    "radam": fx.radam(0.01),
    "adabelief": fx.adabelief(0.01),
    "yogi": fx.yogi(0.01),
    "lion": fx.lion(0.01),
    "signum": fx.signum(0.01),
    "lamb": fx.lamb(0.01, weight_decay=0.01),
    "lars": fx.lars(0.1, weight_decay=0.01),
    "novograd": fx.novograd(0.01, weight_decay=0.01),
}

OPTIMIZERS |= {
    # refined
    "adan": fx.adan(0.01),
    "ademamix": fx.ademamix(0.01),
    "simplified_ademamix": fx.simplified_ademamix(0.01),
    "adopt": fx.adopt(0.01),
    "laprop": fx.laprop(0.01),
    "acprop": fx.acprop(0.01),
    "padam": fx.padam(0.01),
    "optimistic_adam": fx.optimistic_adam(0.01),
    "qhadam": fx.qhadam(0.01),
    "stable_adamw": fx.stable_adamw(0.01),
    "adam_atan2": fx.adam_atan2(0.01),
    "madgrad": fx.madgrad(0.01),
    # memory saving
    "adafactor": fx.adafactor(0.01, min_dim_size_to_factor=2),
    "sm3": fx.sm3(0.01),
    "adamini": fx.adamini(0.01),
    "came": fx.came(0.01),
    # first order
    "sign_sgd": fx.sign_sgd(0.01),
    "noisy_sgd": fx.noisy_sgd(0.01),
    "optimistic_gradient_descent": fx.optimistic_gradient_descent(0.01),
    "qhm": fx.qhm(0.01),
    "aggmo": fx.aggmo(0.01),
    "rprop": fx.rprop(0.01),
    "fromage": fx.fromage(0.01),
    # of matrices
    "muon": fx.muon(0.01),
    "normuon": fx.normuon(0.01),
    "muonh": fx.muonh(0.01),
    "adamh": fx.adamh(0.01),
    "scion": fx.scion(0.01),
    "shampoo": fx.shampoo(0.01, every=2, block_size=2),
    "soap": fx.soap(0.01, precondition_frequency=2),
    "kl_soap": fx.kl_soap(0.01, precondition_frequency=2),
    "kron": fx.kron(0.01),
    "galore": fx.galore(0.01, 2, 2),
    "apollo": fx.apollo(0.01, 2, 2),
    # without a rate, without a schedule
    "dog": fx.dog(0.5),
    "ldog": fx.ldog(0.5),
    "dowg": fx.dowg(0.5),
    "prodigy": fx.prodigy(estim_lr0=1e-3),
    "dadapt_adamw": fx.dadapt_adamw(estim_lr0=1e-3),
    "cocob": fx.cocob(),
    "schedule_free_sgd": fx.schedule_free_sgd(0.1),
    "schedule_free_adamw": fx.schedule_free_adamw(0.01),
}

LR = fx.scale_by_lr(0.01)
MOMENTS = fx.scale_by_moments(0.9, 0.999)

SENTENCES = {
    "identity": fx.identity(),
    "scale": fx.scale(0.5),
    "scale_by_lr": fx.scale_by_lr(fx.cosine_decay_schedule(0.1, 20)),
    "sign": fx.sign(),
    "clip": fx.clip(0.1),
    "clip_by_norm": fx.clip_by_norm(0.1),
    "clip_by_global_norm": fx.clip_by_global_norm(0.1),
    "scale_by_trust_ratio": fx.chain(fx.scale_by_trust_ratio(), LR),
    "scale_by_past_rms": fx.scale_by_past_rms(0.9),
    "add_decayed_weights": fx.add_decayed_weights(0.1, fx.path_matches("w*")),
    "moments": MOMENTS,
    "ema": fx.chain(fx.scale_by_moments(fx.ema(0.9, first_whole=True), None), LR),
    "trace": fx.chain(fx.scale_by_moments(fx.trace(0.9, 0.1, first_whole=True), None), LR),
    "total": fx.chain(fx.scale_by_moments(None, fx.total()), LR),
    "mean": fx.chain(fx.scale_by_moments(fx.mean(), fx.mean()), LR),
    "floor": fx.scale_by_moments(0.9, 0.999, where="floor", lag="second"),
    "hat": fx.chain(fx.scale_by_moments(0.9, 0.999, where="hat"), fx.bias_correct(), LR),
    "torch amsgrad": fx.chain(MOMENTS, fx.running_max(), fx.bias_correct(), LR),
    "scheduled decays": fx.chain(
        fx.scale_by_moments(fx.lambda_decay_schedule(0.9, 0.99), fx.linear_schedule(0.9, 0.999, 9)),
        fx.bias_correct(),
        fx.nesterov(fx.constant_schedule(0.8)),
        fx.scale_by_lr(fx.inverse_sqrt_schedule(0.1)),
    ),
    "named": fx.chain(fx.named("slow", fx.scale_by_moments(0.99, None)), MOMENTS, LR),
    "named chain": fx.chain(fx.clip(1.0), fx.named("inner", fx.adam(0.1)), fx.scale(0.1)),
    "live": fx.live(fx.adamw(0.01)),
    "live in chain": fx.chain(fx.clip(1.0), fx.live(fx.adam(0.01)), fx.scale(0.5)),
    "clipped adamw": fx.chain(
        fx.clip_by_global_norm(1.0), fx.adamw(fx.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20))
    ),
}

GROUPS = ({"m": fx.adam(0.01), "z": fx.set_to_zero()}, {"m": fx.any_of(fx.path_matches("w*"))})

WRAPPERS = {
    "masked": lambda tx: fx.masked(tx, fx.ndim_at_least(2)),
    "partition": lambda tx: fx.partition(
        GROUPS[0] | {"r": tx}, GROUPS[1] | {"r": fx.any_of(fx.path_matches("b"))}, fx.sgd(0.1)
    ),
    "accumulate": lambda tx: fx.accumulate(tx, 2),
    "skip_nonfinite": lambda tx: fx.skip_nonfinite(tx),
    "lookahead": lambda tx: fx.lookahead(tx, 2, 0.5),
    "average_params": lambda tx: fx.average_params(tx, fx.ema(0.9)),
    "monitor": lambda tx: fx.monitor(tx, per_leaf=True),
    "compensate": lambda tx: fx.chain(tx, fx.compensate()),
    "round_stochastically": lambda tx: fx.chain(tx, fx.round_stochastically()),
    "master_weights": lambda tx: fx.master_weights(tx),
    "live": lambda tx: fx.live(fx.chain(fx.scale(1.0), tx)),
    "named": lambda tx: fx.named("inner", tx),
}

SENTENCES |= {f"{name}(adamw)": wrap(fx.adamw(0.01)) for name, wrap in WRAPPERS.items()}
SENTENCES |= {
    "freeze": fx.freeze(fx.path_matches("w*") & ~fx.has_dtype("float64") | fx.path_matches("s")),
    "accumulate by schedule": fx.accumulate(
        fx.sgd(0.1), fx.piecewise_constant_schedule(1.0, {1: 2.0})
    ),
    "lookahead with reset": fx.lookahead(fx.adam(0.01), 2, 0.5, reset_state=True),
    "all metrics": fx.monitor(fx.adam(0.01), tuple(METRICS)),
    "polyak average": fx.chain(fx.accumulate(fx.average_params(fx.adam(0.01)), 2), fx.clip(1.0)),
}

SENTENCES |= {
    "mars": fx.chain(fx.mars(), MOMENTS, LR),
    "grokfast": fx.chain(fx.grokfast(), MOMENTS, LR),
    "centralize": fx.chain(fx.centralize(), MOMENTS, LR),
    "cautious": fx.chain(MOMENTS, fx.bias_correct(), fx.cautious(), LR),
    "cautious_weight_decay": fx.chain(MOMENTS, fx.cautious_weight_decay(0.1), LR),
    "adaptive_grad_clip": fx.chain(fx.adaptive_grad_clip(0.1), LR),
    "clip_by_block_rms": fx.chain(fx.clip_by_block_rms(0.1), LR),
    "clip_update_norm": fx.chain(MOMENTS, LR, fx.clip_update_norm(0.1)),
    "normalize_by_update_norm": fx.chain(fx.normalize_by_update_norm(), LR),
    "scale_by_param_block_norm": fx.chain(fx.scale_by_param_block_norm(), LR),
    "scale_by_param_block_rms": fx.chain(fx.scale_by_param_block_rms(), LR),
    "uw_floor": fx.chain(MOMENTS, fx.uw_floor(0.1), LR),
    "hyperball": fx.chain(MOMENTS, fx.hyperball(0.01)),
    "radial_brake": fx.chain(MOMENTS, fx.damp_outward(), fx.radial_brake(0.01, 0.9, 0.1)),
    "add_noise": fx.chain(fx.add_noise(0.01, 0.55, 0), LR),
    "scale_by_path": fx.chain(fx.scale_by_path({"*": 0.5}), LR),
    "zero_nans": fx.chain(fx.zero_nans(), LR),
    "normalize_over": fx.chain(fx.normalize_rows(), fx.normalize_columns(1e-8), LR),
    "orthogonalize": fx.chain(fx.orthogonalize("record", first="schatten"), LR),
    "whiten": fx.chain(fx.whiten(0.9, 2, 1e-2), LR),
    "graft": fx.chain(fx.graft(fx.orthogonalize(), MOMENTS), LR),
    "eigenbasis": fx.chain(fx.scale_by_moments(0.9, fx.eigenbasis(0.9, 2), where="hat"), LR),
    "kl_eigenbasis": fx.chain(
        fx.scale_by_moments(0.9, fx.kl_eigenbasis(0.9, 2, factored=True)), LR
    ),
    "kron": fx.chain(fx.scale_by_kron(), LR),
    "mixed": fx.chain(
        fx.scale_by_moments(fx.aggregate((0.0, 0.9)), fx.ema(0.9, storage=fx.factored(2))),
        fx.bias_correct("second"),
        LR,
    ),
}
WRAPPERS |= {
    "view": lambda tx: fx.view(tx, fx.in_blocks(2)),
    "stacked": lambda tx: fx.stacked(tx, fx.ndim_at_least(2)),
    "mechanize": lambda tx: fx.mechanize(tx, s_init=1e-2),
    "ema_nesterov": lambda tx: fx.ema_nesterov(tx),
    "swa": lambda tx: fx.swa(tx, 2),
    "outer_step": lambda tx: fx.outer_step(tx, fx.sgd(0.7, 0.5), 2),
    "schedule_free": lambda tx: fx.schedule_free(tx, 0.01),
    "stored": lambda tx: _in_bytes(tx),
}


def tree(dtype=np.float32, seed=0, scale=1.0):
    """Two matrices of one shape, a vector and a scalar."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 4), "w2": (3, 4), "b": (4,), "s": ()}
    return {k: jnp.asarray(rng.normal(size=s) * scale).astype(dtype) for k, s in shapes.items()}


def _in_bytes(tx):
    """Its moments in a byte each; of a transformation that remembers none, it itself."""
    forms = {
        "mu": fx.int8(2, min_size=0),
        "nu": fx.uint8(2, min_size=0, stochastic=True),
    }
    known = {}
    for name, form in forms.items():
        try:
            for some in ("w", "b"):  # factored rows and columns are not called nu
                jax.eval_shape(fx.stored(tx, **{name: form}).init, {some: tree()[some]})
            known[name] = form
        except ValueError as error:
            if f"remembers no {name}" not in str(error):
                raise
    return fx.stored(tx, **known) if known else tx


NEW = (
    "view",
    "stacked",
    "mechanize",
    "ema_nesterov",
    "swa",
    "outer_step",
    "schedule_free",
    "stored",
)
SENTENCES |= {f"{name}(adamw)": WRAPPERS[name](fx.adamw(0.01)) for name in NEW}
SENTENCES |= {
    "in_blocks(muon)": fx.view(fx.muon(0.01), fx.in_blocks(2)),
    "low_rank": fx.chain(fx.view(MOMENTS, fx.low_rank(2, 2)), LR),
    "stacked(lamb)": fx.stacked(fx.lamb(0.01), fx.path_matches("w*")),
}

TABLE = OPTIMIZERS | SENTENCES

# Rows whose blocks no quicker row has; the rest of the optimizers is in the slow group of the laws.
QUICK = {
    *(
        "sgd nesterov",
        "adadelta",
        "rmsprop with all",
        "adam nesterov",
        "adamw",
        "amsgrad",
        "radam",
        "lion",
    ),
    *(
        "lamb",
        "novograd",
        "adan",
        "adopt",
        "optimistic_adam",
        "adafactor",
        "sm3",
        "rprop",
        "aggmo",
        "muon",
    ),
    *("soap", "prodigy", "dog", "cocob", "schedule_free_adamw"),
    *SENTENCES,
} - {"kron", "kl_eigenbasis", "in_blocks(muon)", "stacked(lamb)", "all metrics"}


def rows(table):
    """The table as parameters of a test: (ids and values, with marks)."""
    slow = pytest.mark.slow
    return [pytest.param(tx, id=n, marks=() if n in QUICK else slow) for n, tx in table.items()]


def run(tx, steps=5, dtype=np.float32, scale=1.0, params=None):
    """(params, state, last updates) after some steps on random gradients."""
    p = tree(dtype) if params is None else params
    s = tx.init(p)
    u = None
    for t in range(steps):
        u, s = tx.update(tree(dtype, seed=t + 1, scale=scale), s, p)
        p = fx.apply_updates(p, u)
    return p, s, u


def signature(x):
    """Structure, shapes, dtypes and weak types of a tree, to compare exactly."""
    return jax.tree.structure(x), [
        (y.shape, y.dtype, getattr(y, "weak_type", False)) for y in jax.tree.leaves(x)
    ]
