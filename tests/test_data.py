"""The loaders of data, on files of the real formats that are written here, byte by byte."""

import gc
import gzip
import importlib.metadata
import re
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest

from adamfx.experiments import data

TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = data.MNIST_FILES


def refused(*parts, error=data.DataError):
    """pytest.raises for a message that holds these parts in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


# ---- MNIST ---------------------------------------------------------------------------------------


def pixel(i, row, column):
    return (97 * i + 13 * row + 5 * column) % 256


def idx_images(n, height, width, magic=0x803):
    body = [pixel(i, r, c) for i in range(n) for r in range(height) for c in range(width)]
    return struct.pack(">IIII", magic, n, height, width) + bytes(body)


def idx_labels(labels, magic=0x801):
    return struct.pack(">II", magic, len(labels)) + bytes(labels)


def files_of_mnist():
    """Five and two images of 4 rows and 3 columns."""
    return {
        TRAIN_X: idx_images(5, 4, 3),
        TRAIN_Y: idx_labels([3, 0, 9, 1, 3]),
        TEST_X: idx_images(2, 4, 3),
        TEST_Y: idx_labels([7, 2]),
    }


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("spelling", ["plain", "dotted", "gz", "dotted.gz", "unpacked.gz"])
def test_mnist(tmp_path, spelling):
    for name, content in files_of_mnist().items():
        name = name.replace("-idx", ".idx") if "dotted" in spelling else name
        content = gzip.compress(content) if spelling in ("gz", "dotted.gz") else content
        put(tmp_path, {name + ".gz" if "gz" in spelling else name: content})
    found = data.mnist(str(tmp_path))

    assert found.name == "MNIST, 5 images of 4x3"
    assert found.labels == tuple("0123456789")
    for (x, y), labels in ((found.train, [3, 0, 9, 1, 3]), (found.test, [7, 2])):
        assert x.shape == (len(labels), 4, 3, 1)
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        for i, r, c in np.ndindex(x.shape[:3]):
            assert x[i, r, c, 0] == np.float32(pixel(i, r, c) / 255)
        assert y.dtype == np.int32
        assert y.tolist() == labels


def test_pixels_from_black_to_white(tmp_path):
    files = files_of_mnist()
    files[TRAIN_X] = files[TRAIN_X][:16] + bytes([0, 255] * 30)
    x = data.mnist(put(tmp_path, files)).train[0]
    assert x.min() == 0
    assert x.max() == 1


BODY = 16 + 5 * 4 * 3


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        (TRAIN_X, lambda b: b[:11], ["ends at offset 11", "expected 16 bytes of header", "get it"]),
        (TRAIN_Y, lambda b: b"", ["ends at offset 0", "expected 8 bytes of header"]),
        (
            TRAIN_X,
            lambda b: b[:-7],
            [f"ends at offset {BODY - 7}", f"expected {BODY} bytes", "5x4x3"],
        ),
        (TRAIN_X, lambda b: b + b"..", [f"offset {BODY}: 2 bytes too many", "5x4x3"]),
        (TEST_Y, lambda b: b[:-1], ["ends at offset 9", "expected 10 bytes"]),
        (TEST_Y, lambda b: b + b"\0", ["offset 10: 1 bytes too many"]),
        (
            TEST_X,
            lambda b: idx_images(2, 4, 3, 0x802),
            ["offset 0", "0x00000802", "0x00000803", TEST_X],
        ),
        (TEST_X, lambda b: idx_labels([1] * 30), ["offset 0", "0x00000801", "expected 0x00000803"]),
        (
            TRAIN_Y,
            lambda b: idx_images(1, 1, 1),
            ["0x00000803", "expected 0x00000801", "1 dimensions"],
        ),
        (TRAIN_Y, lambda b: b"<!DOCTYPE html>", ["offset 0: magic number 0x3c21444f"]),
        (TRAIN_Y, lambda b: idx_labels([3, 0, 9, 10, 11]), ["offset 11: label 10", "0 to 9"]),
        (TRAIN_Y, lambda b: idx_labels([3, 0]), ["offset 4: 2 labels", "expected 5", TRAIN_X]),
        (TEST_X, lambda b: idx_images(3, 4, 3), [TEST_Y, "offset 4: 2 labels", "expected 3"]),
        (
            TEST_X,
            lambda b: idx_images(2, 3, 4),
            ["offset 8: images of 3x4", "expected 4x3", TRAIN_X],
        ),
        (TRAIN_X, lambda b: idx_images(0, 4, 3), ["offset 4: a size of 0", "at least 1"]),
        (TRAIN_X, lambda b: idx_images(5, 4, 0), ["offset 12: a size of 0"]),
        # Sizes whose product is more than 64 bits hold.
        (
            TRAIN_X,
            lambda b: b[:4] + b"\xff" * 12 + b[16:],
            [f"{16 + (2**32 - 1) ** 3:,} bytes", "expected at most 536,870,912"],
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_broken_mnist(tmp_path, name, change, parts, packed):
    files = files_of_mnist()
    files[name] = change(files[name])
    if packed:
        files = {name + ".gz": gzip.compress(content) for name, content in files.items()}
    where = [] if TEST_Y in parts else [tmp_path / name]
    with refused(*where, *parts):
        data.mnist(put(tmp_path, files))


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b[:-9],  # truncated
        lambda b: b[:2],
        lambda b: b[:20] + bytes(x ^ 0xFF for x in b[20:30]) + b[30:],  # another stream
        lambda b: b[:-8] + b"\0\0\0\0" + b[-4:],  # another checksum
        lambda b: b + b"rest",
    ],
)
def test_broken_gzip(tmp_path, change):
    files = {name + ".gz": gzip.compress(content) for name, content in files_of_mnist().items()}
    packed = files[TEST_X + ".gz"] = change(files[TEST_X + ".gz"])
    with refused(
        tmp_path / f"{TEST_X}.gz", f"{len(packed)} bytes that do not unpack", "get it again"
    ):
        data.mnist(put(tmp_path, files))


def zeros(packed_bytes, before=b"", member=1 << 24):
    """A gzip of these bytes and of as many zeros as pack to about `packed_bytes`."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    out = packer.compress(before)
    while len(out) < packed_bytes:
        out += packer.compress(bytes(member))
    return out + packer.flush()


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        (idx_images(5, 4, 3)[:16], [f"offset {BODY}: 65536 bytes too many or more"]),
        (struct.pack(">IIII", 0x803, 1 << 20, 64, 64), ["4,294,967,312 bytes", "at most 536,870"]),
        (b"", ["magic number 0x00000000"]),
    ],
)
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path, header, parts):
    packed = zeros(200_000, header)  # unpacks to 200 MB
    put(tmp_path, files_of_mnist() | {TRAIN_X + ".gz": packed})
    (tmp_path / TRAIN_X).unlink()
    tracemalloc.start()
    try:
        with refused(tmp_path / f"{TRAIN_X}.gz", *parts):
            data.mnist(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_file_that_is_too_large_or_cannot_be_read(tmp_path, monkeypatch):
    put(tmp_path, files_of_mnist())
    with open(tmp_path / TEST_X, "r+b") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with refused(tmp_path / TEST_X, "1,099,511,627,776 bytes", "at most 536,870,912"):
        data.mnist(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data.Path, "read_bytes", refuse)
    with refused(tmp_path / TRAIN_X, "Permission denied", "see to its rights"):
        data.mnist(tmp_path)


def test_missing_mnist(tmp_path):
    files = files_of_mnist()
    del files[TRAIN_Y], files[TEST_X]
    (tmp_path / TEST_X).mkdir()  # a folder is not the file
    message = f"MNIST: 2 of 4 files are missing; put {TRAIN_Y}, {TEST_X} into the folder {tmp_path}"
    for error in (data.MissingDataError, data.DataError, FileNotFoundError):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            data.mnist(put(tmp_path, files))


@pytest.mark.parametrize(
    ("load", "names"),
    [
        (data.mnist, data.MNIST_FILES),
        (data.cifar10, [*(f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)), "test_batch.bin"]),
        (data.imdb, ["train/neg", "train/pos", "test/neg", "test/pos"]),
    ],
)
def test_missing_folder(tmp_path, load, names):
    there, nowhere = tmp_path / "a file", tmp_path / "nowhere"
    there.write_bytes(b"")
    with refused(nowhere, "does not exist", error=FileNotFoundError) as caught:
        load(nowhere)
    assert f"put {', '.join(names)} into" in str(caught.value)
    with refused(there, "a file, expected the folder", ", ".join(names)):
        load(there)


