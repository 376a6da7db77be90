"""What is told of a run: logs, a summary, a profile, and callbacks of users."""

import csv
import errno
import os
import pathlib
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.training import logs

PARAMS = {"w": jnp.ones(3)}


def loss(params, x):
    return jnp.sum((params["w"] - x) ** 2)


BATCHES = [np.full(3, i, np.float32) for i in range(12)]


def fit(n=12, **settings):
    settings = {"progress": False, **settings}
    return fx.fit(loss, fx.adam(0.1), PARAMS, BATCHES[:n], **settings)


def rows(path):
    with open(path, newline="") as file:
        return [{n: float(x) for n, x in row.items() if x} for row in csv.DictReader(file)]


class Noted(fx.Callback):
    def __init__(self, every=None, fails=None):
        self.every, self.fails, self.seen = every, fails, []

    def note(self, what, run):
        self.seen.append((what, run.step, run.reason))
        if what == self.fails:
            raise RuntimeError(f"in {what}")

    def begin(self, run):
        self.note("begin", run)

    def turn(self, run):
        self.note("turn", run)

    def end(self, run):
        self.note("end", run)


# ---- callbacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, None])
def test_a_callback_is_told_of_everything(k):
    noted = Noted(every=5)
    done = fit(callbacks=[noted], steps_per_dispatch=k)
    kinds = [what for what, *_ in noted.seen]
    assert kinds[0] == "begin"
    assert kinds[-1] == "end"
    assert set(kinds[1:-1]) == {"turn"}
    assert {5, 10} <= {step for _, step, _ in noted.seen}
    assert noted.seen[-1] == ("end", 12, done.reason)
    assert all(reason is None for _, _, reason in noted.seen[:-1])


def test_a_function_is_told_each_turn_and_sees_what_is_complete():
    seen = {}

    def look(run):
        run.wait()
        seen[run.step] = run.params["w"], run.state["count"], run.history["loss"][-1]
        run.params["w"] += 1  # a copy
        with pytest.raises(ValueError, match="read-only"):
            run.history["loss"][0] = 3

    done = fit(callbacks=[look], steps_per_dispatch=4)
    assert list(seen) == [4, 8, 12]
    for step in seen:
        straight = fit(step)
        np.testing.assert_array_equal(seen[step][0], straight.params["w"])
        assert int(seen[step][1]) == step
        assert seen[step][2] == done.history["loss"][step - 1]
    np.testing.assert_array_equal(done.params["w"], fit().params["w"])


@pytest.mark.parametrize("where", ["begin", "turn", "end"])
def test_what_a_callback_raises_loses_nothing(where):
    failing, other = Noted(fails=where), Noted()
    with pytest.raises(RuntimeError, match=f"in {where}") as caught:
        fit(callbacks=[failing, other], steps_per_dispatch=4)
    result = caught.value.result
    steps = {"begin": 0, "turn": 4, "end": 12}[where]
    assert result.reason == "failed"
    assert result.history.rows == steps
    np.testing.assert_array_equal(
        result.params["w"], fit(steps).params["w"] if steps else PARAMS["w"]
    )
    told = {"begin": 0, "turn": 1, "end": 1}[where]
    assert sum(what == "end" for what, *_ in other.seen) == told


def test_the_end_is_told_when_the_batches_fail():
    def batches():
        yield from BATCHES[:3]
        raise OSError("the disk is gone")

    noted = Noted()
    with pytest.raises(OSError, match="disk is gone"):
        fx.fit(loss, fx.adam(0.1), PARAMS, batches(), callbacks=[noted], progress=False)
    assert noted.seen[-1] == ("end", 3, "failed")


@pytest.mark.parametrize("given", [fx.Summary(), "summary", 3, [3], ["x"], [fx.Summary]])
def test_callbacks_that_are_none(given):
    with pytest.raises(TypeError, match="fit: callbacks must be"):
        fit(callbacks=given)


# ---- a table -------------------------------------------------------------------------------------


