"""Ctrl-C and SIGTERM where a run hangs, is one of many, or runs inside of another; bars that cannot write."""

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamfx as fx
from adamfx.training.interrupts import Interrupts

PARAMS = {"w": jnp.zeros(3)}
BATCHES = [np.full(3, i, np.float32) for i in range(12)]
TX = fx.adam(0.1)


def loss(p, x):
    return jnp.sum((p["w"] - x) ** 2)


def fit(loss=loss, tx=TX, params=PARAMS, batches=BATCHES, **more):
    return fx.fit(loss, tx, params, batches, **{"progress": False, **more})


HANGING = threading.Event()


def hangs(*_):
    HANGING.set()
    time.sleep(30)


def press(*delays):
    """Ctrl-C from another thread: so many seconds after something hangs, and so many after that."""
    HANGING.clear()

    def presses():
        if not HANGING.wait(20):
            return  # nothing did; a later test has presses of its own
        for delay in delays:
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=presses, daemon=True)
    thread.start()
    return thread


# ---- what hangs ----------------------------------------------------------------------------------


class HangingLength(list):
    def __len__(self):
        hangs()
        return 12


class HangingBatch:
    def __array__(self, *_, **__):
        hangs()
        return BATCHES[0]


def traced(p, x):
    hangs()
    return loss(p, x)


def on_the_device(p, x):
    """Some seconds of arithmetic, from the fourth batch on."""
    jax.debug.callback(lambda first: HANGING.set() if first > 2 else None, x[0])
    turns = jnp.where(x[0] > 2, 20_000, 0)
    y = jax.lax.fori_loop(0, turns, lambda _, y: jnp.tanh(y @ y), jnp.full((200, 200), 1e-3))
    return loss(p, x) + 0 * jax.lax.stop_gradient(y[0, 0])


def hanging_schedule(count):
    hangs()
    return 0.1


HANGS = {
    "length": ({"batches": HangingLength(BATCHES)}, 0),
    "batch": ({"batches": [*BATCHES[:3], HangingBatch()]}, 3),
    "next": ({"batches": itertools.chain(BATCHES[:2], (hangs() for _ in range(1)))}, 2),
    "trace": ({"loss": traced}, 0),
    "device": ({"loss": on_the_device, "steps_per_dispatch": 1}, None),
    "evaluate": ({"evaluate": hangs, "evaluate_every": 3}, 3),
    "stop": ({"stop": hangs}, 1),
}


@pytest.mark.parametrize("name", HANGS)
def test_the_second_press_leaves_from_anywhere_in_a_second(name):
    if name == "device" and jax.__version_info__ < (0, 8):
        pytest.skip("there the next dispatch waits for the computation, where no signal is heard")
    options, steps = HANGS[name]
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread = press(0.3, 0.4)
        start = time.monotonic()
        result = fit(**options)
        assert time.monotonic() - start < 10  # .1 s after the second press, where nothing else runs
        thread.join()
    finally:
        signal.signal(signal.SIGINT, old)
    assert result.reason == "interrupted"
    if steps is None:  # the computation goes on; what comes of it is there when it has ended
        jax.block_until_ready(result.params)
        assert result.history.rows <= int(result.state["count"]) <= 5
    else:
        assert int(result.state["count"]) == result.history.rows == steps
        straight = fit(batches=BATCHES[:steps]) if steps else None
        if steps:
            np.testing.assert_array_equal(result.params["w"], straight.params["w"])


SLOW = {  # a schedule is asked for its first rate by init
    "init": optax.GradientTransformation(hangs, lambda g, s, p=None: (g, s)),
    "schedule": fx.adam(hanging_schedule),
}


@pytest.mark.parametrize("name", SLOW)
def test_an_init_that_hangs_is_left_before_anything_began(name):
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        press(0.3, 0.4)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            fit(tx=SLOW[name])
        assert time.monotonic() - start < 10  # .1 s after the second press, where nothing else runs
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, old)


# ---- one of many ---------------------------------------------------------------------------------


def interrupting(at):
    for i, x in enumerate(BATCHES):
        if i == at:
            signal.raise_signal(signal.SIGINT)
        yield x


def test_a_run_that_was_interrupted_says_that_the_sweep_goes_on():
    with pytest.warns(UserWarning, match=r"interrupted at step 6; .* Ctrl-C again ends that, too"):
        result = fit(batches=interrupting(5))
    assert result.history.rows == 6


