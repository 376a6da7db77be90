"""Where the state of any transformation lies: shapes and shardings of it, shared out, or on the host."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adamfx.engine import host, trees
from adamfx.engine.placement import check_one_kind, is_typed, partitions, reshard
from adamfx.transformation import GradientTransformation, block, treewise
from adamfx.values.arguments import checked
from adamfx.values.constructor import Inner
from adamfx.wrappers.groups import Labels

Array = Any
Tree = Any


@checked
def abstract_state(tx: GradientTransformation, params: Tree) -> Any:
    """Shapes, dtypes and shardings of tx.init(params), without making an array.

        like = fx.abstract_state(tx, jax.tree.map(...))          # for Orbax, to restore on another mesh
        where = jax.tree.map(lambda x: x.sharding, like)         # for jax.jit(..., out_shardings=...)

    `jax.eval_shape(tx.init, params)` gives the shapes alone.

    Args:
      tx: a transformation of this library.
      params: arrays, or `jax.ShapeDtypeStruct`s with a sharding, on one mesh. A leaf without a NamedSharding
        counts as replicated; where no leaf has one, neither has the state.

    Raises ValueError for parameters on several meshes: those of each mesh are a tree of their own.
    """
    trees.check_leaves("abstract_state", "params", params)
    tx = GradientTransformation.as_inner(tx)
    leaves = [x for x in jax.tree.leaves(params) if _is_named(x)]
    meshes = list(dict.fromkeys(x.sharding.mesh for x in leaves))
    if len(meshes) > 1:
        raise ValueError(
            f"abstract_state: the parameters lie on {len(meshes)} meshes; call it for the tree of each one"
        )
    if not meshes:
        return jax.eval_shape(tx.init, params)
    mesh = meshes[0]
    # The types of explicit axes carry shardings through a trace, those of automatic ones do not.
    typed = _explicit(mesh)

    def seen(x: Any) -> Any:
        if not hasattr(x, "dtype"):
            return x
        spec = x.sharding.spec if _is_named(x) else PartitionSpec()
        spec = PartitionSpec(*partitions(spec, np.ndim(x)))
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=NamedSharding(typed, spec))

    spaces: list = []

    def init(params: Tree) -> Any:
        made = tx.init(params)
        spaces.extend(getattr(jax.typeof(x), "memory_space", None) for x in jax.tree.leaves(made))
        return made

    def back(x: Any, space: Any) -> Any:
        spec = x.sharding.spec if _is_named(x) else PartitionSpec()
        kind = "pinned_host" if space == jax.memory.Space.Host else None
        lies = NamedSharding(mesh, spec, memory_kind=kind)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies)

    with jax.sharding.use_abstract_mesh(typed.abstract_mesh):
        found = jax.eval_shape(init, jax.tree.map(seen, params))
    leaves, structure = jax.tree.flatten(found)
    return structure.unflatten(map(back, leaves, spaces))


def _is_named(x: Any) -> bool:
    return isinstance(getattr(x, "sharding", None), NamedSharding)


def _explicit(mesh: Any) -> Any:
    return Mesh(
        mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * len(mesh.axis_names)
    )


# ---- shared out ----------------------------------------------------------------------------------


@block
def shard_state(transformation: Inner, axis: str = "data"):
    """ZeRO: parameters stay as they are; state and arithmetic are shared out along an axis of the mesh.

        with jax.set_mesh(mesh):
            tx = fx.shard_state(fx.adamw(1e-3))
            state = tx.init(params)

    Each leaf is cut along its first axis that is free and that the size of the mesh axis divides; others,
    such as scalars, stay whole. Gradients are reduced into shards, new parameters are gathered. Rajbhandari
    et al. 2020, stages 1 and 2. With automatic and explicit axes, around wrappers or inside of them.

    Args:
      transformation: what remembers.
      axis: of the mesh that `jax.set_mesh` has set.

    Remembers `inner`, and `cut`, the axis of each leaf, as part of the structure. Raises ValueError where no
    mesh is set, or one without that axis.
    """
    tx = transformation
    if not isinstance(axis, str):
        raise TypeError(f"shard_state: axis must be the name of an axis of the mesh, got {axis!r}")

    def sharded(leaves, cut):
        dims = leaves.layout.pick(cut)

        def of(column):
            if column is None:
                return None
            return [_lying(x, d, axis) for x, d in zip(column, dims, strict=True)]

        return leaves.replace(
            updates=of(leaves.updates), gradients=of(leaves.gradients), params=of(leaves.params)
        )

    def gathered(column, leaves, cut):
        dims = leaves.layout.pick(cut)
        likes = leaves.params or leaves.updates
        return [_lying(x, d, None, p) for x, d, p in zip(column, dims, likes, strict=True)]

    def start(leaves):
        n = _size(axis)
        if leaves.layout.where == "init":
            _check_layout_is_known(leaves.params, axis, n)
        cut: list[int | None] = [None] * len(leaves.layout.grads)
        for j, p in zip(leaves.layout.rows, leaves.params, strict=True):
            cut[j] = _first_free(p, axis, n)
        return {"cut": Labels(tuple(cut)), "inner": tx.start(sharded(leaves, cut))}

    def run(leaves, memory, step):
        cut = memory.cut.of
        if any(d is not None for d in cut):
            _size(axis)
        table = sharded(leaves, cut)
        out, inner = tx.run(table, memory.inner, step)
        memory = {"cut": memory.cut, "inner": inner}
        if leaves.applies:  # the sum is made of shards, and travels as narrow as the parameters are
            return leaves.replace(moved=gathered(out.ended(), leaves, cut)), memory
        updates = out.updates
        if leaves.final:
            updates = [u.astype(to) for u, to in zip(updates, leaves.dtypes, strict=True)]
        return leaves.replace(updates=gathered(updates, leaves, cut)), memory

    def through(leaves, memory, point):
        found = point(tx, sharded(leaves, memory.cut.of), memory.inner)
        return leaves.replace(params=gathered(found.params, leaves, memory.cut.of))

    return treewise(run, tx)._replace(
        start=start, through=through, carried=("cut", "inner"), hands_on=True
    )


def _size(axis: str) -> int:
    """Of the mesh axis."""
    mesh = jax.sharding.get_abstract_mesh()
    check_one_kind(mesh)
    if not mesh.shape:
        raise ValueError(
            "shard_state: no mesh is set, over which to share the state out; write with jax.set_mesh(mesh): "
            "around init and the step"
        )
    if axis not in mesh.shape:
        raise ValueError(
            f"shard_state: the mesh has no axis {axis!r}; it has {', '.join(map(repr, mesh.shape))}"
        )
    return mesh.shape[axis]


def _check_layout_is_known(params: list, axis: str, n: int) -> None:
    """Raises ValueError where parameters may lie along other axes of the mesh, and no type tells."""
    mesh = jax.sharding.get_abstract_mesh()
    if any(_spec_of(p) is None for p in params) and math.prod(mesh.shape.values()) > n:
        raise ValueError(
            "shard_state: while init is traced, no type tells along which axes of the mesh other than "
            f"{axis!r} the parameters lie already; call init outside of jit, or read shapes and shardings "
            "off abstract_state(tx, params)"
        )


def _spec_of(x: Array) -> list | None:
    """The axes of the mesh along each axis of an array; None where no type tells."""
    if isinstance(x, Tracer) and not is_typed(x):
        return None
    sharding = jax.typeof(x).sharding if isinstance(x, Tracer) else x.sharding
    if not isinstance(sharding, NamedSharding):
        return [None] * x.ndim
    return partitions(sharding.spec, x.ndim)


def _first_free(p: Array, axis: str, n: int) -> int | None:
    spec = _spec_of(p) or [None] * p.ndim
    taken = [a for names in spec for a in (names if isinstance(names, tuple) else (names,))]
    if n < 2 or axis in taken:
        return None
    fits = (d for d, m in enumerate(p.shape) if spec[d] is None and m and m % n == 0)
    return next(fits, None)


def _lying(x: Array, dim: int | None, axis: str | None, like: Array = None) -> Array:
    """x cut along dim over this axis of the mesh; for no axis in one piece there, and otherwise as `like`."""
    if dim is None:
        return x
    spec = _spec_of(x)
    if spec is None:
        free = PartitionSpec.UNCONSTRAINED
        parts = [axis if d == dim else free for d in range(x.ndim)]
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))
    if axis is None:
        spec = _spec_of(like) or spec
    spec[dim] = axis
    to = PartitionSpec(*spec)
    if isinstance(x, Tracer):
        return reshard(x, to)
    move = reshard if is_typed(x) else jax.lax.with_sharding_constraint
    return jax.jit(move, static_argnums=1)(x, to)


# ---- on the host ---------------------------------------------------------------------------------


@block
def offload(transformation: Inner):
    """The state rests in the memory of the host, and is fetched leaf by leaf around the arithmetic.

        tx = fx.offload(fx.adamw(1e-3))

    The arithmetic stays on the device. Between two steps, as during forward and backward passes, the
    device has the room of the whole state; during the step it holds the memory of two leaves at a time.
    Put it next to what remembers: `accumulate(offload(tx), 8)` fetches once per window, while around a
    wrapper that looks at what is inside of it (accumulate, skip_nonfinite, stored, master_weights) the whole
    state of that is fetched at once. Arrays of fewer than 4,096 numbers stay on the device. JAX 0.7 leaves
    all of it there.

    Args:
      transformation: what remembers.

    Remembers `inner`, in pinned memory of the host.
    """
    tx = transformation

    def start(leaves):
        return {"inner": host.rested(tx.start(leaves))}

    def run(leaves, memory, step):
        out, inner = tx.run(leaves.replace(on_host=True), memory.inner, step)
        return out.replace(on_host=leaves.on_host), {"inner": inner}

    def through(leaves, memory, point):
        return leaves.replace(params=point(tx, leaves, host.fetched(memory.inner)).params)

    return treewise(run, tx)._replace(start=start, through=through, hands_on=True)
