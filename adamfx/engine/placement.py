"""Where memory lives: on the devices of its parameter, along the axes that it shares with it.

Eager code places an array by its sharding. A traced program reads the sharding of explicit axes from
the type; for automatic axes, which no type tells, it ties the memory to its parameter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from adamfx.checks import shown
from adamfx.engine import trees

Axes = Sequence[Any]  # of int, None or ...
reshard: Any = getattr(jax, "reshard", None) or jax.sharding.reshard  # type: ignore[attr-defined]


class Along(NamedTuple):
    """An array and the axis of the parameter that each of its axes follows; see `along`."""

    array: Any
    axes: tuple[Any, ...]


def along(x: Any, axes: Axes) -> Along:
    """Memory whose axis i is sharded as axis `axes[i]` of its parameter; None: not sharded.

    An axis may be shorter than the one it follows, with one number for each block of it. `...` stands for the
    axes that are not named: along it lies what of the mesh cuts the parameter there.

    For `init` of a block whose memory has another shape than the parameter (m, n), such as
    {"left": along(jnp.zeros((m, m)), (0, ...)), "right": along(jnp.zeros((n, n)), (1, ...))}.
    Without it, memory of the parameter's shape is sharded as the parameter, any other is replicated.
    """
    if not trees.is_number(x):
        raise TypeError(f"along: x must be an array, got {shown(x)}")
    if not isinstance(axes, (list, tuple)) or not all(
        a is None or a is ... or _is_axis(a) for a in axes
    ):
        raise TypeError(f"along: axes must be a tuple of ints, None or ..., got {shown(axes)}")
    if list(axes).count(...) > 1:
        raise ValueError(f"along: ... may stand for one axis of the memory only, got {shown(axes)}")
    if len(axes) != jnp.ndim(x):
        raise ValueError(
            f"along: axes must name an axis of the parameter, None or ... for each of the {jnp.ndim(x)} "
            f"axes of the memory, got {tuple(axes)}"
        )
    return Along(jnp.asarray(x), tuple(axes))


def _is_axis(a: Any) -> bool:
    return isinstance(a, (int, np.integer)) and not isinstance(a, bool)


def beside(p: Any, x: Any) -> Any:
    """Memory that has the axes of its parameter, some of them shorter, as lying along these."""
    if x.ndim != p.ndim or x.shape == p.shape:
        return x
    pairs = enumerate(zip(x.shape, p.shape, strict=True))
    return along(x, [i if a == b or (a > 1 and b % a == 0) else None for i, (a, b) in pairs])


def anchor(arrays: list) -> jax.Array:
    """The first of the arrays, whose devices are those of the whole tree."""
    return next(iter(arrays), jnp.zeros(()))


def follow(p: jax.Array, x: Any, axes: Axes | None = None) -> jax.Array:
    """`x` where `p` is. Axis i of `x` lies as axis axes[i] of `p` does; None: in one piece; see `along`.

    Without `axes`, `x` of the shape of `p` lies as `p` does, and another shape is replicated.
    """
    x = _strong(x)
    if is_unreduced(x):
        return x
    if axes is None:
        return follow(p, x, list(range(p.ndim)) if x.shape == p.shape else [None] * x.ndim)
    for i, a in enumerate(axes):
        if _is_axis(a) and (not x.shape[i] or p.shape[a] % x.shape[i]) and x.shape[i] != p.shape[a]:
            raise ValueError(
                f"along: axis {i} of memory of shape {x.shape} cannot follow axis {a} of a parameter of "
                f"shape {p.shape}: its size is no divisor of that"
            )
    if not isinstance(p, Tracer):
        return x if isinstance(x, Tracer) else _put(p, x, axes)
    mesh = jax.typeof(p).sharding.mesh
    if mesh.axis_types and all(t == AxisType.Explicit for t in mesh.axis_types):
        spec = _spec(jax.typeof(p).sharding.spec, p.ndim, axes)
        return reshard(x, NamedSharding(mesh, _fitting(x, spec, mesh)))
    return _tie(p, x, axes)


def replicate(p: jax.Array, x: Any) -> jax.Array:
    """`x` in one piece on every device of `p`."""
    if jax.sharding.get_abstract_mesh().manual_axes:  # in shard_map it must not vary with p
        return _strong(x)
    return follow(p, x, (None,) * jnp.ndim(x))


def _tags(x: Any) -> tuple[frozenset, frozenset]:
    """Axes of the mesh over which an array is still to be summed; and over which its gradient will be."""
    spec = jax.typeof(x).sharding.spec
    return getattr(spec, "unreduced", frozenset()), getattr(spec, "reduced", frozenset())


def is_unreduced(x: Any) -> bool:
    """Whether the type says that each device holds only its summand."""
    return bool(_tags(x)[0])


def summed(x: Any) -> Any:
    """`x` added up over all devices, where its type says that it is not; without any such tag."""
    return reshard(x, _untagged(x)) if any(_tags(x)) else x


def zeros_as_summed(x: Any) -> Any:
    """Zeros as `summed(x)`."""
    return reshard(jnp.zeros(x.shape, x.dtype), _untagged(x))


def _untagged(x: Any) -> PartitionSpec:
    return PartitionSpec(*partitions(jax.typeof(x).sharding.spec, x.ndim))


def as_tagged(x: Any, like: Any) -> Any:
    """`x` as a parameter whose gradient stays unreduced, where `like` is one."""
    if not hasattr(like, "dtype") or not _tags(like)[1]:
        return x
    return reshard(x, jax.typeof(like).sharding.spec)


def summands(p: Any, x: Any) -> Any:
    """`x` of the shape of `p` as its unreduced gradients are, where those will be."""
    over = _tags(p)[1]
    if not over:
        return x
    spec = partitions(jax.typeof(p).sharding.spec, p.ndim)
    return reshard(x, PartitionSpec(*spec, unreduced=over))


def is_explicit(x: Any) -> bool:
    """Whether the type of an array says how it is sharded."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def is_typed(x: Any) -> bool:
    """Whether it does, or axes are explicit: an array that knows no mesh then lies whole on every device."""
    return is_explicit(x) or AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def check_one_kind(mesh: Any) -> None:
    """Raises ValueError for explicit beside automatic axes, which cannot be named in one layout."""
    if {AxisType.Explicit, AxisType.Auto} <= set(mesh.axis_types):
        kinds = ", ".join(
            f"{n} {t.name.lower()}" for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True)
        )
        raise ValueError(
            "what works on whole matrices, and shard_state, need a mesh whose axes are all explicit or all "
            f"automatic; this one has {kinds}"
        )


