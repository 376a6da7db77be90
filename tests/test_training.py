"""make_step, fit, checkpoints and states carried over: nothing is lost, and nothing changes."""

import functools
import itertools
import os
import pathlib
import random
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from table import OPTIMIZERS, WRAPPERS, tree

import adamfx as fx
from adamfx.training import fit as training

RNG = np.random.default_rng(0)
X = RNG.normal(size=(240, 5)).astype(np.float32)
Y = X @ np.arange(5, dtype=np.float32)[:, None]
BATCHES = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 240, 10)]
PARAMS = {"w": jnp.zeros((5, 1)), "n": jnp.arange(2), "none": None}
fit = functools.partial(fx.fit, progress=False)


def loss(p, x, y):
    return jnp.mean((x @ p["w"] - y) ** 2)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- make_step -----------------------------------------------------------------------------------


def test_make_step_compiles_once_for_all_rates():
    traces = []

    def counted(p, x, y):
        traces.append(1)
        return loss(p, x, y), {"mean": jnp.mean(x)}

    step = fx.make_step(counted, has_aux=True, donate=True)
    p = jax.tree.map(jnp.copy, PARAMS)
    s = fx.adam(0.1).init(p)
    for rate in (0.1, 0.2, 0.3):
        q = p
        p, s, (value, aux) = step(fx.adam(rate), p, s, X, Y)
    assert len(traces) == 1
    assert q["w"].is_deleted()
    np.testing.assert_allclose(aux["mean"], X.mean(), rtol=1e-4)
    assert value < loss(PARAMS, X, Y)
    equal(p["n"], PARAMS["n"])


def test_make_step_takes_optax_and_gives_it_the_loss():
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    p = {"w": PARAMS["w"]}
    tx = fx.chain(plateau)
    with jax.numpy_dtype_promotion("standard"):
        _, _, value = fx.make_step(loss)(plateau, p, tx.init(p), X, Y)
    assert value == loss({"w": PARAMS["w"]}, X, Y)


# ---- fit -----------------------------------------------------------------------------------------


def test_fit_equals_a_loop_and_leaves_what_it_was_given():
    tx, step = fx.adam(0.1), fx.make_step(loss)
    p, s = PARAMS, tx.init(PARAMS)
    losses = []
    for batch in BATCHES:
        p, s, value = step(tx, p, s, *batch)
        losses.append(value)
    result = fit(loss, tx, PARAMS, BATCHES)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), (p, s), result[:2])
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-5)
    np.testing.assert_array_equal(result.history["step"], np.arange(24) + 1)
    np.testing.assert_allclose(result.history["learning_rate"], 0.1, rtol=1e-6)
    assert result.reason == "end of batches"
    again = fit(loss, tx, PARAMS, BATCHES)  # a cell that is run again
    equal(again[:2], result[:2])
    assert not np.asarray(PARAMS["w"]).any()


@pytest.mark.parametrize("k", [None, 3, 8, 100])
def test_steps_per_dispatch_change_no_bit(k):
    ragged = [*BATCHES, (X[:7], Y[:7]), *BATCHES[:2]]
    one = fit(loss, fx.adam(0.1), PARAMS, ragged, steps_per_dispatch=1)
    many = fit(loss, fx.adam(0.1), PARAMS, ragged, steps_per_dispatch=k)
    equal(one[:2], many[:2])
    equal(dict(one.history), dict(many.history))


@pytest.fixture
def dispatched(monkeypatch):
    """(n, k) of each dispatch; k is None where there is no loop."""
    seen = []
    dispatch = training.Run.dispatch

    def noted(run, n, k, batches):
        seen.append((n, k if run.loops else None))
        dispatch(run, n, k, batches)

    monkeypatch.setattr(training.Run, "dispatch", noted)
    return seen


