"""Checkpoints in one plain file: any tree of arrays, by the path of each leaf.

    save("run.npz", {"params": params, "state": state})
    restored = load("run.npz", like={"params": params, "state": tx.init(params)})

The file is a NumPy .npz archive; `numpy.load` reads it. States are ordinary trees, so Orbax and
others save them, too.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
ABOUT = "adamfx"  # the entry that describes the others: {"version": 1, "dtypes": {path: dtype}}
VERSION = 1


def save(path: str | os.PathLike, tree: Tree) -> None:
    """Writes every array of the tree into one .npz file; a failure leaves an older file as it was.

    Any dtype, random keys and arrays sharded over the devices of this process included.
    """
    arrays, dtypes = {}, {}
    for name, x in _named(tree):
        dtypes[name] = str(x.dtype) if hasattr(x, "dtype") else str(jnp.result_type(x))
        x = jax.random.key_data(x) if _is_key(x) else x
        x = np.asarray(x, dtypes[name] if np.isscalar(x) else None)
        # What NumPy itself does not know (bfloat16, float8) is written as bytes of that width.
        arrays[name] = x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "V" else x
    arrays[ABOUT] = np.array(json.dumps({"version": VERSION, "dtypes": dtypes}))
    path = pathlib.Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def load(path: str | os.PathLike, like: Tree) -> Tree:
    """The tree in a file of `save`, with the structure and the devices of `like`.

    Args:
      path: the file.
      like: a tree of arrays, or of jax.ShapeDtypeStruct (`jax.eval_shape(tx.init, params)`), where
        each array tells shape, dtype and sharding; so a run goes on on another mesh.

    Raises ValueError, with the paths, where the file holds other leaves, shapes or dtypes.
    """
    wanted = dict(_named(like))
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file[ABOUT])) if ABOUT in file else {}
        if about.get("version") != VERSION:
            raise ValueError(
                f"load: {path} is no checkpoint of fx.save, or of a newer adamfx: its version is "
                f"{about.get('version')}, this one reads {VERSION}"
            )
        found = set(about["dtypes"])
        missing, unknown = sorted(set(wanted) - found), sorted(found - set(wanted))
        if missing or unknown:
            raise ValueError(
                f"load: {path} holds another tree; missing in it: {_some(missing)}; not asked for: "
                f"{_some(unknown)}; `like` must be what was saved, e.g. tx.init(params) of the same blocks"
            )
        leaves = [_read(name, file[name], about["dtypes"][name], x) for name, x in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _read(name: str, x: np.ndarray, dtype: str, like: Any) -> jax.Array:
    own = str(like.dtype) if hasattr(like, "dtype") else str(jnp.result_type(like))
    if dtype != own:
        raise ValueError(f"load: {name} is {dtype} in the file, {own} in `like`")
    if _is_key(like):
        impl: list = []
        jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
        out = jax.random.wrap_key_data(jnp.asarray(x), impl=impl[0])
    else:
        out = x.view(jnp.dtype(dtype)) if str(x.dtype) != dtype else x
    if out.shape != np.shape(like):
        raise ValueError(
            f"load: {name} has shape {out.shape} in the file, {np.shape(like)} in `like`"
        )
    placed = getattr(like, "sharding", None)
    # Committed to devices only where `like` is: a change would compile the step again.
    if placed is None or not getattr(like, "committed", True):
        return jnp.asarray(out)
    return jax.device_put(out, placed)


def _named(tree: Tree) -> list[tuple[str, Any]]:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path) or "the root", x) for path, x in pairs]


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more