def in_one_piece(function: Callable, like: Callable) -> Callable:
    """The function, of arrays that lie whole on every device where axes are explicit.

    For products, decompositions and reshapes, of which no type tells how what they make is sharded.
    `like(*row)` is a tree as the result, of arrays that it lies like; None: as the function left it.
    """

    def of(*row: Any) -> Any:
        sharded = next((x for x in jax.tree.leaves(row) if is_explicit(x)), None)
        if sharded is None:
            return function(*row)
        check_one_kind(jax.typeof(sharded).sharding.mesh)
        out = function(*jax.tree.map(lambda x: replicate(sharded, x), row))
        return jax.tree.map(
            lambda x, y: y if x is None else follow(x, y),
            like(*row),
            out,
            is_leaf=lambda x: x is None,
        )

    return of


def cut_as(x: Any, y: Any) -> Any:
    """`y`, of another shape, cut as often as `x`: along rows or columns rather than the axes in front."""
    if not is_explicit(x):
        return y
    sharding = jax.typeof(x).sharding
    names = tuple(itertools.chain(*map(names_of, partitions(sharding.spec, x.ndim))))
    size = math.prod(sharding.mesh.shape[n] for n in names)
    fits = (
        a for a in (*range(-2, 0), *range(-y.ndim, -2)) if -a <= y.ndim and y.shape[a] % size == 0
    )
    along = next(fits, None)
    if not names or along is None:
        return y
    spec = PartitionSpec(*(names if a == along else None for a in range(-y.ndim, 0)))
    return reshard(y, NamedSharding(sharding.mesh, spec))


def in_whole_parts(x: Any, size: int) -> Any:
    """`x` as it lies, where each device has whole parts of this size of the last axis; else not cut there."""
    if not is_explicit(x):
        return x
    sharding = jax.typeof(x).sharding
    *others, last = partitions(sharding.spec, x.ndim)
    share = x.shape[-1] // math.prod(sharding.mesh.shape[n] for n in names_of(last))
    if share % size == 0:
        return x
    return reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*others, None)))


def lying_as(x: Any, y: Any) -> Any:
    """`x` of the shape of `y` as that lies, where a type tells."""
    return reshard(x, jax.typeof(y).sharding) if is_explicit(y) else x


