"""Runs a sentence of blocks over trees of parameters.

A sentence is a list of (key, block). Two kinds of blocks alternate in it:

- `Leafwise` blocks: a whole stretch of them runs leaf by leaf as ONE function of one array, which
  is traced once per distinct shape and dtype. A new stretch begins at a block that must see the
  whole tree first (a global norm);
- a `Pair` of functions (init, update) over trees: wrappers and foreign transformations.

The state is a dict by block key with one step counter. Everything that concerns trees, dtypes,
frozen leaves, shapes and sharding is done here, once, so that no block has to.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks, single_pass, trees
from adamfx.record import Moments
from adamfx.values import Form, Static, Value

Array = Any
Tree = Any


class Leafwise(NamedTuple):
    """A block as arithmetic for one array; `leafwise` explains the fields."""

    leaf: Callable
    init: Callable | None = None
    shared: Callable | None = None
    init_shared: Callable | None = None
    moments: str | None = None
    whole_tree: bool = False
    needs_params: bool = False
    mask: Any = None


class Pair(NamedTuple):
    """A block as functions over trees. A foreign one gets trees in the dtype of the output.

    `update(updates, state, params, **extra) -> (updates, state)`. Where the block ends a sentence
    that is applied, `step`, of the same arguments, may give the new parameters instead.
    """

    init: Callable
    update: Callable
    foreign: bool = False
    step: Callable | None = None


def wrapper(init: Callable, run: Callable) -> Pair:
    """A pair from `run(finish, updates, state, params, extra)`, which ends like `run` below."""

    def finished(finish: str) -> Callable:
        def call(updates, state, params=None, **extra):
            return run(finish, updates, state, params, extra)

        return call

    return Pair(init, finished("carry"), step=finished("step"))


class Here:
    """What a leaf function may read besides the update: arrays of one leaf, float32 at least.

    `param` the parameter, for blocks that declare needs_params; `gradient` as the estimators saw it;
    `memory` what this block remembers of this leaf, by name; `shared` what its `shared` returned;
    `dtype` what the parameter is stored in.
    """

    def __init__(
        self, block: str, param: Any, gradient: Array, memory: Any, shared: Any, dtype: Any
    ):
        self._block, self._param = block, param
        self.gradient, self.memory, self.shared = gradient, memory, shared
        self.dtype = dtype

    @property
    def param(self) -> Array:
        if self._param is None:
            raise ValueError(
                f"{self._block} reads here.param; declare it: leafwise(leaf, needs_params=True)"
            )
        return self._param


class Step(NamedTuple):
    """What a block's `shared` may read, once per step."""

    count: Array  # steps done before this one, int32
    memory: Any  # what this block remembers once for all leaves, by name
    rates: Any  # (first, second): the Rates of the scale_by_moments before this block
    updates: list  # whole_tree blocks: the trained leaves of the update so far
    extra: dict[str, Any]  # extra arguments of update


class Memory:
    """What a block remembers, by name: `state["scale_by_moments"].mu`.

    `remember(mu=..., nu=...)` makes one: a named tuple, which JAX, Flax and Orbax know.
    """

    __slots__ = ()
    _fields: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no {name!r} here; this block remembers {', '.join(self._fields)}")

    def __reduce__(self):
        return _remember, (self._fields, tuple(getattr(self, name) for name in self._fields))


@functools.cache
def _memory_type(names: tuple[str, ...]) -> Any:
    bases = (Memory, collections.namedtuple("Memory", names))
    return type("Memory", bases, {"__slots__": ()})


def _remember(names: tuple[str, ...], values: tuple) -> Memory:
    return _memory_type(names)(*values)


def remember(**fields: Any) -> Memory:
    """A Memory with these fields."""
    return _remember(tuple(fields), tuple(fields.values()))


def is_memory(x: Any) -> bool:
    """Whether it is what one block remembers."""
    return isinstance(x, Memory)


def memories(state: Tree, field: str) -> list[Memory]:
    """What in a tree of states remembers something of this name, in order, those inside included."""

    def holds(x: Any) -> bool:
        return is_memory(x) and field in x._fields

    found = [x for x in jax.tree.leaves(state, is_leaf=holds) if holds(x)]
    inside = [memories([y for n, y in x._asdict().items() if n != field], field) for x in found]
    return [y for x, xs in zip(found, inside, strict=True) for y in (x, *xs)]


