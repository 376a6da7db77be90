"""A stretch of leafwise blocks, run on every leaf as ONE function of one array."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine import chips, host, single_pass, trees
from adamfx.engine.control import once
from adamfx.engine.each import each
from adamfx.engine.leaves import Leaves
from adamfx.engine.memory import remember
from adamfx.engine.norms import norms
from adamfx.engine.placement import follow, in_one_piece, is_explicit
from adamfx.engine.record import Moments
from adamfx.engine.words import Here, Step, check_needs
from adamfx.engine.working import KEYS, Working, like

Array = Any


def stretches(blocks: Sequence[Working], leaves: Leaves) -> list[list[Working]]:
    """The blocks that run together. One that looks at all leaves first begins a new stretch.

    Arithmetic that is not elementwise has one of its own where the rest should not share its fate: be run
    once per result, or in one piece.
    """
    found: list[list[Working]] = []
    apart = single_pass.is_on() or chips.are_several() or any(map(is_explicit, leaves.updates))
    for block in blocks:
        last = found[-1] if found else []
        if block.is_leafwise and all(b.is_leafwise for b in last) and not block.spec.looks_around:
            alike = all(b.spec.elementwise for b in [*last, block])
            joins = not apart or alike or block.spec.moments == "corrects"
        else:
            joins = False
        # A block that looks around may lead those behind it; its own leaf function is as any other.
        if last and joins:
            last.append(block)
        else:
            found.append([block])
    return found


def run_stretch(
    blocks: list[Working], leaves: Leaves, count: Array, rates: Any, extra: Mapping[str, Any]
) -> tuple[Leaves, Any]:
    """The table after these blocks, which take down what they remember; and the rates of its moments."""
    if leaves.on_host and blocks[0].spec.looks_around:  # at the memory of all leaves
        blocks[0].columns = host.fetched(blocks[0].columns)
    for block in blocks:
        check_needs(block.key, block.spec.needs, leaves, extra)
        block.own = _own(block, leaves)
    wide = leaves.wide()
    for real in {trees.real_dtype(d) for d in wide}:
        for block in blocks:
            block.spec_for(real)  # here, not inside of a function of one leaf
    given = [_given(block, leaves, extra) for block in blocks]
    measured = None
    shared: list[Any] = []
    for block in blocks:
        spec = block.spec
        held = trees.cast_floats(remember(**block.own_scalars()), block.wide)
        step = Step(count, held, rates, extra=extra)
        if spec.norms:
            measured = _norms(block, leaves, wide, step, given[0])
        sums = _sums(block, leaves, wide, step, given[0]) if spec.sums else None
        seen = leaves.updates if spec.whole_tree else []
        seen = [u.astype(np.promote_types(u.dtype, block.wide)) for u in seen]
        step = step._replace(updates=seen, sums=sums)
        shared.append(_shared(block, step))
        rates = shared[-1] if spec.moments == "opens" else rates

    # What divides, as the masses of the moments do, is computed once anyway.
    opens = [block.spec.moments == "opens" for block in blocks]
    held = once([None if o else s for o, s in zip(opens, shared, strict=True)], count)
    shared = [s if o else h for o, s, h in zip(opens, shared, held, strict=True)]
    rows: dict[Any, list[int]] = {}
    for j in range(len(leaves)):
        active = tuple(b.own[j] is not False for b in blocks)
        own = tuple(_hashable(b.own[j]) for b in blocks)
        rows.setdefault((active, own, wide[j], leaves.dtypes[j]), []).append(j)
    x, g = list(leaves.updates), list(leaves.gradients)

    def settle(acting: list[Working], made: Any) -> None:
        for j, (u, gradient, memories) in made:
            x[j], g[j] = u, gradient
            for block, memory in zip(acting, memories, strict=True):
                block.record(j, memory)

    moved: set[int] = set()
    if all(b.spec.can_be_shared_out for b in blocks) and chips.are_several() and not leaves.on_host:
        for (active, *_), members in rows.items():
            made = (
                _over_chips(blocks, leaves, wide, shared, given, members, count)
                if all(active)
                else {}
            )
            settle(blocks, made.items())
            moved |= made.keys()
    rows = {kind: [j for j in members if j not in moved] for kind, members in rows.items()}
    turned = _together(blocks[0], leaves, wide, shared[0], given[0], moved)
    of_rows = host.InTurn() if leaves.on_host else each
    for (active, _, dtype, to), members in rows.items():
        if not any(active):
            for j in members:
                x[j] = x[j].astype(dtype)
        if not any(active) or not members:
            continue
        acting = [b for b, a in zip(blocks, active, strict=True) if a]
        scalars = [s for s, a in zip(shared, active, strict=True) if a]
        own = [b.own[members[0]] for b in acting]
        needs = leaves.params is not None and any("params" in b.spec.needs for b in acting)
        function = _leaf_function(acting, scalars, own, dtype, to, count)
        columns: list[list] = [[leaves.updates[j] for j in members], [g[j] for j in members]]
        columns.append([(leaves.params or [])[j] if needs else None for j in members])
        columns.append([_memories(acting, blocks[0], turned, j) for j in members])
        columns.append([measured[j] if measured and active[0] else None for j in members])
        columns.append([[x[j] for x, a in zip(given, active, strict=True) if a] for j in members])
        settle(acting, zip(members, of_rows(function, *columns), strict=True))
    return leaves.replace(updates=x, gradients=g), rates


def _given(block: Working, leaves: Leaves, extra: Mapping[str, Any]) -> list[tuple[dict, Any]]:
    """For each row: what its `per_leaf` names hold, and a random key of this step."""
    spec, layout = block.spec, leaves.layout
    columns = {n: layout.column(n, extra[n], n) for n in spec.per_leaf}
    keys: list = [None] * len(leaves)
    if spec.seed is not None:
        key = block.draw()
        keys = [jax.random.fold_in(key, j) for j in layout.rows]
        if spec.of_matrices:
            stacks = [u.shape[:-2] for u in leaves.updates]
            keys = [jax.random.split(k, s) if s else k for k, s in zip(keys, stacks, strict=True)]
    return [({n: c[j] for n, c in columns.items()}, key) for j, key in enumerate(keys)]


def _own(block: Working, leaves: Leaves) -> list:
    """What `each`, or the mask, says of each row; False where the block does not act."""
    spec = block.spec
    if spec.mask is None or spec.mask is True:
        acts = [True] * len(leaves)
    else:
        check_needs(block.key, ("params",), leaves, {})
        mask = trees.evaluate_mask(block.key, spec.mask, leaves.param_tree())
        acts = leaves.layout.pick(mask)
    if spec.each is None:
        return acts
    check_needs(block.key, ("params",), leaves, {})
    found = trees.spread(block.key, "tree of facts", spec.each, leaves.param_tree())
    return [a and _Own(x) for a, x in zip(acts, leaves.layout.pick(found), strict=True)]


class _Own:
    """What `each` says of a leaf, however false it may look."""

    def __init__(self, value: Any):
        self.value = value


def _hashable(own: Any) -> Any:
    x = own.value if isinstance(own, _Own) else own
    try:
        hash(x)
    except TypeError:
        return repr(x)
    return type(x), x


def _here(
    block: Working,
    dtype: Any,
    to: Any,
    g: Array,
    p: Any,
    memory: dict,
    own: Any,
    given: Any,
    **more: Any,
):
    real = trees.real_dtype(dtype)
    wide = {n: _widen(m, dtype, real) for n, m in memory.items()}
    declared = p if "params" in block.spec.needs else None
    own = own.value if isinstance(own, _Own) else own
    extra, key = given
    seen = remember(**{n: _widen(x, dtype, real) for n, x in extra.items()}) if extra else None
    return Here(block.name, declared, g, remember(**wide), to, own, extra=seen, key=key, **more)


def _ask(
    block: Working, function: str, leaves: Leaves, wide: list, step: Step, given: list
) -> list[dict[str, Any]]:
    """What `sums` or `norms` of a block returns for each row on which it acts; else {}."""
    needs = leaves.params is not None and "params" in block.spec.needs
    rows: dict[Any, list[int]] = {}
    for j, own in enumerate(block.own):
        if own is not False:
            rows.setdefault((_hashable(own), wide[j], leaves.dtypes[j]), []).append(j)
    found: list[dict] = [{} for _ in block.own]
    for (_, dtype, to), members in rows.items():
        spec, own = block.spec_for(trees.real_dtype(dtype)), block.own[members[0]]

        def one(u, g, p, memory, given, dtype=dtype, to=to, spec=spec, own=own):
            u, g, p = (None if x is None else x.astype(dtype) for x in (u, g, p))
            at = trees.cast_floats(step, trees.real_dtype(dtype))
            here = _here(block, dtype, to, g, p, memory, own, given, shared=at)
            made = getattr(spec, function)(u, here)
            if not isinstance(made, dict):
                raise TypeError(
                    f"{block.key}: {function} must return {{name: array}}, got {made!r}"
                )
            return made

        columns = [[leaves.updates[j] for j in members], [leaves.gradients[j] for j in members]]
        columns.append([(leaves.params or [])[j] if needs else None for j in members])
        columns.append([block.memory(j) for j in members])
        columns.append([given[j] for j in members])
        for j, made in zip(members, each(one, *columns), strict=True):
            found[j] = made
    return found


def _sums(block: Working, leaves: Leaves, wide: list, step: Step, given: list) -> Any:
    """What `sums` gives, added over the leaves."""
    parts = [x for x in _ask(block, "sums", leaves, wide, step, given) if x]
    if not parts:
        return _NoSums(block.wide)
    names = parts[0]
    return remember(
        **{
            n: functools.reduce(jax.lax.add, [p[n].astype(block.wide) for p in parts])
            for n in names
        }
    )


class _NoSums:
    """The sums over no leaves: zero, whatever their name."""

    def __init__(self, dtype: Any):
        self._zero = jnp.zeros((), dtype)

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._zero

    def _asdict(self) -> Any:
        return collections.defaultdict(lambda: self._zero)


def _norms(block: Working, leaves: Leaves, wide: list, step: Step, given: list) -> list:
    """The norms of what `norms` gives of each leaf."""
    parts = _ask(block, "norms", leaves, wide, step, given)
    found = iter(norms([[x] for part in parts for x in part.values()]))
    return [{n: next(found) for n in part} for part in parts]


def _together(
    block: Working, leaves: Leaves, wide: list, shared: Any, given: list, moved: set
) -> list[dict]:
    """What `together` of a block makes of the memory of each row on which it acts; else {}."""
    found: list[dict] = [{} for _ in block.own]
    rows: dict[Any, list[int]] = {}
    for j, own in enumerate(block.own):
        if own is not False and block.spec.together is not None and j not in moved:
            rows.setdefault(trees.real_dtype(wide[j]), []).append(j)
    for members in rows.values():

        def of_all(us, gs, ps, memories, members=members):
            dtypes = [(wide[j], leaves.dtypes[j]) for j in members]
            facts = [(block.own[j], given[j]) for j in members]
            return _turned(block, shared, dtypes, facts, us, gs, ps, memories)

        memories = [block.memory(j) for j in members]
        us, gs = ([column[j] for j in members] for column in (leaves.updates, leaves.gradients))
        ps = [None if leaves.params is None else leaves.params[j] for j in members]
        run = in_one_piece(of_all, lambda us, gs, ps, memories: memories)
        for j, new in zip(members, run(us, gs, ps, memories), strict=True):
            found[j] = new
    return found


def _turned(
    block: Working,
    shared: Any,
    dtypes: list,
    facts: list,
    us: list,
    gs: list,
    ps: list,
    memories: list,
) -> list[dict]:
    """The memory of rows whose arithmetic is of one real dtype, as `together` of a block has it."""
    real = trees.real_dtype(dtypes[0][0])
    scalars = trees.cast_floats(shared, real)
    wide = [
        [None if x is None else x.astype(d) for x, (d, _) in zip(xs, dtypes, strict=True)]
        for xs in (us, gs, ps)
    ]
    us, gs, ps = wide
    heres = [
        _here(block, dtype, to, g, p, m, own, given, shared=scalars)
        for (dtype, to), g, p, m, (own, given) in zip(dtypes, gs, ps, memories, facts, strict=True)
    ]
    return [
        m | {n: like(block.key, "together", n, x, m[n]) for n, x in new.items()}
        for new, m in zip(block.spec_for(real).together(us, heres), memories, strict=True)
    ]


def _over_chips(
    blocks: list[Working],
    leaves: Leaves,
    wide: list,
    shared: list,
    given: list,
    members: list[int],
    count: Array,
) -> dict[int, tuple]:
    """What the leaf function makes of matrices that several chips share out, by row."""
    dtype, to = wide[members[0]], leaves.dtypes[members[0]]
    own = [b.own[members[0]] for b in blocks]
    needs = leaves.params is not None and any("params" in b.spec.needs for b in blocks)
    members = [j for j in members if leaves.updates[j].ndim >= 2]
    rows = []
    for j in members:
        u, g = leaves.updates[j], leaves.gradients[j]
        p = (leaves.params or [])[j] if needs else None
        keys = [None if x[j][1] is None else jax.random.key_data(x[j][1]) for x in given]
        rows.append((u, None if g is u else g, p, [b.memory(j) for b in blocks], keys))
    kinds = [kind for kind in chips.kinds_of(rows) if chips.number_of([rows[i] for i in kind]) > 1]
    if not kinds:
        return {}
    # Numbers of the program are handed in: a program of one chip cannot reach for them.
    numbers, structure = jax.tree.flatten((shared, count, [b.hyper for b in blocks]))
    traced = [i for i, x in enumerate(numbers) if isinstance(x, jax.Array)]
    wrapped = functools.partial(jax.random.wrap_key_data, impl=KEYS)

    def work(stacks: list, read: list) -> list:
        at_hand = list(numbers)
        for i, x in zip(traced, read, strict=True):
            at_hand[i] = x
        shared, count, hyper = structure.unflatten(at_hand)
        here = [b.having(x) for b, x in zip(blocks, hyper, strict=True)]
        us, gs, ps, memories, keys = map(list, zip(*stacks, strict=True))
        gs = [u if g is None else g for u, g in zip(us, gs, strict=True)]
        given = [[({}, None if k is None else wrapped(k)) for k in of] for of in keys]
        if here[0].spec.together is not None:
            facts = [(own[0], of[0]) for of in given]
            olds = [m[0] for m in memories]
            turned = _turned(here[0], shared[0], [(dtype, to)] * len(us), facts, us, gs, ps, olds)
            memories = [[m, *rest] for m, (_, *rest) in zip(turned, memories, strict=True)]
        function = _leaf_function(here, shared, own, dtype, to, count)
        rows = zip(us, gs, ps, memories, given, strict=True)
        return [function(u, g, p, old, None, of) for u, g, p, old, of in rows]

    like = lambda row: (row[0], row[0], row[3])  # noqa: E731
    found = chips.shared_out(
        work, [[rows[i] for i in kind] for kind in kinds], like, [numbers[i] for i in traced]
    )
    made = {}
    for kind, results in zip(kinds, found, strict=True):
        for i, (u, g, new) in zip(kind, results, strict=True):
            made[members[i]] = u, g, jax.tree.map(follow, rows[i][3], new)
    return made


def _memories(acting: list[Working], first: Working, turned: list[dict], j: int) -> list[dict]:
    return [b.memory(j) | (turned[j] if b is first else {}) for b in acting]


def _shared(block: Working, step: Step) -> Any:
    spec = block.spec_for(block.wide)
    if spec.shared is None:
        return None
    if spec.init_shared is None:
        return spec.shared(step)
    out = spec.shared(step)
    if type(out) is not tuple or len(out) != 2:
        raise TypeError(
            f"{block.key}: shared must return (scalars, {{name: scalar}}), since it has init_shared; it "
            f"returned {out!r}"
        )
    block.new_scalars(out[1])
    return out[0]


def _leaf_function(
    blocks: list[Working], shared: list, own: list, dtype: Any, to: Any, count: Array
) -> Any:
    real = trees.real_dtype(dtype)
    specs = [block.spec_for(real) for block in blocks]
    shared = [trees.cast_floats(s, real) for s in shared]

    def leaf(x, g, p, memories, sizes, given):
        x, g = x.astype(dtype), g.astype(dtype)
        at = None if p is None else p.astype(dtype)
        moments = Moments(direction=x, gradient=g)
        new = []
        rows = zip(blocks, specs, shared, own, memories, given, strict=True)
        for block, spec, s, o, old, more in rows:
            if spec.moments == "corrects":
                if not moments.is_open:
                    raise ValueError(
                        f"{block.name}: nothing to correct; it must follow scale_by_moments, "
                        "with nothing but other corrections between them"
                    )
            else:
                moments = moments.close()
            mine = sizes if block is blocks[0] else None
            named = None if mine is None else remember(**mine)
            here = _here(
                block, dtype, to, moments.gradient, at, old, o, more, shared=s, norms=named
            )
            out = spec.leaf(moments if spec.moments == "corrects" else moments.direction, here)
            memory = old
            if spec.init:
                out, memory = _pair(block.name, out, old)
                memory = {
                    n: like(block.name, "leaf function", n, memory[n], m) for n, m in old.items()
                }
            new.append(memory)
            if not isinstance(out, Moments):
                u = like(block.name, "leaf function", "update", _array(block.name, out), x)
                out = Moments(direction=u, gradient=moments.gradient)
            moments = out
        return moments.close().direction, moments.gradient, new

    if not all(spec.elementwise for spec in specs):
        return in_one_piece(leaf, lambda x, g, p, memories, *_: (x, g, memories))
    if not single_pass.is_on():
        return leaf

    def apart(*row):
        return single_pass.each_from_old(lambda a: leaf(*a), count, row)

    return apart


def _array(block: str, out: Any) -> Any:
    if not hasattr(out, "dtype") and not isinstance(out, (bool, int, float, complex)):
        raise TypeError(
            f"{block}: its leaf function must return the new update, an array; it returned {out!r}"
        )
    return out


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


def _widen(x: Array, dtype: Any, real: Any) -> Array:
    """Memory as the arithmetic wants it: floats in its dtype, anything else as it is."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return x.astype(dtype if jnp.iscomplexobj(x) else real)
