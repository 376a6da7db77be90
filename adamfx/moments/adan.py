"""`scale_by_adan`: moments of the gradient, of its differences, and of what it will be next."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.record import Denominator, Moments
from adamfx.moments.scale_by_moments import Running, rates_of
from adamfx.moments.statistics import At
from adamfx.schedules import Decay
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Exact


@block
def scale_by_adan(
    b1: Decay = 0.98,
    b2: Decay = 0.92,
    b3: Decay = 0.99,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
):
    """Moments of the gradient and of its change, each divided by its mass:

        m <- b1 m + (1 - b1) g
        d <- b2 d + (1 - b2) (g - g_prev)
        v <- b3 v + (1 - b3) (g + b2 (g - g_prev))^2
        c <- m / (1 - prod(b1)) + b2 d / (1 - prod(b2))
        u <- c / (sqrt(v / (1 - prod(b3)) + eps_root) + eps)

    The first gradient is its own predecessor, g_0 <- g. Xie et al. 2022, algorithm 1; the coefficient is
    b2 as in the authors' code, where optax has 1 - b2.

    Args:
      b1, b2, b3: in [0, 1), or schedules.
      eps, eps_root: >= 0, outside and under the root.

    Remembers `mu`, `delta`, `nu`, `previous`, and the log of the product of each side's decays.
    """
    sides = {}
    for name, b, of in (("mu", b1, "value"), ("delta", b2, "value"), ("nu", b3, "square")):
        checks.decay("scale_by_adan", b, {"mu": "b1", "delta": "b2", "nu": "b3"}[name])
        sides[name] = Running(name, b, of, None, lags=False)
    checks.number("scale_by_adan", "eps", eps, low=0)
    checks.number("scale_by_adan", "eps_root", eps_root, low=0)

    def init(p):
        memory = {n: x for s in sides.values() for n, x in s.start(p).items()}
        return memory | {"previous": jnp.zeros_like(p)}

    def init_shared():
        return {f"{n}_log_product": np.zeros(2) for n in sides}

    def shared(step):
        old = step.memory
        found = [
            rates_of(s.meaning, step.count, getattr(old, f"{n}_log_product"), lags=False)
            for n, s in sides.items()
        ]
        (mu, a), (delta, b), (nu, c) = found
        grown = {"mu_log_product": a, "delta_log_product": b, "nu_log_product": c}
        return (mu, nu, delta), grown

    def leaf(g, here):
        rates = dict(zip(("mu", "nu", "delta"), here.shared, strict=True))
        d = jnp.where(rates["mu"].count == 0, 0, g - here.memory.previous)
        b2 = rates["delta"].decay
        seen = {"mu": g, "delta": d, "nu": g + b2 * d}
        used, new = {}, {"previous": g}
        for n, s in sides.items():
            side, _, memory = s.step(seen[n], At(g, g), rates[n], here.memory, None)
            used[n] = side._replace(value=side.value / rates[n].mass, corrected=True)
            new |= memory
        first = used["mu"]._replace(value=used["mu"].value + b2 * used["delta"].value)
        return Moments(g, g, first, used["nu"], Denominator(eps, eps_root)), new

    return leafwise(leaf, init=init, shared=shared, init_shared=init_shared, moments="opens")
