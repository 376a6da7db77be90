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
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.checks import shown
from adamfx.engine.forked import check_computes
from adamfx.engine.packed import packed_as, plain
from adamfx.training import archive
from adamfx.training.history import History
from adamfx.values.arguments import checked

Tree = Any
ABOUT = (
    "adamfx"  # the entry that describes the others, as JSON: version, dtypes and columns by path
)
VERSION = 1
NUMBERS = (bool, int, float, complex)


@checked
def save(path: str | os.PathLike, tree: Tree) -> None:
    """Writes every array of the tree into one .npz file; a failure leaves an older file as it was.

    Numbers, histories, arrays of any dtype of numbers, random keys and arrays sharded over the devices of
    this process. What was written is read back before it takes the older file's place. Of several
    processes, one calls it.

    Raises before anything is written: TypeError, with the path, for anything else; ValueError for an array
    of which other processes hold a part (`Checkpoints` keeps those), and for two leaves of one path.
    """
    arrays, dtypes, columns = {}, {}, {}
    for name, x in named("save", tree):
        if not (hasattr(x, "dtype") or isinstance(x, (*NUMBERS, History))):
            raise TypeError(
                f"save: the leaf at {name} is {shown(x)} of type {type(x).__name__}; the leaves of the tree "
                "must be arrays, numbers or histories: filter the tree first"
            )
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            raise ValueError(
                f"save: of the array at {name} this process holds a part only; save the run by "
                "fx.Checkpoints, which every process calls (it needs Orbax: pip install orbax-checkpoint)"
            )
        if isinstance(x, History):
            columns[name], x = list(x), np.array(list(x.values()), np.float64)
        dtypes[name] = _dtype(x)
        y = np.asarray(jax.random.key_data(x) if is_key(x) else x)
        check_numbers("save", name, x, y.dtype)
        arrays[name] = _known(y)
    about = {"version": VERSION, "dtypes": dtypes, "columns": columns}
    arrays[ABOUT] = np.array(json.dumps(about))
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"save: there is no folder {folder}; make it first")
    archive.write(path, arrays)


@checked
def load(path: str | os.PathLike, like: Tree, partial: bool = False) -> Tree:
    """The tree in a file of `save`, with the structure and the devices of `like`.

    Args:
      path: the file.
      like: a tree of arrays, or of jax.ShapeDtypeStruct (`jax.eval_shape(tx.init, params)`), where
        each array tells shape, dtype and sharding; so a run goes on on another mesh. NumPy arrays
        come back as such, Python numbers as numbers, and a History as long as it was.

      partial: whether the file may hold more than `like`, e.g. a state where only params are wanted.

    Raises ValueError, with the paths, where the file holds other leaves, shapes or dtypes, or a number that
    `like` cannot hold, and where it is damaged. A file from anywhere is safe to read: it runs nothing and
    takes memory in proportion to its length, whatever it says of itself.
    """
    wanted = dict(named("load", like))
    for name, x in wanted.items():
        has_dtype = hasattr(x, "dtype") and not isinstance(x.dtype, type)
        if not (is_history(x) or has_dtype or isinstance(x, NUMBERS)):
            raise TypeError(
                f"load: the leaf at {name} of like is {shown(x)}; leaves must be arrays, numbers or histories"
            )
    try:
        arrays = archive.read(path)
        about = _about(arrays.pop(ABOUT, None), arrays)
    except archive.Damaged as error:
        raise ValueError(
            f"load: {path} is no checkpoint of fx.save, or a damaged one; use an earlier one"
        ) from error
    if about["version"] != VERSION:
        raise ValueError(
            f"load: {path} is no checkpoint of fx.save, or of a newer adamfx: its version is "
            f"{about['version']}, this one reads {VERSION}"
        )
    found = set(arrays)
    check_names(
        "load", path, set(wanted), found & set(wanted) if partial else found,
        "; partial=True leaves out what is not asked for",
    )  # fmt: skip
    leaves = []
    for name, x in wanted.items():
        if (name in about["columns"]) != is_history(x):
            raise ValueError(f"load: {name} is a history in the file or in `like`, not in both")
        if is_history(x):
            leaves.append(History(zip(about["columns"][name], arrays[name], strict=True)))
        else:
            leaves.append(_read(name, arrays[name], about["dtypes"][name], x))
    return renamed(like, leaves)


