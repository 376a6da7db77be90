"""One step for several gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx

P = {"w": jnp.zeros(3)}


G = {"w": jnp.ones(3)}


def walk(tx, grads, p=P):
    state, path = tx.init(p), []
    for g in grads:
        p, state = tx.step(g, state, p)
        path.append(np.asarray(p["w"])[0])
    return np.array(path)


def moved(tx, n=5):
    state = tx.init(P)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(n):
            _, state = tx.update(G, state, P)
    return state


@pytest.mark.parametrize("every", [fx.linear_schedule(1.0, 8.0, 10), lambda count: 0 * count])
def test_accumulate_divides_by_what_it_has_summed(every):
    path = walk(fx.accumulate(fx.sgd(1.0), every), [G] * 20)
    moved = np.diff(path, prepend=0)
    assert set(moved) <= {0.0, -1.0}
    assert (moved == -1).sum() >= 4


def test_every_may_be_an_array():
    assert walk(fx.accumulate(fx.sgd(1.0), jnp.array(2)), [G] * 4).tolist() == [0, -1, -1, -2]


def test_a_leaf_without_gradient_at_the_end_of_a_window_stays():
    tx = fx.accumulate(fx.sgd(1.0), 2)
    assert walk(tx, [G, {"w": None}, G, G]).tolist() == [0, 0, 0, -1]


def test_every_may_be_a_whole_float():
    assert walk(fx.accumulate(fx.sgd(1.0), 2.0), [G] * 4).tolist() == [0, -1, -1, -2]
