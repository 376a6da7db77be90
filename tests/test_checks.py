"""Arguments: counts of steps, and counters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx

TWO_ONES = jnp.ones(2)


@pytest.mark.parametrize(
    "steps", [float("inf"), float("nan"), np.int64(-5), np.int64(0), "5", None]
)
def test_numbers_of_steps(steps):
    with pytest.raises((ValueError, TypeError), match=r"must be a whole number( >= 1)?, got"):
        fx.cosine_decay_schedule(1.0, steps)


def test_whole_floats_count_steps_under_strict_promotion():
    for tx in (fx.lookahead(fx.sgd(0.1), 2.0, 0.5), fx.accumulate(fx.sgd(0.1), 2.0)):
        p, s = TWO_ONES, tx.init(TWO_ONES)
        for _ in range(2):
            p, s = tx.step(TWO_ONES, s, p)
        assert (p != TWO_ONES).all()
    for schedule in (
        fx.cosine_decay_schedule(1.0, 10.0),
        fx.linear_schedule(1.0, 0.0, 10.0, 2.0),
        fx.piecewise_constant_schedule(1.0, {5.0: 0.5}),
        fx.warmup_cosine_decay_schedule(0.0, 1.0, 2.0, 8.0),
    ):
        whole = fx.adam(schedule)
        jax.jit(whole.step)(TWO_ONES, whole.init(TWO_ONES), TWO_ONES)


def test_counters_saturate():
    tx, last = fx.skip_nonfinite(fx.accumulate(fx.sgd(0.1), 3)), np.int32(2**31 - 2)
    s = tx.init(TWO_ONES)
    names = ("total_notfinite", "notfinite_count", "dropped", "skip_nonfinite.accumulate.count")
    s = fx.set(s, **dict.fromkeys(names, last))
    for x in (jnp.full(2, jnp.nan), TWO_ONES, TWO_ONES, TWO_ONES):
        _, s = tx.update(x, s)
    for name in ("total_notfinite", "dropped", "skip_nonfinite.accumulate.count"):
        assert fx.get(s, name) == last, name


def test_counts_of_steps_are_no_bools():
    for make in (
        lambda: fx.accumulate(fx.sgd(0.1), True),
        lambda: fx.cosine_decay_schedule(1.0, True),
        lambda: fx.fit(lambda p: p, fx.sgd(0.1), TWO_ONES, [()], epochs=True),
    ):
        with pytest.raises(ValueError, match=r"must be a whole number.*, got True"):
            make()
