"""A file of named arrays that a failure cannot leave half written, and that cannot harm who reads it.

An uncompressed .npz archive, as `numpy.savez` writes and `numpy.load` reads; without their time per array,
and without their trust.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import pathlib
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LONGEST_NAME = 60_000  # bytes; a zip archive has 16 bits for its length


class Damaged(Exception):
    """The bytes are not what `write` makes."""


# ---- writing -------------------------------------------------------------------------------------


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays; a failure, also kill -9 or a full disk, leaves an older file as it was.

    Raises OSError where the file cannot be written, RuntimeError where what was written reads otherwise.
    """
    with whole(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, x in arrays.items():
                x = np.asarray(x, order="C")
                about = zipfile.ZipInfo(f"{name}.npy")
                with archive.open(about, "w", force_zip64=x.nbytes > 2**30) as member:
                    member.write(_header(x.dtype.str, x.shape))
                    member.write(_bytes(x))
        _check(file, arrays)


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of an older one if nothing is raised, and else is gone.

    Until then it lies beside it. Its name is short and its own, whatever other processes, threads or
    machines are writing. It is locked meanwhile, so that what a process that died has left can be told from
    it.
    """
    target = pathlib.Path(os.path.realpath(path))  # a link stays one
    digest = hashlib.sha256(target.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    for left in target.parent.glob(f".adamfx-{digest}-*"):
        _remove_unless_locked(left)
    beside, file = _locked(f"{target.parent}{os.sep}.adamfx-{digest}-")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, beside)
            if fcntl is None:  # which cannot rename what is open
                file.close()
            os.replace(beside, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
    with contextlib.suppress(
        OSError, AttributeError
    ):  # so that the name outlives a loss of power, too
        folder = os.open(target.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _locked(start: str) -> tuple[str, IO[bytes]]:
    """A new file whose name begins so."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = start + secrets.token_hex(8)
        file = os.fdopen(os.open(path, flags, 0o666), "w+b")
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(path):
            return path, file
        file.close()  # it was taken for a dead one before it was locked


def _remove_unless_locked(path: pathlib.Path) -> None:
    if fcntl is None:
        return
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)


def _check(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Reads back what was written."""
    try:
        found = _read(file)
        same = set(found) == set(arrays) and all(
            found[n].dtype == x.dtype
            and found[n].shape == x.shape
            and _bytes(found[n]) == _bytes(x)
            for n, x in arrays.items()
        )
    except Damaged:
        same = False
    if not same:
        raise RuntimeError(
            "save: what was written could not be read back; the older file is untouched"
        )


def _bytes(x: np.ndarray) -> Any:
    return np.asarray(x, order="C").reshape(-1).view(np.uint8).data


@functools.lru_cache(4096)
def _header(dtype: str, shape: tuple) -> bytes:
    file = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


# ---- reading -------------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file by name. It takes no more memory than the file is long.

    Raises OSError where it cannot be opened, Damaged for all that `write` does not make.
    """
    with open(path, "rb") as file:
        return _read(file)


def _read(file: IO[bytes]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len({m.filename for m in members}) < len(members):
                raise Damaged("two members of one name")
            # Before memory is taken. What is packed, or encrypted, is read as it stands, and has another sum.
            if sum(m.file_size for m in members) > file.seek(0, os.SEEK_END):
                raise Damaged("its members are longer than the file: packed, or overlapping")
            return {m.filename.removesuffix(".npy"): _array(_member(file, m)) for m in members}
    except Damaged:
        raise
    except Exception as error:  # whatever the parsers make of what was not written by us
        raise Damaged(str(error)) from error


def _member(file: IO[bytes], about: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, a third of the time of zipfile's own reader."""
    file.seek(about.header_offset)
    local = file.read(30)
    file.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), 1)
    data = file.read(about.file_size)
    if local[:4] != b"PK\x03\x04" or zlib.crc32(data) != about.CRC:
        raise Damaged("a member is damaged")
    return data


def _array(data: bytes) -> np.ndarray:
    if data[:8] != b"\x93NUMPY\x01\x00":
        raise Damaged("a member is no array")
    start = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape, order = _described(data[8:start])
    count = 1
    for n in shape:
        count *= n
    if count * dtype.itemsize != len(data) - start:
        raise Damaged("an array is not as long as its shape says")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order=order).copy()


@functools.lru_cache(4096)
def _described(header: bytes) -> tuple[np.dtype, tuple[int, ...], Any]:
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if dtype.hasobject or dtype.names is not None or dtype.kind == "V":
        raise Damaged(f"an array of dtype {dtype}")
    if any(n < 0 for n in shape):
        raise Damaged(f"an array of shape {shape}")
    return dtype, shape, "F" if fortran else "C"
