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

from typing import Any

import jax
import jax.numpy as jnp

from adamfx import checks, sentence, trees
from adamfx.combine import as_transformation
from adamfx.transformation import block, leafwise


@block
def compensate(dtype: Any = None):
    """u <- round(u + c), c <- (u + c) - (p' - p), p' what the parameter becomes. Kahan 1965.

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
    """u <- p' - p, p' one of the two neighbours of p + u, in the mean p + u. Gupta et al. 2015.

    Needs params. Parameters of float32 and wider take the update as it is.

    Remembers `key`, threefry key data of shape (2,), uint32, made from `seed`.
    """
    if not isinstance(seed, int):
        raise TypeError(f"round_stochastically: seed must be an int, got {seed!r}")

    def init(params):
        key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
        return sentence.remember(key=sentence.replicate(trees.anchor(params), key))

    def update(updates, state, params=None, **extra):
        checks.given_params("update", "round_stochastically", params, updates)
        new, key = jax.random.split(jax.random.wrap_key_data(state.key, impl="threefry2x32"))
        leaves, structure = trees.flatten(updates)
        for j, (u, p) in enumerate(zip(leaves, trees.flatten(params)[0], strict=True)):
            if u is not None:
                leaves[j] = _to_a_neighbour(u, p, jax.random.fold_in(key, j))
        return structure.unflatten(leaves), sentence.remember(key=jax.random.key_data(new))

    return sentence.Pair(init, update)


def _to_a_neighbour(u: jax.Array, p: jax.Array, key: jax.Array) -> jax.Array:
    """q - p, q a multiple of the parameter's spacing next to p + u."""
    to, wide = jnp.finfo(p.dtype), jnp.finfo(u.dtype)
    if to.bits >= wide.bits:
        return u
    p = p.astype(u.dtype)
    x = p + u
    r = trees.follow(p, jax.random.uniform(key, p.shape, u.dtype))
    # Spacing of the numbers of one exponent: 2^(e - nmant), and that of the smallest below.
    exponent = jnp.maximum(jnp.frexp(x)[1] - 1, max(to.minexp, wide.minexp + to.nmant))
    spacing = jnp.ldexp(jnp.ones((), u.dtype), exponent - to.nmant)
    toward_zero = jnp.floor(jnp.abs(x) / spacing + r) * spacing
    return jnp.copysign(toward_zero, x) - p


def _is_narrow(p: Any) -> bool:
    return trees.is_trained(p) and p.dtype != trees.at_least_float32(p.dtype)


@block
def master_weights(transformation: Any):
    """The transformation works on float32 copies; the parameters are their rounded values.

    Micikevicius et al. 2018. Weight decay and trust ratios read the copies, too. A parameter that is
    changed by anything else than this transformation goes back to its copy: `init` anew then.

    Needs params. Remembers `inner` and `master`, the copies of the leaves below float32.
    """
    tx = as_transformation(transformation)

    def copy(p):
        return trees.wide_copy(p) if _is_narrow(p) else None

    def init(params):
        master = trees.map_trained(copy, params)
        return sentence.remember(inner=tx.init(trees.prefer(master, params)), master=master)

    def run(finish, updates, state, params, extra):
        checks.given_params("update", "master_weights", params, updates)
        checks.remembered_like("master_weights", "master", state.master, params)
        copied = [m is not None for m in trees.flatten(state.master)[0]]
        if copied != [_is_narrow(p) for p in trees.flatten(params)[0]]:
            raise ValueError(
                f"master_weights: the state was made for parameters of other dtypes; {checks.ADVICE}"
            )
        full = trees.prefer(state.master, params)
        new, inner = sentence.run(tx.blocks, updates, state.inner, full, extra, "step")

        def out(q, u, p):
            if p is None or u is None:
                return p if finish == "step" else u
            if finish == "step":
                return q.astype(p.dtype)
            return trees.round_to(q, p.dtype).astype(u.dtype) - p.astype(u.dtype)

        master = jax.tree.map(
            lambda m, q: None if m is None else q, state.master, new, is_leaf=trees.is_none
        )
        result = jax.tree.map(out, new, updates, params, is_leaf=trees.is_none)
        return result, sentence.remember(inner=inner, master=master)

    return sentence.wrapper(init, run)