def whole(x: jax.Array) -> jax.Array:
    """`x` with a word to the compiler, where the mesh is known, that every device has all of it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes or AxisType.Auto not in mesh.axis_types:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * x.ndim))


def _strong(x: Any) -> jax.Array:
    if not isinstance(x, jax.Array):
        x = jax.device_put(x) if isinstance(x, (np.ndarray, np.generic)) else jnp.asarray(x)
    return x.astype(x.dtype) if getattr(x, "weak_type", False) else x


def _spec(spec: Any, ndim: int, axes: Axes) -> PartitionSpec:
    of = partitions(spec, ndim)
    named = [a % ndim for a in axes if _is_axis(a)]
    parts = [part for a, part in enumerate(of) if a not in named and part is not None]
    others = parts[0] if len(parts) == 1 else tuple(itertools.chain(*map(names_of, parts))) or None
    return PartitionSpec(*(of[a] if _is_axis(a) else others if a is ... else None for a in axes))


def names_of(part: Any) -> tuple:
    """The axes of the mesh that a part of a spec has."""
    return part if isinstance(part, tuple) else (part,) * (part is not None)


def partitions(spec: Any, ndim: int) -> list:
    """The axes of the mesh along each axis of an array; what a spec says of reduced ones is left out."""
    names = list(getattr(spec, "partitions", spec))
    return names + [None] * (ndim - len(names))


def _fitting(x: jax.Array, spec: PartitionSpec, mesh: Any) -> PartitionSpec:
    """The spec without what does not divide an axis of x."""

    def shards(names: Any) -> int:
        return math.prod(mesh.shape[n] for n in names_of(names))

    pairs = zip(x.shape, spec, strict=True)
    return PartitionSpec(*(None if n and size % shards(n) else n for size, n in pairs))


def _put(p: jax.Array, x: jax.Array, axes: Axes) -> jax.Array:
    sharding = p.sharding
    if isinstance(sharding, NamedSharding):
        spec = list(_fitting(x, _spec(sharding.spec, p.ndim, axes), sharding.mesh))
        kind, explicit = sharding.memory_kind, AxisType.Explicit in sharding.mesh.axis_types
        while spec and spec[-1] is None and not explicit:  # as JAX writes what a program returns
            spec.pop()
        spec = PartitionSpec(*spec)
        return jax.device_put(x, NamedSharding(sharding.mesh, spec, memory_kind=kind))
    if len(sharding.device_set) > 1:  # described in XLA's terms only
        return jax.jit(_tie, static_argnums=2)(p, x, tuple(axes))
    # Committed to its device only where p is: a change would compile the step again.
    return jax.device_put(x, sharding) if getattr(p, "committed", False) else x


def _tie(p: jax.Array, x: jax.Array, axes: Axes) -> jax.Array:
    """`x` unchanged, as an array that depends on `p` as far as a compiler can see.

    (jax.experimental.shard_alike did this for jit only and is gone since JAX 0.12.)
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x
    y = p.real if jnp.iscomplexobj(p) else p
    never = (y > 0) & (y < 0)  # false everywhere; compilers do not fold it
    others = [a for a in range(p.ndim) if a not in axes]
    axes = [others[0] if a is ... and len(others) == 1 else a for a in axes]
    for i, a in enumerate(axes):
        if _is_axis(a) and never.shape[a] != x.shape[i]:
            blocks = math.gcd(
                p.shape[a], x.shape[i]
            )  # one number for each, as often as it has entries
            never = never.reshape(*never.shape[:a], blocks, -1, *never.shape[a + 1 :]).any(a + 1)
            never = jnp.repeat(never, x.shape[i] // blocks, a)
    kept = [a for a in axes if _is_axis(a)]
    if kept != list(range(p.ndim)):
        never = never.any([a for a in range(p.ndim) if a not in kept])
        never = jnp.transpose(never, [sorted(kept).index(a) for a in kept])
    never = jnp.expand_dims(never, [i for i, a in enumerate(axes) if not _is_axis(a)])
    return jnp.where(jnp.broadcast_to(never, x.shape), jnp.ones((), x.dtype), x)


def wide_zeros(p: jax.Array) -> jax.Array:
    """Zeros like `p`, float32 at least."""
    return jnp.zeros(p.shape, trees.at_least_float32(p.dtype))


def wide_copy(p: jax.Array) -> jax.Array:
    """`p`, float32 at least."""
    return p.astype(trees.at_least_float32(p.dtype))
