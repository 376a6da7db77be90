"""States as trees of other libraries."""

import pickle

import flax.serialization
import jax
import numpy as np
from table import tree

import adamfx as fx


def test_states_go_through_flax_and_pickle():
    tx = fx.live(fx.adamw(0.1))
    s = tx.init(tree())
    _, s = tx.update(tree(), s, tree())
    for again in (
        flax.serialization.from_bytes(tx.init(tree()), flax.serialization.to_bytes(s)),
        pickle.loads(pickle.dumps(s)),
    ):
        assert jax.tree.structure(again) == jax.tree.structure(s)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(s), strict=True):
            np.testing.assert_array_equal(a, b)
