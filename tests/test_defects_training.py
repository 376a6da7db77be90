"""Defects that a reviewer found in training and the wrappers, each held by the test that saw it."""

import copy
import os
import pickle
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamfx as fx

P = {"w": jnp.zeros(3)}
G = {"w": jnp.ones(3)}
BATCHES = [np.random.default_rng(i).normal(size=(4, 3)).astype(np.float32) for i in range(12)]


def loss(p, x):
    return jnp.mean((x @ p["w"] - 1) ** 2)


def fit(*args, **kwargs):
    return fx.fit(*args, **{"progress": False, **kwargs})


def walk(tx, grads, p=P):
    state, path = tx.init(p), []
    for g in grads:
        p, state = tx.step(g, state, p)
        path.append(np.asarray(p["w"])[0])
    return np.array(path)


# ---- wrappers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [fx.linear_schedule(1.0, 8.0, 10), lambda count: 0 * count])
def test_accumulate_divides_by_what_it_has_summed(every):
    path = walk(fx.accumulate(fx.sgd(1.0), every), [G] * 20)
    moved = np.diff(path, prepend=0)
    assert set(moved) <= {0.0, -1.0}
    assert (moved == -1).sum() >= 4


def test_every_may_be_an_array():
    assert walk(fx.accumulate(fx.sgd(1.0), jnp.array(2)), [G] * 4).tolist() == [0, -1, -1, -2]


def test_a_leaf_without_gradient_at_the_end_of_a_window_stays():
    tx = fx.accumulate(fx.sgd(1.0), 2)
    assert walk(tx, [G, {"w": None}, G, G]).tolist() == [0, 0, 0, -1]


@pytest.mark.parametrize(
    "tx", [fx.accumulate(fx.sgd(1.0), 2), fx.lookahead(fx.sgd(1.0), 2, 0.5)], ids=repr
)
def test_a_state_of_another_shape_is_refused(tx):
    with pytest.raises(ValueError, match=r"\['w'\] has shape \(3,\).*\(1,\).*tx.init"):
        tx.update(G, tx.init({"w": jnp.zeros(1)}), P)


def test_master_weights_notice_parameters_of_another_dtype():
    tx = fx.master_weights(fx.sgd(1.0))
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), P)
    for made_for, given in ((P, low), (low, P)):
        with pytest.raises(ValueError, match="parameters of other dtypes"):
            tx.step(given, tx.init(made_for), given)


@pytest.mark.parametrize("dtype", ["int8", "run1"])
def test_compensate_wants_a_floating_dtype(dtype):
    with pytest.raises(ValueError, match=r"compensate: dtype must be a floating dtype"):
        fx.compensate(dtype)


def test_compensate_cannot_hold_complex_errors_as_real():
    with pytest.raises(ValueError, match="complex"):
        fx.compensate("bfloat16").init({"w": jnp.zeros(2, jnp.complex64)})


def test_the_seed_is_whole():
    with pytest.raises(TypeError, match=r"seed must be an int, got 2\.0"):
        fx.round_stochastically(2.0)  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    "block", [fx.freeze(fx.ndim_at_least(2)), fx.lookahead(fx.clip(1.0), 2, 0.5)], ids=repr
)
def test_a_wrapper_that_the_state_has_not_seen_is_named(block):
    tx = fx.chain(fx.adam(0.1), block)
    with pytest.raises(
        ValueError, match=r"the state has no '(masked|lookahead)', it has .*; make it"
    ):
        tx.update(G, fx.adam(0.1).init(P), P)


def test_metrics_reads_what_blocks_say_and_not_parameters_of_the_same_name():
    class Model(eqx.Module):
        metrics: jax.Array
        dropped: jax.Array
        inner: jax.Array

    model = Model(jnp.ones(2), jnp.ones(3), jnp.ones(1))
    assert set(fx.metrics(fx.adam(0.1).init(model))) == {"learning_rate"}
    tx = fx.monitor(fx.adam(0.1), ("update_norm",), per_leaf=True)
    names = {"update_norm", *(f"update_norm/{n}" for n in ("metrics", "dropped", "inner"))}
    assert set(fx.metrics(tx.init(model))) == {"learning_rate", *names}