def test_small_steps_go_together(dispatched):
    r = fit(loss, fx.adam(0.1), PARAMS, BATCHES * 9, evaluate=lambda p, s: 0.0, evaluate_every=100)
    assert {k for _, k in dispatched} == {64}
    counts = [n for n, _ in dispatched]
    assert counts[0] == 1  # the first says how long one takes
    assert max(counts) > 1
    assert set(np.cumsum(counts)) >= {100, 200, 216}  # where the evaluations are
    np.testing.assert_array_equal(r.history["step"], np.arange(216) + 1)


def test_long_dispatches_become_shorter(dispatched, monkeypatch):
    clock = itertools.count(step=1.0)
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    fit(loss, fx.adam(0.1), PARAMS, BATCHES)
    assert dispatched == [(1, 64)] * 24


def test_one_array_filled_again_and_again():
    """A reader may hand out the same memory each time."""
    x, y = np.empty_like(BATCHES[0][0]), np.empty_like(BATCHES[0][1])

    def reader():
        for batch in BATCHES:
            x[:], y[:] = batch
            yield x, y

    for k in (None, 1, 8):
        again = fit(loss, fx.adam(0.1), PARAMS, reader(), steps_per_dispatch=k)
        equal(again[:2], fit(loss, fx.adam(0.1), PARAMS, BATCHES)[:2])


@pytest.mark.parametrize("k", [None, 1, 8])
def test_an_early_stop_looks_at_evaluations_only(k):
    options = {"evaluate": lambda p, s: 0.0, "evaluate_every": 10, "steps_per_dispatch": k}
    r = fit(loss, fx.adam(0.1), PARAMS, BATCHES * 2, stop=lambda h: h["step"][-1] >= 15, **options)
    assert (r.reason, r.history.rows) == ("stop", 20)


def test_large_batches_are_not_gathered(dispatched):
    x = np.zeros((50_000, 5), np.float32)
    fit(lambda p, x: jnp.sum(p["w"]) * jnp.sum(x[0]), fx.sgd(0.1), PARAMS, [x] * 2)
    assert {k for _, k in dispatched} == {8}


def test_large_steps_go_one_by_one(dispatched):
    def heavy(p, x, y):
        return loss(p, x, y) + 0 * jnp.sum(jnp.ones((700, 700)) @ jnp.full((700, 700), p["w"][0]))

    fit(heavy, fx.adam(0.1), PARAMS, BATCHES[:3])
    assert dispatched == [(1, 1)] * 3


def test_an_early_stop_is_asked_after_each_step(dispatched):
    r = fit(loss, fx.adam(0.1), PARAMS, BATCHES, stop=lambda history: history.rows == 5)
    assert (r.reason, r.history.rows) == ("stop", 5)
    assert dispatched == [(1, 1)] * 5


def test_slow_batches_are_not_waited_for(dispatched):
    def slow():
        for batch in BATCHES[:4]:
            yield batch
            time.sleep(0.06)

    one = fit(loss, fx.adam(0.1), PARAMS, BATCHES[:4])
    dispatched.clear()
    equal(fit(loss, fx.adam(0.1), PARAMS, slow())[:2], one[:2])
    assert sum(n for n, _ in dispatched) == 4
    assert max(n for n, _ in dispatched) <= 3


@pytest.mark.parametrize("k", [None, 4])
def test_convolutions_run_outside_loops_on_the_cpu(dispatched, k):
    def convolve(p, x, y):
        return loss(p, x, y) + jax.jit(jnp.convolve)(y[:, 0], p["w"][:, 0]).sum()

    fit(convolve, fx.sgd(0.01), PARAMS, BATCHES[:3], steps_per_dispatch=k)
    assert dispatched == [(1, None)] * 3


