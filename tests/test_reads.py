"""A program is used again as long as what its functions read is the same."""

import collections
import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.values import reads
from adamfx.values.reads import Reads

PARAMS = {"w": jnp.ones(2)}
FACTOR, TABLE = 1.0, {"factor": [1.0]}
MODULE = types.ModuleType("settings_of_a_user")
MODULE.factor = 1.0  # type: ignore[attr-defined]


def by_global(p):
    return FACTOR * jnp.sum(p["w"])


def helper(p):
    return TABLE["factor"][0] * jnp.sum(p["w"])


def through_a_helper(p):
    return helper(p)


def by_module(p):
    return MODULE.factor * jnp.sum(p["w"])  # type: ignore[attr-defined]


def by_import(p):
    import settings_of_a_user  # type: ignore

    return settings_of_a_user.factor * jnp.sum(p["w"])


class Model:
    of_class = 1.0

    def __init__(self):
        self.factor, self.rows, self.array = 1.0, collections.deque([1.0]), np.ones(1)

    def loss(self, p):
        return self.factor * jnp.sum(p["w"])

    def by_class(self, p):
        return self.of_class * jnp.sum(p["w"])

    def by_array(self, p):
        return jnp.sum(self.array * p["w"])

    def by_deque(self, p):
        return self.rows[0] * jnp.sum(p["w"])

    __call__ = loss


class Slotted:
    __slots__ = ("factor",)

    def __call__(self, p):
        return self.factor * jnp.sum(p["w"])


@dataclasses.dataclass
class Unhashable:
    factor: float = 1.0

    def __call__(self, p):
        return self.factor * jnp.sum(p["w"])


def closure():
    factor = 1.0

    def change():
        nonlocal factor
        factor = 2.0

    return (lambda p: factor * jnp.sum(p["w"])), change


def captured():
    array = np.ones(1)
    return (lambda p: jnp.sum(array * p["w"])), lambda: array.fill(2.0)


def default():
    def loss(p, factor=1.0):
        return factor * jnp.sum(p["w"])

    return loss, lambda: setattr(loss, "__defaults__", (2.0,))


def attribute_of_function():
    def loss(p):
        return loss.factor * jnp.sum(p["w"])

    loss.factor = 1.0
    return loss, lambda: setattr(loss, "factor", 2.0)


def of_model(name, attribute, value):
    def make():
        model = Model()
        loss = model if name == "__call__" else getattr(model, name)
        return loss, lambda: setattr(model, attribute, value)

    return make


def set_global(name, value):
    return lambda: globals().__setitem__(name, value)


def transformed():
    model = Model()
    return jax.checkpoint(model.loss), lambda: setattr(model, "factor", 2.0)


def partial():
    kept = np.ones(1)
    return functools.partial(lambda a, p: jnp.sum(a * p["w"]), kept), lambda: kept.fill(2.0)


def slotted():
    loss = Slotted()
    loss.factor = 1.0
    return loss, lambda: setattr(loss, "factor", 2.0)


def unhashable():
    loss = Unhashable()
    return loss, lambda: setattr(loss, "factor", 2.0)


CHANGES = {
    "a closure": closure,
    "an array in a closure": captured,
    "a default": default,
    "an attribute of a function": attribute_of_function,
    "a global": lambda: (by_global, set_global("FACTOR", 2.0)),
    "a list in a global of a helper": lambda: (
        through_a_helper,
        lambda: TABLE.__setitem__("factor", [2.0]),
    ),
    "an attribute of a module": lambda: (by_module, lambda: setattr(MODULE, "factor", 2.0)),
    "an attribute of an imported module": lambda: (
        by_import,
        lambda: setattr(MODULE, "factor", 2.0),
    ),
    "an attribute, of a bound method": of_model("loss", "factor", 2.0),
    "an attribute, of a callable object": of_model("__call__", "factor", 2.0),
    "an array in an attribute": of_model("by_array", "array", np.full(1, 2.0)),
    "a deque": of_model("by_deque", "rows", collections.deque([2.0])),
    "an attribute of a class": lambda: (Model().by_class, lambda: setattr(Model, "of_class", 2.0)),
    "a transformed function": transformed,
    "a partial": partial,
    "slots": slotted,
    "an unhashable object": unhashable,
}


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setitem(sys.modules, "settings_of_a_user", MODULE)
    yield
    globals()["FACTOR"] = TABLE["factor"][0] = MODULE.factor = Model.of_class = 1.0
    TABLE["factor"] = [1.0]


def trained(loss, tx=None):
    return fx.fit(loss, tx or fx.sgd(1.0), PARAMS, [()] * 2, progress=False).params["w"]


@pytest.mark.parametrize("make", CHANGES.values(), ids=CHANGES)
def test_fit_sees_what_has_changed(make):
    loss, change = make()
    assert Reads(loss) == Reads(loss)
    np.testing.assert_array_equal(trained(loss), -1.0)
    change()
    np.testing.assert_array_equal(trained(loss), -3.0)


def scheduled(make):
    """A loss factor as a schedule: its number times the sum of ones."""
    loss, change = make()
    return (lambda count: loss({"w": jnp.full(2, 0.5)})), change