class Block:
    """A block at work in one program: its key, meaning, and what it remembers, by leaf."""

    def __init__(self, key: str, value: Value, scalar_dtype: Any):
        self.key, self.form, self.hyper = key, value._form, value._leaves
        for name, x in zip(value._leaf_names(), self.hyper, strict=True):
            if np.shape(x):
                raise ValueError(
                    f"{key}: {name} has shape {np.shape(x)}, hyperparameters are scalars; to run a "
                    "stacked transformation, vmap over it: jax.vmap(lambda tx: tx.init(params))(stacked)"
                )
        spec: Any = self.form.build(trees.cast_floats(self.hyper, scalar_dtype)).meaning
        self.spec = spec
        self.is_pair = isinstance(spec, Pair)
        self.scalar_names = (
            tuple(spec.init_shared()) if not self.is_pair and spec.init_shared else ()
        )
        self.scalars: dict[str, Array] = {}
        self.columns: dict[str, list] = {}
        self.state: Any = None
        self.acts: list[bool] | None = None  # by leaf; None: on all

    def load(self, state: Any, structure: Any) -> None:
        """Takes the block's part of the state apart."""
        self.state = state
        if isinstance(state, Memory) and not self.is_pair:
            for name in state._fields:
                x = getattr(state, name)
                if name in self.scalar_names:
                    self.scalars[name] = x
                else:
                    self.columns[name] = structure.flatten_up_to(x)

    def memory(self, j: int) -> dict[str, Array]:
        return {name: column[j] for name, column in self.columns.items()}

    def remember(self, j: int, memory: dict[str, Array]) -> None:
        if set(memory) != set(self.columns):
            raise ValueError(
                f"{self.key}: init returned {sorted(memory)} for one leaf and {sorted(self.columns)} for "
                "another; it must return the same names for every leaf"
            )
        for name, x in memory.items():
            self.columns[name][j] = x

    def save(self, structure: Any) -> Any:
        """The block's part of the new state."""
        if self.is_pair:
            return self.state
        columns = {name: structure.unflatten(column) for name, column in self.columns.items()}
        return remember(**columns, **self.scalars)


class Run(NamedTuple):
    """The static half of a stretch's leaf function."""

    forms: tuple[Form, ...]
    finish: str = "carry"  # "carry": as computed; "update": in the output's dtype; "step": p + u
    dtype: Any = None  # of the output
    scalars: Any = None  # structure of the scalars
    numbers: tuple = ()  # those that are Python numbers; None: an array, which is an argument


Blocks = Sequence[tuple[str, Value]]


# ---- init ----------------------------------------------------------------------------------------


def init(blocks: Blocks, params: Tree) -> dict[str, Any]:
    """The state of a sentence: {"count": 0, key: Memory or the pair's own state, ...}."""
    leaves, structure = trees.flatten(params)
    checks.leaves("init", leaves, params)
    trained = [trees.is_trained(x) for x in leaves]
    leaves = [jnp.asarray(x) if t else None for x, t in zip(leaves, trained, strict=True)]
    present = [x for x in leaves if x is not None]
    anchor = trees.anchor(present)
    dtype = _scalar_dtype(present)
    working = [Block(key, value, dtype) for key, value in blocks]

    state = {"count": replicate(anchor, jnp.zeros((), jnp.int32))}
    for block in working:
        if block.is_pair:
            own = block.spec.init(structure.unflatten(leaves))
            if jax.tree.leaves(own):
                state[block.key] = own
            continue
        if block.spec.init_shared:
            scalars = block.spec.init_shared()
            block.scalars = {n: replicate(anchor, _scalar(x, dtype)) for n, x in scalars.items()}
        if block.spec.init:
            for name in jax.eval_shape(block.spec.init, anchor):
                block.columns[name] = [None] * len(leaves)
        if block.scalars or block.columns:
            state[block.key] = block
    remembering = [block for block in working if block.columns]
    run = Run(tuple(block.form for block in remembering))
    hyper = [block.hyper for block in remembering]
    for j, x in enumerate(leaves):
        if x is not None and remembering:
            for block, memory in zip(remembering, _init_leaf(run, hyper, x), strict=True):
                block.remember(j, memory)
    return {k: x.save(structure) if isinstance(x, Block) else x for k, x in state.items()}


