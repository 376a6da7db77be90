"""skip_spikes against its oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import papers_elementwise
import pytest

import adamfx as fx


def applied(losses, norms, **arguments):
    tx = fx.skip_spikes(fx.scale(-1.0), **arguments)
    state, found = tx.init(jnp.zeros(1)), []
    step = jax.jit(tx.update)
    for x, n in zip(losses, norms, strict=True):
        u, state = step(jnp.asarray([n]), state, value=jnp.asarray(x))
        found.append(bool(u[0] != 0))
    return np.array(found), state


@pytest.mark.parametrize("window", [4, 7])
def test_skip_spikes(x64, window):
    rng = np.random.default_rng(0)
    losses, norms = 1 + 0.1 * rng.random(60), 2 + 0.1 * rng.random(60)
    losses[[15, 30, 31]] += 9.0
    norms[[20, 45]] += 9.0
    got, state = applied(losses, norms, window=window, factor=2.0)
    want = papers_elementwise.skip_spikes(losses, norms, window=window, factor=2.0)
    assert 3 < (~want).sum() < 40
    np.testing.assert_array_equal(got, want)
    assert int(state["skip_spikes"].total_skipped) == (~want).sum()


def test_what_is_not_finite_is_skipped_and_forgotten():
    losses = np.ones(20) + 0.1 * np.random.default_rng(0).random(20)
    losses[[2, 10]] = np.nan
    got, state = applied(losses, np.ones(20), window=4)
    assert list(np.flatnonzero(~got)) == [2, 10]
    assert np.all(np.isfinite(state["skip_spikes"].losses))