def test_resume_in_the_middle_is_bitwise_equal(tmp_path):
    tx = fx.average_params(fx.monitor(fx.chain(fx.clip_by_global_norm(1.0), fx.adamw(0.1))))
    whole = fit(loss, tx, PARAMS, BATCHES, steps_per_dispatch=4)
    first = fit(loss, tx, PARAMS, BATCHES[:7], steps_per_dispatch=4)
    fx.save(tmp_path / "run.npz", {"p": first.params, "s": first.state})
    like = {"p": PARAMS, "s": jax.eval_shape(tx.init, PARAMS)}
    held = fx.load(tmp_path / "run.npz", like)
    then = {"state": held["s"], "history": first.history}
    rest = fit(loss, tx, held["p"], BATCHES[7:], steps_per_dispatch=4, **then)
    equal(rest[:2], whole[:2])
    equal(dict(rest.history), dict(whole.history))


def test_evaluation_early_stop_and_epochs():
    seen = []

    def evaluate(p, s):
        seen.append((p, s))
        return {"val": loss(p, X, Y)}

    r = fit(loss, fx.adam(0.1), PARAMS, BATCHES, epochs=3, evaluate=evaluate, evaluate_every=10)
    at = np.flatnonzero(~np.isnan(r.history["val"])) + 1
    np.testing.assert_array_equal(at, [10, 20, 30, 40, 50, 60, 70, 72])
    assert r.history["val"][-1] < 0.1 * r.history["val"][9]
    assert not any(p["w"].is_deleted() for p, _ in seen), "what the hook was given stays"

    r = fit(loss, fx.sgd(0.0), PARAMS, BATCHES, evaluate=lambda p, s: 1.0, evaluate_every=2,
            stop=fx.no_improvement("evaluation", patience=3))  # fmt: skip
    assert (r.reason, r.history.rows) == ("stop", 8)
    assert fit(loss, fx.sgd(0.1), PARAMS, BATCHES, steps=5).reason == "steps"
    assert fit(loss, fx.sgd(0.1), PARAMS, BATCHES, steps=0).history.rows == 0


def test_history_is_a_table():
    h = fx.History({"step": [1, 2]})
    h.extend({"step": [3.0], "a": [1.0]})
    h.record({"b": 5})
    for t in range(200):
        h.extend({"step": [4.0 + t]})
    assert h.rows == 203
    assert all(len(x) == 203 for x in h.values())
    np.testing.assert_array_equal(h["step"], np.arange(203) + 1)
    np.testing.assert_array_equal(h["a"][:4], [np.nan, np.nan, 1, np.nan])
    np.testing.assert_array_equal(h["b"][:4], [np.nan, np.nan, 5, np.nan])


def test_progress_bar_shows_loss_rate_and_gradient_norm(capsys):
    fx.fit(loss, fx.adam(0.1), PARAMS, BATCHES, progress=True)
    text = capsys.readouterr().err
    assert "24/24" in text
    assert all(word in text for word in ("loss=", "lr=0.1", "grad="))


@pytest.mark.parametrize("k", [None, 1, 30])
def test_too_many_nonfinite_gradients_end_the_run(k):
    bad = [(X[:10] * np.nan, Y[:10])] * 50
    tx = fx.skip_nonfinite(fx.adam(0.1), 3)
    r = fit(loss, tx, PARAMS, BATCHES[:2] + bad, steps_per_dispatch=k)
    assert r.reason == "nonfinite"
    assert np.isfinite(r.params["w"]).all()
    assert r.history.rows == int(r.state["count"]) == 2 + 4


@pytest.mark.parametrize("k", [None, 1, 4, 64])
def test_nothing_is_trained_after_too_many_nonfinite_gradients(k):
    """The dispatch after the failure has begun before it is known; it must do nothing."""
    bad = (X[:10] * np.nan, Y[:10])
    batches = [*BATCHES[:5], bad, bad, *BATCHES]
    tx = fx.skip_nonfinite(fx.adam(0.1), 1)
    r = fit(loss, tx, PARAMS, batches, steps_per_dispatch=k)
    equal(r.params, fit(loss, tx, PARAMS, BATCHES[:5]).params)
    np.testing.assert_array_equal(r.history["step"], np.arange(7) + 1)
    assert r.reason == "nonfinite"


