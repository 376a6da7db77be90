"""States that do not belong to a sentence."""

import jax.numpy as jnp
import pytest

import adamfx as fx

P = {"w": jnp.zeros(3)}


G = {"w": jnp.ones(3)}


@pytest.mark.parametrize(
    "tx", [fx.accumulate(fx.sgd(1.0), 2), fx.lookahead(fx.sgd(1.0), 2, 0.5)], ids=repr
)
def test_a_state_of_another_shape_is_refused(tx):
    with pytest.raises(ValueError, match=r"\['w'\] has shape \(3,\).*\(1,\).*tx.init"):
        tx.update(G, tx.init({"w": jnp.zeros(1)}), P)


@pytest.mark.parametrize(
    "block", [fx.freeze(fx.ndim_at_least(2)), fx.lookahead(fx.clip(1.0), 2, 0.5)], ids=repr
)
def test_a_wrapper_that_the_state_has_not_seen_is_named(block):
    tx = fx.chain(fx.adam(0.1), block)
    with pytest.raises(
        ValueError, match=r"the state has no '(masked|lookahead)', it has .*; make it"
    ):
        tx.update(G, fx.adam(0.1).init(P), P)
