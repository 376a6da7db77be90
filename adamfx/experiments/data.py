"""Data for the experiments, read from files of this machine; nothing is ever downloaded.

mnist(folder), cifar10(folder), imdb(folder)   # the files of these data sets, put there by you
digits(), docstrings()                         # what is installed with the experiments anyway

Images are float32 in [0, 1] of shape (n, height, width, channels). Texts are uint8 of shape
(n, words), 1 where the word occurs. Labels are int32 of shape (n,). Files are checked to the last
byte: a wrong one raises a DataError and is never read as something else. None may have, or unpack to,
more than LARGEST bytes, which is seen before they are in memory.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import gzip
import importlib.metadata
import importlib.util
import io
import math
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

Folder = str | os.PathLike[str]
LARGEST = 1 << 29  # bytes of one file; as float32, images take four times as much
REST = 1 << 16  # bytes at most that are counted after the end


class Data(NamedTuple):
    """A data set in two parts, each (inputs, labels); label i is the class labels[i]."""

    name: str  # with the sizes, for the titles of pictures
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    labels: tuple[str, ...]


class DataError(ValueError):
    """A file is not what it should be: file, byte offset, what was found, what is expected.

    Offsets count from 0; of a gzipped file they are those of the unpacked content.
    """


class MissingDataError(DataError, FileNotFoundError):
    """Files are missing: which, and into which folder they belong."""


# ---- images --------------------------------------------------------------------------------------

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST_LABELS = tuple("0123456789")
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR_LABELS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR_IMAGE = (3, 32, 32)  # the red plane, then green, then blue, each row by row
CIFAR_RECORD = 1 + math.prod(CIFAR_IMAGE)


def mnist(folder: Folder) -> Data:
    """The handwritten digits of MNIST, or another data set of ten classes in its four files.

    Args:
      folder: holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
        t10k-labels-idx1-ubyte, plain or with .gz; train-images.idx3-ubyte is as good.

    Inputs have the shape (n, height, width, 1) with the sizes that the files state. Raises
    DataError for a broken file, MissingDataError for a missing one.
    """
    paths = _find("MNIST", folder, {name: _idx_spellings(name) for name in MNIST_FILES})
    train, test = _idx_pair(*paths[:2]), _idx_pair(*paths[2:])
    shape, found = train[0].shape[1:3], test[0].shape[1:3]
    if found != shape:
        raise DataError(
            f"{paths[2]}: offset 8: images of {_size(found)}, expected {_size(shape)} as in {paths[0]}; "
            "take both files from one data set"
        )
    name = f"MNIST, {len(train[0]):,} images of {_size(shape)}"
    return Data(name, train, test, MNIST_LABELS)


def cifar10(folder: Folder) -> Data:
    """The photographs of CIFAR-10, from the files of its binary version.

    Args:
      folder: holds data_batch_1.bin to data_batch_5.bin and test_batch.bin, itself or in its folder
        cifar-10-batches-bin; with batches.meta.txt there, the names of the classes come from it.

    Inputs have the shape (n, 32, 32, 3), red, green, blue. A file may hold any number of images.
    Raises DataError for a broken file, MissingDataError for a missing one.
    """
    spellings = {name: [name, f"{CIFAR_FOLDER}/{name}"] for name in CIFAR_FILES}
    paths = _find("CIFAR-10 (binary version)", folder, spellings)
    train, test = _cifar_part(paths[:5]), _cifar_part(paths[5:])
    labels = _cifar_labels(paths[0].parent / "batches.meta.txt")
    return Data(f"CIFAR-10, {len(train[0]):,} images of 32x32", train, test, labels)


def digits() -> Data:
    """The digits of scikit-learn, inputs (n, 8, 8, 1); a fifth of each class is for test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = np.float32(pixels / 16).reshape(-1, 8, 8, 1), labels.astype(np.int32)
    train, test = _split(y)
    name = f"scikit-learn digits, {len(y):,} images of 8x8"
    return Data(name, (x[train], y[train]), (x[test], y[test]), MNIST_LABELS)