def test_check_finite_of_many_runs():
    tx = fx.skip_nonfinite(fx.sgd(0.1), 0)
    state = jax.vmap(tx.init)({"w": jnp.zeros((2, 3))})
    fx.check_finite(state)
    bad = {"w": jnp.stack([jnp.ones(3), jnp.full(3, jnp.nan)])}
    _, state = jax.vmap(tx.update)(bad, state)
    with pytest.raises(FloatingPointError, match="the last 1 gradients"):
        fx.check_finite(state)


# ---- fit -----------------------------------------------------------------------------------------


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
    assert fx.no_improvement("loss", 3.0)(result.history) in (True, False)


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


# ---- checkpoints ---------------------------------------------------------------------------------


def test_numbers_and_numpy_arrays_come_back_exactly(tmp_path):
    x = {"a": np.array([2**40, 3]), "b": np.float64(0.1), "n": 5_000_000_000, "f": 0.1, "t": True}
    fx.save(tmp_path / "x.npz", x)
    y = fx.load(tmp_path / "x.npz", x)
    assert {k: type(v) for k, v in y.items()} == {k: type(v) for k, v in x.items()}
    assert y["a"].dtype == np.int64
    assert all(np.array_equal(x[k], y[k]) for k in x)


def test_a_history_is_saved_with_the_run(tmp_path):
    result = fit(loss, fx.adam(0.1), P, BATCHES, evaluate=lambda p, s: 0.1, evaluate_every=5)
    fx.save(tmp_path / "run.npz", result._asdict() | {"reason": None})
    like = {"params": P, "state": fx.adam(0.1).init(P), "history": fx.History(), "reason": None}
    history = fx.load(tmp_path / "run.npz", like)["history"]
    assert isinstance(history, fx.History)
    assert list(history) == list(result.history)
    for name, x in result.history.items():
        np.testing.assert_array_equal(history[name], x)
    more = fit(loss, fx.adam(0.1), P, BATCHES, history=history).history
    assert (more.rows, history.rows) == (24, 12)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))]
)
def test_a_copied_history_is_one_of_its_own(copied):
    h = fx.History()
    h.extend({"loss": [1.0, 2.0]})
    other = copied(h)
    other.record({"loss": 5.0})
    other.extend({"loss": [3.0]})
    assert h["loss"].tolist() == [1, 2]
    assert other["loss"].tolist() == [1, 5, 3]


def test_save_keeps_mode_and_link(tmp_path):
    file, link = tmp_path / "a.npz", tmp_path / "latest.npz"
    fx.save(file, P)
    os.chmod(file, 0o640)
    link.symlink_to(file)
    fx.save(link, G)
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert fx.load(file, P)["w"].all()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a.npz", "latest.npz"]


@pytest.mark.parametrize("how", ["empty", "cut", "text", "flipped", "npy"])
def test_a_damaged_checkpoint_says_so(tmp_path, how):
    path = tmp_path / "x.npz"
    fx.save(path, {"w": jnp.zeros(1000)})
    whole = path.read_bytes()
    if how == "npy":
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        path.write_bytes(
            {"empty": b"", "cut": whole[:-30], "text": b"abc", "flipped": flipped}[how]
        )
    with pytest.raises(ValueError, match=r"x\.npz is no checkpoint of fx\.save, or a damaged one"):
        fx.load(path, {"w": jnp.zeros(1000)})


def test_what_cannot_be_saved(tmp_path):
    for x in ("run1", len):
        with pytest.raises(TypeError, match=r"save: the leaf at \['name'\] is .*must be arrays"):
            fx.save(tmp_path / "x.npz", {"name": x})
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nope; make it first"):
        fx.save(tmp_path / "nope" / "x.npz", P)
    assert not list(tmp_path.iterdir())


# ---- carrying over -------------------------------------------------------------------------------


def moved(tx, n=5):
    state = tx.init(P)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(n):
            _, state = tx.update(G, state, P)
    return state


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fx.average_params(fx.adam(0.1), fx.ema(0.9)), optax.adam(0.1)),
        (fx.average_params(fx.adam(0.1)), optax.adam(0.1)),
        (fx.skip_nonfinite(fx.sgd(fx.inverse_sqrt_schedule(0.1))), optax.sgd(lambda t: 0.1)),
        (fx.lookahead(fx.adam(0.1), 2, 0.5), optax.adam(0.1)),
    ],
)
def test_averages_and_wrappers_are_not_carried_over_in_silence(ours, theirs):
    with pytest.raises(ValueError, match="cannot be carried over"):
        fx.interop.from_optax(ours, moved(theirs), P)


