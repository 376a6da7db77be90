"""The ONE function of one array that a stretch of blocks is: what it makes of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adamfx.engine import single_pass, trees
from adamfx.engine.each import each
from adamfx.engine.memory import remember
from adamfx.engine.placement import in_one_piece
from adamfx.engine.record import Moments
from adamfx.engine.rows import Kind, Row, alike, columns, here_of, widened
from adamfx.engine.working import Working, like

Array = Any


class LeafFunction:
    """What these blocks make of rows, with the scalars of a step that each of them shares among its rows."""

    def __init__(self, blocks: list[Working], shared: list, count: Array):
        self.blocks, self.shared, self.count = blocks, shared, count

    def numbers(self) -> tuple:
        """All that it reads besides rows: a tree of arrays, and of what is none."""
        return self.shared, self.count, [block.hyper for block in self.blocks]

    def having(self, shared: list, count: Array, hypers: list) -> LeafFunction:
        """Itself with other numbers, such as those that a program inside of the program is given."""
        blocks = [block.having(x) for block, x in zip(self.blocks, hypers, strict=True)]
        return LeafFunction(blocks, shared, count)

    def of(self, kinds: list[Kind], rows: list[Row], run: Callable = each) -> list[tuple]:
        """(update, gradient, memories of the blocks that act) of each row; `run` calls as `each` does."""
        rows = self._together(kinds, rows)
        out: list[Any] = [None] * len(rows)
        for kind, members in alike(kinds):
            chosen = [rows[j] for j in members]
            if kind.acting(self.blocks):
                found = run(self._of(kind), *columns(chosen))
            else:
                found = [(row.update.astype(kind.dtype), row.gradient, []) for row in chosen]
            for j, x in zip(members, found, strict=True):
                out[j] = x
        return out

    def _together(self, kinds: list[Kind], rows: list[Row]) -> list[Row]:
        """The rows, what the first block remembers being what its `together` makes of all of them."""
        first, out = self.blocks[0], list(rows)
        acting = [j for j, kind in enumerate(kinds) if kind.own[0] is not False]
        groups = alike([kinds[j].real for j in acting]) if first.spec.together else []
        for real, numbers in groups:
            members = [acting[i] for i in numbers]
            together = first.spec_for(real).together
            shared = trees.cast_floats(self.shared[0], real)

            def of_all(us, gs, ps, memories, members=members, together=together, shared=shared):
                seen = []
                for j, u, g, p, memory in zip(members, us, gs, ps, memories, strict=True):
                    row = rows[j]._replace(update=u, gradient=g, param=p)
                    row, own = widened(row, kinds[j].dtype), kinds[j].own[0]
                    here = here_of(first, kinds[j], own, row, memory, row.given[0], shared=shared)
                    seen.append((row.update, here))
                made = together(*map(list, zip(*seen, strict=True)))
                return [
                    m | {n: like(first.key, "together", n, x, m[n]) for n, x in new.items()}
                    for new, m in zip(made, memories, strict=True)
                ]

            us, gs, ps, memories, *_ = columns([rows[j] for j in members])
            turn = in_one_piece(of_all, lambda us, gs, ps, memories: memories)
            found = turn(us, gs, ps, [m[0] for m in memories])
            for j, new in zip(members, found, strict=True):
                out[j] = rows[j]._replace(memories=[new, *rows[j].memories[1:]])
        return out

    def _of(self, kind: Kind) -> Callable:
        """The function of rows of this kind."""
        blocks, owns = kind.acting(self.blocks), kind.acting(kind.own)
        specs = [block.spec_for(kind.real) for block in blocks]
        shared = [trees.cast_floats(s, kind.real) for s in kind.acting(self.shared)]

        def leaf(*of_row: Any) -> tuple:
            row = widened(Row(*of_row), kind.dtype)
            moments, new = Moments(direction=row.update, gradient=row.gradient), []
            parts = zip(blocks, specs, owns, shared, row.memories, row.given, strict=True)
            for block, spec, own, s, old, given in parts:
                corrects = spec.moments == "corrects"
                if not corrects:
                    moments = moments.close()
                elif not moments.is_open:
                    raise ValueError(
                        f"{block.name}: nothing to correct; it must follow scale_by_moments, "
                        "with nothing but other corrections between them"
                    )
                asked = block is self.blocks[0] and row.sizes is not None
                sizes = remember(**row.sizes) if asked else None
                seen = row._replace(gradient=moments.gradient)
                here = here_of(block, kind, own, seen, old, given, shared=s, norms=sizes)
                out = spec.leaf(moments if corrects else moments.direction, here)
                memory = old
                if spec.init:
                    out, memory = _pair(block.name, out, old)
                    what = block.name, "leaf function"
                    memory = {n: like(*what, n, memory[n], m) for n, m in old.items()}
                new.append(memory)
                if not isinstance(out, Moments):
                    u = _array(block.name, out)
                    u = like(block.name, "leaf function", "update", u, row.update)
                    out = Moments(direction=u, gradient=moments.gradient)
                moments = out
            return moments.close().direction, moments.gradient, new

        if not all(spec.elementwise for spec in specs):
            return in_one_piece(leaf, lambda u, g, p, memories, *_: (u, g, memories))
        if not single_pass.is_on():
            return leaf
        return lambda *row: single_pass.each_from_old(lambda x: leaf(*x), self.count, row)


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
