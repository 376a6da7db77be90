"""Early stops."""

import pytest

import adamfx as fx


def test_early_stop_on_an_accuracy():
    h = fx.History()
    h.extend({"acc": [0.1, 0.2, 0.3, 0.4]})
    assert fx.no_improvement("acc", 2)(h)
    assert not fx.no_improvement("acc", 2, mode="max")(h)
    h.extend({"acc": [0.4, 0.35]})
    assert fx.no_improvement("acc", 2, mode="max")(h)
    with pytest.raises(ValueError, match="mode must be one of 'min', 'max'"):
        fx.no_improvement("acc", mode="most")
