"""Blocks that scale the update: by a number, a learning rate, a sign, a trust ratio."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.arithmetic import safe_divide, safe_root, square
from adamfx.engine.norms import norm
from adamfx.engine.record import Rates
from adamfx.masks import path_matches
from adamfx.moments.estimators import ema
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.arguments import Mask
from adamfx.values.constructor import Dynamic, Exact


@block
def scale(step_size: Dynamic):
    """u <- step_size u. `scale(-1.0)` turns descent into ascent.

    Args:
      step_size: a finite number, of any sign.
    """
    checks.number("scale", "step_size", step_size)
    return leafwise(lambda u, here: here.shared * u, shared=lambda step: step_size)


@block
def scale_by_lr(learning_rate: Rate, *, flip_sign: bool = True):
    """u <- -alpha u: the step against the gradient, of the size of the learning rate.

    Args:
      learning_rate: alpha >= 0, or a schedule of the steps done before.
      flip_sign: whether to negate. False: u <- alpha u.

    Remembers `learning_rate`, the rate last applied: a readout. `live` is how one sets it.
    """
    checks.number("scale_by_lr", "learning_rate", learning_rate, low=0)

    def init_shared():
        start = jnp.zeros((), jnp.int32) if callable(learning_rate) else None
        return {"learning_rate": value_at(learning_rate, start)}

    def shared(step):
        rate = value_at(learning_rate, step.count)
        return (-rate if flip_sign else rate), {"learning_rate": rate}

    return leafwise(lambda u, here: here.shared * u, shared=shared, init_shared=init_shared)


@block
def sign():
    """u <- sign(u), elementwise; 0 for 0."""
    return leafwise(lambda u, here: jnp.sign(u))


@block
def scale_by_trust_ratio(
    min_norm: Exact = 0.0, trust_coefficient: Exact = 1.0, eps: Exact = 0.0, *, mask: Mask = None
):
    """r <- trust_coefficient max(|p|, min_norm) / (max(|u|, min_norm) + eps), u <- (r + [r = 0]) u, by leaf.

    Where |p| or |u| is 0, so is r, and u stays as it is. Needs params. You et al. 2017 (LARS, algorithm 1),
    2020 (LAMB, algorithm 2).

    Args:
      min_norm: both norms are at least this.
      trust_coefficient, eps: >= 0.
      mask: where it acts: a tree of bools, a callable of the parameters, or None for everywhere.
    """
    checks.number("scale_by_trust_ratio", "min_norm", min_norm, low=0)
    checks.number("scale_by_trust_ratio", "trust_coefficient", trust_coefficient, low=0)
    checks.number("scale_by_trust_ratio", "eps", eps, low=0)

    def norms(u, here):
        return {"p": here.param, "u": u}

    def leaf(u, here):
        p_norm = jnp.maximum(here.norms.p, min_norm)
        u_norm = jnp.maximum(here.norms.u, min_norm)
        ratio = trust_coefficient * safe_divide(p_norm, u_norm + eps)
        return u * jnp.where((p_norm == 0) | (u_norm == 0), 1.0, ratio)

    return leafwise(leaf, norms=norms, needs_params=True, mask=mask)


@block
def scale_by_past_rms(decay: Exact, eps: Exact = 1e-6):
    """u <- sqrt(s + eps) u, then s <- b s + (1 - b) u^2, the average over the PAST outputs: AdaDelta's units.

    Remembers `nu`, s. Zeiler 2012, algorithm 1.

    Args:
      decay: b in [0, 1).
      eps: >= 0, under the root; starts the first steps.
    """
    checks.number("scale_by_past_rms", "eps", eps, low=0)
    average = ema(decay).meaning

    def init(p):
        return {"nu": jnp.zeros_like(p.real)}

    def leaf(u, here):
        s = here.memory.nu
        u = safe_root(s + eps) * u
        rates = Rates(decay, 1 - decay, 1.0, decay, 1.0)
        return u, {"nu": average.update(s, square(u), rates)}

    return leafwise(leaf, init=init)


@block
def scale_by_param_block_norm(min_scale: Exact = 1e-3):
    """u <- u max(|p|, min_scale) for each leaf. Needs params.

    Args:
      min_scale: >= 0.
    """
    checks.number("scale_by_param_block_norm", "min_scale", min_scale, low=0)

    def norms(u, here):
        return {"p": here.param}

    def leaf(u, here):
        return u * jnp.maximum(here.norms.p, min_scale)

    return leafwise(leaf, norms=norms, needs_params=True)


@block
def scale_by_param_block_rms(min_scale: Exact = 1e-3):
    """u <- u max(RMS(p), min_scale) for each leaf: a step relative to the parameter.

    Needs params. Shazeer & Stern 2018, section 8 (Adafactor).

    Args:
      min_scale: >= 0.
    """
    checks.number("scale_by_param_block_rms", "min_scale", min_scale, low=0)

    def norms(u, here):
        return {"p": here.param}

    def leaf(u, here):
        return u * jnp.maximum(here.norms.p / math.sqrt(max(u.size, 1)), min_scale)

    return leafwise(leaf, norms=norms, needs_params=True)


@block
def normalize_by_update_norm(scale_factor: Dynamic = 1.0, eps: Exact = 1e-6):
    """u <- scale_factor u / (|u|_all + eps), |u|_all the norm over all leaves.

    Args:
      scale_factor: a finite number.
      eps: >= 0.
    """
    checks.number("normalize_by_update_norm", "scale_factor", scale_factor)
    checks.number("normalize_by_update_norm", "eps", eps, low=0)

    def shared(step):
        return safe_divide(scale_factor, norm(step.updates) + eps)

    return leafwise(lambda u, here: here.shared * u, shared=shared, whole_tree=True)


@block
def scale_by_path(factors: dict[str, float], default: Dynamic = 1.0):
    """Each leaf times the factor of the first pattern that its path matches.

        chain(adamw(1e-3), scale_by_path({"embed/*": 0.1, "*/bias": 2.0}))
        scale_by_path({f"layer{i}/*": 0.9 ** (11 - i) for i in range(12)})    # layer-wise rates

    Needs params, for their paths. Patterns are those of `path_matches`; each must match a leaf.

    Args:
      factors: a number for each pattern, tried in order.
      default: for the leaves that none matches.
    """
    if not isinstance(factors, dict) or not factors:
        raise TypeError(
            f"scale_by_path: factors must be a dict of pattern to number, such as {{'embed/*': 0.1}}, got "
            f"{factors!r}"
        )
    for pattern, factor in factors.items():
        checks.number("scale_by_path", f"the factor of {pattern!r}", factor)

    def each(params):
        masks = [path_matches(pattern)(params) for pattern in factors]
        for pattern, mask in zip(factors, masks, strict=True):
            whole = all(map(trees.is_trained, trees.flatten(params)[0]))  # not a part of a tree
            if whole and jax.tree.leaves(mask) and not any(jax.tree.leaves(mask)):
                raise ValueError(
                    f"scale_by_path: {pattern!r} matches no parameter; the paths are "
                    f"{', '.join(trees.paths(params)[:20])}"
                )
        return jax.tree.map(lambda *found: (*found, True).index(True), *masks)

    def leaf(u, here):
        return u * [*factors.values(), default][here.own]

    return leafwise(leaf, each=each, needs_params=True)
