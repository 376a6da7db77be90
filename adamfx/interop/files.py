"""Files of other libraries, read as they are."""

from __future__ import annotations

import os
from typing import Any


def read_orbax(path: str | os.PathLike, like: Any = None) -> Any:
    """The tree in an Orbax checkpoint of one item, such as an optax state: for `from_optax`.

    Args:
      path: the folder.
      like: a tree of that structure, e.g. `{"opt_state": optax_tx.init(params)}`: its named tuples come
        back. None: dicts and lists, which `from_optax` cannot tell apart.

    Needs Orbax: pip install "adamfx[interop]".
    """
    try:
        import orbax.checkpoint as orbax
    except ImportError:
        raise ImportError('read_orbax: needs Orbax; run: pip install "adamfx[interop]"') from None
    with orbax.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(os.path.abspath(path), like)


def read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """The arrays in a safetensors file by name, as those of JAX: 64 bits are 32 unless jax_enable_x64 is set.

    A file holds no nested dicts: of an optimizer, names such as "layer.weight.exp_avg" come back as
    {"layer.weight": {"exp_avg": ...}} by `{k: v}` of your own, and go to `from_torch`.

    Needs safetensors: pip install "adamfx[interop]".
    """
    try:
        from safetensors.flax import load_file
    except ImportError:
        raise ImportError(
            'read_safetensors: needs safetensors; run: pip install "adamfx[interop]"'
        ) from None
    return load_file(os.fspath(path))