# ---- CIFAR-10 ------------------------------------------------------------------------------------


def color(i, row, column, channel):
    return (50 * channel + 31 * i + 7 * row + column) % 256


def cifar_record(label, i):
    planes = [
        color(i, row, column, channel)
        for channel in range(3)
        for row in range(32)
        for column in range(32)
    ]
    return bytes([label, *planes])


def files_of_cifar():
    """In batch k, counted from 1, k images; three for test."""
    files = {
        f"data_batch_{k}.bin": b"".join(cifar_record((k + i) % 10, 10 * k + i) for i in range(k))
        for k in range(1, 6)
    }
    return {**files, "test_batch.bin": b"".join(cifar_record(9 - i, i) for i in range(3))}


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, folder):
    put(tmp_path / folder, files_of_cifar())
    found = data.cifar10(tmp_path)

    assert found.name == "CIFAR-10, 15 images of 32x32"
    assert found.labels[0] == "airplane"
    assert found.labels[9] == "truck"
    assert len(set(found.labels)) == 10
    train = [(10 * k + i, (k + i) % 10) for k in range(1, 6) for i in range(k)]
    for (x, y), expected in ((found.train, train), (found.test, [(0, 9), (1, 8), (2, 7)])):
        assert x.shape == (len(expected), 32, 32, 3)
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert y.dtype == np.int32
        assert y.tolist() == [label for _, label in expected]
        _, row, column, channel = np.indices(x.shape)
        i = np.array([i for i, _ in expected]).reshape(-1, 1, 1, 1)
        np.testing.assert_array_equal(x, np.float32(color(i, row, column, channel) / 255))


