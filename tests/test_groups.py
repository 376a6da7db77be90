"""Parameter groups: messages."""

import jax.numpy as jnp
import pytest

import adamfx as fx

P = {"w": jnp.zeros(3)}


def test_partition_names_groups_that_differ_from_the_states():
    b = {"w": jnp.zeros(3), "b": jnp.zeros(2)}
    labels = {"a": fx.path_matches("w"), "b": fx.path_matches("b")}
    two = fx.partition({"a": fx.sgd(1.0), "b": fx.sgd(1.0)}, labels)
    one = fx.partition({"a": fx.sgd(1.0)}, {"a": fx.path_matches("*")})
    for new, old in ((one, two), (two, one)):
        with pytest.raises(ValueError, match="the state has the groups"):
            new.update(b, old.init(b), b)


def test_partition_wants_labels():
    with pytest.raises(TypeError, match="labels are strings, got"):
        fx.partition({"a": fx.sgd(1.0)}, fx.ndim_at_least(2)).init(P)


def test_a_pattern_that_matches_nothing_is_no_group():
    labels = {"frozen": fx.path_matches("hiden/*")}
    with pytest.raises(ValueError, match=r"group 'frozen' match no parameter; the paths are .*w"):
        fx.partition({"frozen": fx.set_to_zero()}, labels, fx.adam(0.1)).init(P)