@functools.partial(jax.jit, static_argnums=0)
def _init_leaf(run: Run, hyper: list, p: Array) -> list[dict[str, Array]]:
    """What each block of the run remembers of one array at the start."""
    at = p.astype(trees.at_least_float32(p.dtype))
    specs = _build(run, hyper, at.dtype)
    starts: Any = [spec.init for spec in specs]
    return [{name: trees.follow(p, m) for name, m in init(at).items()} for init in starts]


replicate = jax.jit(trees.replicate)


# ---- one step ------------------------------------------------------------------------------------


def run(
    blocks: Blocks,
    grads: Tree,
    state: dict[str, Any],
    params: Tree,
    extra: dict[str, Any],
    finish: str,
) -> tuple[Tree, dict[str, Any]]:
    """One step of a sentence: (updates, state), or (new params, state) for finish="step"."""
    where = "step" if finish == "step" else "update"
    given, structure = trees.flatten(grads)
    checks.leaves(where, given, grads)
    p = checks.params_like(where, params, grads) if params is not None else [None] * len(given)
    trained = [trees.is_trained(g) for g in given]
    if params is not None:
        checks.gradient_dtypes(where, given, p, grads)
        trained = [t and trees.is_trained(q) for t, q in zip(trained, p, strict=True)]
    x = [jnp.asarray(g) if t else g for g, t in zip(given, trained, strict=True)]
    p = [jnp.asarray(q) if t and q is not None else q for q, t in zip(p, trained, strict=True)]
    present = [y for ys in (x, p) for y, t in zip(ys, trained, strict=True) if t and y is not None]
    working = [Block(key, value, _scalar_dtype(present)) for key, value in blocks]

    checks.state(where, working, state)
    for block in working:
        checks.memory_structure(where, block, state.get(block.key), grads)
        block.load(state.get(block.key), structure)
        block.acts = checks.mask(where, block, params, grads)
        if not block.is_pair and block.spec.needs_params:
            checks.given_params(where, block.key, params, grads)
        for column in block.columns.values():  # a leaf that was frozen at init stays frozen
            trained = [t and m is not None for t, m in zip(trained, column, strict=True)]
    checks.memory_shapes(where, working, x, trained, grads)

    to = [
        (y if q is None else q).dtype if t else None for y, q, t in zip(x, p, trained, strict=True)
    ]
    g, rates = list(x), (None, None)
    stretches = _stretches(working)
    for i, stretch in enumerate(stretches):
        if stretch and stretch[0].is_pair:
            ends = finish == "step" and not any(stretches[i + 1 :])
            args = (stretch[0], x, p, trained, to, structure, params is not None, extra)
            if ends and stretch[0].spec.step:
                x = _run_pair(*args, step=True)
                break
            x = _run_pair(*args)
            continue
        shared = {}
        for block in stretch:
            whole = (
                [y for y, t in zip(x, trained, strict=True) if t] if block.spec.whole_tree else []
            )
            step = Step(state["count"], remember(**block.scalars), rates, whole, extra)
            shared[block.key] = _run_shared(block, step)
            if block.spec.moments == "opens":
                rates = shared[block.key]
        mode = finish if stretch is stretches[-1] else "carry"
        prepared: dict[tuple, tuple] = {}  # by the blocks that act on a leaf
        for j in (j for j, t in enumerate(trained) if t):
            active = tuple(b for b in stretch if b.acts is None or b.acts[j])
            if active not in prepared:
                scalars = [(b.hyper, shared[b.key]) for b in active]
                prepared[active] = (
                    tuple(b.form for b in active),
                    *_split((state["count"], scalars)),
                )
            forms, structure_of_scalars, numbers, arrays = prepared[active]
            needs_param = mode == "step" or any(b.spec.needs_params for b in active)
            x[j], g[j], memories = _run_leaf(
                Run(forms, mode, to[j], structure_of_scalars, numbers),
                arrays,
                ([b.memory(j) for b in active], p[j] if needs_param else None, g[j], x[j]),
            )
            for block, memory in zip(active, memories, strict=True):
                block.remember(j, memory)

    out = [
        y if t else _frozen_output(g, q, finish)
        for y, t, g, q in zip(x, trained, given, p, strict=True)
    ]
    new = {block.key: block.save(structure) for block in working if block.key in state}
    # It stops one before the end, so that count + 1, the t of the papers, never wraps.
    count = jnp.minimum(state["count"], np.int32(2**31 - 3)) + np.int32(1)
    return structure.unflatten(out), {**state, **new, "count": count}


