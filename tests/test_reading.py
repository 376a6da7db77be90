"""Values are read back from their text, and nothing is executed."""

import math

import jax.numpy as jnp
import pytest
from table import TABLE

import adamfx as fx
from adamfx import reading


@pytest.mark.parametrize("tx", TABLE.values(), ids=TABLE)
def test_read_is_the_inverse_of_repr(tx):
    assert fx.read(repr(tx)) == tx


@pytest.mark.parametrize(
    "value",
    [
        fx.adam(jnp.asarray([0.1, 0.2])),
        fx.adam(jnp.float32(0.1), b1=jnp.asarray(0.9, "bfloat16")),
        fx.cosine_decay_schedule(0.1, 10),
        fx.ema(0.9, of="abs"),
        ~fx.path_matches("*/b") & fx.ndim_at_least(2) | fx.has_dtype("float16"),
        fx.scale(-2.0),
        fx.path_matches("\\d\r\n$"),
    ],
    ids=repr,
)
def test_arrays_schedules_estimators_and_predicates(value):
    again = fx.read(repr(value))
    assert type(again) is type(value)
    assert again == value


@fx.block
def limited(most: fx.Dynamic = float("inf")):
    return fx.leafwise(lambda u, here: jnp.minimum(u, most))


def test_numbers_that_are_not_finite():
    for x in (float("inf"), -float("inf"), 1.0):
        value = limited(x)
        assert fx.read(repr(value), {"limited": limited}) == value
    nan = fx.read("limited(float('nan'))", {"limited": limited})
    assert math.isnan(nan.arguments["most"])


@fx.block
def mine(rate: fx.Dynamic):
    return fx.leafwise(lambda u, here: u * rate)


def test_constructors_of_ones_own():
    tx = fx.chain(mine(0.5), fx.sgd(0.1))
    assert fx.read(repr(tx), {"mine": mine}) == tx
    with pytest.raises(fx.SentenceError, match="no optimizer, block or schedule 'mine'"):
        fx.read(repr(tx))
    with pytest.raises(TypeError, match="text must be a string"):
        fx.read(tx)


SENTENCES = [
    "chain(scale_by_moments(0.9, None), scale_by_lr(0.1))",
    "fx.adam(0.001, b1=0.5)",
    "adamw(warmup_cosine_decay_schedule(0.0, 0.1, 10, 100), weight_decay=1e-4, mask=ndim_at_least(2))",
    "masked(sgd(0.1), ~path_matches('*/b') & ndim_at_least(2))",
    "partition({'a': sgd(1.0)}, {'a': path_matches('*')})",
    "scale_by_moments(ema(0.9), yogi_ema(0.99))",
    "chain()",
]


@pytest.mark.parametrize("text", SENTENCES)
def test_sentences_are_read_as_python_would_read_them(text):
    tx = fx.read(text)
    assert tx == eval(text, {**vars(fx), "fx": fx})
    assert fx.read(repr(tx)) == tx


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("__import__('os').system('true')", "only adamfx's names"),
        ("__import__('os')", "no optimizer, block or schedule '__import__'"),
        ("adam(save('x', 1))", "no optimizer, block or schedule 'save'"),
        ("adm(1.0)", "did you mean adam"),
        ("adam", "call it: adam"),
        ("adam(1.0).init", "only adamfx's names|allowed are"),
        ("adam(lambda x: x)", r"character 6, 'lambda x: x': allowed are"),
        ("adam([x for x in (1,)])", "allowed are"),
        ("adam(*[1])", "allowed are"),
        ("adam(**{})", "write the arguments out"),
        ("sgd(1 + 1)", "allowed are"),
        ("sgd(9 ** 9 ** 9)", "allowed are"),
        ("sgd(-'a')", "are for numbers"),
        ("sgd(~1)", "for predicates"),
        ("sgd(0.1, rate=3)", "unexpected keyword argument 'rate'"),
        ("adam(-1.0)", "learning_rate must be finite and >= 0"),
        ("(1, ema(0.9))", "not a call"),
        ("3", "is 3, not a call"),
        ("adam(0.1,\n 'é', nan)", "at character 17, 'nan'"),
        ("sgd(0.1, b=1, b=2)", "twice"),
        ("partition({[]: 1}, {})", "character 11, .*unhashable"),
        ("scale('a' + 1j)", "are for numbers"),
        ("adam(1" + "0" * 400 + ")", "may have 1024 bits"),
        ("adam('" + "a" * 100_000 + "')", "100,008 characters cannot be read, at most 100,000 can"),
        ("adam(0.1", r"cannot be read \('\(' was never closed\)"),
        ("", "cannot be read"),
        ("sgd(" * 3000 + ")" * 3000, "cannot be read|nested too deep"),
    ],
)
def test_anything_else_is_an_error_with_its_place(text, words):
    with pytest.raises(reading.SentenceError, match=words):
        fx.read(text)


def test_what_a_sentence_may_call_makes_values_only():
    from adamfx.values.value import Value

    known = reading.vocabulary()
    assert {"adam", "chain", "ema", "ndim_at_least", "inverse_sqrt_schedule"} <= set(known)
    assert not {"save", "load", "fit", "set_hyperparams", "block", "schedule"} & set(known)
    assert isinstance(known["adam"](1.0), Value)
