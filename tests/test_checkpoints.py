"""Checkpoints: what is kept exactly, and what is refused."""

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import adamfx as fx
from adamfx.training import archive

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


DTYPES = [
    "bool", "int8", "uint64", "int64", "float16", "float32", "float64", "complex64", "complex128", "int4",
    "uint2", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn",
    "datetime64[s]", "U3",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_comes_back(tmp_path, dtype):
    at = tmp_path / "x.npz"
    dtype = getattr(ml_dtypes, dtype) if hasattr(ml_dtypes, dtype) else dtype
    for shape in ((), (0,), (3,), (2, 0, 3), (2, 3)):
        x = np.zeros(shape, dtype)
        x = x if x.dtype.kind in "MU" else np.ones(shape, np.float32).astype(dtype)
        tree = {"a": x, "t": np.asarray(x.T)}
        if x.dtype.kind not in "MU" and x.dtype.itemsize < 8:
            tree["j"] = jnp.asarray(x)
        fx.save(at, tree)
        for name, y in fx.load(at, tree).items():
            assert type(y) is type(tree[name])
            assert (y.dtype, y.shape) == (tree[name].dtype, tree[name].shape)
            assert np.asarray(y).tobytes() == np.asarray(tree[name]).tobytes()


class Twin:
    """Keys that are written alike."""

    def __init__(self, n):
        self.n = n

    def __repr__(self):
        return "Twin"

    def __lt__(self, other):
        return self.n < other.n


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    """A node whose children share a name."""

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey("x")
        return [(key, np.ones(1)), (key, np.ones(2))], None

    @classmethod
    def tree_unflatten(cls, _, __):
        return cls()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"x": np.array([None])}, r"\['x'\] has the dtype object"),
        ({"x": np.zeros(2, [("a", int)])}, r"\['x'\] has the dtype \[\('a'"),
        ({"x": np.zeros(2, "V5")}, r"\['x'\] has the dtype"),
        ({"x": np.zeros(2, jax.dtypes.float0)}, r"\['x'\] has the dtype"),
        ({"x": 2**64}, r"\['x'\] is 18446744073709551616, beyond 64 bits"),
        ({Twin(1): 1, Twin(2): 2}, r"two leaves have the path \[Twin\]"),
        (Twins(), r"two leaves have the path \.x"),
        ({"k" * 70_000: 1}, r"is longer than 60000 bytes"),
        ({"x": "text"}, r"\['x'\] is 'text' of type str"),
    ],
)
def test_what_is_refused_leaves_the_older_file(tmp_path, tree, words):
    at = tmp_path / "x.npz"
    fx.save(at, P)
    old = at.read_bytes()
    with pytest.raises((TypeError, ValueError), match=f"^save: .*{words}"):
        fx.save(at, tree)
    assert at.read_bytes() == old
    assert [x.name for x in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("fails", ["write", "fsync", "replace", "reads otherwise"])
def test_a_failure_leaves_the_older_file(tmp_path, monkeypatch, fails):
    at = tmp_path / "x.npz"
    fx.save(at, P)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if fails == "reads otherwise":
        monkeypatch.setattr(archive, "_read", lambda file: {})
    elif fails == "write":
        monkeypatch.setattr(zipfile.ZipFile, "open", full)
    else:
        monkeypatch.setattr(os, fails, full)
    with pytest.raises((OSError, RuntimeError), match=r"No space|could not be read back"):
        fx.save(at, G)
    monkeypatch.undo()
    assert not np.any(fx.load(at, P)["w"])
    assert [x.name for x in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize(
    ("kept", "like"),
    [
        (0.37, 0), (300, True), (2**40, np.int32(0)), (2**40, jnp.int32(0)), (1e300, jnp.float32(0)),
        (2**63, 0), (1 + 2j, 0.0), (np.inf, 0), (np.nan, True), (1.0, True), (2**60 + 1, 0.0),
        (np.ones(3), 0.0), (np.float64(1), jnp.float32(0)),
    ],
)  # fmt: skip
def test_what_like_cannot_hold_is_no_other_number(tmp_path, kept, like):
    fx.save(tmp_path / "x.npz", {"x": kept})
    with pytest.raises(ValueError, match=r"load: \['x'\] is .* in the file"):
        fx.load(tmp_path / "x.npz", {"x": like})


def test_numbers_that_like_holds(tmp_path):
    for kept, like in (
        (3, 0.0),
        (True, 0),
        (2.0, 0),
        (0.1, 0.0),
        (0.1, jnp.float32(0)),
        (3, jnp.int32(0)),
    ):
        fx.save(tmp_path / "x.npz", {"x": kept})
        found = fx.load(tmp_path / "x.npz", {"x": like})["x"]
        assert float(found) == pytest.approx(float(kept))
        assert isinstance(found, type(like))


def test_a_long_name_many_threads_and_what_the_dead_have_left(tmp_path):
    at = tmp_path / ("n" * 255)
    fx.save(at, P)  # a hidden file beside it has a short name
    start = (
        f"import os, signal, numpy, adamfx as fx; from adamfx.training import archive\n"
        f"archive._check = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"fx.save({os.fspath(at)!r}, {{'w': numpy.ones(3)}})"
    )
    assert subprocess.run([sys.executable, "-c", start], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    errors, big = [], {"w": np.ones(30_000)}

    def saves():
        try:
            for _ in range(8):
                fx.save(at, big)
                fx.load(at, big)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=saves) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert [x.name for x in tmp_path.iterdir()] == ["n" * 255]


# ---- files from anywhere -------------------------------------------------------------------------


def npy(shape, data=b"", descr="<f4", version=b"\x01\x00"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def zipped(members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name twice
        for name, data in members:
            made.writestr(name, data)
    return file.getvalue()


def about(text):
    file = io.BytesIO()
    np.save(file, np.array(text))
    return file.getvalue()


GOOD = ("['w'].npy", npy("(3,)", bytes(12)))
SAYS = '{"version": 1, "dtypes": {"[\'w\']": "float32"}, "columns": {}}'


def overlapping():
    """Two members, of which the second is the first."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("['w'].npy", npy("(300,)", bytes(1200)))
        again = copy.copy(made.filelist[0])
        again.filename = "['v'].npy"
        made.filelist.append(again)
    return file.getvalue()


def test_members_that_overlap_are_seen_by_their_size(tmp_path):
    (tmp_path / "x.npz").write_bytes(overlapping())
    with pytest.raises(archive.Damaged, match="overlap"):
        archive.read(tmp_path / "x.npz")


def test_what_numpy_writes_is_read(tmp_path):
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "x.npz", a=columns, b=columns[:, 1])
    found = archive.read(tmp_path / "x.npz")
    np.testing.assert_array_equal(found["a"], columns)
    np.testing.assert_array_equal(found["b"], columns[:, 1])


FOREIGN = {
    "bomb": lambda: zipped([("['w'].npy", npy("(300_000_000,)") + bytes(10**8))], zipfile.ZIP_DEFLATED),
    "petabytes": lambda: zipped([("['w'].npy", npy("(4_000_000_000_000_000,)", bytes(64)))]),
    "negative": lambda: zipped([("['w'].npy", npy("(-3,)", bytes(12)))]),
    "objects": lambda: zipped([("['w'].npy", npy("(1,)", bytes(8), "|O"))]),
    "twice": lambda: zipped([GOOD, GOOD]),
    "no array": lambda: zipped([("['w'].npy", b"hello")]),
    "no description": lambda: zipped([GOOD]),
    "deep header": lambda: zipped([("['w'].npy", npy("(" * 9000 + ")" * 9000))]),
    "deep json": lambda: zipped([GOOD, ("adamfx.npy", about("[" * 100_000))]),
    "foreign json": lambda: zipped([GOOD, ("adamfx.npy", about('{"version": 1}'))]),
    "list": lambda: zipped([GOOD, ("adamfx.npy", about("[1]"))]),
    "numbers": lambda: zipped([GOOD, ("adamfx.npy", about(SAYS.replace('"float32"', "7")))]),
    "lacks a dtype": lambda: zipped([GOOD, ("adamfx.npy", about(SAYS.replace("['w']", "v")))]),
    "foreign dtype": lambda: zipped([GOOD, ("adamfx.npy", about(SAYS.replace("float32", "os.system")))]),
    "version": lambda: zipped([GOOD, ("adamfx.npy", about('{"version": 99}'))]),
    "columns": lambda: zipped([GOOD, ("adamfx.npy", about(SAYS.replace("{}", '{"[\'w\']": ["a"]}')))]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused_before_it_takes_memory(tmp_path, name):
    at = tmp_path / "x.npz"
    at.write_bytes(FOREIGN[name]())
    tracemalloc.start()
    try:
        for like in ({"w": np.zeros(3, np.float32)}, {"w": fx.History()}, {"w": 1.0}):
            with pytest.raises(ValueError, match=r"^load: "):
                fx.load(at, like)
        assert tracemalloc.get_traced_memory()[1] < 3e6 + 8 * at.stat().st_size
    finally:
        tracemalloc.stop()


def damage(rng, whole):
    """One of the ways in which a file comes to harm."""
    data = bytearray(whole)
    at = rng.integers(len(data))
    kind = rng.integers(6)
    if kind == 0:
        data[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : at + rng.integers(1, 50)]
    elif kind == 3:
        data[at:at] = rng.bytes(rng.integers(1, 50))
    elif kind == 4:
        n = rng.integers(1, 400)
        data[at : at + n] = bytes(len(data[at : at + n]))
    else:
        data[at : at + 4] = rng.bytes(4)
    return bytes(data)


@pytest.mark.parametrize("n", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_right_or_says_so(tmp_path, n):
    tree = {
        "w": np.arange(40, dtype=np.float32), "n": 7, "h": fx.History({"loss": [1.0, 2.0]}),
        "b": np.ones((2, 3), ml_dtypes.bfloat16), "s": np.float64(0.5),
    }  # fmt: skip
    at, rng, wrong = tmp_path / "x.npz", np.random.default_rng(n), 0
    fx.save(at, tree)
    whole = at.read_bytes()
    structure = jax.tree.structure(tree)
    for _ in range(n):
        at.write_bytes(damage(rng, whole))
        try:
            found = fx.load(at, tree)
        except ValueError as error:
            wrong += 1
            said = str(error)
        else:  # what is unused was harmed
            assert jax.tree.structure(found) == structure
            assert {k: repr(x) for k, x in found.items()} == {k: repr(x) for k, x in tree.items()}
            said = "load: "
        assert said.startswith("load: ")
    assert wrong > 0.8 * n


@pytest.mark.slow
def test_time_is_linear_in_the_leaves(tmp_path):
    def seconds(n):
        tree = {f"layer{i}": np.ones(3, np.float32) for i in range(n)}
        start = time.process_time()  # of this process: others may keep the machine busy
        fx.save(tmp_path / "x.npz", tree)
        fx.load(tmp_path / "x.npz", tree)
        return time.process_time() - start

    seconds(100)
    few, many = (min(seconds(n) for _ in range(2)) for n in (3_000, 24_000))
    assert many < 16 * few
    assert many < 20  # 3.6 s where nothing else runs
