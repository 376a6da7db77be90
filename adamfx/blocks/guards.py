"""Words about single numbers or the shape of a gradient: centring, noise, a sign to keep."""

from __future__ import annotations

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.arithmetic import normal, safe_root
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Exact


@block
def centralize(axis: int = 0):
    """The update less its mean over all axes but `axis`. Vectors and scalars stay. Yong et al. 2020, eq. 1.

    Args:
      axis: that of the outputs: -1 for dense kernels (in, out), as in the paper. 0, the default, is optax's.
    """

    def leaf(u, here):
        if u.ndim < 2:
            return u
        over = tuple(i for i in range(u.ndim) if i != axis % u.ndim)
        return u - jnp.mean(u, over, keepdims=True)

    return leafwise(leaf)


@block
def add_noise(eta: Rate, gamma: Exact = 0.55, seed: int = 0):
    """The update plus normal noise of variance eta / t^gamma, t = count + 1. Neelakantan et al. 2014, eq. 1.

    Of complex numbers, both parts get as much.

    Remembers `key`, made from `seed`; each leaf and step has its own.

    Args:
      eta: >= 0, or a schedule.
      gamma: >= 0.
    """
    checks.number("add_noise", "eta", eta, low=0)
    checks.number("add_noise", "gamma", gamma, low=0)

    def shared(step):
        t = (step.count + 1).astype(jnp.result_type(float))
        return safe_root(value_at(eta, step.count) * t**-gamma)

    def leaf(u, here):
        return u + here.shared * normal(here.key, u.shape, u.dtype)

    return leafwise(leaf, shared=shared, seed=seed)


@block
def keep_params_nonnegative():
    """u <- max(u, -p): a step to be added ends at 0 where it would pass it.

    Stands last in a chain. Needs params, which are >= 0 at the start.
    """

    def leaf(u, here):
        checks.ordered("keep_params_nonnegative", u)
        return jnp.where(trees.round_to(here.param + u, here.dtype) < 0, -here.param, u)

    return leafwise(leaf, needs_params=True)


@block
def zero_nans():
    """Zeros in place of NaN. It hides what is wrong; `skip_nonfinite` leaves such a step out."""
    return leafwise(lambda u, here: jnp.where(jnp.isnan(u), 0, u))