def test_a_warning_that_is_an_error_carries_the_result():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="interrupted at step 6") as caught:
            fit(batches=interrupting(5))
    assert caught.value.result.history.rows == 6  # type: ignore[attr-defined]


def test_a_press_inside_of_an_evaluation_that_trains_ends_both():
    inner = []

    def evaluate(params, state):
        inner.append(fit(batches=interrupting(2)).reason)
        return 0.0

    result = fit(evaluate=evaluate, evaluate_every=4)
    assert inner == ["interrupted"]
    assert (result.reason, result.history.rows) == ("interrupted", 4)


SIGTERM = """
import os, signal, sys, numpy as np, jax.numpy as jnp, adamfx as fx
def batches():
    for i in range(100):
        if i == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        yield np.full(3, i, np.float32)
def loss(p, x):
    return jnp.sum((p["w"] - x) ** 2)
def fit():
    return fx.fit(loss, fx.adam(0.1), {"w": jnp.zeros(3)}, batches(), checkpoints=sys.argv[1], progress=False)
r = fit()
print(r.reason, r.history.rows, flush=True)
fit()
"""


def test_sigterm_ends_the_run_keeps_it_and_the_next_ends_the_process(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    done = subprocess.run(
        [sys.executable, "-c", SIGTERM, tmp_path / "run"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["interrupted", "8"]
    assert done.returncode == 143
    with fx.Checkpoints(tmp_path / "run") as kept:
        assert kept.steps == [8]


def test_a_handler_of_sigterm_of_ones_own_is_not_replaced():
    seen = []
    old = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGTERM)
            assert (seen, interrupts.pressed) == ([1], False)
    finally:
        signal.signal(signal.SIGTERM, old)


# ---- bars, epochs, histories ---------------------------------------------------------------------


class Full(io.StringIO):
    """A terminal that takes a few writes."""

    def __init__(self, n, error):
        super().__init__()
        self.n, self.error = n, error

    def write(self, text):
        self.n -= 1
        if self.n < 0:
            raise self.error
        return len(text)


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("I/O on closed file")])
def test_a_bar_that_cannot_write_ends_nothing(monkeypatch, n, error):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", Full(n, error))
    assert fit(progress=True, steps_per_dispatch=1).history.rows == 12


class Shuffled:
    """As a DataLoader: its order is drawn when an iterator is made."""

    def __init__(self):
        self.rng, self.made = np.random.default_rng(0), 0

    def __iter__(self):
        self.made += 1
        return iter([BATCHES[i] for i in self.rng.permutation(12)])


def test_two_epochs_are_two_passes():
    by_hand, loader = Shuffled(), Shuffled()
    expected = fit(batches=[*by_hand, *by_hand])
    result = fit(batches=loader, epochs=2)
    assert loader.made == 2
    np.testing.assert_array_equal(result.params["w"], expected.params["w"])


class Once:
    def __init__(self):
        self.one = iter(BATCHES)

    def __iter__(self):
        return self.one


class Exhausted(Once):
    def __iter__(self):
        return (x for x in self.one)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        (Once(), "can be gone through once, and epochs is 3"),
        (Exhausted(), "epoch 2 of 3 has no batches"),
    ],
)
def test_epochs_over_what_can_be_gone_through_once(batches, words):
    with pytest.raises(ValueError, match=words) as caught:
        fit(batches=batches, epochs=3)
    assert caught.value.result.history.rows == 12  # type: ignore[attr-defined]


def test_steps_go_on_under_a_history():
    first = fit(batches=BATCHES[:4])
    more = fit(batches=BATCHES[:3], history=first.history)
    assert more.history["step"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_stop_that_edits_the_history_edits_its_own():
    def stop(history):
        history["loss"] = np.zeros(1)
        history.pop("step")
        with pytest.raises(ValueError, match="read-only"):
            history["gradient_norm"][:] = 0
        return False

    plain, result = fit(), fit(stop=stop)
    assert result.history["loss"].tolist() == pytest.approx(plain.history["loss"].tolist())
    assert list(result.history) == list(plain.history)


def test_a_press_in_the_last_step_is_not_lost():
    """Or a loop of fits would go on as if nobody had pressed."""

    def batches():
        yield from BATCHES[:2]
        os.kill(os.getpid(), signal.SIGINT)
        yield BATCHES[2]

    with pytest.warns(UserWarning, match="interrupted at step 3"):
        done = fx.fit(
            loss, fx.sgd(0.1), PARAMS, batches(), steps=3, progress=False, steps_per_dispatch=1
        )
    assert done.reason == "interrupted"
    assert done.history.rows == 3
