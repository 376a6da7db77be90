"""What a constructor takes for a hyperparameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx

TWO_ONES = jnp.ones(2)


@pytest.mark.parametrize("x", [None, [0.1], {"a": 1}, 1j, fx.sgd(0.1)], ids=repr)
def test_what_is_no_number(x):
    for make in (fx.adam, fx.scale, fx.clip, fx.ema):
        with pytest.raises(TypeError, match=r"must be a number(,| or) an array.*, got"):
            make(x)


@pytest.mark.parametrize("x", [jax.random.key(0), jnp.asarray(True), np.asarray([False])], ids=repr)
def test_arrays_that_are_no_numbers(x):
    for make in (fx.adam, fx.scale, lambda x: fx.adam(0.1, b1=x)):
        with pytest.raises(TypeError, match=r"must be a number(,| or) an array.*, got"):
            make(x)


@pytest.mark.parametrize("value", [None, 1j, jnp.ones(3), "0.1"], ids=repr)
def test_schedules_return_one_real_number(value):
    tx = fx.adam(lambda count: value)
    with pytest.raises(TypeError, match=r"the schedule .*lambda.* must return one real number"):
        tx.init(TWO_ONES)