def test_an_error_in_the_batches_loses_nothing():
    def broken():
        yield from BATCHES[:3]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk") as info:
        fit(loss, fx.adam(0.1), PARAMS, broken())
    result = info.value.result
    equal(result[:2], fit(loss, fx.adam(0.1), PARAMS, BATCHES[:3])[:2])
    assert result.history.rows == 3
    assert (
        "error.result" in info.value.__notes__[0] or "attribute result" in info.value.__notes__[0]
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: fit(loss, fx.adam(0.1), PARAMS, iter(BATCHES), epochs=2),
            "new iterator for every",
        ),
        (lambda: fit(loss, fx.adam(0.1), PARAMS, BATCHES, steps_per_dispatch=0), ">= 1, got 0"),
        (lambda: fit(loss, 3, PARAMS, BATCHES), "3 is not a gradient transformation"),
        (lambda: fit(loss, fx.adam(0.1), {"f": len}, BATCHES), "leaves must be arrays"),
        (lambda: fx.no_improvement("x", 0), "patience must be a whole number"),
        (
            lambda: fit(loss, fx.adam(0.1), PARAMS, BATCHES, stop=fx.no_improvement("x", 2)),
            "no column 'x'; the history has",
        ),
    ],
)
def test_messages(call, words):
    with pytest.raises((ValueError, TypeError, KeyError), match=words):
        call()


# ---- Ctrl-C --------------------------------------------------------------------------------------


def endless():
    while True:
        yield from BATCHES


class Presses:
    """Ctrl-C after these delays, in seconds, from another thread, and again until the block ends.

    One that comes before `fit` has begun, or after it has ended, is caught here.
    """

    def __init__(self, *delays):
        self.delays, self.over = delays, threading.Event()

    def __enter__(self):
        self.old = signal.signal(signal.SIGINT, lambda *_: None)

        def press():
            for delay in itertools.chain(self.delays, itertools.repeat(0.05)):
                if self.over.wait(delay):
                    return
                os.kill(os.getpid(), signal.SIGINT)

        self.thread = threading.Thread(target=press)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        signal.signal(signal.SIGINT, self.old)


def check_complete(r, tx):
    """Parameters, state and history are those of one and the same step, and can be gone on with."""
    n = int(r.state["count"])
    assert r.reason == "interrupted"
    assert r.history.rows == n
    if n:
        assert r.history["step"][-1] == n
    more = fit(loss, tx, r.params, BATCHES[:1], state=r.state, history=r.history)
    assert more.history.rows == n + 1
    return n


@pytest.mark.slow
def test_ctrl_c_at_300_random_moments():
    tx = fx.skip_nonfinite(fx.adam(0.1))
    expected = fit(loss, tx, PARAMS, endless(), steps=40).params  # compiled before
    rng = random.Random(0)
    stops = []
    for i in range(300):
        k = rng.choice([None, 1, 4])
        delays = [rng.uniform(0, 0.03)] + [rng.uniform(0, 0.004) for _ in range(rng.randrange(3))]
        options = {"steps_per_dispatch": k, "evaluate": lambda p, s: 0.0, "evaluate_every": 7}
        with Presses(*delays):
            r = fit(loss, tx, PARAMS, endless(), **options)
        n = check_complete(r, tx)
        if n == 40:
            equal(r.params, expected)
        stops.append(n)
        if i % 50 == 0:
            equal(r[:2], fit(loss, tx, PARAMS, endless(), steps=n)[:2])
    assert len(set(stops)) > 10
    assert min(stops) < 40


def test_the_second_ctrl_c_leaves_a_batch_that_hangs():
    def hangs():
        yield from BATCHES[:2]
        time.sleep(60)

    fit(loss, fx.adam(0.1), PARAMS, BATCHES[:1])
    start = time.monotonic()
    with Presses(0.5, 0.2, 0.001, 0.001):
        r = fit(loss, fx.adam(0.1), PARAMS, hangs())
    assert time.monotonic() - start < 30
    assert check_complete(r, fx.adam(0.1)) == 2