def whiten(train: np.ndarray, test: np.ndarray, eps: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """ZCA whitening: the images with uncorrelated pixels of variance 1 that are nearest to these.

    With the mean m and the covariance U diag(s) Uᵀ of the flattened train images (divided by n),
    each image x of either part becomes U diag(s + eps)^(-1/2) Uᵀ (x - m). So the covariance of
    train becomes U diag(s / (s + eps)) Uᵀ, and a pixel that is constant in train becomes zero there.

    Args:
      train: float32 (n, ...), the images that mean and covariance are taken from.
      test: float32 (k, ...), images of the same shape.
      eps: a variance, > 0; directions with less are noise and are not scaled up to 1. Nothing grows
        by more than eps^(-1/2).

    Returns both in their shapes as float32, computed in float64. For d pixels it takes d³ time and
    8 d² bytes several times over: for CIFAR-10, d = 3,072.
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"whiten: eps must be finite and > 0, got {eps}")
    if not len(train) or train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"whiten: train must hold images, and test images of the same shape; got {train.shape} "
            f"and {test.shape}"
        )
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise ValueError("whiten: pixels must be finite, got inf or nan")
    mean = train.mean(axis=0, dtype=np.float64).ravel()
    covariance = np.zeros((mean.size, mean.size))
    for rows in _rows(train, mean):
        covariance += rows.T @ rows
    s, u = np.linalg.eigh(covariance / len(train))
    s = np.maximum(s, 0)  # rounding makes zeros slightly negative
    matrix = (u / np.sqrt(s + eps)) @ u.T

    def whitened(images: np.ndarray) -> np.ndarray:
        out = [(rows @ matrix).astype(np.float32) for rows in _rows(images, mean)]
        return np.concatenate(out).reshape(images.shape) if out else images.astype(np.float32)

    return whitened(train), whitened(test)


def _rows(images: np.ndarray, mean: np.ndarray) -> Iterator[np.ndarray]:
    """The centred images as rows in float64, some at a time, as all of them take much memory."""
    for i in range(0, len(images), 4096):
        yield images[i : i + 4096].reshape(-1, mean.size) - mean


def _idx_spellings(name: str) -> list[str]:
    dotted = name.replace("-idx", ".idx")
    return [name, dotted, f"{name}.gz", f"{dotted}.gz"]


def _idx_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _idx(images_path, 3), _idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: offset 4: {len(labels):,} labels, expected {len(images):,}, as many as "
            f"images in {images_path}; take both files from one data set"
        )
    _check_labels(labels_path, labels, first=8, step=1)
    return _pixels(images[..., None]), labels.astype(np.int32)


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file: magic number and sizes (big-endian, 4 bytes each), then bytes."""
    header, magic = 4 + 4 * dimensions, 0x800 + dimensions
    with _unpacked(path) as file:
        raw = file.read(header)
        if len(raw) < header:
            raise DataError(
                f"{path}: ends at offset {len(raw)}, within its header, expected {header} bytes of header; "
                "the file is truncated: get it again"
            )
        found, *shape = np.frombuffer(raw, ">u4").tolist()
        if found != magic:
            raise DataError(
                f"{path}: offset 0: magic number 0x{found:08x}, expected 0x{magic:08x} (bytes in "
                f"{dimensions} dimensions); this is another file: put {path.name} in its place"
            )
        if 0 in shape:
            raise DataError(
                f"{path}: offset {4 + 4 * shape.index(0)}: a size of 0, expected at least 1; get the file "
                "again"
            )
        size, reason = math.prod(shape), f"a header that says {_size(shape)}"
        _check_size(path, header + size, f", as its header says {_size(shape)}")
        content = file.read(size)
        rest = len(file.read(REST))  # reads to the end, where gzip keeps its checksum
        _check_length(path, header + len(content) + rest, header + size, reason)
    return np.frombuffer(content, np.uint8).reshape(shape)


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[io.BufferedIOBase]:
    """The content of a file; what is gzipped is seen from its first bytes, as names are often wrong."""
    raw = _bytes(path)
    if raw[:2] != b"\x1f\x8b":
        yield io.BytesIO(raw)
        return
    try:
        with gzip.open(io.BytesIO(raw)) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: {len(raw):,} bytes that do not unpack ({error}), expected a complete gzip file; "
            "get it again"
        ) from error