def test_half_a_window_is_not_lost_in_silence():
    tx = optax.MultiSteps(optax.adam(0.1), 3)
    fx.interop.from_optax(fx.adam(0.1), moved(tx, 6), P)
    with pytest.raises(ValueError, match="holds acc_grads, which adamfx would lose"):
        fx.interop.from_optax(fx.adam(0.1), moved(tx, 5), P)


class Tensor:
    """As much of a tensor as is looked at."""

    def __init__(self, x):
        self.x = np.asarray(x, np.float32)
        self.dtype = self.x.dtype

    def detach(self):
        return self

    cpu = detach

    def __array__(self, *args, **kwargs):
        return self.x

    def __int__(self):
        return int(self.x)


def entry(step=5, **more):
    return {
        "step": Tensor(step),
        "exp_avg": Tensor(np.ones(3)),
        "exp_avg_sq": Tensor(np.ones(3)),
        **more,
    }


TWO = {"a": jnp.zeros(3), "b": jnp.zeros(3)}


@pytest.mark.parametrize(
    ("tx", "state", "words"),
    [
        (fx.adam(0.1), {0: entry(5), 1: entry(3)}, r"moved \[3, 5\] times"),
        (fx.adam(0.1), {0: entry()}, "nothing for the parameter at .*b"),
        (fx.adam(0.1), {0: entry(), 1: {"step": Tensor(5)}}, "b.* has no 'exp_avg'"),
        (fx.sgd(0.1), {k: {"step": Tensor(5), "sum": Tensor(np.ones(3))} for k in (0, 1)}, "'sum'"),
        (fx.adam(0.1), {0: entry(), 1: entry(exp_avg=Tensor(np.ones(2)))}, r"b.*shape \(2,\)"),
        (fx.adam(0.1), object(), "must be optimizer.state, got object"),
    ],
)
def test_what_torch_has_and_we_cannot_hold(tx, state, words):
    with pytest.raises((ValueError, TypeError), match=words):
        fx.interop.from_torch(tx, state, {"a": 0, "b": 1}, TWO)


def test_another_tree_of_moments():
    with pytest.raises(ValueError, match="from_optax: mu is another tree than params"):
        fx.interop.from_optax(fx.adam(0.1), moved(optax.adam(0.1)), TWO)


# ---- what a newcomer stumbled over ---------------------------------------------------------------


def test_a_pattern_that_matches_nothing_is_no_group():
    labels = {"frozen": fx.path_matches("hiden/*")}
    with pytest.raises(ValueError, match=r"group 'frozen' match no parameter; the paths are .*w"):
        fx.partition({"frozen": fx.set_to_zero()}, labels, fx.adam(0.1)).init(P)


def test_early_stop_on_an_accuracy():
    h = fx.History()
    h.extend({"acc": [0.1, 0.2, 0.3, 0.4]})
    assert fx.no_improvement("acc", 2)(h)
    assert not fx.no_improvement("acc", 2, mode="max")(h)
    h.extend({"acc": [0.4, 0.35]})
    assert fx.no_improvement("acc", 2, mode="max")(h)
    with pytest.raises(ValueError, match="mode must be one of 'min', 'max'"):
        fx.no_improvement("acc", mode="most")


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


def test_a_part_of_a_checkpoint(tmp_path):
    fx.save(tmp_path / "x.npz", {"params": G, "state": fx.adam(0.1).init(P)})
    assert fx.load(tmp_path / "x.npz", {"params": P}, partial=True)["params"]["w"].all()
    with pytest.raises(ValueError, match="partial=True"):
        fx.load(tmp_path / "x.npz", {"params": P})


def test_names_of_optax_point_to_ours():
    with pytest.raises(AttributeError, match=r"MultiSteps.*accumulate\("):
        _ = fx.MultiSteps
    with pytest.raises(AttributeError, match=r"adamfx has no 'nothing'$"):
        _ = fx.nothing
    for name, other in fx.interop.COUNTERPARTS.items():
        assert hasattr(optax, name)
        assert hasattr(fx, other.partition("(")[0]) or other.startswith(("jax.", "scale(")), other


def test_functions_and_long_things_in_messages():
    with pytest.raises(TypeError, match=r"adam is a function.*call it: adam\(...\)"):
        fx.monitor(fx.adam)
    with pytest.raises(TypeError) as info:
        fx.monitor({"w": jnp.zeros((100, 100))})
    assert len(str(info.value)) < 500