def test_the_handler_is_put_back_and_threads_need_none():
    before = signal.getsignal(signal.SIGINT)
    fit(loss, fx.adam(0.1), PARAMS, BATCHES[:1])
    assert signal.getsignal(signal.SIGINT) is before
    results = []
    thread = threading.Thread(
        target=lambda: results.append(fit(loss, fx.adam(0.1), PARAMS, BATCHES[:1]))
    )
    thread.start()
    thread.join()
    assert results[0].history.rows == 1


# ---- checkpoints ---------------------------------------------------------------------------------


def some_steps(tx, n, p=None, s=None, first=0):
    p = tree() if p is None else p
    s = tx.init(p) if s is None else s
    step = jax.jit(tx.step)
    for t in range(first, first + n):
        p, s = step(tree(seed=t + 1), s, p)
    return p, s


@pytest.mark.parametrize("name", WRAPPERS)
def test_npz_round_trip(name, tmp_path):
    tx = WRAPPERS[name](fx.adamw(0.01))
    p, s = some_steps(tx, 3)
    fx.save(tmp_path / "x.npz", (p, s))
    q, r = fx.load(tmp_path / "x.npz", (tree(), tx.init(tree())))
    equal((q, r), (p, s))
    equal(some_steps(tx, 2, q, r, 3), some_steps(tx, 5))
    with np.load(tmp_path / "x.npz") as file:
        assert any("count" in entry for entry in file.files)


@pytest.mark.parametrize("name", ["live", "master_weights", "partition", "monitor", "masked"])
def test_orbax_round_trip(name, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = WRAPPERS[name](fx.adamw(0.01))
    p, s = some_steps(tx, 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", {"p": p, "s": s})
        checkpointer.wait_until_finished()
        like = jax.tree.map(jnp.zeros_like, {"p": tree(), "s": tx.init(tree())})
        held = checkpointer.restore(tmp_path / "x", like)
    equal(held, {"p": p, "s": s})
    equal(some_steps(tx, 2, held["p"], held["s"], 3), some_steps(tx, 5))


@pytest.mark.parametrize("how", ["npz", "orbax"])
def test_resume_on_another_mesh(how, tmp_path):
    tx = fx.live(fx.adamw(0.01))
    g = {"w": jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)}

    def on(shape):
        mesh = jax.make_mesh(shape, ("x", "y"), axis_types=(AxisType.Auto,) * 2)
        return NamedSharding(mesh, P("x", "y"))

    def steps(p, s, n):
        for _ in range(n):
            p, s = jax.jit(tx.step)(jax.device_put(g, p["w"].sharding), s, p)
        return p, s

    start = {"w": jax.device_put(jnp.ones((8, 4)), on((4, 2)))}
    p, s = steps(start, tx.init(start), 3)
    other = {"w": jax.device_put(jnp.ones((8, 4)), on((2, 4)))}
    like = (other, tx.init(other))
    if how == "npz":
        fx.save(tmp_path / "x.npz", (p, s))
        held = fx.load(tmp_path / "x.npz", like)
    else:
        ocp = pytest.importorskip("orbax.checkpoint")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "x", (p, s))
            checkpointer.wait_until_finished()
            held = checkpointer.restore(tmp_path / "x", like)
    jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim) or 1 / 0, held, like)
    equal(held, (p, s))
    equal(steps(*held, 3), steps(start, tx.init(start), 6))


def test_other_configurations_load_the_old_checkpoint(tmp_path):
    p, s = some_steps(fx.adamw(0.01), 3)
    fx.save(tmp_path / "x.npz", s)
    for tx in (
        fx.chain(fx.clip_by_global_norm(1.0), fx.adamw(0.01)),
        fx.adamw(fx.cosine_decay_schedule(0.01, 100)),
        fx.adamw(0.01, mask=fx.ndim_at_least(2)),
    ):
        equal(fx.load(tmp_path / "x.npz", jax.eval_shape(tx.init, p)), s)


