"""A stretch of leafwise blocks, run on every leaf as ONE function of one array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adamfx.engine import chips, host, single_pass, trees
from adamfx.engine.control import once
from adamfx.engine.each import each
from adamfx.engine.leaf_function import LeafFunction
from adamfx.engine.leaves import Leaves
from adamfx.engine.memory import remember
from adamfx.engine.placement import follow, is_explicit
from adamfx.engine.rows import Kind, Row, Rows, alike
from adamfx.engine.words import Step
from adamfx.engine.working import KEYS, Working

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
            numbers_only = all(b.spec.elementwise for b in [*last, block])
            joins = not apart or numbers_only or block.spec.moments == "corrects"
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
    table = Rows(blocks, leaves, extra)
    sizes, shared = None, []
    for i, block in enumerate(blocks):
        spec = block.spec
        held = trees.cast_floats(remember(**block.own_scalars()), block.wide)
        step = Step(count, held, rates, extra=extra)
        if spec.norms:
            sizes = table.norms(i, step)
        sums = table.sums(i, step) if spec.sums else None
        seen = leaves.updates if spec.whole_tree else []
        seen = [u.astype(np.promote_types(u.dtype, block.wide)) for u in seen]
        shared.append(_shared(block, step._replace(updates=seen, sums=sums)))
        rates = shared[-1] if spec.moments == "opens" else rates

    # What divides, as the masses of the moments do, is computed once anyway.
    opens = [block.spec.moments == "opens" for block in blocks]
    held = once([None if o else s for o, s in zip(opens, shared, strict=True)], count)
    shared = [s if o else h for o, s, h in zip(opens, shared, held, strict=True)]

    function, kinds, rows = LeafFunction(blocks, shared, count), table.kinds, table.of(sizes)
    made = {}
    if all(b.spec.can_be_shared_out for b in blocks) and chips.are_several() and not leaves.on_host:
        made = _over_chips(function, kinds, rows)
    rest = [j for j in range(len(rows)) if j not in made]
    run = host.InTurn() if leaves.on_host else each
    left = function.of([kinds[j] for j in rest], [rows[j] for j in rest], run)
    made |= zip(rest, left, strict=True)

    for j, (_, _, memories) in made.items():
        for block, memory in zip(kinds[j].acting(blocks), memories, strict=True):
            block.record(j, memory)
    updates, gradients = ([made[j][k] for j in range(len(rows))] for k in range(2))
    return leaves.replace(updates=updates, gradients=gradients), rates


def _shared(block: Working, step: Step) -> Any:
    """What the leaf function of each row reads of the step; what it remembers of it is taken down."""
    spec = block.spec_for(block.wide)
    if spec.shared is None:
        return None
    out = spec.shared(step)
    if spec.init_shared is None:
        return out
    if type(out) is not tuple or len(out) != 2:
        raise TypeError(
            f"{block.key}: shared must return (scalars, {{name: scalar}}), since it has init_shared; it "
            f"returned {out!r}"
        )
    block.new_scalars(out[1])
    return out[0]


def _over_chips(function: LeafFunction, kinds: list[Kind], rows: list[Row]) -> dict[int, tuple]:
    """What the function makes of matrices that several chips share out, by row."""
    made = {}
    for kind, members in alike(kinds):
        matrices = [j for j in members if rows[j].update.ndim >= 2 and False not in kind.own]
        bare = [_bare(rows[j]) for j in matrices]
        groups = [g for g in chips.kinds_of(bare) if chips.number_of([bare[i] for i in g]) > 1]
        if not groups:
            continue
        # Numbers of the program are handed in: a program of one chip cannot reach for them.
        numbers, structure = jax.tree.flatten(function.numbers())
        traced = [i for i, x in enumerate(numbers) if isinstance(x, jax.Array)]

        def work(stacks: list, read: list, kind=kind, numbers=numbers, traced=traced, s=structure):
            own = list(numbers)
            for i, x in zip(traced, read, strict=True):
                own[i] = x
            mine = function.having(*s.unflatten(own))
            return mine.of([kind] * len(stacks), [_unbared(stack) for stack in stacks])

        stacks = [[bare[i] for i in group] for group in groups]
        like = lambda row: (row.update, row.update, row.memories)  # noqa: E731
        found = chips.shared_out(work, stacks, like, [numbers[i] for i in traced])
        for group, results in zip(groups, found, strict=True):
            for i, (u, g, new) in zip(group, results, strict=True):
                made[matrices[i]] = u, g, jax.tree.map(follow, bare[i].memories, new)
    return made


def _bare(row: Row) -> Row:
    """The row as numbers that can be joined to a stack, each of them once."""
    given = [({}, None if key is None else jax.random.key_data(key)) for _, key in row.given]
    return row._replace(gradient=None if row.gradient is row.update else row.gradient, given=given)


def _unbared(row: Row) -> Row:
    keys = [None if k is None else jax.random.wrap_key_data(k, impl=KEYS) for _, k in row.given]
    gradient = row.update if row.gradient is None else row.gradient
    return row._replace(gradient=gradient, given=[({}, key) for key in keys])