def test_a_table_holds_the_history(tmp_path):
    path = tmp_path / "run.csv"
    evaluate = lambda params, state: {"val": jnp.sum(params["w"])}  # noqa: E731
    settings = {"evaluate": evaluate, "evaluate_every": 5, "steps_per_dispatch": 2}
    done = fit(
        callbacks=[Noted(every=4), fx.Table(path)], **settings
    )  # a turn at the last step, too
    found = rows(path)
    assert [row["step"] for row in found] == list(range(1, 13))
    assert [row["loss"] for row in found] == done.history["loss"].tolist()  # to the last bit
    assert {row["step"] for row in found if "val" in row} == {5, 10, 12}
    assert found[-1]["val"] == done.history["val"][-1]


def test_a_table_goes_on_and_what_is_done_again_counts(tmp_path):
    path = tmp_path / "run.csv"
    straight = fit()
    first = fit(6, callbacks=[fx.Table(path)])
    with open(path, "a") as file:  # of steps after the last checkpoint, and a line half written
        file.write("7,1,1\n1")
    tail = {"state": first.state, "history": first.history, "progress": False}
    fx.fit(loss, fx.adam(0.1), first.params, BATCHES[6:], callbacks=[fx.Table(path)], **tail)
    found = rows(path)
    assert [row["step"] for row in found] == list(range(1, 13))
    assert [row.get("loss") for row in found] == straight.history["loss"].tolist()
    fit(2, callbacks=[fx.Table(path)])  # a new run
    assert [row["step"] for row in rows(path)] == [1, 2]