def test_checkpoints_of_any_dtype_and_their_errors(tmp_path):
    path = tmp_path / "x.npz"
    x = {
        "b": jnp.full(3, 1.5, jnp.bfloat16),
        "f8": jnp.full(2, 2.0, jnp.float8_e4m3fn),
        "key": jax.random.key(3),
        "n": 3,
        "empty": jnp.zeros((0, 2)),
        "none": None,
    }
    fx.save(path, x)
    for like in (x, jax.eval_shape(lambda: x)):
        y = fx.load(path, like)
        equal(jax.random.key_data(y["key"]), jax.random.key_data(x["key"]))
        equal({**y, "key": 0}, {**x, "key": 0})
    for like, words in (
        ({**x, "more": jnp.ones(1)}, r"missing in it: \['more'\]"),
        ({"b": x["b"]}, "not asked for"),
        ({**x, "b": jnp.ones(3)}, r"\['b'\] is bfloat16 in the file, float32"),
        ({**x, "b": jnp.ones(4, jnp.bfloat16)}, r"shape \(3,\) in the file, \(4,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            fx.load(path, like)
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match=r"no checkpoint of fx\.save"):
        fx.load(tmp_path / "other.npz", x)
    old = path.read_bytes()
    with pytest.raises(TypeError):
        fx.save(path, {"f": len})
    assert path.read_bytes() == old
    assert [f.name for f in tmp_path.iterdir() if "x.npz" in f.name] == ["x.npz"]


GOLDEN = pathlib.Path(__file__).parent / "golden"
KEPT = {name: WRAPPERS[name](fx.adamw(0.01)) for name in WRAPPERS} | {
    "amsgrad": OPTIMIZERS["amsgrad"],
    "radam": OPTIMIZERS["radam"],
}


def write_golden():
    """Made once per version of the format: python -c "import test_training as t; t.write_golden()"."""
    for name, tx in KEPT.items():
        if (GOLDEN / f"{name}.npz").exists():
            continue
        p, s = some_steps(tx, 5)
        fx.save(GOLDEN / f"{name}.npz", {"p": p, "s": s, "next": some_steps(tx, 1, p, s, 5)[0]})


@pytest.mark.parametrize("name", KEPT)
def test_golden_checkpoint_loads_for_ever(name):
    tx, p = KEPT[name], tree()
    like = {"p": p, "s": jax.eval_shape(tx.init, p), "next": p}
    held = fx.load(GOLDEN / f"{name}.npz", like)
    q, _ = some_steps(tx, 1, held["p"], held["s"], 5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), q, held["next"]
    )


# ---- carried over --------------------------------------------------------------------------------

RATE = fx.cosine_decay_schedule(0.1, 20)
PEERS = {
    "adam": (optax.adam(0.1), fx.adam(0.1)),
    "adamw by schedule": (optax.adamw(optax.cosine_decay_schedule(0.1, 20)), fx.adamw(RATE)),
    "momentum": (optax.sgd(0.1, 0.9), fx.sgd(0.1, 0.9)),
    "momentum by schedule": (
        optax.sgd(optax.cosine_decay_schedule(0.1, 20), 0.9),
        fx.sgd(RATE, 0.9),
    ),
    "rmsprop": (optax.rmsprop(0.1), fx.rmsprop(0.1)),
    "rmsprop with momentum": (optax.rmsprop(0.1, momentum=0.9), fx.rmsprop(0.1, momentum=0.9)),
    "injected": (
        optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.nadam)(0.1)),
        fx.chain(fx.clip(1.0), fx.nadam(0.1)),
    ),
    "amsgrad": (optax.amsgrad(0.1), fx.amsgrad(0.1)),
}


