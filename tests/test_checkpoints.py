"""Checkpoints: what is kept exactly, and what is refused."""

import copy
import os
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx

P = {"w": jnp.zeros(3)}


BATCHES = [np.random.default_rng(i).normal(size=(4, 3)).astype(np.float32) for i in range(12)]


def loss(p, x):
    return jnp.mean((x @ p["w"] - 1) ** 2)


def fit(*args, **kwargs):
    return fx.fit(*args, **{"progress": False, **kwargs})


G = {"w": jnp.ones(3)}


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


def test_a_part_of_a_checkpoint(tmp_path):
    fx.save(tmp_path / "x.npz", {"params": G, "state": fx.adam(0.1).init(P)})
    assert fx.load(tmp_path / "x.npz", {"params": P}, partial=True)["params"]["w"].all()
    with pytest.raises(ValueError, match="partial=True"):
        fx.load(tmp_path / "x.npz", {"params": P})