def _bytes(path: Path) -> bytes:
    """The file as it is."""
    try:
        _check_size(path, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}, expected a file that can be read; see to its rights and its disk"
        ) from error


def _check_size(path: Path, size: int, reason: str = "") -> None:
    if size > LARGEST:
        raise DataError(
            f"{path}: {size:,} bytes{reason}, expected at most {LARGEST:,}; take a part of it"
        )


def _cifar_part(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    records = np.concatenate([_cifar_records(path) for path in paths])
    images = records[:, 1:].reshape(-1, *CIFAR_IMAGE).transpose(0, 2, 3, 1)
    return _pixels(images), records[:, 0].astype(np.int32)


def _cifar_records(path: Path) -> np.ndarray:
    """(n, 3073): the label, and the pixels of three planes."""
    raw = _bytes(path)
    n = max(1, -(-len(raw) // CIFAR_RECORD))
    _check_length(path, len(raw), n * CIFAR_RECORD, f"{n:,} records of {CIFAR_RECORD} bytes")
    records = np.frombuffer(raw, np.uint8).reshape(n, CIFAR_RECORD)
    _check_labels(path, records[:, 0], first=0, step=CIFAR_RECORD)
    return records


def _cifar_labels(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return CIFAR_LABELS
    names = tuple(_text(path).split())
    if len(names) != 10:
        raise DataError(
            f"{path}: {len(names)} names, expected those of ten classes; get it again or delete it"
        )
    return names


def _check_length(path: Path, found: int, expected: int, reason: str) -> None:
    if found < expected:
        raise DataError(
            f"{path}: ends at offset {found}, expected {expected} bytes for {reason}; the file is "
            "truncated: get it again"
        )
    if found > expected:
        raise DataError(
            f"{path}: offset {expected}: {found - expected} bytes too many"
            f"{' or more' if found - expected == REST else ''}, expected the end after {reason}; get it again"
        )


def _check_labels(path: Path, labels: np.ndarray, first: int, step: int) -> None:
    wrong = np.flatnonzero(labels > 9)
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"{path}: offset {first + i * step}: label {labels[i]}, expected 0 to 9; get the file again"
        )


def _pixels(images: np.ndarray) -> np.ndarray:
    return np.divide(images, np.float32(255), dtype=np.float32, order="C")


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


# ---- texts ---------------------------------------------------------------------------------------

IMDB_FOLDER = "aclImdb"
IMDB_LABELS = ("neg", "pos")
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")  # letters; an apostrophe between them, as in don't
LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)

PACKAGES = {  # what is imported, and what is installed for it
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "jax": "jax",
}
PER_PACKAGE = 1_200  # documents at most
SHORTEST = 20  # words
# Tests; code of other projects that is shipped along; numpy.distutils, which Python 3.12 has not.
SKIPPED = frozenset(
    [
        *("tests", "testing", "internal_test_util", "conftest.py"),
        *("third_party", "externals", "extern", "_external", "vendor", "_vendor"),
        *("array_api_compat", "array_api_extra", "_uarray", "cobyqa", "pyprima"),
        "distutils",
    ]
)
# These words would give the answer away.
NAMES = re.compile(
    r".*(numpy|scipy|scikit|sklearn|matplotlib|pyplot|pylab|jax).*"
    r"|o?np|sp|learn|mpl.*|plt|jnp|jsp|lax"
)


def imdb(folder: Folder, words: int = 10_000) -> Data:
    """The film reviews of the Large Movie Review Dataset; label 0 is neg, label 1 is pos.

    Args:
      folder: holds train/pos, train/neg, test/pos and test/neg, itself or in its folder aclImdb; each
        holds reviews as .txt files in UTF-8.
      words: how many of the most frequent words of the train part, >= 1; see `vocabulary`.

    Inputs have a column for each word, most frequent first. Reviews are in the order of label and
    name: shuffle them. Raises DataError for a broken file, MissingDataError for a missing folder.
    """
    _check_words("imdb", words)
    names = [f"{part}/{label}" for part in ("train", "test") for label in IMDB_LABELS]
    spellings = {name: [name, f"{IMDB_FOLDER}/{name}"] for name in names}
    folders = _find("IMDB", folder, spellings, Path.is_dir, "folders")
    neg, pos, test_neg, test_pos = map(_reviews, folders)
    known = vocabulary(neg + pos, words)
    x, test_x = occurrences(neg + pos, known), occurrences(test_neg + test_pos, known)
    y = np.repeat(np.arange(2, dtype=np.int32), [len(neg), len(pos)])
    test_y = np.repeat(np.arange(2, dtype=np.int32), [len(test_neg), len(test_pos)])
    name = f"IMDB, {len(x) + len(test_x):,} reviews, {len(known):,} words"
    return Data(name, (x, y), (test_x, test_y), IMDB_LABELS)


def docstrings(words: int = 10_000) -> Data:
    """The docstrings of five installed packages; the label is the package.

    Args:
      words: how many of the most frequent words of the train part, >= 1; see `vocabulary`.

    Documents are the docstrings of modules, classes, functions and methods in the .py files of numpy,
    scipy, sklearn, matplotlib and jax, which are parsed and not run; without tests and vendored
    projects. Words that name one of the packages are taken out. Texts of less than 20 words are left
    out, and of those with the same words all but the first, or every one if several packages have
    it. At most 1,200 documents of each package are taken, evenly over its files. A fifth of each
    class is for test.

    Inputs have a column for each word, most frequent first. They depend on the versions of the
    packages, which the name states. Raises DataError for a package that is not installed.
    """
    _check_words("docstrings", words)
    with _collector_paused():
        found = {package: _documents(package) for package in PACKAGES}
    packages_with = Counter(key for documents in found.values() for key in documents)
    texts, y = [], []
    for label, documents in enumerate(found.values()):
        own = [text for key, text in documents.items() if packages_with[key] == 1]
        n = min(len(own), PER_PACKAGE)
        texts += [own[i * len(own) // n] for i in range(n)]
        y += [label] * n
    y = np.array(y, np.int32)
    train, test = _split(y)
    train_texts, test_texts = [texts[i] for i in train], [texts[i] for i in test]
    known = vocabulary(train_texts, words)
    sources = ", ".join(f"{p} {importlib.metadata.version(d)}" for p, d in PACKAGES.items())
    return Data(
        f"docstrings of {sources}: {len(texts):,} texts, {len(known):,} words",
        (occurrences(train_texts, known), y[train]),
        (occurrences(test_texts, known), y[test]),
        tuple(PACKAGES),
    )


def letters(length: int = 400_000) -> tuple[str, np.ndarray]:
    """The docstrings of scikit-learn letter by letter: their name, and uint8 from 0, the space, to 26, z.

    Args:
      length: of the text at most, >= 1; whole documents are taken evenly over the package's files.

    Raises DataError where scikit-learn is not installed.
    """
    with _collector_paused():
        documents = list(_documents("sklearn").values())
    share = min(1.0, length / sum(map(len, documents)))
    taken = [documents[int(i / share)] for i in range(int(share * len(documents)))]
    text = " ".join(taken)[:length]
    found = np.frombuffer(text.encode("ascii", "ignore"), np.uint8)
    found = np.where(found == ord(" "), 0, found - 96)
    found = found[found <= 26].astype(np.uint8)
    version = importlib.metadata.version("scikit-learn")
    return f"{len(found):,} letters of the docstrings of scikit-learn {version}", found


def vocabulary(texts: Iterable[str], words: int) -> list[str]:
    """The most frequent words, most frequent first, equally frequent ones in alphabetical order.

    A word is a run of letters in lower case, don't being one word. Repetitions within a text count.
    There are fewer than `words` if the texts have fewer.
    """
    counts = Counter(word for text in texts for word in WORD.findall(text.lower()))
    return sorted(counts, key=lambda word: (-counts[word], word))[:words]


def occurrences(texts: list[str], known: list[str]) -> np.ndarray:
    """uint8 (texts, known words): 1 where the word occurs in the text. Other words are left out."""
    column = {word: j for j, word in enumerate(known)}
    table = np.zeros((len(texts), len(known)), np.uint8)
    for row, text in zip(table, texts, strict=True):
        row[[column[word] for word in WORD.findall(text.lower()) if word in column]] = 1
    return table


def _check_words(where: str, words: int) -> None:
    if not (isinstance(words, (int, np.integer)) and words >= 1):
        raise ValueError(f"{where}: words must be a whole number >= 1, got {words!r}")


def _reviews(folder: Path) -> list[str]:
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise DataError(f"{folder}: no .txt files, expected one for each review; put them there")
    return [LINE_BREAK.sub(" ", _text(path)) for path in paths]


def _text(path: Path) -> str:
    raw = _bytes(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: offset {error.start}: byte 0x{raw[error.start]:02x}, expected text in UTF-8; get "
            "the file again or delete it"
        ) from error
    if not text.strip():
        raise DataError(
            f"{path}: {len(raw)} bytes without a word, expected text in UTF-8; get the file again or "
            "delete it"
        )
    return text


def _documents(package: str) -> dict[frozenset[str], str]:
    """The first text with each set of words, without the names of packages, in the order of the files."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"docstrings: the package {package} is not installed; pip install 'adamfx[experiments]'"
        )
    root = Path(spec.submodule_search_locations[0])
    files = sorted((file.relative_to(root).parts, file) for file in root.rglob("*.py"))
    found: dict[frozenset[str], str] = {}
    for file in (file for parts, file in files if SKIPPED.isdisjoint(parts)):
        for docstring in _docstrings_in(file):
            kept = [word for word in WORD.findall(docstring.lower()) if not _is_name(word)]
            if len(kept) >= SHORTEST:
                found.setdefault(frozenset(kept), " ".join(kept))
    if not found:
        raise DataError(
            f"{root}: no docstrings in {len(files):,} .py files, expected the sources of {package}; "
            "install it again"
        )
    return found


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Syntax trees are many objects without cycles; looking for some takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@functools.cache
def _is_name(word: str) -> bool:
    return NAMES.fullmatch(word) is not None


def _docstrings_in(path: Path) -> Iterator[str]:
    """Of the module and of all its classes and functions, which are statements within statements."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the strings of others
        try:
            waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
        except SyntaxError:  # a template, or for another version of Python
            return
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node, clean=False) or ""
        for field in ("body", "handlers", "orelse", "finalbody", "cases"):
            below = getattr(node, field, ())
            waiting += below if isinstance(below, list) else ()  # a lambda's body is one expression


def _split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of train and test, both shuffled; a fifth of each class is for test."""
    from sklearn.model_selection import train_test_split

    every = np.arange(len(labels))
    train, test = train_test_split(every, test_size=0.2, stratify=labels, random_state=0)
    return np.asarray(train), np.asarray(test)


# ---- files ---------------------------------------------------------------------------------------


def _find(
    what: str,
    folder: Folder,
    spellings: dict[str, list[str]],
    is_there: Callable[[Path], bool] = Path.is_file,
    kind: str = "files",
) -> list[Path]:
    """For each name the first of its spellings that is in the folder."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(
            f"{folder}: a file, expected the folder with the {kind} of {what}: {', '.join(spellings)}"
        )
    found = [[p for s in paths if is_there(p := folder / s)] for paths in spellings.values()]
    missing = [name for name, paths in zip(spellings, found, strict=True) if not paths]
    if missing:
        state = "" if folder.is_dir() else ", which does not exist"
        raise MissingDataError(
            f"{what}: {len(missing)} of {len(spellings)} {kind} are missing; put {', '.join(missing)} into "
            f"the folder {folder}{state}"
        )
    return [paths[0] for paths in found]
