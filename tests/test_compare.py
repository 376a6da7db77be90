"""`fx.diff`: what differs between two sentences, no more and no less."""

import copy
import itertools

import jax.numpy as jnp
import pytest
from table import TABLE, WRAPPERS

import adamfx as fx

ADAM = fx.adam(1e-3)
EVERY = TABLE | {f"{n} of adam": wrap(ADAM) for n, wrap in WRAPPERS.items()}


def names(blocks):
    return [b.value.name for b in blocks]


def test_equal_values_differ_in_nothing():
    for tx in EVERY.values():
        found = fx.diff(tx, copy.deepcopy(tx))
        assert not found
        assert repr(found) == "no difference"


def test_different_values_differ_in_something():
    for a, b in itertools.pairwise(EVERY.values()):
        assert bool(fx.diff(a, b)) == (a != b)


def test_numbers_by_their_names():
    a, b = fx.adamw(1e-3), fx.adamw(3e-4, b2=0.95, mask=fx.ndim_at_least(2))
    found = fx.diff(a, b)
    assert [r.name for r in found.rows] == [
        "scale_by_moments.b2",
        "add_decayed_weights.mask",
        "scale_by_lr.learning_rate",
    ]
    assert a.replace(**{r.name: r.b for r in found.rows}) == b
    assert found.added == found.removed == found.moved == []
    assert "scale_by_lr.learning_rate  0.001  ->  0.0003" in repr(found)


def test_names_inside_wrappers():
    a = fx.accumulate(fx.partition({"a": ADAM}, {"a": fx.ndim_at_least(2)}, default=fx.sgd(0.1)), 4)
    b = fx.accumulate(
        fx.partition(
            {"a": fx.adam(1e-3, 0.8)},
            {"a": fx.ndim_at_least(2)},
            default=fx.sgd(fx.power_schedule()),
        ),
        8,
    )
    found = fx.diff(a, b)
    assert len(found.rows) == 3
    assert a.replace(**{r.name: r.b for r in found.rows}) == b


def test_words_added_removed_moved():
    found = fx.diff(fx.chain(fx.add_decayed_weights(0.1), ADAM), fx.adamw(1e-3))
    assert names(found.moved) == ["add_decayed_weights"]
    assert (found.moved[0].in_a, found.moved[0].in_b) == ("", "bias_correct")
    assert [(r.a, r.b) for r in found.rows] == [(0.1, 1e-4)]
    found = fx.diff(ADAM, fx.chain(fx.clip(1.0), fx.adam(1e-3, nesterov=True)))
    assert names(found.added) == ["clip", "nesterov"]
    assert "+ nesterov()  after bias_correct" in repr(found)
    found = fx.diff(fx.adam(1e-3), fx.sgd(1e-3))
    assert names(found.removed) == ["scale_by_moments", "bias_correct"]
    assert not found.rows


def test_schedules_and_estimators():
    a, b = fx.cosine_decay_schedule(1.0, 100), fx.cosine_decay_schedule(1.0, 200)
    assert [tuple(r) for r in fx.diff(a, b).rows] == [("decay_steps", 100, 200)]
    found = fx.diff(fx.adam(a), fx.adam(b))
    assert [r.name for r in found.rows] == ["scale_by_lr.learning_rate.decay_steps"]
    found = fx.diff(fx.ema(0.9), fx.trace(0.9))
    assert (names(found.removed), names(found.added)) == (["ema"], ["trace"])


def test_groups_by_label():
    masks = {"a": fx.ndim_at_least(2)}
    a = fx.partition({"a": ADAM, "b": fx.sgd(1.0)}, masks, default=ADAM)
    b = fx.partition({"a": ADAM}, masks, default=ADAM)
    assert [(r.name, r.b) for r in fx.diff(a, b).rows] == [("partition.b", None)]


def test_arrays():
    rates = [jnp.asarray([0.1, 0.2]), jnp.asarray([0.1, 0.3])]
    assert len(fx.diff(*(fx.sgd(r) for r in rates)).rows) == 1
    assert not fx.diff(fx.sgd(rates[0]), fx.sgd(rates[0] + 0))


def test_html_is_escaped():
    a, b = fx.named("<b>&", fx.clip(1.0)), fx.named("<i>", fx.clip(2.0))
    found = fx.diff(a, b)._repr_html_()
    assert "<b>" not in found
    assert "&lt;b&gt;&amp;" in found
    assert "<script" not in found


def test_only_values():
    with pytest.raises(TypeError, match=r"diff: b must be an optimizer, .* got 3"):
        fx.diff(ADAM, 3)
