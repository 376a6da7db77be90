"""How the update reaches parameters below float32, where most steps are smaller than one rounding.

A bfloat16 parameter of 1 moves in steps of 2^-8, so plain Adam at a learning rate of 1e-3 leaves it
where it is. Each of these keeps what rounding would lose; each works through `step`, and through
`update` with `apply_updates`, here and in any other library's loop. (Updates leave `update` in the
parameter's dtype. Where one is of the size of its parameter, this rounds once more, and the neighbour
or the rounded copy may be missed by it; nothing of that adds up.) They stand last in a chain.

chain(adam(1e-3), compensate())             remembers the rounding error (Kahan)
chain(adam(1e-3), round_stochastically())   remembers nothing but a random key
master_weights(adam(1e-3))                  remembers the parameters in float32
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.placement import follow, wide_copy
from adamfx.engine.working import ADVICE
from adamfx.moments.storages import round_between
from adamfx.transformation import block, leafwise, treewise
from adamfx.values.arguments import Floating
from adamfx.values.constructor import Inner


@block
def compensate(dtype: Floating = None):
    """u' = round(u + c), c' = (u + c) - (p' - p), p' what the parameter becomes. Kahan 1965.

    Needs params. What one step loses to rounding the next ones make good.

    Args:
      dtype: how c is stored; None: as the parameter, float32 at least. "bfloat16" costs half and
        serves bfloat16 parameters about as well.

    Remembers `error`, c.
    """
    checks.floating("compensate", "dtype", dtype)

    def init(p):
        if dtype is not None and jnp.iscomplexobj(p):
            raise ValueError(
                f"compensate: dtype {dtype!r} cannot hold the error of complex parameters"
            )
        return {"error": jnp.zeros(p.shape, dtype or p.dtype)}

    def leaf(u, here):
        p, wanted = here.param, u + here.memory.error
        u = trees.round_to(wanted, here.dtype)
        moved = trees.round_to(p + u, here.dtype) - p
        return u, {"error": wanted - moved}

    return leafwise(leaf, init=init, needs_params=True)


@block
def round_stochastically(seed: int = 0):
    """p' - p, p' one of the two neighbours of p + u, in the mean p + u. Gupta et al. 2015.

    Needs params. Parameters of float32 and wider take the update as it is.

    Remembers `key`, threefry key data of shape (2,), uint32, made from `seed`.
    """
    if not isinstance(seed, int):
        raise TypeError(f"round_stochastically: seed must be an int, got {seed!r}")

    def init_shared():
        return {"key": jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))}

    def run(leaves, memory, step):
        new, key = jax.random.split(jax.random.wrap_key_data(memory.key, impl="threefry2x32"))
        keys = [jax.random.fold_in(key, j) for j in leaves.layout.rows]
        columns = (leaves.updates, leaves.params, keys)
        updates = leaves.each(_to_a_neighbour, *columns)
        return leaves.replace(updates=updates), {"key": jax.random.key_data(new)}

    return treewise(run, init_shared=init_shared, needs=("params",))


def _to_a_neighbour(u: jax.Array, p: jax.Array, key: jax.Array) -> jax.Array:
    """q - p, q a multiple of the parameter's spacing next to p + u."""
    if jnp.finfo(p.dtype).bits >= jnp.finfo(u.dtype).bits:
        return u
    wide = p.astype(u.dtype)
    r = follow(p, jax.random.uniform(key, p.shape, u.dtype))
    return round_between(p.dtype, wide + u, r) - wide


@block
def master_weights(transformation: Inner):
    """The transformation works on float32 copies; the parameters are their rounded values.

    Micikevicius et al. 2018. Weight decay and trust ratios read the copies, too. A parameter that is
    changed by anything else than this transformation goes back to its copy: `init` anew then.

    Needs params. Remembers `inner` and `master`, the copies of the leaves below float32.
    """
    tx = transformation

    def narrow(leaves):
        return [to != trees.at_least_float32(to) for to in leaves.dtypes]

    def on_copies(leaves, copies):
        full = [p if m is None else m for m, p in zip(copies, leaves.params, strict=True)]
        return leaves.replace(params=full, dtypes=[p.dtype for p in full])

    def start(leaves):
        pairs = zip(narrow(leaves), leaves.params, strict=True)
        copies = [wide_copy(p) if n else None for n, p in pairs]
        return {"inner": tx.start(on_copies(leaves, copies)), "master": leaves.tree(copies)}

    def run(leaves, memory, step):
        copies = leaves.layout.column("master", memory.master)
        if [m is not None for m in copies] != narrow(leaves):
            raise ValueError(
                f"master_weights: the state was made for parameters of other dtypes; {ADVICE}"
            )
        new, inner = tx.run(on_copies(leaves, copies), memory.inner, step)
        full = new.ended()
        copies = [None if m is None else q for m, q in zip(copies, full, strict=True)]
        master = leaves.layout.tree(copies, memory.master)
        # A wrapper around this one sees the unrounded update.
        move = _rounded if leaves.final else _unrounded
        out = leaves.replace(updates=leaves.each(move, copies, new.updates, leaves.params))
        if leaves.applies:
            moved = [q.astype(to) for q, to in zip(full, leaves.dtypes, strict=True)]
            out = leaves.replace(moved=moved)
        return out, {"inner": inner, "master": master}

    def through(leaves, memory, point):
        copies = leaves.layout.column("master", memory.master)
        found = point(tx, on_copies(leaves, copies), memory.inner)
        return leaves.replace(params=found.params)

    wrapper = treewise(run, tx, needs=("params",))
    return wrapper._replace(start=start, carried=("inner", "master"), through=through)


def _rounded(m: jax.Array | None, u: jax.Array, p: jax.Array) -> jax.Array:
    """The update that takes p to m, rounded as p is; u where there is no copy."""
    return u if m is None else trees.round_to(m, p.dtype) - p.astype(m.dtype)


def _unrounded(m: jax.Array | None, u: jax.Array, p: jax.Array) -> jax.Array:
    return u if m is None else m - p.astype(m.dtype)