@pytest.mark.parametrize("make", CHANGES.values(), ids=CHANGES)
def test_update_sees_what_has_changed_in_a_schedule(make):
    schedule, change = scheduled(make)
    tx = fx.sgd(schedule)
    state, grads = tx.init(PARAMS), {"w": jnp.ones(2)}
    assert float(tx.update(grads, state, PARAMS)[0]["w"][0]) == -1
    change()
    assert float(tx.update(grads, state, PARAMS)[0]["w"][0]) == -2
    loss = lambda p: jnp.sum(p["w"])  # noqa: E731
    np.testing.assert_array_equal(trained(loss, tx), -3.0)


def test_fit_sees_what_has_changed_in_a_schedule():
    model = Model()
    tx = fx.sgd(lambda count: model.factor)
    loss = lambda p: jnp.sum(p["w"])  # noqa: E731
    np.testing.assert_array_equal(trained(loss, tx), -1.0)
    model.factor = 2.0
    np.testing.assert_array_equal(trained(loss, tx), -3.0)


@fx.block
def of_a_user():
    return fx.leafwise(lambda u, here: -FACTOR * u)


def test_a_block_of_a_user_is_read_too():
    grads, tx = {"w": jnp.ones(2)}, of_a_user()
    assert float(tx.update(grads, tx.init(PARAMS))[0]["w"][0]) == -1
    globals()["FACTOR"] = 2.0
    assert float(tx.update(grads, tx.init(PARAMS))[0]["w"][0]) == -2


def test_equal_functions_share_a_program():
    """A cell of a notebook that is run again defines its loss again, and compiles nothing."""

    def make(factor, array):
        return lambda p: factor * jnp.sum(array * p["w"])

    array = jnp.ones(2)
    assert Reads(make(1.0, np.ones(2))) == Reads(make(1.0, np.ones(2)))
    assert hash(Reads(make(1.0, array))) == hash(Reads(make(1.0, array)))
    assert Reads(make(1.0, array)) != Reads(make(1.0, jnp.ones(2)))  # who it is, not what
    assert Reads(make(1.0, array)) != Reads(make(1, array)) != Reads(make(True, array))
    assert Reads(make(0.0, array)) != Reads(make(-0.0, array))


def test_what_cannot_be_looked_through_is_not_kept(monkeypatch):
    monkeypatch.setattr(reads, "MOST", 10)
    model = Model()
    assert Reads(model) != Reads(model)
    np.testing.assert_array_equal(trained(model), -1.0)
    model.factor = 2.0
    np.testing.assert_array_equal(trained(model), -3.0)
    tx = fx.sgd(lambda count: model.factor)
    grads = {"w": jnp.ones(2)}
    assert float(tx.update(grads, tx.init(PARAMS))[0]["w"][0]) == -2
    model.factor = 3.0
    assert float(tx.update(grads, tx.init(PARAMS))[0]["w"][0]) == -3


def test_what_has_not_changed_shares_the_traces_of_jax():
    """A mark of its own for every program would make JAX keep a trace of everything for each."""
    table = [1.0]
    inner = jax.jit(lambda p: table[0] * p)
    made = reads.Programs(lambda reads: None)
    marks = [made(Reads(lambda p, i=i: inner(p) * i))[1] for i in range(3)]
    assert marks == [None] * 3
    table[0] = 2.0
    changed = made(Reads(lambda p: inner(p) * 3))[1]
    assert changed is not None
    assert made(Reads(lambda p: inner(p) * 4))[1] == changed  # what JAX has without it is older
    table[0] = 1.0
    assert made(Reads(lambda p: inner(p) * 5))[1] not in (None, changed)
    scheduled = fx.constant_schedule(jnp.asarray(1.0))  # a function that has no hash
    assert made(Reads(lambda p: scheduled(0) * p))[1] is None


def test_circles_and_locks_are_looked_through():
    import threading

    circle: list = [threading.Lock(), iter([1])]
    circle.append(circle)
    loss = lambda p: len(circle) * p  # noqa: E731
    assert Reads(loss) == Reads(loss)


class Odd:
    """Fails at whatever looks at it."""

    @property
    def value(self):
        raise RuntimeError("of the property")

    def __hash__(self):
        raise RuntimeError("of the hash")

    def __eq__(self, other):
        raise RuntimeError("of the comparison")

    def __reduce_ex__(self, protocol):
        raise RuntimeError("of the copy")


class OddSlots(Odd):
    __slots__ = ("there",)


@pytest.mark.parametrize("odd", [Odd(), OddSlots(), {1: Odd()}, {Odd}, iter([Odd()])], ids=range(5))
def test_what_fails_when_it_is_looked_at_ends_no_run(odd):
    factor = [1.0]
    loss = lambda p, x: jnp.sum(p["w"] * x * factor[0]) + 0 * (odd is None)  # noqa: E731
    fit = lambda: fx.fit(loss, fx.sgd(1.0), PARAMS, [(1.0,)], progress=False)  # noqa: E731
    before = fit().params["w"]
    factor[0] = 2.0
    assert np.all(fit().params["w"] < before)


def test_our_own_values_are_read_as_they_are_written():
    """Not what they remember of their meaning, which comes with use."""
    tx = fx.adam(fx.warmup_cosine_decay_schedule(0.0, 1.0, 2, 4))
    loss = lambda p: tx.init(p)  # noqa: E731
    before = Reads(loss)
    tx.update(PARAMS, tx.init(PARAMS))
    assert before == Reads(loss)


def test_optimizers_of_ours_hold_nothing_that_changes():
    """So that outside jit they cost nothing more."""
    for make in (fx.adam, fx.adamw, fx.sgd, fx.muon, fx.soap, fx.lion, fx.lamb, fx.adafactor):
        assert make(0.1).form.functions == ()
