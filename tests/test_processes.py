"""Several processes on one machine train, stop, fail, save and resume together."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def start(count, folder, *scenarios, devices=4):
    """Starts them all; each has as many devices that all together have `devices`."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    env = {k: x for k, x in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices // count)}
    return [
        subprocess.Popen(
            [sys.executable, HERE / "processes.py", str(port), str(count), str(i), folder, *scenarios],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(count)
    ]  # fmt: skip


def ended(processes, seconds=240):
    """What each printed."""
    try:
        return [p.communicate(timeout=seconds)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()


def results(folder, count, scenario):
    return [json.loads((folder / f"{scenario}-{i}.json").read_text()) for i in range(count)]


def of_each(found, name):
    """What all processes have in common."""
    first, *others = [r[name] for r in found]
    assert all(x == first for x in others), (name, found)
    return first


TOGETHER = {
    "data_parallel": ("end of batches", 24, None),
    "fully_sharded": ("end of batches", 24, None),
    "uneven_data": ("end of batches", 9, None),
    "interrupted": ("interrupted", ..., None),
    "stops": ("stop", 11, None),
    "batches_fail": ("failed", 6, "OSError: no such file: shard 6"),
    "evaluation_fails": ("failed", 10, "ZeroDivisionError: of the evaluation"),
    "shapes_differ": ("failed", 8, "the batches of step 9 differ from process to process"),
    "numpy_of_its_own": ("failed", 0, "make global arrays of what each process has"),
    "jax_of_its_own": ("failed", 0, "make global arrays of what each process has"),
    "numpy_of_all": ("end of batches", 24, None),
    "local_params": ("failed", 0, "put them on the same mesh"),
    "waits_for_another": ("interrupted", ..., None),
    "loss_fails": ("failed", 0, "FloatingPointError: of the loss"),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    out = ended(start(1, folder, "data_parallel", "fully_sharded"))
    assert (folder / "fully_sharded-0.json").exists(), out
    return folder


@pytest.mark.parametrize("count", [2, 4])
def test_all_processes_end_alike(count, tmp_path, alone):
    names = [*TOGETHER][:-1] if count == 2 else ["data_parallel", "uneven_data", "batches_fail"]
    out = ended(
        start(
            count,
            tmp_path,
            *names,
            *([] if count == 4 else ["callback_fails", "on_its_own", "loss_fails"]),
        )
    )
    assert all((tmp_path / f"{names[-1]}-{i}.json").exists() for i in range(count)), out
    for name in names:
        reason, step, error = TOGETHER[name]
        found = results(tmp_path, count, name)
        assert of_each(found, "reason") == reason
        step = of_each(found, "step") if step is ... else step
        assert of_each(found, "step") == of_each(found, "rows") == step
        assert of_each(found, "loss") is not None
        for i, r in enumerate(found):
            assert (r["error"] is None) == (error is None), r["error"]
            assert error is None or error in r["error"]
            if name.endswith(("_fail", "_fails")):
                assert ("process" in r["error"]) == (i < count - 1)
            assert r["seconds"] < 60
        if name in ("data_parallel", "fully_sharded", "numpy_of_all"):
            [one] = results(alone, 1, name.replace("numpy_of_all", "data_parallel"))
            np.testing.assert_allclose(found[0]["loss"], one["loss"], rtol=1e-6)
    if count == 2:
        assert [r["step"] for r in results(tmp_path, 2, "on_its_own")] == [3, 4]
        ended_so = results(tmp_path, 2, "callback_fails")  # when the others do not wait any more
        assert [r["step"] for r in ended_so] == [24, 24]
        assert [r["error"] and r["error"][:17] for r in ended_so].count("ZeroDivisionError") == 1
    else:
        assert sum("/s, loss" in text or "/step, loss" in text for text in out) == 1  # one bar


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="its heartbeat has one length, 100 s")
def test_a_process_that_is_gone_ends_the_others(tmp_path):
    processes = start(2, tmp_path, "killed")
    processes[1].wait(120)
    began = time.monotonic()
    ended(processes, 60)
    assert time.monotonic() - began < 15  # a heartbeat of 5 s, missed, and then the end
    assert processes[1].returncode == -signal.SIGKILL
    assert processes[0].returncode != 0


def test_saved_by_four_and_continued_by_two_on_another_mesh(tmp_path):
    out = [ended(start(4, tmp_path, "saved")), ended(start(2, tmp_path, "saved", devices=2))]
    whole = tmp_path / "whole"
    whole.mkdir()
    out.append(ended(start(1, whole, "whole", devices=2)))
    [straight] = results(whole, 1, "whole")
    found = results(tmp_path, 2, "saved")
    assert of_each(found, "step") == of_each(found, "rows") == 26, out
    np.testing.assert_allclose(found[0]["loss"], straight["loss"], rtol=1e-6)
    np.testing.assert_allclose(found[0]["w"], straight["w"], rtol=1e-6)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert steps == [20, 25, 26]


def test_each_process_goes_on_where_it_was_in_its_batches(tmp_path):
    out = ended(start(2, tmp_path, "whole", "with_positions", devices=2))
    found = results(tmp_path, 2, "with_positions")
    assert of_each(found, "step") == of_each(found, "rows") == 26, out
    assert found[0]["loss"] == results(tmp_path, 2, "whole")[0]["loss"]
    more = ended(start(1, tmp_path, "with_positions", devices=2))
    [found] = results(tmp_path, 1, "with_positions")
    assert "knows where 2 processes were in their batches, and now it is 1" in found["error"], more


def test_kills_at_random_lose_no_more_than_what_came_after_the_last_save(tmp_path):
    draw, done = random.Random(0), 0
    for _ in range(int(os.environ.get("ADAMFX_KILLS", "4"))):
        processes = start(2, tmp_path, "endless", devices=2)
        lines = iter(processes[0].stdout)
        begun = next(int(line.split()[1]) for line in lines if line.startswith("from"))
        # 5 may have been taken and not trained, 5 be trained since the last, 5 be those of one half written.
        assert begun >= done - 15
        assert begun % 5 == 0
        timer = time.monotonic() + draw.uniform(0, 4)
        last = begun
        for line in lines:
            if line.startswith("step"):
                last = int(line.split()[1])
            if time.monotonic() > timer:
                break
        for p in draw.sample(processes, 2):
            p.send_signal(signal.SIGKILL)
        ended(processes)
        done = last
    assert done > 0
