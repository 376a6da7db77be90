"""Checkpoints in one plain file: any tree of arrays, by the path of each leaf.

    save("run.npz", {"params": params, "state": state, "history": history})
    like = {"params": params, "state": tx.init(params), "history": History()}
    restored = load("run.npz", like)

The file is a NumPy .npz archive; `numpy.load` reads it. States are ordinary trees, so Orbax and
others save them, too.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import zipfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine.packed import packed_as, plain
from adamfx.training.history import History

Tree = Any
ABOUT = (
    "adamfx"  # the entry that describes the others, as JSON: version, dtypes and columns by path
)
VERSION = 1
NUMBERS = (bool, int, float, complex)


def save(path: str | os.PathLike, tree: Tree) -> None:
    """Writes every array of the tree into one .npz file; a failure leaves an older file as it was.

    Numbers, histories, arrays of any dtype, random keys and arrays sharded over the devices of this
    process. Raises TypeError, with the path, for anything else, and ValueError for an array of which other
    processes hold a part: `Checkpoints` keeps those.
    """
    arrays, dtypes, columns = {}, {}, {}
    for name, x in named(tree):
        if not (hasattr(x, "dtype") or isinstance(x, (*NUMBERS, History))):
            raise TypeError(
                f"save: the leaf at {name} is {x!r} of type {type(x).__name__}; leaves must be arrays, "
                "numbers or histories: filter the tree first"
            )
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            raise ValueError(
                f"save: of the array at {name} this process holds a part only; save the run by "
                "fx.Checkpoints, which every process calls (it needs Orbax: pip install orbax-checkpoint)"
            )
        dtypes[name] = _dtype(x)
        if isinstance(x, History):
            columns[name], x = list(x), np.array(list(x.values()), np.float64)
        x = np.asarray(jax.random.key_data(x) if is_key(x) else x)
        # What NumPy itself does not know (bfloat16, float8) is written as bytes of that width.
        arrays[name] = x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "V" else x
    about = {"version": VERSION, "dtypes": dtypes, "columns": columns}
    arrays[ABOUT] = np.array(json.dumps(about))
    target = pathlib.Path(os.path.realpath(path))  # a link stays one
    if not target.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {target.parent}; make it first")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | os.PathLike, like: Tree, partial: bool = False) -> Tree:
    """The tree in a file of `save`, with the structure and the devices of `like`.

    Args:
      path: the file.
      like: a tree of arrays, or of jax.ShapeDtypeStruct (`jax.eval_shape(tx.init, params)`), where
        each array tells shape, dtype and sharding; so a run goes on on another mesh. NumPy arrays
        come back as such, Python numbers as numbers, and a History as long as it was.

      partial: whether the file may hold more than `like`, e.g. a state where only params are wanted.

    Raises ValueError, with the paths, where the file holds other leaves, shapes or dtypes, and where
    it is damaged.
    """
    wanted = dict(named(like))
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (EOFError, zipfile.BadZipFile, zlib.error, ValueError, TypeError) as error:
        raise ValueError(
            f"load: {path} is no checkpoint of fx.save, or a damaged one; use an earlier one"
        ) from error
    about = json.loads(str(arrays[ABOUT])) if ABOUT in arrays else {}
    if about.get("version") != VERSION:
        raise ValueError(
            f"load: {path} is no checkpoint of fx.save, or of a newer adamfx: its version is "
            f"{about.get('version')}, this one reads {VERSION}"
        )
    found = set(about["dtypes"])
    check_names(
        "load", path, set(wanted), found & set(wanted) if partial else found,
        "; partial=True leaves out what is not asked for",
    )  # fmt: skip
    leaves = []
    for name, x in wanted.items():
        if name in about.get("columns", {}):
            leaves.append(History(zip(about["columns"][name], arrays[name], strict=True)))
        else:
            leaves.append(_read(name, arrays[name], about["dtypes"][name], x))
    return renamed(like, leaves)


def check_names(who: str, path: Any, wanted: set, found: set, more: str = "") -> None:
    """Raises ValueError where what is in a checkpoint is not what is asked for."""
    missing, unknown = sorted(wanted - found), sorted(found - wanted)
    if missing or unknown:
        raise ValueError(
            f"{who}: {path} holds another tree; missing in it: {_some(missing)}; not asked for: "
            f"{_some(unknown)}; `like` must be what was saved, e.g. tx.init(params) of the same "
            f"blocks{more}"
        )


def _read(name: str, x: np.ndarray, dtype: str, like: Any) -> Any:
    if isinstance(like, NUMBERS) and not x.shape:
        return type(like)(x.item())
    if dtype != _dtype(like):
        raise ValueError(f"load: {name} is {dtype} in the file, {_dtype(like)} in `like`")
    if is_key(like):
        impl: list = []
        jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
        out = jax.random.wrap_key_data(jnp.asarray(x), impl=impl[0])
    else:
        wide = x.dtype.itemsize > jnp.dtype(dtype).itemsize  # a Python number
        out = x.astype(dtype) if wide else x.view(jnp.dtype(dtype)) if str(x.dtype) != dtype else x
    if out.shape != np.shape(like):
        raise ValueError(
            f"load: {name} has shape {out.shape} in the file, {np.shape(like)} in `like`"
        )
    if isinstance(like, (np.ndarray, np.generic)):
        return out if isinstance(like, np.ndarray) else out[()]
    placed = getattr(like, "sharding", None)
    # Committed to devices only where `like` is: a change would compile the step again.
    if placed is None or not getattr(like, "committed", True):
        return jnp.asarray(out)
    return jax.device_put(out, placed)


def _dtype(x: Any) -> str:
    """As JAX would have it; a number is written as exactly as it is."""
    if is_history(x):
        return "float64"
    return str(x.dtype if hasattr(x, "dtype") else jnp.result_type(x))


def named(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths; a history is one."""
    pairs = jax.tree_util.tree_leaves_with_path(plain(tree), is_leaf=is_history)
    return [(jax.tree_util.keystr(path) or "the root", x) for path, x in pairs]


def renamed(like: Tree, leaves: list) -> Tree:
    """The tree of which these are the leaves, as `named` gives them of `like`."""
    structure = jax.tree.structure(plain(like), is_leaf=is_history)
    return packed_as(like, jax.tree.unflatten(structure, leaves))


def is_history(x: Any) -> bool:
    return isinstance(x, History)


def is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more