@pytest.mark.parametrize("name", PEERS)
def test_state_carried_over_from_optax(name, x64):
    peer, tx = PEERS[name]
    with jax.numpy_dtype_promotion("standard"):
        p = tree(np.float64)
        s = peer.init(p)
        for t in range(8):
            u, s = peer.update(tree(np.float64, seed=t + 1), s, p)
            p = optax.apply_updates(p, u)
        g = tree(np.float64, seed=9)
        wanted, _ = peer.update(g, s, p)
        ours = fx.interop.from_optax(tx, s, p, count=8)
        assert jax.tree.structure(ours) == jax.tree.structure(tx.init(p))
        u, ours = tx.update(g, ours, p)
    rtol = 1e-6 if "schedule" in name else 1e-12  # optax computes scheduled rates in float32
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-15), u, wanted)
    assert ours["count"] == 9


def torch_rmsprop(**kwargs):
    momentum = kwargs.get("momentum")
    return fx.chain(
        fx.scale_by_moments(0.99 if kwargs.get("centered") else None, 0.99),
        fx.center() if kwargs.get("centered") else fx.identity(),
        fx.scale_by_moments(fx.trace(momentum), None) if momentum else fx.identity(),
        fx.scale_by_lr(0.1),
    )


@pytest.mark.parametrize(
    ("name", "kwargs", "tx"),
    [
        ("Adam", {}, fx.adam(0.1)),
        ("AdamW", {}, fx.adamw(0.1, weight_decay=1e-2)),
        ("SGD", {"momentum": 0.9}, fx.sgd(0.1, 0.9)),
        ("RMSprop", {}, torch_rmsprop()),
        (
            "RMSprop",
            {"momentum": 0.9, "centered": True},
            torch_rmsprop(momentum=0.9, centered=True),
        ),
    ],
)
def test_state_carried_over_from_torch(name, kwargs, tx, x64):
    torch = pytest.importorskip("torch")
    start = tree(np.float64)
    peer = {k: torch.nn.Parameter(torch.tensor(np.array(x).T)) for k, x in start.items()}
    optimizer = getattr(torch.optim, name)(list(peer.values()), lr=0.1, **kwargs)

    def step(t):
        for k, g in tree(np.float64, seed=t + 1).items():
            peer[k].grad = torch.tensor(np.array(g).T)
        optimizer.step()

    for t in range(8):
        step(t)
    p = {k: jnp.asarray(x.detach().numpy().T.copy()) for k, x in peer.items()}
    options = {"count": 8, "convert": lambda x: x.T}
    s = fx.interop.from_torch(tx, optimizer.state, peer, p, **options)
    by_number = {k: i for i, k in enumerate(peer)}
    equal(s, fx.interop.from_torch(tx, optimizer.state_dict()["state"], by_number, p, **options))
    q, _ = tx.step(tree(np.float64, seed=9), s, p)
    step(8)
    for k in p:
        np.testing.assert_allclose(q[k], peer[k].detach().numpy().T, rtol=1e-12, atol=1e-14)


def test_what_cannot_be_carried_over_says_why():
    p = {"w": jnp.ones((2, 3))}
    adam, momentum = optax.adam(0.1).init(p), optax.sgd(0.1, 0.9).init(p)
    for call, words in (
        (lambda: fx.interop.from_optax(fx.sgd(0.1, 0.9), momentum, p), "pass count"),
        (
            lambda: fx.interop.from_optax(fx.adam(0.1), momentum, p, count=1),
            r"holds trace: mu \(trace of value\)",
        ),
        (
            lambda: fx.interop.from_optax(fx.sgd(0.1, 0.9), adam, p),
            r"remembers mu \(trace of value\); the state given holds mu: mu \(ema of value\)",
        ),
        (lambda: fx.interop.from_optax(fx.adam(0.1), adam, {"w": jnp.ones(2)}), "has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