def test_a_table_keeps_measured_nan(tmp_path):
    path = tmp_path / "run.csv"
    bad = [BATCHES[0], np.full(3, np.nan, np.float32), np.full(3, np.inf, np.float32)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fx.fit(loss, fx.sgd(0.1), PARAMS, bad, callbacks=[fx.Table(path)], progress=False)
    assert np.isnan(rows(path)[1]["loss"])


def test_a_full_disk_ends_no_run(tmp_path, monkeypatch):
    path, table, full = tmp_path / "run.csv", fx.Table(tmp_path / "run.csv"), [False]
    whole, tries = logs.whole, []

    def opened(name, mode="r", **settings):
        if full[0] and "+" in mode:
            tries.append(1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(name, mode, **settings)

    def written(name):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(name)

    monkeypatch.setattr(logs, "open", opened, raising=False)
    monkeypatch.setattr(logs, "whole", written)

    def fill(run):
        full[0] = 4 <= run.step < 9

    with pytest.warns(UserWarning, match="No space left.*the run goes on"):
        done = fit(callbacks=[fill, table], steps_per_dispatch=1)
    assert len(tries) > 1
    assert [row["loss"] for row in rows(path)] == done.history["loss"].tolist()


def test_a_table_does_not_take_a_foreign_file(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("name,age\nA,3\n")
    first = fit(2)
    with pytest.raises(ValueError, match="no table with a column step"):
        fit(2, state=first.state, history=first.history, callbacks=[fx.Table(path)])
    assert path.read_text() == "name,age\nA,3\n"


# ---- others' logs --------------------------------------------------------------------------------


def test_tensorboard_gets_all_scalars(tmp_path):
    from tensorboardX.proto import event_pb2

    done = fit(callbacks=[fx.TensorBoard(tmp_path)])
    (path,) = pathlib.Path(tmp_path).iterdir()
    found, data = {}, path.read_bytes()
    while data:  # records: length, its check, the event, its check
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for x in event.summary.value:
            found.setdefault(x.tag, []).append((event.step, x.simple_value))
    assert [step for step, _ in found["loss"]] == list(range(1, 13))
    np.testing.assert_allclose([x for _, x in found["loss"]], done.history["loss"], rtol=1e-6)
    assert set(found) == set(done.history) - {"step"}


@pytest.mark.slow
def test_wandb_gets_all_scalars(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    got, log = {}, wandb.Run.log

    def logged(self, row, step):
        got[step] = dict(row)
        return log(self, row, step=step)

    monkeypatch.setattr(wandb.Run, "log", logged)
    done = fit(callbacks=[fx.WandB(mode="offline", dir=str(tmp_path), project="test")])
    assert [got[i + 1]["loss"] for i in range(12)] == done.history["loss"].tolist()
    assert wandb.run is None  # it was finished
    assert any(tmp_path.rglob("*.wandb"))


def test_a_log_of_ones_own():
    class Kept(fx.Log):
        rows = ()

        def write(self, rows):
            self.rows = [*self.rows, *rows]

    kept = Kept()
    done = fit(callbacks=[kept])
    assert [row["loss"] for row in kept.rows] == done.history["loss"].tolist()
    with pytest.raises(NotImplementedError, match="Log must define write"):
        fit(callbacks=[fx.Log()])


# ---- summary and profile -------------------------------------------------------------------------


def test_a_summary_of_what_ran():
    shown = []
    summary = fx.Summary(show=shown.append)
    fresh = lambda p, x: jnp.sum((p["w"] - x) ** 2) * 1.25  # noqa: E731
    done = fx.fit(fresh, fx.adam(0.1), PARAMS, BATCHES, callbacks=[summary], progress=False)
    x = summary.numbers
    assert shown == [str(summary)]
    assert x["sentence"] == repr(fx.adam(0.1))
    assert (x["leaves"], x["parameters"], x["parameter_bytes"]) == (1, 3, 12)
    assert x["state_bytes"] == sum(a.nbytes for a in jax.tree.leaves(done.state))
    assert x["steps"] == 12
    assert x["compilations"] >= 1
    assert (x["first_loss"], x["last_loss"]) == tuple(done.history["loss"][[0, -1]])
    assert x["reason"] == "end of batches"
    again = fx.Summary(show=None)
    fx.fit(fresh, fx.adam(0.2), PARAMS, BATCHES, callbacks=[again], progress=False)
    assert again.numbers["compilations"] == 0  # another rate compiles nothing
    fx.fit(fresh, fx.adam(0.2), PARAMS, BATCHES, steps=0, callbacks=[again], progress=False)
    assert again.numbers["steps"] == 0
    with pytest.raises(TypeError, match="Summary: show must be"):
        fx.Summary(show="yes")


def test_a_profile_of_a_few_steps(tmp_path):
    many = [BATCHES[0]] * 30
    fx.fit(
        loss, fx.adam(0.1), PARAMS, many, steps_per_dispatch=2, progress=False,
        callbacks=[fx.Profile(tmp_path / "a", first=10, steps=4)],
    )  # fmt: skip
    assert any((tmp_path / "a").rglob("*.xplane.pb"))
    fit(4, callbacks=[fx.Profile(tmp_path / "b", first=1, steps=100)])  # ends with the run
    jax.profiler.start_trace(str(tmp_path / "c"))  # nothing is left on
    jax.profiler.stop_trace()
    fit(4, callbacks=[fx.Profile(tmp_path / "d", first=100)])
    assert not (tmp_path / "d").exists()


# ---- prefetch ------------------------------------------------------------------------------------


def test_prefetch_changes_nothing():
    ahead = fx.prefetch(BATCHES, 3)
    assert len(ahead) == 12
    assert all(isinstance(x, jax.Array) for x in ahead)
    a, b = fit(epochs=1), fx.fit(loss, fx.adam(0.1), PARAMS, ahead, epochs=1, progress=False)
    np.testing.assert_array_equal(a.params["w"], b.params["w"])
    twice = fx.fit(loss, fx.adam(0.1), PARAMS, ahead, epochs=2, progress=False)
    assert twice.history.rows == 24


def test_prefetch_hands_on_errors_in_their_place():
    def failing():
        yield from BATCHES[:5]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone") as caught:
        fx.fit(loss, fx.adam(0.1), PARAMS, fx.prefetch(failing()), progress=False)
    assert caught.value.result.history.rows == 5
    stream = iter(fx.prefetch([]))
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)


def test_prefetch_leaves_no_thread():
    before = threading.active_count()
    for _ in range(5):
        stream = iter(fx.prefetch(iter(BATCHES), 1))
        next(stream)
        del stream
    for thread in threading.enumerate()[before:]:
        thread.join(2)
    assert threading.active_count() <= before


def test_prefetch_copies_what_the_loader_fills_again():
    def filled():
        x = np.zeros(3, np.float32)
        for i in range(6):
            x[:] = i
            yield x

    assert [float(x[0]) for x in fx.prefetch(filled(), 4)] == list(range(6))


def test_prefetch_places_by_a_sharding():
    to = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batch = next(
        iter(fx.prefetch([{"x": BATCHES[0], "y": BATCHES[1]}], sharding={"x": to, "y": to}))
    )
    assert batch["x"].sharding == to
    with pytest.raises(TypeError, match="prefetch: batches must be"):
        fx.prefetch(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size"):
        fx.prefetch(BATCHES, 0)
