"""The demo that `make demo` runs, in its quick mode."""

import argparse
import json
import signal
import sys

import jax
import numpy as np
import pytest
import tqdm

import adamfx as fx
from adamfx.experiments import digits


def run(out, *more):
    """(exit code, what results.json holds) of a quick run."""
    code = digits.main(["--quick", "--out", str(out), *more])
    path = out / "results.json"
    return code, json.loads(path.read_text()) if path.exists() else None


def has_picture(out):
    return (out / "learning_curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.fixture
def only_sgd(monkeypatch):
    monkeypatch.setattr(digits, "OPTIMIZERS", {"SGD": fx.sgd(1.0)})


def test_all_optimizers(tmp_path, capsys, monkeypatch):
    traced = []

    def count(tx, *rest):
        traced.append(tx)
        return train_epoch(tx, *rest)

    train_epoch = digits.train_epoch
    monkeypatch.setattr(digits, "train_epoch", count)
    code, results = run(tmp_path)
    printed = capsys.readouterr().out
    assert code == 0
    assert len(traced) == len(digits.OPTIMIZERS) == 7  # one program for each

    for record, (name, tx) in zip(results["optimizers"], digits.OPTIMIZERS.items(), strict=True):
        assert record["name"] == name
        assert f"\n{record['sentence']}\n{name}" in printed
        chosen = eval(record["sentence"], vars(fx))
        assert chosen == tx.replace(learning_rate=record["best_rate"])
        by_rate = dict(zip(record["rates"], record["mean_train_loss_by_rate"], strict=True))
        assert record["train_loss"]["mean"] == min(by_rate.values()) < 1.0
        assert record["train_loss"]["mean"] == by_rate[record["best_rate"]]
        assert 0.7 < record["test_accuracy"]["mean"] <= 1.0
        assert len(record["train_loss_curve"]["mean"]) == results["epochs"] == 3
        assert record["seconds"]["compile"] > 0 < record["seconds"]["run"]

    assert has_picture(tmp_path)
    assert all(len(x) <= 110 for x in printed.splitlines() if not x.startswith("wrote "))
    assert str(tmp_path / "learning_curves.png") in printed
    assert str(tmp_path / "results.json") in printed
    assert {path.name for path in tmp_path.iterdir()} == {"learning_curves.png", "results.json"}


def test_a_sweep_is_its_members_trained_alone(only_sgd):
    """Axis for axis: the loss of (rate, seed) is that of a single run with that rate and seed."""
    data, keys = digits.load_data(), jax.random.split(jax.random.key(0), 2)
    args = argparse.Namespace(rates=[0.3, 0.1], seeds=2, epochs=2, last=1)
    record = digits.train("SGD", args, data, tqdm.tqdm(disable=True), [])
    train_epoch = jax.jit(digits.train_epoch)
    for rate, mean in zip(args.rates, record["mean_train_loss_by_rate"], strict=True):
        losses = []
        for key in keys:
            tx = fx.sgd(rate)
            run = digits.start(tx, key)
            for epoch in (1, 2):
                run, loss, _ = train_epoch(tx, key, run, epoch, data)
            losses.append(float(loss))
        assert mean == pytest.approx(np.mean(losses), rel=1e-4)
        if rate == record["best_rate"]:
            assert record["train_loss"]["std"] == pytest.approx(np.std(losses, ddof=1), rel=1e-2)


def test_diverged_rates_are_shown_and_never_chosen(tmp_path, capsys, monkeypatch, only_sgd):
    monkeypatch.setattr(digits, "QUICK_RATES", [1e38, 0.1])
    code, results = run(tmp_path)
    (record,) = results["optimizers"]
    assert code == 0
    assert record["best_rate"] == 0.1
    assert record["mean_train_loss_by_rate"][0] is None
    assert "   1e+38\n" in capsys.readouterr().out


def test_all_rates_diverged(tmp_path, capsys, monkeypatch, only_sgd):
    monkeypatch.setattr(digits, "QUICK_RATES", [1e38])
    code, results = run(tmp_path, "--seeds", "1")
    (record,) = results["optimizers"]
    assert code == 0
    assert record["best_rate"] is record["train_loss"]["mean"] is None
    assert "nan" not in capsys.readouterr().out
    assert has_picture(tmp_path)


def test_ctrl_c_keeps_what_is_complete(tmp_path, capsys, monkeypatch):
    def interrupt(bar, text, **_):
        if text.startswith("Momentum"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tqdm.tqdm, "set_postfix_str", interrupt)
    code, results = run(tmp_path)
    out, err = capsys.readouterr()
    assert code == 130
    assert [record["name"] for record in results["optimizers"]] == ["SGD"]
    assert "SGD" in out
    assert "Momentum" not in out
    assert "stopped with 1 of 7 optimizers done" in err
    assert has_picture(tmp_path)


def test_ctrl_c_before_anything_is_complete(tmp_path, monkeypatch):
    def interrupt():
        signal.raise_signal(signal.SIGINT)
        return load_data()

    load_data, before = digits.load_data, signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(digits, "load_data", interrupt)
    assert run(tmp_path) == (130, None)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--seeds=0", "--seeds: must be a whole number of at least 1, got '0'"),
        ("--epochs=-1", "--epochs: must be a whole number of at least 1, got '-1'"),
        ("--epochs=many", "--epochs: must be a whole number of at least 1, got 'many'"),
        (f"--out={__file__}", "--out: "),
    ],
)
def test_bad_arguments(tmp_path, capsys, argument, says):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, argument)
    assert stop.value.code == 2
    assert f"error: argument {says}" in capsys.readouterr().err


@pytest.mark.parametrize("extra", ["matplotlib", "sklearn.datasets", "tqdm"])
def test_missing_extras(tmp_path, capsys, monkeypatch, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    assert run(tmp_path) == (1, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert extra in line
    assert "pip install 'adamfx[experiments]'" in line