def test_names_of_cifar10(tmp_path):
    put(tmp_path, files_of_cifar())
    names = [f"class{i}" for i in range(10)]
    meta = tmp_path / "batches.meta.txt"
    meta.write_text("\n".join(names) + "\n\n")
    assert data.cifar10(tmp_path).labels == tuple(names)
    meta.write_text("\n".join(names[:9]))
    with refused(meta, "9 names", "ten classes", "delete it"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        (
            "data_batch_2.bin",
            lambda b: b[:-1],
            ["ends at offset 6145", "expected 6146", "2 records"],
        ),
        (
            "test_batch.bin",
            lambda b: b + b"?",
            ["ends at offset 9220", "expected 12292", "4 records"],
        ),
        ("data_batch_5.bin", lambda b: b"", ["ends at offset 0", "expected 3073 bytes"]),
        ("data_batch_3.bin", lambda b: b[:6146] + b"\x0a" + b[6147:], ["offset 6146: label 10"]),
        ("test_batch.bin", lambda b: b"\xff" + b[1:], ["offset 0: label 255", "expected 0 to 9"]),
    ],
)
def test_broken_cifar10(tmp_path, name, change, parts):
    files = files_of_cifar()
    files[name] = change(files[name])
    with refused(tmp_path / name, *parts, "get"):
        data.cifar10(put(tmp_path, files))


def test_missing_cifar10(tmp_path):
    files = files_of_cifar()
    del files["data_batch_4.bin"]
    with refused("CIFAR-10 (binary version): 1 of 6 files", "put data_batch_4.bin into", tmp_path):
        data.cifar10(put(tmp_path, files))


# ---- digits and whitening ------------------------------------------------------------------------


