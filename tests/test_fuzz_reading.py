"""Whatever stands in a sentence, reading it ends soon, with a value or with a message of ours."""

import random
import time
import tracemalloc
import warnings

import pytest
from table import TABLE

import adamfx as fx
from adamfx import reading

SENTENCES = [repr(tx) for tx in TABLE.values()]
PIECES = [
    *sorted(reading.vocabulary()),
    *("learning_rate=", "b1=", "mask=", "weight_decay=", "*", "**", "float('nan')", "-inf", "nan"),
    *(
        "0",
        "1",
        "-1",
        "0.9",
        "1e-3",
        "1e999",
        "9**9**9",
        "0x" + "f" * 300,
        "1" * 400,
        "2j",
        "-1+2j",
    ),
    *("True", "None", "...", "'a'", "'*/b'", "b'a'", "'\\d'", "'\ud800'", "''", 'f"{adam}"'),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        ".",
        "=",
        ":=",
        "~",
        "&",
        "|",
        "-",
        "+",
        "not ",
        "\n",
    ),
    *("__import__('os')", ".__class__", "().__class__.__bases__", "lambda: 1", "[x for x in 'ab']"),
    *("jnp.asarray([0.1, 0.2], 'float32')", "jnp.asarray([1], 'O')", "jnp.asarray('a', 'U9')"),
    *("fx.", "adamfx.", "jnp.", "{'a': ", "{[]: 1}", "é", "\x00", "\r", "#", "\\", '"', "'"),
]


def mutated(rng: random.Random) -> str:
    """A sentence of the table with cuts, copies and foreign pieces, or pieces alone."""
    if rng.random() < 0.3:
        return "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
    text = rng.choice(SENTENCES)
    for _ in range(rng.randint(1, 4)):
        i, j = sorted(rng.choices(range(len(text) + 1), k=2))
        j = min(j, i + 8)
        other = rng.choice(SENTENCES)
        new = (
            "",
            rng.choice(PIECES),
            text[i:j] * rng.randint(2, 40),
            other,
            chr(rng.randrange(128)),
        )
        text = text[:i] + rng.choice(new) + text[rng.choice((i, j)) :]
    return text


def check(text: str, seconds: float = 1) -> bool:
    """Reads the text, which may fail in one way only; whether it was read."""
    began, value, message = time.process_time(), None, ""  # not of what else the machine does
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX: float64 is float32 here
            value = fx.read(text)
    except reading.SentenceError as error:
        message = str(error)
    assert time.process_time() - began < seconds, text[:300]
    if value is None:
        assert 20 < len(message) < 1600, text[:300]
        assert "\n" not in message, text[:300]
        return False
    again = fx.read(repr(value))
    assert again == value or "nan" in repr(value), text[:300]  # nan is not equal to itself
    assert repr(again) == repr(value), text[:300]
    return True


def fuzz(cases: int, seed: int) -> None:
    rng = random.Random(seed)
    texts = [mutated(rng) for _ in range(cases)]
    fx.read(SENTENCES[0])
    tracemalloc.start()
    try:
        read = sum(map(check, texts))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert 0.02 * cases < read < 0.9 * cases  # both ways were walked


def test_some_random_sentences():
    fuzz(400, seed=0)


@pytest.mark.slow
def test_many_random_sentences():
    fuzz(20_000, seed=1)


N = 90_000
BOMBS = {
    "parentheses": "(" * N,
    "lists": "[" * N + "]" * N,
    "calls": "chain(" * (N // 6) + ")",
    "calls that parse": "chain(" * 90 + "3" + ")" * 90,
    "minus": "-" * N + "1",
    "tilde": "~" * N + "ndim_at_least(1)",
    "and": "ndim_at_least(1)&" * (N // 17) + "ndim_at_least(1)",
    "powers": "1**" * (N // 3) + "1",
    "sum": "1+" * (N // 2) + "1j",
    "attributes": "a." * (N // 2) + "a",
    "lambdas": "lambda:" * (N // 7) + "1",
    "subscripts": "x" + "[0]" * (N // 3),
    "a long name": "adam" * (N // 4) + "(1)",
    "a long number": "sgd(" + "9" * N + ")",
    "a long hexadecimal number": "sgd(0x" + "f" * N + ")",
    "many arguments": "sgd(" + "1," * (N // 2) + ")",
    "many strings": "'a' " * (N // 4),
    "many lines": "chain(\n" + "\n" * N + "adm(1))",
    "a long string": f"path_matches('{'*a' * (N // 2)}')",
    "a wide array": f"adam(jnp.asarray(['{'a' * 9}'], 'U{10**9}'))",
    "a bomb of names": "f'{" * 50 + "1" + "}'" * 50,
    "too long": "chain(" + "sgd(0.1)," * 10**6 + ")",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_built_to_take_time_or_memory(name):
    check(BOMBS[name])
    tracemalloc.start()
    try:
        check(BOMBS[name], seconds=10)  # it is slow under watch
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
