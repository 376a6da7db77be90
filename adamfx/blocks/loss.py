"""Step sizes from the value of the loss: Polyak's, MoMo, and rates cut on a plateau."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.arithmetic import dot, safe_divide, safe_root, square
from adamfx.moments.estimators import Recursion
from adamfx.moments.scale_by_moments import rates_of
from adamfx.schedules import Rate, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Dynamic, Exact


@block
def scale_by_polyak(
    max_learning_rate: Dynamic = 1.0,
    f_min: Dynamic = 0.0,
    eps: Exact = 0.0,
    variant: str = "sps",
):
    """u <- min((f - f_min) / (|u|_all^2 + eps), max_learning_rate) u; f is the loss, `value=` of update.

    Loizou et al. 2021, eq. 4; "sps+" is of Garrigos et al. 2023.

    Args:
      max_learning_rate: >= 0.
      f_min: the least value of the loss.
      eps: >= 0.
      variant: "sps", or the gap where it is positive only: "sps+": u <- min(max(f - f_min, 0) / (|u|_all^2 +
        eps), max_learning_rate) u.
    """
    name = "scale_by_polyak"
    checks.number(name, "max_learning_rate", max_learning_rate, low=0)
    checks.number(name, "eps", eps, low=0)
    checks.choice(name, "variant", variant, ("sps", "sps+"))

    def shared(step):
        size = step.sums.size + eps
        gap = step.extra["value"] - f_min
        gap = jnp.maximum(gap, 0) if variant == "sps+" else gap
        return jnp.minimum(safe_divide(gap.astype(size.dtype), size), max_learning_rate)

    def sums(u, here):
        return {"size": jnp.sum(square(u))}

    return leafwise(lambda u, here: here.shared * u, sums=sums, shared=shared, needs=("value",))


@block
def scale_by_momo(
    learning_rate: Rate = 1.0,
    b1: Exact = 0.9,
    b2: Exact | None = None,
    eps: Exact = 1e-8,
    lower_bound: Dynamic = 0.0,
    weight_decay: Dynamic = 0.0,
    adapt_lower_bound: bool = False,
):
    """p' = (p - tau d / D) / (1 + lr wd), tau from a model of the loss. The whole step, to be added.

    d, f and gamma average g, the loss and <g, p>, with rho the mass of these averages;
    tau = min(lr / rho, ((1 + lr wd) (f - rho f* - gamma) + <d, p>)_+ / <d, d / D>). Without b2, D = 1 and the
    first values enter whole, so rho = 1 (MoMo); with b2, D = eps + sqrt(v_hat) (MoMo-Adam). Needs params and
    `value=`, the loss. Schaipp et al. 2024, algorithms 1 and 2; optax leaves tau d / D undivided.

    Args:
      learning_rate: the largest tau, >= 0, or a schedule.
      b1, b2: in [0, 1).
      eps: >= 0.
      lower_bound: f*, the least value of the loss.
      weight_decay: wd >= 0.
      adapt_lower_bound: whether f* is estimated, from lower_bound up.

    Remembers `mu`, `nu`; `loss`, `inner`, `bound`, the log of the products of b1 and b2.
    """
    name = "scale_by_momo"
    checks.number(name, "learning_rate", learning_rate, low=0)
    checks.decay(name, b1, "b1")
    checks.number(name, "eps", eps, low=0)
    checks.number(name, "weight_decay", weight_decay, low=0)
    has_nu = b2 is not None
    first = None if has_nu else (lambda count, gain: jnp.where(count == 0, 1.0, gain))
    sides = {"mu": Recursion(lambda s, x, r: s, b1, first, weighs=has_nu)}
    if has_nu:
        checks.decay(name, b2, "b2")
        sides["nu"] = Recursion(lambda s, x, r: s, b2, weighs=True)

    def init(p):
        return {"mu": jnp.zeros_like(p)} | ({"nu": jnp.zeros_like(p.real)} if has_nu else {})

    def init_shared():
        logs = {f"{n}_log_product": np.zeros(2) for n in sides} if has_nu else {}
        return {"loss": 0.0, "inner": 0.0, "bound": lower_bound} | logs

    def rates(step):
        found, logs = {}, {}
        for n, side in sides.items():
            before = getattr(step.memory, f"{n}_log_product") if has_nu else None
            found[n], new = rates_of(side, step.count, before, lags=False)
            logs |= {f"{n}_log_product": new} if has_nu else {}
        return found, logs

    def averages(g, memory, rates):
        """d, v and d / D."""
        d = memory.mu + rates["mu"].gain * (g - memory.mu)
        if not has_nu:
            return d, None, d
        v = memory.nu + rates["nu"].gain * (square(g) - memory.nu)
        return d, v, safe_divide(d, eps + safe_root(v / rates["nu"].mass))

    def sums(g, here):
        d, _, scaled = averages(g, here.memory, rates(here.shared)[0])
        pairs = {"inner": (d, here.param), "new": (g, here.param), "size": (d, scaled)}
        return {n: dot(x, y) for n, (x, y) in pairs.items()}

    def shared(step):
        found, logs = rates(step)
        gain, rho = found["mu"].gain, found["mu"].mass
        old, inner, size = step.memory, step.sums.inner, step.sums.size
        value = jnp.asarray(step.extra["value"]).astype(size.dtype)
        f = old.loss + gain * (value - old.loss)
        gamma = old.inner + gain * (step.sums.new - old.inner)
        lr = value_at(learning_rate, step.count)
        grow, bound = 1 + lr * weight_decay, old.bound
        cap = grow * (f - gamma) + inner
        if adapt_lower_bound:
            low = jnp.maximum(cap / (2 * rho * grow), lower_bound)
            bound = jnp.where(cap < grow * rho * bound, low, bound)
        tau = jnp.minimum(lr / rho, safe_divide(jnp.maximum(cap - grow * rho * bound, 0), size))
        if adapt_lower_bound:
            seen = (f + inner - gamma - tau * size / 2) / rho
            bound = jnp.maximum(seen, lower_bound)
        new = {"loss": f, "inner": gamma, "bound": bound} | logs
        return (found, tau, lr * weight_decay), new

    def leaf(g, here):
        found, tau, decay = here.shared
        d, v, scaled = averages(g, here.memory, found)
        u = -(tau * scaled + decay * here.param) / (1 + decay)
        return u, {"mu": d} | ({"nu": v} if has_nu else {})

    more = {"init_shared": init_shared, "needs": ("params", "value")}
    return leafwise(leaf, init=init, sums=sums, shared=shared, **more)


@block
def reduce_on_plateau(
    factor: Dynamic = 0.1,
    patience: int = 10,
    rtol: Dynamic = 1e-4,
    atol: Dynamic = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: Dynamic = 0.0,
):
    """A scale times u; the scale is cut where the loss, `value=` of update, gets no better.

    Every accumulation_size losses their mean is judged: below (1 - rtol) best - atol it is the new best;
    else the patience-th miss in a row multiplies the scale by factor, and the next `cooldown` judgements do
    not count. torch waits one miss more.

    Args:
      factor: in (0, 1).
      patience: >= 1.
      rtol, atol: >= 0; not both 0 in optax.
      cooldown: >= 0.
      accumulation_size: >= 1.
      min_scale: >= 0.

    Remembers `scale`, `best`, `misses`, `cooling`, `total`, `seen`.
    """
    name = "reduce_on_plateau"
    checks.number(name, "factor", factor, low=0, high=1)
    patience = checks.steps(name, "patience", patience, 1)
    checks.number(name, "rtol", rtol, low=0, high=1)
    checks.number(name, "atol", atol, low=0)
    cooldown = checks.steps(name, "cooldown", cooldown)
    size = checks.steps(name, "accumulation_size", accumulation_size, 1)
    checks.number(name, "min_scale", min_scale, low=0)

    def init_shared():
        counts = {n: np.zeros((), np.int32) for n in ("misses", "cooling", "seen")}
        return {"scale": 1.0, "best": np.inf, "total": 0.0} | counts

    def shared(step):
        old = step.memory
        total = old.total + jnp.asarray(step.extra["value"]).astype(old.total.dtype)
        seen = old.seen + 1
        due = seen == size
        mean = total / size
        better = mean < (1 - rtol) * old.best - atol
        misses = jnp.where(better, 0, old.misses + 1)
        is_cooling = old.cooling > 0
        cut = ~is_cooling & (misses == patience)
        scale = jnp.where(cut, old.scale * factor, old.scale)
        cooling = jnp.where(is_cooling, old.cooling - 1, jnp.where(cut, cooldown, 0))
        judged = {
            "scale": jnp.where(is_cooling, scale, jnp.maximum(scale, min_scale)),
            "best": jnp.where(better, mean, old.best),
            "misses": jnp.where(is_cooling | cut, 0, misses),
            "cooling": cooling,
            "total": jnp.zeros_like(total),
            "seen": jnp.zeros_like(seen),
        }
        kept = old._asdict() | {"total": total, "seen": seen}
        new = {n: jnp.where(due, x, kept[n]) for n, x in judged.items()}
        return new["scale"], new

    def leaf(u, here):
        return here.shared * u

    return leafwise(leaf, shared=shared, init_shared=init_shared, needs=("value",))
