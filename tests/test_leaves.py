"""The door: kinds of gradients, and the dtype of a step."""

import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.engine import trees

ONE = jnp.ones(1)


def test_gradients_of_another_kind_are_errors():
    tx = fx.sgd(0.1)
    for g in (jnp.ones(1, jnp.int32), jnp.ones(1, bool), jnp.ones(1, complex)):
        with pytest.raises(
            TypeError, match=r"gradient at the root is (int32|bool|complex64), the para"
        ):
            tx.step(g, tx.init(ONE), ONE)


def test_update_and_step_compute_in_one_dtype(x64):
    p = jnp.ones(3)
    g = jnp.full(3, 0.1, jnp.float32)
    tx = fx.adamw(0.1)
    u, _ = tx.update(g, tx.init(p), p)
    q, _ = tx.step(g, tx.init(p), p)
    np.testing.assert_allclose(p + u, q, rtol=1e-15)


def test_which_leaves_are_trained():
    assert [trees.is_trained(x) for x in (jnp.ones(2), 1.0, 1j, jnp.arange(2), True, None)] == [
        *(True, True, True, False, False, False)
    ]
