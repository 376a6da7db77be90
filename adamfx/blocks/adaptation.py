"""Adam that learns the distance to the solution, and with it its learning rate: Prodigy, D-Adaptation."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.arithmetic import dot, safe_divide, safe_root, square
from adamfx.moments.scale_by_moments import adam_correction
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Dynamic, Exact


def _check(name: str, betas: tuple, eps: Exact, estim_lr0: Exact, learning_rate: Rate) -> None:
    for n, b in zip(("betas[0]", "betas[1]"), betas, strict=True):
        checks.decay(name, b, n)
    checks.number(name, "eps", eps, low=0)
    checks.number(name, "estim_lr0", estim_lr0, low=0)
    checks.number(name, "learning_rate", learning_rate, low=0)


def _average(s, x, b):
    return s + (1 - b) * (x - s)


@block
def scale_by_prodigy(
    learning_rate: Rate = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: Exact | None = None,
    eps: Exact = 1e-8,
    estim_lr0: Exact = 1e-6,
    estim_lr_coef: Dynamic = 1.0,
    weight_decay: Dynamic = 0.0,
    safeguard_warmup: bool = False,
):
    """Adam of d g, d the estimated distance to the solution, g <- u. The whole step, to be added:

        gamma <- alpha sqrt(1 - b2^t) / (1 - b1^t)
        r <- b3 r + gamma d_prev^2 / d_0 <g, p_0 - p>_all
        s <- b3 s + gamma d_prev^2 / d_0 g
        d <- max(d, estim_lr_coef r / |s|_1_all)
        m <- b1 m + (1 - b1) d_prev g
        v <- b2 v + (1 - b2) (d_prev g)^2
        u <- -gamma d_prev (m / (sqrt(v) + d eps) + weight_decay p)

    Needs params. Mishchenko & Defazio 2023, algorithm 4; as in the authors' code the eps takes the new d,
    the step the old one, and r and s are in units of d_0.

    Args:
      learning_rate: alpha >= 0, or a schedule: a factor of the step, usually 1.
      betas: b1, b2 in [0, 1).
      beta3: b3 in [0, 1); None: b3 <- sqrt(b2).
      eps: >= 0.
      estim_lr0: d at the start, > 0, d_0 <- estim_lr0.
      estim_lr_coef: a factor of the estimate.
      weight_decay: >= 0.
      safeguard_warmup: gamma is left out of s, so that a warm-up does not inflate d. True: s <- b3 s +
        d_prev^2 / d_0 g.

    Remembers `start`, `mu`, `nu`, `s`; `estim_lr`, d, `r`, and the log of the products of b1 and b2.
    """
    name, (b1, b2) = "scale_by_prodigy", betas
    _check(name, betas, eps, estim_lr0, learning_rate)
    b3 = b2**0.5 if beta3 is None else beta3

    def init(p):
        z = jnp.zeros_like(p)
        return {"start": p, "mu": z, "nu": z.real, "s": z}

    def init_shared():
        logs = {"mu_log_product": np.zeros(2), "nu_log_product": np.zeros(2)}
        return {"estim_lr": estim_lr0, "r": 0.0} | logs

    def rates(step):
        correction, logs = adam_correction(b1, b2, step.count, step.memory)
        d = step.memory.estim_lr
        gamma = jnp.asarray(value_at(learning_rate, step.count), d.dtype) * correction
        return gamma, d, d * d / estim_lr0, logs

    def trail(g, s, gamma, weight):
        return b3 * s + (weight if safeguard_warmup else weight * gamma) * g

    def sums(g, here):
        gamma, _, weight, _ = rates(here.shared)
        s = trail(g, here.memory.s, gamma, weight)
        return {"gain": dot(g, here.memory.start - here.param), "length": jnp.sum(jnp.abs(s))}

    def shared(step):
        gamma, d, weight, logs = rates(step)
        r = b3 * step.memory.r + weight * gamma * step.sums.gain
        new = jnp.maximum(d, estim_lr_coef * safe_divide(r, step.sums.length))
        return (gamma, d, weight, new), {"estim_lr": new, "r": r} | logs

    def leaf(g, here):
        (gamma, d, weight, new), old = here.shared, here.memory
        m, v = _average(old.mu, d * g, b1), _average(old.nu, square(d * g), b2)
        u = safe_divide(m, safe_root(v) + new * eps) + weight_decay * here.param
        s = trail(g, old.s, gamma, weight)
        return -gamma * d * u, {"start": old.start, "mu": m, "nu": v, "s": s}

    more = {"init_shared": init_shared, "needs_params": True}
    return leafwise(leaf, init=init, sums=sums, shared=shared, **more)


@block
def scale_by_dadapt_adamw(
    learning_rate: Rate = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: Exact = 1e-8,
    estim_lr0: Exact = 1e-6,
    weight_decay: Dynamic = 0.0,
):
    """Adam at the rate lambda, of which d is estimated; g <- u. The whole step, to be added:

        c <- sqrt(b2)
        lambda <- d_prev alpha sqrt(1 - b2^t) / (1 - b1^t)
        r <- c r + (1 - c) lambda <g, s / (sqrt(v) + eps)>_all
        s <- c s + (1 - c) lambda g
        d <- max(d, r / ((1 - c) |s|_1_all))
        m <- b1 m + (1 - b1) lambda g
        v <- b2 v + (1 - b2) g^2
        u <- -m / (sqrt(v) + eps) - weight_decay lambda p

    Needs params. Defazio & Mishchenko 2023, algorithm 5; r takes the v before this step, as the authors'
    code.

    Args:
      learning_rate, betas, eps, estim_lr0, weight_decay: as in `scale_by_prodigy`.

    Remembers `mu`, `nu`, `s`; `estim_lr`, d, `r`, and the log of the products of b1 and b2.
    """
    name, (b1, b2) = "scale_by_dadapt_adamw", betas
    _check(name, betas, eps, estim_lr0, learning_rate)
    c = b2**0.5

    def init(p):
        z = jnp.zeros_like(p)
        return {"mu": z, "nu": z.real, "s": z}

    def init_shared():
        logs = {"mu_log_product": np.zeros(2), "nu_log_product": np.zeros(2)}
        return {"estim_lr": estim_lr0, "r": 0.0} | logs

    def rate(step):
        correction, logs = adam_correction(b1, b2, step.count, step.memory)
        d = step.memory.estim_lr
        return d * jnp.asarray(value_at(learning_rate, step.count), d.dtype) * correction, logs

    def sums(g, here):
        lam, old = rate(here.shared)[0], here.memory
        gain = dot(g, safe_divide(old.s, safe_root(old.nu) + eps))
        return {"gain": gain, "length": jnp.sum(jnp.abs(_average(old.s, lam * g, c)))}

    def shared(step):
        lam, logs = rate(step)
        r = c * step.memory.r + (1 - c) * lam * step.sums.gain
        new = jnp.maximum(step.memory.estim_lr, safe_divide(r, (1 - c) * step.sums.length))
        return lam, {"estim_lr": new, "r": r} | logs

    def leaf(g, here):
        lam, old = here.shared, here.memory
        m, v = _average(old.mu, lam * g, b1), _average(old.nu, square(g), b2)
        u = -safe_divide(m, safe_root(v) + eps) - weight_decay * lam * here.param
        return u, {"mu": m, "nu": v, "s": _average(old.s, lam * g, c)}

    more = {"init_shared": init_shared, "needs_params": True}
    return leafwise(leaf, init=init, sums=sums, shared=shared, **more)