def _about(written: np.ndarray | None, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What a file says of its arrays: version, dtypes and columns by path."""
    if written is None:
        return {"version": None}
    try:
        about = json.loads(str(written))
        whole = isinstance(about, dict) and "version" in about
        if whole and about["version"] == VERSION:
            dtypes, columns = (
                about["dtypes"],
                about.setdefault("columns", {}),
            )  # there were none once
            whole = (
                set(dtypes) == set(arrays)
                and all(isinstance(x, str) for x in dtypes.values())
                and all(_are_columns(x, arrays[n]) for n, x in columns.items())
            )
    except Exception as error:  # foreign, or nested too deeply
        raise archive.Damaged(str(error)) from error
    if not whole:
        raise archive.Damaged("its description is another")
    return about


def check_names(who: str, path: Any, wanted: set, found: set, more: str = "") -> None:
    """Raises ValueError where what is in a checkpoint is not what is asked for."""
    missing, unknown = sorted(wanted - found), sorted(found - wanted)
    if missing or unknown:
        raise ValueError(
            f"{who}: {path} holds another tree; missing in it: {_some(missing)}; not asked for: "
            f"{_some(unknown)}; `like` must be what was saved, e.g. tx.init(params) of the same "
            f"blocks{more}"
        )


def _are_columns(names: Any, x: np.ndarray) -> bool:
    named_all = isinstance(names, list) and all(isinstance(n, str) for n in names)
    return named_all and x.dtype == np.float64 and x.shape[:1] == (len(names),) and x.ndim < 3


def check_numbers(who: str, name: str, x: Any, kind: Any, refused: str = "O") -> None:
    """Raises TypeError for what is no array of numbers, and for a number beyond 64 bits.

    `kind` is the dtype of the leaf x as NumPy has it; `refused` more letters of its kinds.
    """
    given = kind if is_key(x) else getattr(x, "dtype", kind)  # JAX gives NumPy some as others
    if kind.kind in refused or kind.names is not None or kind.type is np.void or kind != given:
        what = f"is {x!r}, beyond 64 bits" if isinstance(x, int) else f"has the dtype {given}"
        raise TypeError(
            f"{who}: the leaf at {name} {what}; leaves of the tree must be arrays of numbers"
        )


def _read(name: str, x: np.ndarray, dtype: str, like: Any) -> Any:
    if isinstance(like, NUMBERS) and not x.shape:
        return type(like)(_same(name, x, np.dtype(type(like))).item())
    if dtype != _dtype(like):
        raise ValueError(f"load: {name} is {dtype} in the file, {_dtype(like)} in `like`")
    if not isinstance(like, (np.ndarray, np.generic)):
        check_computes("load")
    if is_key(like):
        impl: list = []
        jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
        out = jax.random.wrap_key_data(jnp.asarray(x), impl=impl[0])
    else:
        out = _typed(name, x, jnp.dtype(dtype))
    if out.shape != np.shape(like):
        raise ValueError(
            f"load: {name} has shape {out.shape} in the file, {np.shape(like)} in `like`"
        )
    if isinstance(like, (np.ndarray, np.generic)):
        return out if isinstance(like, np.ndarray) else out[()]
    placed = getattr(like, "sharding", None)
    # Committed to devices only where `like` is: a change would compile the step again.
    if placed is None or not getattr(like, "committed", True):
        out = jnp.asarray(out)
    else:
        out = jax.device_put(out, placed)
    if str(out.dtype) != dtype:
        raise ValueError(
            f"load: {name} is {dtype}, and JAX has no 64 bits here; set jax_enable_x64"
        )
    return out


def _known(x: np.ndarray) -> np.ndarray:
    """Of a dtype that NumPy itself does not know (bfloat16, float8) the bytes, as numbers of that width."""
    try:
        known = np.dtype(x.dtype.str) == x.dtype
    except TypeError:
        known = False
    return x if known else x.view(f"u{x.dtype.itemsize}")


def _typed(name: str, x: np.ndarray, dtype: Any) -> np.ndarray:
    """What was written, as what it was: bytes of a dtype that NumPy does not know, or a number of Python."""
    if x.dtype == dtype:
        return x
    if x.dtype.kind == "u" and x.dtype.itemsize == dtype.itemsize:
        return x.view(dtype)
    return _same(name, x, dtype)


def _same(name: str, x: np.ndarray, dtype: Any) -> np.ndarray:
    """The number x in another dtype: rounded as a float at most."""
    if x.shape:
        raise ValueError(f"load: {name} is {x.dtype}{list(x.shape)} in the file, {dtype} in `like`")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is an error here
        new = x.astype(dtype)
    old, found = x.item(), new.item()
    if x.dtype.kind == new.dtype.kind and x.dtype.kind in "fc":
        fits = bool(np.isfinite(old) == np.isfinite(found))
    else:
        fits = old == found and (new.dtype != bool or x.dtype == bool)
    if not fits:
        raise ValueError(f"load: {name} is {old} in the file, which {dtype} of `like` cannot hold")
    return new


def _dtype(x: Any) -> str:
    """As JAX would have it; a number is written as exactly as it is."""
    if is_history(x):
        return "float64"
    return str(x.dtype if hasattr(x, "dtype") else jnp.result_type(x))


def named(who: str, tree: Tree) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths; a history is one. Raises ValueError for two of one path."""
    pairs = jax.tree_util.tree_leaves_with_path(plain(tree), is_leaf=is_history)
    found = [(jax.tree_util.keystr(path) or "the root", x) for path, x in pairs]
    seen: set[str] = set()
    for name, _ in found:
        if name in seen:
            raise ValueError(
                f"{who}: two leaves have the path {name}; give keys that are written differently"
            )
        if len(name.encode()) > archive.LONGEST_NAME:
            raise ValueError(
                f"{who}: the path {name[:60]}... is longer than {archive.LONGEST_NAME} bytes"
            )
        seen.add(name)
    return found


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
