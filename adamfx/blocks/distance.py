"""Step sizes from how far the parameters have come: DoG, L-DoG, DoWG."""

from __future__ import annotations

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import safe_divide, safe_root, square
from adamfx.transformation import block, leafwise
from adamfx.values.constructor import Exact


@block
def scale_by_dog(
    init_step: tuple[str, float] = ("heuristic", 1e-6), eps: Exact = 1e-8, per_layer: bool = False
):
    """r <- max(r, |p - p_0|_all), G <- G + |u|_all^2, u <- r / sqrt(G + eps) u. Ivgi et al. 2023, eq. 2.

    Needs params.

    Args:
      init_step: where r begins: ("heuristic", a): r_0 <- a (1 + x), x <- |p_0|_all; ("distance", a): r_0 <-
        a; ("learning_rate", a): at 0, and the first step is u <- [t = 1] a u + [t > 1] r / sqrt(G + eps) u.
      eps: >= 0.
      per_layer: of each leaf on its own (L-DoG). True: r <- max(r, |p - p_0|), G <- G + |u|^2, x <- |p_0|.

    Remembers `start`, p_0, and `reach` and `total`, r and G.
    """
    if len(init_step) != 2:
        raise ValueError(
            f"scale_by_dog: init_step must be a pair such as ('heuristic', 1e-6), got {init_step!r}"
        )
    kind, value = init_step
    checks.choice("scale_by_dog", "init_step[0]", kind, ("heuristic", "distance", "learning_rate"))
    checks.number("scale_by_dog", "init_step[1]", value, low=0)
    checks.number("scale_by_dog", "eps", eps, low=0)

    def init(p):
        alone = {"reach": jnp.zeros((), p.real.dtype), "total": jnp.zeros((), p.real.dtype)}
        return {"start": p} | (alone if per_layer else {})

    def sums(u, here):
        p0 = here.memory.start
        parts = {"moved": here.param - p0, "size": p0, "square": u}
        return {n: jnp.sum(square(x)) for n, x in parts.items()}

    def rate(count, memory, found):
        begin = {"heuristic": value * (1 + safe_root(found["size"])), "distance": value}
        reach = jnp.where(count == 0, begin.get(kind, 0.0), memory.reach)
        reach = jnp.maximum(reach, safe_root(found["moved"]))
        total = memory.total + found["square"]
        eta = safe_divide(reach, safe_root(total + eps))
        eta = jnp.where(count == 0, value, eta) if kind == "learning_rate" else eta
        return eta, {"reach": reach, "total": total}

    def leaf(u, here):
        if not per_layer:
            return here.shared * u, {"start": here.memory.start}
        eta, new = rate(here.shared, here.memory, sums(u, here))
        return eta * u, {"start": here.memory.start} | new

    if per_layer:
        return leafwise(leaf, init=init, shared=lambda step: step.count, needs_params=True)
    return leafwise(
        leaf,
        init=init,
        sums=sums,
        shared=lambda step: rate(step.count, step.memory, step.sums._asdict()),
        init_shared=lambda: {"reach": 0.0, "total": 0.0},
        needs_params=True,
    )


@block
def scale_by_dowg(init_estim_sq_dist: Exact | None = None, eps: Exact = 1e-4):
    """r <- max(r, |p - p_0|_all^2), v <- v + r |u|_all^2, u <- r / (sqrt(v) + eps) u.

    Needs params. The eps is optax's; the paper has none. Khaled et al. 2023, algorithm 1.

    Args:
      init_estim_sq_dist: r at the start, > 0, r_0 <- init_estim_sq_dist; None: r_0 <- eps.
      eps: >= 0.

    Remembers `start`, p_0, and `reach_square` and `total`, r and v.
    """
    checks.number("scale_by_dowg", "eps", eps, low=0)
    begin = eps if init_estim_sq_dist is None else init_estim_sq_dist
    checks.number("scale_by_dowg", "init_estim_sq_dist", begin, low=0)

    def sums(u, here):
        return {
            "moved": jnp.sum(square(here.param - here.memory.start)),
            "square": jnp.sum(square(u)),
        }

    def shared(step):
        r2 = jnp.maximum(step.memory.reach_square, step.sums.moved)
        v = step.memory.total + r2 * step.sums.square
        return safe_divide(r2, safe_root(v) + eps), {"reach_square": r2, "total": v}

    def leaf(u, here):
        return here.shared * u, {"start": here.memory.start}

    return leafwise(
        leaf,
        init=lambda p: {"start": p},
        sums=sums,
        shared=shared,
        init_shared=lambda: {"reach_square": begin, "total": 0.0},
        needs_params=True,
    )