def _stretches(blocks: list[Block]) -> list[list[Block]]:
    """The blocks that run together; a pair stands alone. The last stretch is leafwise."""
    found: list[list[Block]] = [[]]
    for block in blocks:
        if block.is_pair:
            found += [[block], []]
        elif block.spec.whole_tree:
            found.append([block])
        else:
            found[-1].append(block)
    return [stretch for stretch in found[:-1] if stretch] + found[-1:]


def _run_shared(block: Block, step: Step) -> Any:
    if block.spec.shared is None:
        return None
    if not block.spec.init_shared:
        return block.spec.shared(step)
    result, scalars = block.spec.shared(step)
    new = {n: _like(block.key, n, scalars[n], x) for n, x in block.scalars.items()}
    block.scalars = new
    return result


def _split(scalars: Any) -> tuple[Any, tuple, list]:
    """(structure, Python numbers or None, arrays): arguments cost time at each call of a leaf."""
    leaves, structure = jax.tree.flatten(scalars)
    is_number = [isinstance(x, (int, float, complex)) for x in leaves]
    numbers = tuple(Static(x) if n else None for x, n in zip(leaves, is_number, strict=True))
    return structure, numbers, [x for x, n in zip(leaves, is_number, strict=True) if not n]


@functools.partial(jax.jit, static_argnums=0)
def _run_leaf(run: Run, scalars: list, arrays: tuple) -> tuple[Array, Array, list]:
    """A stretch on one array: (direction or new parameter, gradient, what the blocks remember)."""
    given = iter(scalars)
    leaves = [next(given) if n is None else jnp.asarray(n.value) for n in run.numbers]
    count, pairs = run.scalars.unflatten(leaves)
    hyper, shared = [h for h, _ in pairs], [s for _, s in pairs]

    def stretch(arrays: tuple) -> tuple[Array, Array, list]:
        return _stretch(run, hyper, shared, *arrays)

    if single_pass.is_on():
        return single_pass.each_from_old(stretch, count, arrays)
    return stretch(arrays)


def _stretch(
    run: Run, hyper: list, shared: list, memory: list, p: Array | None, g: Array, x: Array
) -> tuple[Array, Array, list]:
    dtype = trees.at_least_float32(x.dtype, run.dtype)
    real = trees.real_dtype(dtype)
    x, g = x.astype(dtype), g.astype(dtype)
    at = None if p is None else p.astype(dtype)
    moments = Moments(direction=x, gradient=g)
    memories = []
    for form, spec, s, old in zip(
        run.forms, _build(run, hyper, dtype), shared, memory, strict=True
    ):
        wide = {n: _widen(m, dtype, real) for n, m in old.items()}
        if spec.moments == "corrects":
            if not moments.is_open:
                raise ValueError(
                    f"{form.constructor.name}: nothing to correct; it must follow scale_by_moments, "
                    "with nothing but other corrections between them"
                )
        else:
            moments = moments.close()
        name, declared = form.constructor.name, at if spec.needs_params else None
        cast = trees.cast_floats(s, real)
        here = Here(name, declared, moments.gradient, remember(**wide), cast, run.dtype)
        given = moments if spec.moments == "corrects" else moments.direction
        out = spec.leaf(given, here)
        new = old
        if spec.init:
            out, new = _pair(form.constructor.name, out, old)
            new = {n: _like(form.constructor.name, n, new[n], m) for n, m in old.items()}
        memories.append(new)
        if not isinstance(out, Moments):
            out = moments.replace(
                direction=_like(form.constructor.name, "update", out, x), first=None, second=None
            )
        moments = out
    u = moments.close().direction
    if run.finish == "step":
        u = at + u
    return (u if run.finish == "carry" else u.astype(run.dtype)), moments.gradient, memories


