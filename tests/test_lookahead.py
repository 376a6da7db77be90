"""Slow parameters: resets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table import tree

import adamfx as fx


@pytest.mark.parametrize(
    "inner",
    [
        fx.partition({"m": fx.adam(0.1)}, {"m": fx.ndim_at_least(2)}, fx.sgd(0.1, 0.9)),
        fx.masked(fx.adam(0.1), fx.ndim_at_least(2)),
        fx.accumulate(fx.adam(0.1), 2),
    ],
    ids=lambda tx: tx.name,
)
@pytest.mark.parametrize("missing", [False, True])
def test_lookahead_resets_any_state(inner, missing):
    tx, p = fx.lookahead(inner, 2, 0.5, reset_state=True), tree()
    s = tx.init(p)
    start = s["lookahead"].inner
    for t in range(2):
        g = tree(seed=t + 1) | ({"b": None} if missing else {})
        p, s = jax.jit(tx.step)(g, s, p)
    after = s["lookahead"].inner
    assert jax.tree.structure(after) == jax.tree.structure(start)
    jax.tree.map(np.testing.assert_array_equal, after, start)


def test_lookahead_resets_copies_from_what_is_known_exactly():
    """Around master_weights: from the slow parameters in float32, not from rounded ones."""
    tx = fx.lookahead(fx.master_weights(fx.sgd(2.0**-12)), 2, 0.5, reset_state=True)
    p = jnp.ones(2, jnp.bfloat16)
    s = tx.init(p)
    for _ in range(2):
        p, s = tx.step(jnp.ones(2, jnp.bfloat16), s, p)
    slow = s["lookahead"].slow
    np.testing.assert_array_equal(slow, np.float32([1 - 2.0**-12] * 2) + np.float32(0))
    np.testing.assert_array_equal(s["lookahead"].inner["master_weights"].master, slow)
