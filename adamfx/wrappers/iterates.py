"""Two sequences of parameters: where the gradient is taken, what is averaged, what an outer step moves."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.combine import chain
from adamfx.engine import trees
from adamfx.engine.arithmetic import safe_divide, safe_power
from adamfx.engine.control import count_up
from adamfx.engine.norms import norm
from adamfx.engine.placement import wide_copy, wide_zeros
from adamfx.schedules import Rate, value_at
from adamfx.transformation import GradientTransformation, block, leafwise, treewise
from adamfx.values.arguments import checked
from adamfx.values.constructor import Dynamic, Exact, Inner


@block
def average_iterates(learning_rate: Rate, b1: Exact = 0.9, weight_lr_power: Exact = 2.0):
    """The last word of a schedule-free sentence, from z_0 <- p and a_0 <- p:

        l <- max(l, alpha)
        w <- l^weight_lr_power
        q <- q + w
        z <- z + u
        a <- (1 - w / q) a + w / q z
        p' <- (1 - b1) z + b1 a

    The gradient is taken at p, the model is to be used at a, the paper's x: `tx.evaluate_at(state, params)`,
    made as (p - (1 - b1) z) / b1. Needs params. Defazio et al. 2024, equations 6 to 8; optax reads the rate
    one step late.

    Args:
      learning_rate: alpha >= 0, that of the words before, or a schedule.
      b1: in (0, 1).
      weight_lr_power: >= 0; 0 weighs all steps alike.

    Remembers `z`, and `largest_rate` and `weight`, l and q.
    """
    name = "average_iterates"
    checks.decay(name, b1, "b1")
    if isinstance(b1, (int, float)) and b1 == 0:
        raise ValueError(f"{name}: b1 must lie in (0, 1), got 0: x could not be told from p")
    checks.number(name, "learning_rate", learning_rate, low=0)
    checks.number(name, "weight_lr_power", weight_lr_power, low=0)

    def x_of(p, z):
        return (p - (1 - b1) * z) / b1

    def shared(step):
        rate = jnp.asarray(value_at(learning_rate, step.count), step.memory.weight.dtype)
        largest = jnp.maximum(step.memory.largest_rate, rate)
        w = jnp.ones_like(largest) if weight_lr_power == 0 else safe_power(largest, weight_lr_power)
        total = step.memory.weight + w
        return safe_divide(w, total), {"largest_rate": largest, "weight": total}

    def leaf(u, here):
        p, c, z = here.param, here.shared, here.memory.z
        x = x_of(p, z)
        z = z + u
        return (1 - b1) * u + b1 * c * (z - x), {"z": z}

    return leafwise(
        leaf,
        init=lambda p: {"z": p},
        shared=shared,
        init_shared=lambda: {"largest_rate": 0.0, "weight": 0.0},
        needs_params=True,
        evaluate_at=lambda p, here: x_of(p, here.memory.z) if here.memory._fields else p,
    )


@checked
def schedule_free(
    base_optimizer: GradientTransformation,
    learning_rate: Rate,
    b1: Exact = 0.9,
    weight_lr_power: Exact = 2.0,
) -> GradientTransformation:
    """Any sentence without momentum, made schedule-free: followed by `average_iterates`.

    tx = schedule_free(chain(scale_by_moments(None, 0.999), bias_correct(), scale_by_lr(lr)), lr)
    model = tx.evaluate_at(state, params)
    """
    return chain(base_optimizer, average_iterates(learning_rate, b1, weight_lr_power))


@block
def ema_nesterov(
    transformation: Inner,
    lookahead: Rate = 0.3,
    decay: Exact = 0.99,
    start: int = 0,
    stop: int | None = None,
    restore: bool = False,
):
    """The gradient at q = p + lambda b, the step from q; b' = decay b + (1 - decay)(p' - p).

    Take the gradient at `tx.gradient_at(state, params)`, as `fit` and `make_step` do. Needs params. arXiv
    2605.25395.

    Args:
      transformation: what steps.
      lookahead: lambda, or a schedule; the authors multiply it by learning_rate / its peak.
      decay: of b, in [0, 1).
      start, stop: lambda is 0 before step `start` and from step `stop` on; None: never again.
      restore: the step goes from p rather than from q.

    Remembers `inner`, `b`, `steps`.
    """
    checks.number("ema_nesterov", "lookahead", lookahead)
    checks.decay("ema_nesterov", decay)
    start = checks.steps("ema_nesterov", "start", start)
    stop = stop if stop is None else checks.steps("ema_nesterov", "stop", stop, start + 1)
    tx = transformation
    checks.holds_no_copies("ema_nesterov", tx)

    def ahead(leaves, memory):
        t = memory.steps
        inside = (t >= start) if stop is None else (t >= start) & (t < stop)
        strength = jnp.where(inside, value_at(lookahead, t), 0.0)
        return leaves.each(lambda b: strength.astype(b.real.dtype) * b, memory.b)

    def gradient_at(leaves, memory, step):
        d = ahead(leaves, memory)
        return leaves.each(lambda p, d: p.astype(d.dtype) + d, leaves.params, d)

    def run(leaves, memory, step):
        d = ahead(leaves, memory)
        q = leaves.each(lambda p, d: p.astype(d.dtype) + d, leaves.params, d)
        out, inner = tx.run(leaves.replace(params=q), memory.inner, step)
        moves = out.updates if restore else leaves.each(_plus, out.updates, d)
        b = leaves.each(lambda b, u: b + (1 - decay) * (u.astype(b.dtype) - b), memory.b, moves)
        new = {"inner": inner, "b": b, "steps": count_up(memory.steps)}
        return leaves.replace(updates=moves), new

    return treewise(
        run,
        tx,
        init=lambda p: {"b": wide_zeros(p)},
        init_shared=lambda: {"steps": np.zeros((), np.int32)},
        needs=("params",),
        gradient_at=gradient_at,
    )


def _plus(x, y):
    return x + y.astype(x.dtype)


@block
def keep_samples(start: int, every: int = 1):
    """The mean of the parameters after step start, start + every, ...: stochastic weight averaging.

    Leaves the update as it is, u <- u. Stands last. The model is to be used at the mean,
    `tx.evaluate_at(state, params)`; before the first sample at p itself. Needs params. Izmailov et al. 2018,
    algorithm 1.

    Args:
      start: >= 0; at 0 the initial parameters count, too.
      every: >= 1.

    Remembers `average` and `samples`, how many.
    """
    start = checks.steps("keep_samples", "start", start)
    every = checks.steps("keep_samples", "every", every, 1)

    def init_shared():
        return {"samples": np.asarray(1 if start == 0 else 0, np.int32)}

    def shared(step):
        t = step.count + 1
        due = (t >= start) & ((t - start) % every == 0)
        n = step.memory.samples + due.astype(jnp.int32)
        return (due, n), {"samples": n}

    def leaf(u, here):
        (due, n), s = here.shared, here.memory.average
        after = trees.round_to(here.param + u, here.dtype)
        gain = jnp.where(due, 1 / jnp.maximum(n, 1).astype(s.real.dtype), 0)
        return u, {"average": s + gain * (after - s)}

    def evaluate_at(p, here):
        if not here.memory._fields:
            return p
        return jnp.where(here.shared.memory.samples == 0, p, here.memory.average.astype(p.dtype))

    return leafwise(
        leaf,
        init=lambda p: {"average": p},
        shared=shared,
        init_shared=init_shared,
        needs_params=True,
        evaluate_at=evaluate_at,
    )


@checked
def swa(
    transformation: GradientTransformation, start: int, every: int = 1
) -> GradientTransformation:
    """The transformation, and the mean of its parameters from step `start` on. Izmailov et al. 2018."""
    return chain(transformation, keep_samples(start, every))


@block
def outer_step(inner: Inner, outer: Inner, every: int):
    """Every k steps another optimizer takes D = a - p as a gradient, a the p of k steps ago; p' = a + u.

        outer_step(adamw(4e-4), sgd(0.7, momentum=0.5, nesterov=True), every=30)

    Needs params. Douillard et al. 2023 (DiLoCo), algorithm 1 for one worker; MuLoCo with muon inside.

    Args:
      inner: what moves p.
      outer: what moves a. Schedules in it count outer steps.
      every: k >= 1.

    Remembers `inner`, `outer`, `anchor`, a, and `steps` since the last outer one.
    """
    k = checks.steps("outer_step", "every", every, 1)
    checks.holds_no_copies("outer_step", inner)

    def run(leaves, memory, step):
        out, mine = inner.run(leaves, memory.inner, step)
        due = memory.steps + 1 >= k

        def behind(a, p, u):
            return a - (p.astype(a.dtype) + u.astype(a.dtype))

        D = leaves.each(behind, memory.anchor, leaves.params, out.updates)
        table = leaves.replace(updates=D, gradients=D, params=memory.anchor, applies=False)
        far, theirs = outer.run_if(due, table, memory.outer, step)
        anchor = leaves.each(_plus, memory.anchor, far.updates)

        def move(a, p, u):
            return jnp.where(due, a - p.astype(a.dtype), u.astype(a.dtype))

        updates = leaves.each(move, anchor, leaves.params, out.updates)
        steps = jnp.where(due, 0, count_up(memory.steps))
        new = {"inner": mine, "outer": theirs, "anchor": anchor, "steps": steps}
        return leaves.replace(updates=updates), new

    return treewise(
        run,
        {"inner": inner, "outer": outer},
        init=lambda p: {"anchor": wide_copy(p)},
        init_shared=lambda: {"steps": np.zeros((), np.int32)},
        needs=("params",),
    )


@block
def sam(transformation: Inner, rho: Dynamic = 0.05):
    """The gradient at p + rho g / |g|, the worst point nearby, goes to the transformation. Foret et al. 2021.

    Algorithm 1; |g| is over all leaves. A second gradient in every step: needs params and `grad_fn=`, which
    `fit` and `make_step` pass. rho >= 0. Remembers `inner`.
    """
    checks.number("sam", "rho", rho, low=0)
    return _at_the_worst("sam", transformation, rho, jnp.ones_like)


@block
def asam(transformation: Inner, rho: Dynamic = 0.5, eta: Dynamic = 0.01):
    """The gradient at p + rho T^2 g / |T g|, T = |p| + eta, number by number. Kwon et al. 2021, algorithm 1.

    As `sam`, but the same for layers that are rescaled. The authors take T = 1 for biases. rho, eta >= 0.
    """
    checks.number("asam", "rho", rho, low=0)
    checks.number("asam", "eta", eta, low=0)
    return _at_the_worst("asam", transformation, rho, lambda p: jnp.abs(p) + eta)


def _at_the_worst(name, tx, rho, scale):
    def run(leaves, memory, step):
        leaves.check_whole(name)
        wide = leaves.wide()
        p = [x.astype(d) for x, d in zip(leaves.params, wide, strict=True)]
        g = [x.astype(d) for x, d in zip(leaves.updates, wide, strict=True)]
        T = leaves.each(scale, p)
        Tg = leaves.each(jnp.multiply, T, g)
        size = norm(Tg)

        def move(p, T, y, like):
            r = safe_divide(jnp.asarray(rho, size.dtype), size).astype(p.real.dtype)
            return (p + r * T * y).astype(like.dtype)

        worst = leaves.each(move, p, T, Tg, leaves.params)
        tree = leaves.layout.tree(worst, leaves.param_tree())
        found = trees.flatten(step.extra["grad_fn"](tree))[0]
        new = [x.astype(d) for x, d in zip(leaves.layout.pick(found), wide, strict=True)]
        out, inner = tx.run(leaves.replace(updates=new, gradients=new), memory.inner, step)
        return out, {"inner": inner}

    return treewise(run, tx, needs=("params", "grad_fn"))