def test_digits():
    from sklearn.datasets import load_digits

    found = data.digits()
    assert found.name == "scikit-learn digits, 1,797 images of 8x8"
    assert found.labels == tuple("0123456789")
    pixels, labels = load_digits(return_X_y=True)
    of = {row.tobytes(): label for row, label in zip(pixels, labels, strict=True)}
    seen = set()
    for x, y in (found.train, found.test):
        assert x.shape[1:] == (8, 8, 1)
        assert (x.dtype, y.dtype) == (np.float32, np.int32)
        rows = [np.float64(16 * image).tobytes() for image in x.reshape(len(x), 64)]
        assert [of[row] for row in rows] == y.tolist()
        assert not seen & set(rows)
        seen |= set(rows)
    assert len(seen) == len(of)
    shares = [np.bincount(y) / len(y) for _, y in (found.train, found.test)]
    np.testing.assert_allclose(*shares, atol=0.005)
    assert len(found.test[0]) == 360


def correlated_images(n, seed):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(size=(12, 12))
    return np.float32(0.5 + 0.05 * rng.normal(size=(n, 12)) @ mix).reshape(n, 2, 3, 2)


def covariance(images):
    rows = np.float64(images).reshape(len(images), -1)
    return np.cov(rows.T, bias=True)


def test_whitening():
    train, test = correlated_images(5000, 1), correlated_images(50, 2)  # more than one part of rows
    kept = train.copy()
    x, test_x = data.whiten(train, test, eps=1e-9)
    assert (x.shape, x.dtype) == (train.shape, np.float32)
    assert (test_x.shape, test_x.dtype) == (test.shape, np.float32)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(covariance(x), np.eye(12), atol=1e-3)
    np.testing.assert_array_equal(train, kept)

    # The one symmetric positive matrix that whitens; fitted on train, and the same for test.
    centred = test.reshape(50, 12) - train.reshape(-1, 12).mean(axis=0, dtype=np.float64)
    matrix = np.linalg.lstsq(centred, test_x.reshape(50, 12), rcond=None)[0]
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-3 * np.abs(matrix).max())
    assert np.linalg.eigvalsh(matrix).min() > 0
    np.testing.assert_allclose(matrix @ covariance(train) @ matrix, np.eye(12), atol=1e-3)


def test_whitening_up_to_eps():
    train = correlated_images(300, 1)
    eps = float(np.median(np.linalg.eigvalsh(covariance(train))))
    x, _ = data.whiten(train, train[:1], eps)
    s, u = np.linalg.eigh(covariance(train))
    np.testing.assert_allclose(covariance(x), (u * (s / (s + eps))) @ u.T, atol=1e-4)


def test_constant_pixels():
    train, test = correlated_images(100, 1), correlated_images(3, 2)
    train[:, 0, 0, 0] = test[:, 0, 0, 0] = 0.3
    x, test_x = data.whiten(train, test, eps=1e-6)
    np.testing.assert_allclose(x[:, 0, 0, 0], 0, atol=1e-3)
    np.testing.assert_allclose(test_x[:, 0, 0, 0], 0, atol=1e-3)
    assert np.isfinite(x).all()
    black, _ = data.whiten(np.zeros_like(train), test)
    np.testing.assert_array_equal(black, 0)
    assert data.whiten(train, test[:0])[1].shape == (0, 2, 3, 2)


@pytest.mark.parametrize("eps", [0.0, -1.0, np.nan, np.inf])
def test_whitening_needs_eps(eps):
    x = correlated_images(9, 1)
    with refused("eps must be finite and > 0", eps, error=ValueError):
        data.whiten(x, x, eps)


def test_whitening_refuses_other_images():
    x = correlated_images(9, 1)
    with refused("same shape", "(9, 2, 3, 2)", "(9, 3, 2, 2)", error=ValueError):
        data.whiten(x, x.transpose(0, 2, 1, 3))
    with refused("train must hold images", error=ValueError):
        data.whiten(x[:0], x)
    x[3, 1, 1, 1] = np.nan
    with refused("must be finite", error=ValueError):
        data.whiten(x, x)


# ---- texts ---------------------------------------------------------------------------------------


def test_vocabulary():
    texts = ["b a B, Don't", "c; a d1d_d... b'x", "é don't"]
    every = ["d", "a", "b", "don't", "b'x", "c", "é"]  # three times, twice, once
    assert data.vocabulary(texts, 100) == every
    assert data.vocabulary(texts, 3) == every[:3]