def _build(run: Run, hyper: list, dtype: Any) -> list[Leafwise]:
    hyper = trees.cast_floats(hyper, trees.real_dtype(dtype))
    return [form.build(h).meaning for form, h in zip(run.forms, hyper, strict=True)]


def _widen(x: Array, dtype: Any, real: Any) -> Array:
    """Memory as the arithmetic wants it: floats in its dtype, anything else as it is."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return x.astype(dtype if jnp.iscomplexobj(x) else real)


def _scalar(x: Any, dtype: Any) -> Array:
    x = jnp.asarray(x)
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _pair(block: str, out: Any, old: dict[str, Array]) -> tuple[Any, dict[str, Array]]:
    if type(out) is not tuple or len(out) != 2 or not isinstance(out[1], dict):
        raise TypeError(
            f"{block}: its leaf function must return (u, {{name: array}}), since it has init; it returned "
            f"{out!r}"
        )
    if set(out[1]) != set(old):
        raise ValueError(
            f"{block}: its leaf function remembers {sorted(out[1])}, its init made {sorted(old)}"
        )
    return out


def _like(block: str, name: str, new: Array, old: Array) -> Array:
    if jnp.shape(new) != old.shape:
        raise ValueError(
            f"{block}: its leaf function returned {name} of shape {jnp.shape(new)} for {old.shape}; "
            "the arithmetic of one array must keep its shape"
        )
    return jnp.asarray(new).astype(old.dtype)


def _run_pair(
    block: Block,
    x: list,
    p: list,
    trained: list[bool],
    to: list,
    structure: Any,
    with_params: bool,
    extra: dict[str, Any],
    step: bool = False,
) -> list:
    """A block over trees; frozen leaves are None in what it is given. Updates, or new parameters."""
    updates = [y if t else None for y, t in zip(x, trained, strict=True)]
    params = [q if trees.is_trained(q) else None for q in p]
    if block.spec.foreign:  # knows no missing gradients
        updates = [
            jnp.zeros_like(q) if y is None and q is not None else y
            for y, q in zip(updates, params, strict=True)
        ]
        updates = [
            y if y is None or d is None else y.astype(d) for y, d in zip(updates, to, strict=True)
        ]
    else:
        updates = [
            y if y is None else y.astype(trees.at_least_float32(y.dtype, d))
            for y, d in zip(updates, to, strict=True)
        ]
    tree = structure.unflatten(updates)
    if block.state is None:  # it remembers nothing: its empty state is made anew
        block.state = jax.eval_shape(block.spec.init, tree)
        if jax.tree.leaves(block.state):
            raise ValueError(f"update: the state has no {block.key!r}; {checks.ADVICE}")
    args = (tree, block.state, structure.unflatten(params) if with_params else None)
    call = block.spec.step if step else block.spec.update
    new, block.state = call(*args, **extra)
    difference = trees.same_structure(new, tree)
    if difference:
        raise ValueError(
            f"{block.key}: its update returned another tree than it was given: {difference}"
        )
    out = [y if t else old for y, old, t in zip(trees.flatten(new)[0], x, trained, strict=True)]
    for path, y, old, t in zip(trees.paths(tree), out, x, trained, strict=True):
        if t and y.shape != old.shape:
            raise ValueError(
                f"{block.key}: its update turned {path} of shape {old.shape} into {y.shape}"
            )
    return out


def _frozen_output(g: Any, p: Any, finish: str) -> Any:
    """What a frozen leaf gets: zeros of the parameter's dtype, or the parameter itself."""
    if finish == "step":
        return p
    if g is None or jnp.issubdtype(trees.dtype_of(g if p is None else p), jax.dtypes.extended):
        return None
    like = g if p is None else p
    if trees.dtype_of(like) == jax.dtypes.float0:
        return np.zeros(np.shape(like), jax.dtypes.float0)
    return jnp.zeros_like(like)


def _scalar_dtype(leaves: list) -> Any:
    """The dtype of what is computed once per step: the widest of the leaves, float32 at least."""
    return trees.at_least_float32(*{trees.real_dtype(x.dtype) for x in leaves})
