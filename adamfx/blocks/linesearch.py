"""Line searches: how far to go along the update, by evaluating the loss there.

They stand last, behind a descent direction (`scale(-1.0)`), and read `value=`, `grad=` and `value_fn=`,
which `fit` and `make_step` pass. They keep value and gradient of the point that they accept, so that a loop
of one's own evaluates nothing twice:

    value_and_grad = fx.value_and_grad_from_state(loss)
    for _ in range(100):
        value, grad = value_and_grad(params, state=state)
        params, state = tx.step(grad, state, params, value=value, grad=grad, value_fn=loss)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.arithmetic import dot, safe_divide, safe_root
from adamfx.engine.leaves import add
from adamfx.engine.packed import memories
from adamfx.engine.placement import wide_zeros
from adamfx.transformation import block, treewise
from adamfx.values.arguments import checked
from adamfx.values.constructor import Exact

Array = Any
Tree = Any
NEEDS = ("params", "value", "value_fn")


class Line(NamedTuple):
    """A point on the line: p + a d."""

    a: Array
    value: Array
    slope: Array  # <d, gradient there>
    grad: list  # a column


class Ray:
    """The loss along the update of a table."""

    def __init__(self, name: str, leaves: Any, step: Any, dtype: Any):
        leaves.check_whole(name)
        self.leaves, self.loss, self.dtype = leaves, step.extra["value_fn"], dtype
        self.d = [u.astype(w) for u, w in zip(leaves.updates, leaves.wide(), strict=True)]
        self.start = self._of(0, step.extra["value"], leaves.gradients)
        if "grad" in step.extra:
            grads = leaves.layout.pick(trees.flatten(step.extra["grad"])[0])
            self.start = self._of(0, step.extra["value"], grads)

    def _slope(self, grads: list) -> Array:
        parts = [dot(u, g).astype(self.dtype) for u, g in zip(self.d, grads, strict=True)]
        return functools.reduce(jax.lax.add, parts, jnp.zeros((), self.dtype))

    def _of(self, a: Any, value: Any, grads: list) -> Line:
        grads = [jnp.asarray(g).astype(d.dtype) for g, d in zip(grads, self.d, strict=True)]
        at, f = jnp.asarray(a, self.dtype), jnp.asarray(value).astype(self.dtype)
        return Line(at, f, self._slope(grads), grads)

    def moves(self, a: Array) -> list:
        """a d, and nothing for a = 0, whatever d holds."""
        return [jnp.where(a == 0, 0, a.astype(u.real.dtype) * u) for u in self.d]

    def _params(self, a: Array) -> Tree:
        table = self.leaves
        moved = [add(p, u) for p, u in zip(table.params, self.moves(a), strict=True)]
        return table.layout.tree(moved, table.layout.structure.unflatten(table.layout.params))

    def value(self, a: Array) -> Array:
        return jnp.asarray(self.loss(self._params(a))).astype(self.dtype)

    def at(self, a: Array) -> Line:
        f, g = jax.value_and_grad(self.loss, allow_int=True)(self._params(a))
        return self._of(a, f, self.leaves.layout.pick(trees.flatten(trees.uphill(g))[0]))


def _remembers(run: Callable) -> Any:
    def init_shared():
        zero = np.zeros((), np.int32)
        rates = {"learning_rate": 1.0, "value": np.inf}
        return rates | {"num_linesearch_steps": zero, "failed": np.asarray(False)}

    return treewise(
        run, init=lambda p: {"grad": wide_zeros(p)}, init_shared=init_shared, needs=NEEDS
    )


@block
def scale_by_backtracking_linesearch(
    max_backtracking_steps: int,
    slope_rtol: Exact = 1e-4,
    decrease_factor: Exact = 0.8,
    increase_factor: Exact = 1.5,
    max_learning_rate: Exact = 1.0,
    atol: Exact = 0.0,
    rtol: Exact = 0.0,
    store_grad: bool = True,
):
    """a u, with a shrunk until f(p + a u) <= (1 + rtol) f(p) + slope_rtol a <u, grad> + atol. Armijo 1966.

    Args:
      max_backtracking_steps: >= 1.
      slope_rtol: in (0, 1), the part of the decrease that the slope promises.
      decrease_factor: in (0, 1).
      increase_factor: >= 1, from the a before to the first guess; inf: the first guess is max_learning_rate.
      max_learning_rate: > 0.
      atol, rtol: >= 0, by which the loss may rise.
      store_grad: whether the gradient at the accepted point is computed and kept; False in optax.

    Remembers `learning_rate`, a, `value` and `grad` there, `num_linesearch_steps`, `failed`: no a was small
    enough, and nothing moves. Downhill, the next search then begins below the last a, which is remembered.
    """
    name = "scale_by_backtracking_linesearch"
    steps = checks.steps(name, "max_backtracking_steps", max_backtracking_steps, 1)
    for n, x in (("slope_rtol", slope_rtol), ("decrease_factor", decrease_factor)):
        checks.number(name, n, x, low=0, high=1)
    checks.number(name, "increase_factor", increase_factor, low=1)
    for n, x in (("max_learning_rate", max_learning_rate), ("atol", atol), ("rtol", rtol)):
        checks.number(name, n, x, low=0)

    def run(leaves, memory, step):
        ray = Ray(name, leaves, step, memory.learning_rate.dtype)
        begin = ray.start

        def enough(a, f):
            bound = (1 + rtol) * begin.value + slope_rtol * a * begin.slope + atol
            return (f <= bound) & jnp.isfinite(f)

        def more(carry):
            a, f, n = carry
            return ~enough(a, f) & (n < steps)

        def turn(carry):
            a, _, n = carry
            a = decrease_factor * a
            return a, ray.value(a), n + 1

        factor = jnp.where(memory.failed, decrease_factor, increase_factor)
        first = jnp.minimum(memory.learning_rate * factor, max_learning_rate)
        first = jnp.where(first > 0, first, max_learning_rate).astype(begin.a.dtype)
        carry = (first, ray.value(first), jnp.ones((), jnp.int32))
        a, f, n = jax.lax.while_loop(more, turn, carry)
        failed = ~enough(a, f)
        # Uphill, or where nothing is known, a smaller a would not help.
        again = jnp.where((begin.slope < 0) & jnp.isfinite(begin.slope), a, 0)
        kept = jnp.where(failed, again, a)
        a, f = jnp.where(failed, 0, a), jnp.where(failed, begin.value, f)
        grad = begin.grad
        if store_grad:
            grad = jax.lax.cond(failed, lambda a: begin.grad, lambda a: ray.at(a).grad, a)
        f = f if store_grad else jnp.full_like(f, jnp.inf)  # not to be used without its gradient
        found = {"learning_rate": kept, "value": f, "num_linesearch_steps": n, "failed": failed}
        return leaves.replace(updates=ray.moves(a)), found | {"grad": grad}

    return _remembers(run)


@block
def scale_by_zoom_linesearch(
    max_linesearch_steps: int,
    max_learning_rate: Exact | None = None,
    tol: Exact = 0.0,
    increase_factor: Exact = 2.0,
    slope_rtol: Exact = 1e-4,
    curv_rtol: Exact = 0.9,
    approx_dec_rtol: Exact | None = 1e-6,
    initial_guess_strategy: str = "keep",
):
    """a u, where a meets the strong Wolfe conditions: a bracket, then cubic interpolation within it.

    f(a) <= f(0) + slope_rtol a f'(0) and |f'(a)| <= curv_rtol |f'(0)|, f(a) the loss at p + a u. Nocedal &
    Wright 2006, algorithms 3.5 and 3.6; where rounding hides the decrease, the approximate condition of
    Hager & Zhang 2005.

    Args:
      max_linesearch_steps: evaluations of the loss with its gradient, >= 1.
      max_learning_rate: the largest a; None: no limit.
      tol: >= 0, by which either condition may be missed.
      increase_factor: > 1, by how much a bracket grows at least.
      slope_rtol, curv_rtol: 0 < slope_rtol < curv_rtol < 1.
      approx_dec_rtol: a loss within this part of f(0) counts as no higher; None: it does not.
      initial_guess_strategy: the first a: "one", or "keep", that of the step before.

    Remembers `learning_rate`, a, `value` and `grad` there, `num_linesearch_steps`, `failed`: no a met both;
    then the lowest point seen is taken.
    """
    name = "scale_by_zoom_linesearch"
    steps = checks.steps(name, "max_linesearch_steps", max_linesearch_steps, 1)
    most = np.inf if max_learning_rate is None else max_learning_rate
    checks.number(name, "increase_factor", increase_factor, low=1)
    for n, x in (("max_learning_rate", max_learning_rate), ("tol", tol)):
        checks.number(name, n, 0.0 if x is None else x, low=0)
    for n, x in (("slope_rtol", slope_rtol), ("curv_rtol", curv_rtol)):
        checks.number(name, n, x, low=0, high=1)
    concrete = all(isinstance(x, int | float) for x in (slope_rtol, curv_rtol))
    if concrete and not slope_rtol < curv_rtol:
        raise ValueError(f"{name}: slope_rtol {slope_rtol} must be below curv_rtol {curv_rtol}")
    checks.choice(name, "initial_guess_strategy", initial_guess_strategy, ("one", "keep"))

    def run(leaves, memory, step):
        ray = Ray(name, leaves, step, memory.learning_rate.dtype)
        begin = ray.start

        def is_low(x, low):
            """Whether a point satisfies the first condition, and is lower than the lowest so far."""
            promised = begin.value + slope_rtol * x.a * begin.slope + tol
            return (x.value <= promised) & (x.value < low.value)

        def is_good(x):
            flat = jnp.abs(x.slope) <= -curv_rtol * begin.slope + tol
            good = (x.value <= begin.value + slope_rtol * x.a * begin.slope + tol) & flat
            if approx_dec_rtol is not None:
                near = x.value <= begin.value + approx_dec_rtol * jnp.abs(begin.value)
                good |= near & flat & (x.slope <= (2 * slope_rtol - 1) * begin.slope)
            return good & jnp.isfinite(x.value)

        def more(carry):
            _, _, _, _, done, n = carry
            return ~done & (n < steps)

        def turn(carry):
            a, low, high, has_high, _, n = carry
            x = ray.at(a)
            done = is_good(x)
            finite = jnp.isfinite(x.value) & jnp.isfinite(x.slope)
            lower = finite & is_low(x, low)
            # The end of the bracket: x where it is higher; the old low end where x lies beyond the valley.
            beyond = lower & (x.slope * jnp.where(has_high, high.a - low.a, 1) >= 0)
            new_high = _pick(~lower, x, _pick(beyond, low, high))
            new_low = _pick(lower | done, x, low)
            has_high = has_high | ~lower | beyond
            inside = _between(new_low, new_high, finite)
            out = _outside(low, x, increase_factor)
            a = jnp.where(has_high, inside, jnp.minimum(out, most))
            done |= ~has_high & (x.a >= most)
            return a, new_low, new_high, has_high, done, n + 1

        first = jnp.ones_like(begin.a)
        if initial_guess_strategy == "keep":
            first = jnp.where(memory.learning_rate > 0, memory.learning_rate, 1)
        first = jnp.minimum(first, most).astype(begin.a.dtype)
        no, n = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        # Downhill only: a direction that does not descend moves nothing.
        carry = (first, begin, begin, no, ~(begin.slope < 0), n)
        _, low, _, _, _, n = jax.lax.while_loop(more, turn, carry)
        found = {
            "learning_rate": low.a,
            "value": low.value,
            "grad": low.grad,
            "num_linesearch_steps": n,
            "failed": ~(is_good(low) & jnp.isfinite(begin.slope)),
        }
        return leaves.replace(updates=ray.moves(low.a)), found

    return _remembers(run)


def _pick(which: Array, x: Line, y: Line) -> Line:
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), x, y)


def _cubic(x: Line, y: Line) -> Array:
    """The minimum of the cubic through two points with their slopes; not finite where it has none."""
    d = x.slope + y.slope - 3 * safe_divide(x.value - y.value, x.a - y.a)
    inside = d * d - x.slope * y.slope
    root = jnp.sign(y.a - x.a) * safe_root(jnp.maximum(inside, 0))
    ratio = safe_divide(y.slope + root - d, y.slope - x.slope + 2 * root)
    return jnp.where(inside >= 0, y.a - (y.a - x.a) * ratio, jnp.nan)


def _between(low: Line, high: Line, finite: Array) -> Array:
    """The next point within a bracket, not too near its ends; its middle where nothing else is known."""
    width = high.a - low.a
    a = _cubic(low, high)
    part = (a - low.a) / jnp.where(width == 0, 1, width)
    part = jnp.where(jnp.isfinite(part) & finite, jnp.clip(part, 0.1, 0.9), 0.5)
    return low.a + part * width


def _outside(low: Line, x: Line, factor: Any) -> Array:
    """The next point beyond x, downhill still: where the cubic has its minimum, within bounds."""
    width = x.a - low.a
    a = _cubic(low, x)
    far = jnp.where(jnp.isfinite(a) & (a > x.a), a, x.a + 4 * width)
    return jnp.clip(far, x.a + (factor - 1) * width, x.a + 4 * width)


@checked
def value_and_grad_from_state(value_fn: Callable) -> Callable:
    """`f(params, *args, state=state, **kwargs) -> (value, grad)`, those that a line search left in the state.

    They are computed where there are none: before the first step, or where the search did not keep them.
    For a loss that stays the same from step to step. Like jax.grad: of complex parameters, a step takes the
    conjugate. Raises ValueError for a state without a line search.

    Args:
      value_fn: `value_fn(params, *args, **kwargs)`, a scalar.
    """

    def value_and_grad(params: Tree, *args: Any, state: Any, **kwargs: Any) -> tuple[Array, Tree]:
        found = [m for m in memories(state, "grad") if "value" in m._fields]
        if len(found) != 1:
            raise ValueError(
                f"value_and_grad_from_state: needs a state with one line search, this has {len(found)}"
            )
        leaves, structure = trees.flatten(params)
        value = trees.the_array(found[0].value)
        kept = structure.flatten_up_to(trees.uphill(found[0].grad))

        def known():
            pairs = zip(kept, leaves, strict=True)
            return value, [None if g is None else g.astype(p.dtype) for g, p in pairs]

        def computed():
            f, g = jax.value_and_grad(value_fn, allow_int=True)(params, *args, **kwargs)
            column = trees.flatten(g)[0]
            pairs = zip(column, kept, leaves, strict=True)
            column = [None if k is None else g.astype(p.dtype) for g, k, p in pairs]
            return jnp.asarray(f).astype(value.dtype), column

        f, column = jax.lax.cond(jnp.isfinite(value), known, computed)
        return f, structure.unflatten(column)

    return value_and_grad