def files_of_imdb():
    return {
        "train/pos/0_9.txt": b"Great GREAT film<br /><br />great cast",
        "train/pos/1_8.txt": "a café film".encode(),
        "train/neg/0_1.txt": b"bad film; bad cast, zero",
        "train/neg/readme.md": b"\xff is not a review",
        "test/pos/0_10.txt": b"Great unknown great<BR/>zero",
        "test/neg/0_2.txt": b"nothing known br",
        "test/neg/1_2.txt": b"bad",
    }


@pytest.mark.parametrize("folder", ["", "aclImdb"])
def test_imdb(tmp_path, folder):
    put(tmp_path / folder, files_of_imdb())
    found = data.imdb(tmp_path)
    # Film and great three times, bad and cast twice; what only the test part has is not there.
    known = ["film", "great", "bad", "cast", "a", "café", "zero"]
    assert found.name == "IMDB, 6 reviews, 7 words"
    assert found.labels == ("neg", "pos")
    words = ["film bad cast zero", "film great cast", "film a café"]
    test_words = ["", "bad", "great zero"]
    for (x, y), texts, labels in (
        (found.train, words, [0, 1, 1]),
        (found.test, test_words, [0, 0, 1]),
    ):
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        assert x.tolist() == [[int(word in text.split()) for word in known] for text in texts]
        assert y.tolist() == labels
    few = data.imdb(tmp_path, words=3)
    np.testing.assert_array_equal(few.train[0], found.train[0][:, :3])
    np.testing.assert_array_equal(few.test[0], found.test[0][:, :3])


def test_broken_imdb(tmp_path):
    put(tmp_path, files_of_imdb())
    broken = tmp_path / "test/pos/0_10.txt"
    broken.write_bytes("café ".encode() + b"\xe9 latin")
    with refused(broken, "offset 6: byte 0xe9", "expected text in UTF-8"):
        data.imdb(tmp_path)
    broken.write_bytes(b" \n")
    with refused(broken, "2 bytes without a word"):
        data.imdb(tmp_path)
    broken.unlink()
    with refused(tmp_path / "test/pos", "no .txt files", "put them there"):
        data.imdb(tmp_path)
    (tmp_path / "test/pos").rmdir()
    with refused("IMDB: 1 of 4 folders are missing; put test/pos into the folder", tmp_path):
        data.imdb(tmp_path)


@pytest.mark.parametrize("words", [0, -1, 2.5, "many"])
@pytest.mark.parametrize("load", [data.docstrings, lambda words: data.imdb("nowhere", words)])
def test_number_of_words(load, words):
    with refused("words must be a whole number >= 1", repr(words), error=ValueError):
        load(words)


# ---- docstrings: the real ones, once -------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """(docstrings(), its vocabulary, the texts it was counted in)."""
    seen = []
    vocabulary = data.vocabulary

    def spy(texts, words):
        seen.append((vocabulary(texts, words), texts))
        return seen[-1][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "vocabulary", spy)
        return data.docstrings(), *seen[0]


def test_docstrings(real):
    found, known, texts = real
    assert found.labels == ("numpy", "scipy", "sklearn", "matplotlib", "jax")
    (x, y), (test_x, test_y) = found.train, found.test
    assert len(known) == x.shape[1] == test_x.shape[1] == 10_000
    assert len(texts) == len(x) == len(y)
    assert len(test_x) == len(test_y)
    assert f"{len(x) + len(test_x):,} texts, 10,000 words" in found.name
    for package, installed in (("jax", "jax"), ("sklearn", "scikit-learn")):
        assert f"{package} {importlib.metadata.version(installed)}" in found.name
    for inputs, labels in (found.train, found.test):
        assert (inputs.dtype, labels.dtype) == (np.uint8, np.int32)
        assert inputs.max() == 1
    n, n_test = np.bincount(y, minlength=5), np.bincount(test_y, minlength=5)
    assert (n + n_test).max() <= data.PER_PACKAGE
    assert (n + n_test).min() > 400
    np.testing.assert_allclose(n_test, (n + n_test) / 5, atol=1)


