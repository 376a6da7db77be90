"""The training loop: how it ends, what it evaluates, what it says."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamfx as fx

TWO_ONES = jnp.ones(2)


P = {"w": jnp.zeros(3)}


BATCHES = [np.random.default_rng(i).normal(size=(4, 3)).astype(np.float32) for i in range(12)]


def loss(p, x):
    return jnp.mean((x @ p["w"] - 1) ** 2)


def fit(*args, **kwargs):
    return fx.fit(*args, **{"progress": False, **kwargs})


@pytest.mark.parametrize(
    "tx", [optax.lbfgs(), fx.chain(optax.lbfgs())], ids=["alone", "in a chain"]
)
def test_fit_with_a_line_search_of_optax(tx):
    target = jnp.asarray([1.0, -2.0, 3.0])

    def loss(p, x):
        return jnp.sum((p - target) ** 2 * x)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        scale = jnp.asarray([1.0, 10.0, 100.0])
        params, *_ = fx.fit(loss, tx, jnp.zeros(3), [scale] * 15, progress=False)
        np.testing.assert_allclose(params, target, rtol=1e-3)
        step = fx.make_step(loss)
        p, s = jnp.zeros(3), fx.GradientTransformation.as_inner(tx).init(jnp.zeros(3))
        for _ in range(15):
            p, s, _ = step(tx, p, s, scale)
        np.testing.assert_allclose(p, target, rtol=1e-3)


def test_evaluate_sees_the_point_to_use():
    tx = fx.lookahead(fx.sgd(0.1), 3, 0.5)
    seen = []

    def evaluate(p, state):
        seen.append((np.asarray(p), np.asarray(state["lookahead"].slow)))
        return 0.0

    fx.fit(lambda p, x: jnp.sum((p - x) ** 2), tx, TWO_ONES, [TWO_ONES * 3] * 5, evaluate=evaluate,
           evaluate_every=1, progress=False)  # fmt: skip
    assert len(seen) == 5
    for p, slow in seen:
        np.testing.assert_array_equal(p, slow)
    average = fx.average_params(fx.sgd(0.1), fx.ema(0.5))
    s, p = average.init(TWO_ONES), TWO_ONES
    for _ in range(3):
        p, s = average.step(TWO_ONES, s, p)
    np.testing.assert_allclose(average.evaluate_at(s, p), fx.averaged_params(s, p), rtol=1e-6)
    np.testing.assert_allclose(fx.accumulate(average, 2).evaluate_at(
        fx.accumulate(average, 2).init(TWO_ONES), TWO_ONES), TWO_ONES)  # fmt: skip


@pytest.mark.parametrize("answer", [np.bool_(True), jnp.array(True), 1])
def test_stop_may_say_yes_in_any_way(answer):
    result = fit(loss, fx.adam(0.1), P, BATCHES, stop=lambda history: answer)
    assert (result.reason, result.history.rows) == ("stop", 1)


def test_a_step_that_fails_says_what_is_left():
    def broken(p, x):
        def check(x):
            if x[0, 0] == BATCHES[5][0, 0]:
                raise OSError("device")
            return np.float32(0)

        return loss(p, x) + jax.pure_callback(check, jax.ShapeDtypeStruct((), "float32"), x)

    with pytest.raises(Exception, match="device") as info:
        fit(broken, fx.sgd(0.1), P, BATCHES, steps_per_dispatch=1)
    result = info.value.result
    assert result.reason == "failed"
    assert result.history.rows in (4, 5)
    held = result.params is not None
    assert ("but params and state" in info.value.__notes__[-1]) != held
    assert not held or not result.params["w"].is_deleted()


def test_system_exit_carries_the_result():
    def batches():
        yield from BATCHES[:3]
        raise SystemExit(3)

    with pytest.raises(SystemExit) as info:
        fit(loss, fx.adam(0.1), P, batches())
    assert info.value.result.history.rows == 3


@pytest.mark.parametrize("name", ["loss", "step", "gradient_norm"])
def test_columns_are_not_overwritten(name):
    with pytest.raises(ValueError, match=f"evaluate returned '{name}'.*'test_{name}'"):
        fit(loss, fx.adam(0.1), P, BATCHES, evaluate=lambda p, s: {name: -1.0})
    with pytest.raises(ValueError, match=f"aux holds {name}"):
        fit(lambda p, x: (loss(p, x), {name: 1.0}), fx.adam(0.1), P, BATCHES, has_aux=True)


def test_aux_of_any_other_name_ends_nothing():
    def with_aux(p, x):
        return loss(p, x), {"too_many": jnp.array(True)}

    result = fit(with_aux, fx.adam(0.1), P, BATCHES, has_aux=True)
    assert (result.reason, result.history["too_many"].sum()) == ("end of batches", 12)


def test_gradient_norm_is_that_of_the_loss_and_a_monitors_beside_it():
    tx = fx.accumulate(fx.monitor(fx.adam(0.1)), 3)
    h = fit(loss, tx, P, BATCHES).history
    assert h["gradient_norm"].all()
    assert not h["monitor/gradient_norm"][:2].any()


@pytest.mark.parametrize("found", [None, {"a": {"b": 1}}, np.ones(2)])
def test_evaluate_must_return_numbers(found):
    with pytest.raises(TypeError, match="evaluate must return a number or a dict of numbers"):
        fit(loss, fx.adam(0.1), P, BATCHES, evaluate=lambda p, s: found)


@pytest.mark.parametrize("k", [1, 4])
def test_ctrl_c_loses_no_batch_of_an_iterator(k):
    def batches():
        for i, batch in enumerate(BATCHES):
            if i == 6:
                signal.raise_signal(signal.SIGINT)
            yield batch

    stream = batches()
    first = fit(loss, fx.adam(0.1), P, stream, steps_per_dispatch=k)
    assert first.reason == "interrupted"
    rest = fit(loss, fx.adam(0.1), first.params, stream, state=first.state, history=first.history)
    assert rest.state["count"] == 12
    whole = fit(loss, fx.adam(0.1), P, BATCHES)
    np.testing.assert_array_equal(rest.params["w"], whole.params["w"])


def test_ctrl_c_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def batches():
            yield from BATCHES[:2]
            signal.raise_signal(signal.SIGINT)
            yield from BATCHES[2:]

        assert fit(loss, fx.adam(0.1), P, batches()).reason == "end of batches"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_resumed_run_is_evaluated_at_the_same_steps():
    seen = []

    def evaluate(p, state):
        seen.append(int(state["count"]))
        return 0.0

    first = fit(loss, fx.adam(0.1), P, BATCHES[:6], evaluate=evaluate, evaluate_every=4)
    fit(loss, fx.adam(0.1), P, BATCHES[6:], state=first.state, evaluate=evaluate, evaluate_every=4)
    assert seen == [4, 6, 8, 12]


def test_random_keys_among_the_parameters():
    p = {**P, "key": jax.random.key(0)}
    q, _, history, _ = fit(loss, fx.adam(0.1), p, BATCHES)
    assert (q["key"] == p["key"]).all()
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("batch", [(), None])
def test_batches_may_be_empty(batch):
    assert fit(lambda p, *_: jnp.sum(p["w"] ** 2), fx.sgd(0.1), P, [batch] * 5).history.rows == 5


def test_a_length_that_is_not_known():
    class Stream:
        def __iter__(self):
            return iter(BATCHES)

        def __len__(self):
            raise TypeError("object of type 'D' has no len()")

    assert fit(loss, fx.adam(0.1), P, Stream(), progress=True).history.rows == 12


def test_whole_floats_count_steps():
    result = fit(loss, fx.adam(0.1), P, BATCHES, epochs=2.0, steps_per_dispatch=2.0, steps=16.0)
    assert result.history.rows == 16
    stop, history = fx.no_improvement("loss", 3.0), fx.History({"loss": [2.0, 1.0, 3.0, 3.0]})
    assert not stop(history)
    history.extend({"loss": [3.0]})
    assert stop(history)


def test_debug_nans_points_at_the_nan():
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        fit(lambda p, x: loss(p, x) * jnp.log(-1.0 - p["w"][0] ** 2), fx.sgd(0.1), P, BATCHES)


@pytest.mark.parametrize("state", [optax.adam(0.1).init(P), P])
def test_the_state_of_something_else(state):
    with pytest.raises(TypeError, match="fit: the state must be a dict with 'count'"):
        fit(loss, fx.adam(0.1), P, BATCHES, state=state)


def test_a_loss_that_cannot_be_hashed():
    class L:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, p, x):
            return loss(p, x)

    assert fit(L(), fx.adam(0.1), P, BATCHES).history.rows == 12


def test_the_numbers_of_an_evaluation_with_their_steps():
    h = fit(loss, fx.adam(0.1), P, BATCHES, evaluate=lambda p, s: 0.5, evaluate_every=5).history
    steps, numbers = h.measured("evaluation")
    assert steps.tolist() == [5, 10, 12]
    assert numbers.tolist() == [0.5] * 3


def test_what_is_easily_overlooked_is_a_warning():
    with pytest.warns(UserWarning, match="there were no batches"):
        fit(loss, fx.adam(0.1), P, [])

    def left():  # Ctrl-C twice before the first batch: no warning
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield BATCHES[0]

    assert fit(loss, fx.adam(0.1), P, left()).reason == "interrupted"
    assert fit(loss, fx.adam(0.1), P, BATCHES, steps=0).reason == "steps"
    with pytest.warns(UserWarning, match="not finite 12 times, at first at step 1; skip_nonfinite"):
        fit(lambda p, x: loss(p, x) * jnp.nan, fx.adam(0.1), P, BATCHES)


def test_functions_and_long_things_in_messages():
    with pytest.raises(TypeError, match=r"adam is a function.*call it: adam\(...\)"):
        fx.monitor(fx.adam)
    with pytest.raises(TypeError) as info:
        fx.monitor({"w": jnp.zeros((100, 100))})
    assert len(str(info.value)) < 500
