"""Learning-rate and decay schedules: values that map the number of steps done to a number.

A schedule is called with the count of steps before this one (0 at the first update), as in optax,
and can stand wherever a rate or a decay can. `scale_by_lr(cosine_decay_schedule(1e-3, 100))`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.trees import cast_floats, is_number
from adamfx.values.constructor import Dynamic, Exact, P, constructor
from adamfx.values.value import Value

Array = Any


class Schedule(Value):
    """A function of the step count, as a value: prints, compares and differentiates like one."""

    __slots__ = ()
    example = "a schedule such as cosine_decay_schedule(0.1, 100)"
    means = (Callable,)

    def __call__(self, count: Array) -> Array:
        """The value at `count` steps done, a scalar (or an array for an array of counts)."""
        if not is_number(count) or isinstance(count, (bool, complex)):
            raise TypeError(
                f"{self.name}: count must be a count of steps, or an array of such, got {checks.shown(count)}"
            )
        return cast_floats(self, jnp.result_type(float)).meaning(jnp.asarray(count))


def schedule(function: Callable[P, Any]) -> Callable[P, Schedule]:
    """Decorator: makes a constructor of schedule values from a plain function.

    The function returns `count -> value`; its parameters are declared as those of a block.
    """
    return _construct(function)


_construct = constructor(Schedule)
ScheduleFunction = Callable[[Any], Any]
Rate = Dynamic | ScheduleFunction  # a learning rate or weight: a number, or a schedule of it
Decay = Exact | ScheduleFunction  # a decay: a number in [0, 1), or a schedule of it


def value_at(x: Any, count: Array) -> Array:
    """`x` itself, or its value at `count` if it is a schedule (any function of the count).

    Raises TypeError for a schedule that returns anything but one real number for a count.
    """
    if not callable(x):
        return x
    found: Any = x(count)
    is_number = isinstance(found, (int, float)) or hasattr(found, "dtype")
    real = is_number and not jnp.iscomplexobj(found)
    if not real or jnp.shape(found) not in ((), jnp.shape(count)):
        name = getattr(x, "__name__", None) or repr(x)
        raise TypeError(
            f"the schedule {name} returned {found!r}; it must return one real number for a count of steps"
        )
    return found


def _fraction(count: Array, steps: int) -> Array:
    """count / steps, held within [0, 1] while still whole; 0 for no steps at all."""
    return jnp.clip(count, 0, steps).astype(jnp.result_type(float)) / max(steps, 1)


def _wave(count: Array, steps: int) -> Array:
    """Half a cosine from 1 to 0 over the steps."""
    return 0.5 * (1 + jnp.cos(jnp.pi * _fraction(count, steps)))


@schedule
def constant_schedule(value: Dynamic):
    """y <- value, at every step."""
    return lambda count: value + jnp.zeros(jnp.shape(count))


@schedule
def polynomial_schedule(
    init_value: Dynamic,
    end_value: Dynamic,
    power: Exact,
    transition_steps: int,
    transition_begin: int = 0,
):
    """y <- end_value + (init_value - end_value) (1 - s)^power, s the part of the transition that is done.

    s <- max(0, min(1, (n - transition_begin) / transition_steps)); with transition_steps 0 it is init_value
    throughout.
    """
    transition_steps = checks.steps("polynomial_schedule", "transition_steps", transition_steps)
    transition_begin = checks.steps("polynomial_schedule", "transition_begin", transition_begin)

    def at(count):
        done = jnp.clip(count - transition_begin, 0, transition_steps)
        # Counted down in whole steps: 1 - s may come out below 0, and its root is then NaN.
        left = _fraction(transition_steps - done, transition_steps) if transition_steps else 1.0
        return end_value + (init_value - end_value) * left**power

    return at


@schedule
def linear_schedule(
    init_value: Dynamic, end_value: Dynamic, transition_steps: int, transition_begin: int = 0
):
    """From init to end in a straight line: polynomial_schedule with power 1.

    y <- init_value + (end_value - init_value) s, s <- max(0, min(1, (n - transition_begin) /
    transition_steps)).
    """
    straight = polynomial_schedule(init_value, end_value, 1.0, transition_steps, transition_begin)
    return straight.meaning


@schedule
def exponential_decay(
    init_value: Dynamic,
    transition_steps: int,
    decay_rate: Exact,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Dynamic | None = None,
):
    """init decay_rate^(n / transition_steps), n steps after the beginning.

    With `staircase` the exponent is rounded down. `end_value` bounds the value: from below for a
    decay_rate below 1, else from above; with a traced decay_rate, from below.
    """
    transition_steps = checks.steps("exponential_decay", "transition_steps", transition_steps, 1)
    transition_begin = checks.steps("exponential_decay", "transition_begin", transition_begin)
    checks.number("exponential_decay", "decay_rate", decay_rate, low=0)

    def at(count):
        n = jnp.maximum(count - transition_begin, 0).astype(jnp.result_type(float))
        exponent = n / transition_steps
        x = init_value * decay_rate ** (jnp.floor(exponent) if staircase else exponent)
        if end_value is None:
            return x
        grows = isinstance(decay_rate, (int, float)) and decay_rate >= 1
        return jnp.minimum(x, end_value) if grows else jnp.maximum(x, end_value)

    return at


@schedule
def inverse_sqrt_schedule(init_value: Dynamic):
    """y <- init_value / sqrt(t), t = count + 1 (Adam paper, theorem 4.1 and section 6.1)."""
    return lambda count: init_value / jnp.sqrt((count + 1).astype(jnp.result_type(float)))


@schedule
def lambda_decay_schedule(init_value: Dynamic, decay_rate: Exact):
    """y <- init_value decay_rate^(t - 1), t = count + 1 (Adam paper, theorem 4.1: the decay of beta_1)."""
    checks.decay("lambda_decay_schedule", init_value, "init_value")
    checks.number("lambda_decay_schedule", "decay_rate", decay_rate, low=0, high=1)
    return exponential_decay(init_value, 1, decay_rate).meaning


@schedule
def dozat_schedule(init_value: Dynamic = 0.9, momentum_decay: Exact = 4e-3):
    """beta (1 - 0.5 0.96^(t momentum_decay)), t = count + 1: the momentum of NAdam. Dozat 2016.

    For `nesterov`: torch's NAdam has momentum_decay 0.004, Keras's 1.
    """
    checks.decay("dozat_schedule", init_value, "init_value")
    checks.number("dozat_schedule", "momentum_decay", momentum_decay, low=0)

    def at(count):
        t = (count + 1).astype(jnp.result_type(float))
        return init_value * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    return at


@schedule
def cosine_decay_schedule(
    init_value: Dynamic, decay_steps: int, alpha: Dynamic = 0.0, exponent: Exact = 1.0
):
    """s <- min(1, n / decay_steps), y <- init_value ((1 - alpha) ((1 + cos(pi s)) / 2)^exponent + alpha).

    `alpha` is the fraction of init that remains. Loshchilov & Hutter 2017, SGDR, eq. 5.
    """
    decay_steps = checks.steps("cosine_decay_schedule", "decay_steps", decay_steps, 1)

    def at(count):
        return init_value * ((1 - alpha) * _wave(count, decay_steps) ** exponent + alpha)

    return at


@schedule
def join_schedules(schedules: Sequence[ScheduleFunction], boundaries: Sequence[int]):
    """schedules[i] between boundaries[i-1] and boundaries[i], each counting from its own start."""
    if len(schedules) != len(boundaries) + 1:
        raise ValueError(
            f"join_schedules: {len(schedules)} schedules need {len(schedules) - 1} boundaries, got "
            f"{len(boundaries)}"
        )
    for low, high in itertools.pairwise(boundaries):
        if not low < high:
            raise ValueError(f"join_schedules: boundaries must increase, got {tuple(boundaries)}")

    def at(count):
        x = schedules[0](count)
        for boundary, following in zip(boundaries, schedules[1:], strict=True):
            x = jnp.where(count < boundary, x, following(jnp.maximum(count - boundary, 0)))
        return x

    return at


@schedule
def piecewise_constant_schedule(
    init_value: Dynamic, boundaries_and_scales: dict[int, float] | None = None
):
    """init times the scales of all boundaries reached (count >= boundary)."""
    scales = {}
    for boundary, factor in (boundaries_and_scales or {}).items():
        checks.number(
            "piecewise_constant_schedule", "each scale of boundaries_and_scales", factor, low=0
        )
        scales[
            checks.steps(
                "piecewise_constant_schedule", "each boundary of boundaries_and_scales", boundary
            )
        ] = factor

    def at(count):
        x = init_value + jnp.zeros(jnp.shape(count))
        for boundary, factor in scales.items():
            x = jnp.where(count >= boundary, x * factor, x)
        return x

    return at


@schedule
def warmup_schedule(init_value: Dynamic, warmup_steps: int, following: float | ScheduleFunction):
    """From init to where `following` starts, in a straight line; then `following`.

    `following` is a schedule, or a number for a constant; it counts from the end of the warm-up.
    """
    warmup_steps = checks.steps("warmup_schedule", "warmup_steps", warmup_steps)

    def at(count):
        s = _fraction(count, warmup_steps)
        peak = value_at(following, jnp.zeros_like(count))
        rest = value_at(following, jnp.maximum(count - warmup_steps, 0))
        return jnp.where(count < warmup_steps, init_value + (peak - init_value) * s, rest)

    return at


@schedule
def warmup_constant_schedule(init_value: Dynamic, peak_value: Dynamic, warmup_steps: int):
    """From init to peak in warmup_steps, then peak."""
    return warmup_schedule(init_value, warmup_steps, constant_schedule(peak_value)).meaning


@schedule
def warmup_cosine_decay_schedule(
    init_value: Dynamic,
    peak_value: Dynamic,
    warmup_steps: int,
    decay_steps: int,
    end_value: Dynamic = 0.0,
    exponent: Exact = 1.0,
):
    """From init to peak in warmup_steps, then a cosine to end; decay_steps counts the warm-up in.

    s <- min(1, (n - warmup_steps) / (decay_steps - warmup_steps))
    c <- end_value + (peak_value - end_value) ((1 + cos(pi s)) / 2)^exponent
    y <- [n < warmup_steps] (init_value + (peak_value - init_value) n / warmup_steps) + [n >= warmup_steps] c
    """
    name = "warmup_cosine_decay_schedule"
    warmup_steps = checks.steps(name, "warmup_steps", warmup_steps)
    decay_steps = checks.steps(name, "decay_steps", decay_steps, warmup_steps + 1)

    def cosine(count):
        wave = _wave(count, decay_steps - warmup_steps) ** exponent
        return end_value + (peak_value - end_value) * wave

    return warmup_schedule(init_value, warmup_steps, cosine).meaning


@schedule
def warmup_exponential_decay_schedule(
    init_value: Dynamic,
    peak_value: Dynamic,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: Exact,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Dynamic | None = None,
):
    """From init to peak in warmup_steps, then exponential_decay."""
    decay = exponential_decay(
        peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )
    return warmup_schedule(init_value, warmup_steps, decay).meaning


@schedule
def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: Dynamic,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: Exact = 25.0,
    final_div_factor: Exact = 1e4,
):
    """Up from peak / div to peak, down again, then to peak / (div final_div), in straight lines.

    The turns are at the fractions pct_start and pct_final. Smith & Topin 2018, Super-Convergence.
    """
    up, down, end = _turns("linear_onecycle_schedule", transition_steps, pct_start, pct_final)
    low = peak_value / div_factor
    parts = (
        linear_schedule(low, peak_value, up),
        linear_schedule(peak_value, low, down - up),
        linear_schedule(low, low / final_div_factor, end - down),
    )
    return join_schedules(parts, (up, down)).meaning


@schedule
def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: Dynamic,
    pct_start: float = 0.3,
    div_factor: Exact = 25.0,
    final_div_factor: Exact = 1e4,
):
    """Up from peak / div to peak, then down to peak / (div final_div), in half cosines.

    The turn is at the fraction pct_start. Smith & Topin 2018, Super-Convergence.
    """
    up, end = _turns("cosine_onecycle_schedule", transition_steps, pct_start)
    low = peak_value / div_factor
    parts = (
        cosine_decay_schedule(low, up, alpha=div_factor),
        cosine_decay_schedule(peak_value, end - up, alpha=1 / (div_factor * final_div_factor)),
    )
    return join_schedules(parts, (up,)).meaning


def _turns(name: str, transition_steps: int, *fractions: float) -> tuple[int, ...]:
    transition_steps = checks.steps(name, "transition_steps", transition_steps, 1)
    for n, fraction in zip(("pct_start", "pct_final"), fractions, strict=False):
        checks.number(name, n, fraction, low=0, high=1)
    turns = (*(int(fraction * transition_steps) for fraction in fractions), transition_steps)
    for low, high in itertools.pairwise((0, *turns)):
        if low >= high:
            raise ValueError(
                f"{name}: the turns must increase within {transition_steps} steps, got {turns}; take "
                "more steps or other fractions"
            )
    return turns


@schedule
def power_schedule(power: Exact = 0.5, scale: Dynamic = 1.0):
    """y <- scale n^power, after n steps; 0 at the start for a power > 0."""
    checks.number("power_schedule", "power", power)
    return lambda count: scale * jnp.asarray(count).astype(jnp.result_type(float)) ** power


@schedule
def warmup_stable_decay_schedule(
    peak_value: Dynamic,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    init_value: Dynamic = 0.0,
    end_value: Dynamic = 0.0,
):
    """From init to peak in a line, peak for stable_steps, then to end in a line. Hu et al. 2024 (WSD)."""
    name = "warmup_stable_decay_schedule"
    stable_steps = checks.steps(name, "stable_steps", stable_steps)
    decay_steps = checks.steps(name, "decay_steps", decay_steps)
    down = linear_schedule(peak_value, end_value, decay_steps, stable_steps)
    return warmup_schedule(init_value, warmup_steps, down).meaning


@schedule
def power_cooling_schedule(
    init_value: Dynamic, coefficient: Dynamic, total_steps: int, power: Exact = 1.2
):
    """min(init_value, coefficient (T - n)^power) after n steps of T; 0 from then on."""
    total_steps = checks.steps("power_cooling_schedule", "total_steps", total_steps, 1)

    def at(count):
        left = jnp.maximum(total_steps - count, 0).astype(jnp.result_type(float))
        return jnp.minimum(init_value, coefficient * left**power)

    return at


@schedule
def sgdr_schedule(cosine_kwargs: Any):
    """Cosine decays one after the other, each with its warm-up. Loshchilov & Hutter 2017, eq. 5.

    Args:
      cosine_kwargs: one dict for each cycle, the arguments of warmup_cosine_decay_schedule.
    """
    cycles = cosine_kwargs if isinstance(cosine_kwargs, (list, tuple)) else ()
    if not cycles or not all(isinstance(kwargs, dict) for kwargs in cycles):
        raise TypeError(
            "sgdr_schedule: cosine_kwargs must be a list with a dict of the arguments of "
            f"warmup_cosine_decay_schedule for each cycle, got {checks.shown(cosine_kwargs)}"
        )
    cycles = [warmup_cosine_decay_schedule(**kwargs) for kwargs in cosine_kwargs]
    ends = list(itertools.accumulate(kwargs["decay_steps"] for kwargs in cosine_kwargs))
    return join_schedules(tuple(cycles), tuple(ends[:-1])).meaning


@schedule
def piecewise_interpolate_schedule(
    interpolate_type: str,
    init_value: Dynamic,
    boundaries_and_scales: dict[int, float] | None = None,
):
    """From init through init times the product of the scales at each boundary, by lines or half cosines.

    Args:
      interpolate_type: "linear" or "cosine".
      boundaries_and_scales: the factor reached at each count of steps.
    """
    name = "piecewise_interpolate_schedule"
    checks.choice(name, "interpolate_type", interpolate_type, ("linear", "cosine"))
    given = sorted((boundaries_and_scales or {}).items())
    for boundary, factor in given:
        checks.steps(name, "each boundary of boundaries_and_scales", boundary, 1)
        checks.number(name, "each scale of boundaries_and_scales", factor, low=0)
    steps = [0, *(boundary for boundary, _ in given)]
    levels = list(
        itertools.accumulate((factor for _, factor in given), initial=1.0, func=operator.mul)
    )

    def at(count):
        x = jnp.full(jnp.shape(count), levels[-1], jnp.result_type(float))
        parts = zip(itertools.pairwise(steps), itertools.pairwise(levels), strict=True)
        for (left, right), (start, end) in reversed(list(parts)):
            s = _fraction(count - left, right - left)
            s = s if interpolate_type == "linear" else 0.5 * (1 - jnp.cos(jnp.pi * s))
            x = jnp.where(count < right, start + (end - start) * s, x)
        return init_value * x

    return at