def test_docstrings_do_not_say_the_answer(real):
    _, known, texts = real
    names = "numpy np scipy sklearn scikit learn matplotlib mpl plt pyplot jax jnp lax numpydoc"
    assert set(known).isdisjoint(names.split())
    assert not [word for word in known if "jax" in word or "numpy" in word]
    assert {"learning", "array", "example"} <= set(known)
    assert min(len(text.split()) for text in texts) >= data.SHORTEST


def test_test_is_not_in_train(real):
    """As rows only words outside of the vocabulary can make two equal: a handful."""
    found, _, texts = real
    assert len({frozenset(text.split()) for text in texts}) == len(texts)
    rows = {row.tobytes() for row in found.train[0]}
    assert sum(row.tobytes() in rows for row in found.test[0]) <= 0.005 * len(found.test[0])


# ---- docstrings: the rules, on packages made for it ----------------------------------------------


def sentence(start, n=20):
    return " ".join(f"{start}{chr(97 + i)}" for i in range(n))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Two packages that cannot be imported, installed in tmp_path; gives its folder."""
    header = "raise SystemExit('it was run')\n"
    files = {
        "pone/__init__.py": f"'''Module {sentence('m')}'''\n{header}",
        "pone/a.py": f"""
class A:
    '''{sentence("class")}'''
    def f(self):
        r'''{sentence("method")} \\d'''
        def g(): '''{sentence("inner")}'''
if x:
    async def h(): '''{sentence("coroutine")} numpy np jaxlib'''
else:
    def again(): '''{sentence("method")}, d!'''
    def short(): '''{sentence("short", 19)} numpy scipy'''
    def both(): '''{sentence("both")}'''
    k = lambda: '''{sentence("lambda")}'''
""",
        "pone/tests/test_a.py": f"'''{sentence('tests')}'''",
        "pone/externals/b.py": f"'''{sentence('vendored')}'''",
        "pone/template.py": f"'''{sentence('template')}'''\n{{{{x y",
        "ptwo/__init__.py": f"'''{sentence('other')}'''\ndef f(): '''{sentence('both')}'''\n"
        + "".join(f"def f{i}(): '''{sentence(chr(97 + i))}'''\n" for i in range(10)),
        "pone-1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: pone\nVersion: 1.5\n",
        "ptwo-2.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: ptwo\nVersion: 2.5\n",
    }
    put(tmp_path, {name: text.encode() for name, text in files.items()})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(data, "PACKAGES", {"pone": "pone", "ptwo": "ptwo"})
    return tmp_path


def test_rules_of_docstrings(made):
    found = data._documents("pone")
    starts = {text.split()[0] for text in found.values()}
    assert starts == {"module", "classa", "methoda", "innera", "coroutinea", "botha"}
    assert not any(set(text.split()) & {"numpy", "np", "jaxlib"} for text in found.values())

    first, second = data.docstrings(), data.docstrings()
    assert gc.isenabled()
    assert first.name == "docstrings of pone 1.5, ptwo 2.5: 16 texts, " + first.name.split(", ")[-1]
    for a, b in ((first.train, second.train), (first.test, second.test)):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    assert np.bincount(np.concatenate([first.train[1], first.test[1]])).tolist() == [5, 11]
    assert not {"pone", "ptwo"} & set(sys.modules)


def test_documents_are_taken_evenly(made, monkeypatch):
    monkeypatch.setattr(data, "PER_PACKAGE", 5)
    seen = []
    monkeypatch.setattr(data, "vocabulary", lambda texts, words: seen.extend(texts) or ["x"])
    split = np.arange(10), np.arange(0)
    monkeypatch.setattr(data, "_split", lambda labels: split)
    found = data.docstrings()
    assert found.train[1].tolist() == [0] * 5 + [1] * 5
    every = [text for text in data._documents("ptwo").values() if not text.startswith("both")]
    assert seen[5:] == every[::2][:5]


def test_packages_that_are_not_there(made, monkeypatch):
    (made / "pone/a.py").unlink()
    (made / "pone/__init__.py").write_text("pass")
    with refused(made / "pone", "no docstrings in 4 .py files", "sources of pone"):
        data.docstrings()
    monkeypatch.setattr(data, "PACKAGES", {"pthree": "pthree"})
    with refused("package pthree is not installed", "pip install 'adamfx[experiments]'"):
        data.docstrings()
