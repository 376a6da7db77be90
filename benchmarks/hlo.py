"""What a compiled TPU program says in text: its collectives, what it moves, what it holds for a while.

A TPU has a large memory and a fast one on the chip; arrays in the fast one, and in the smaller memories for
scalars, bear S(1) or another number in their layout. XLA's own count of bytes adds what moves inside the
fast memory, and its peak the copies there, so both depend on how many copies find room. Counted here is
the large memory alone. What is done in a loop counts as often as the loop says it turns; of the branches
of a conditional the dearest counts, or with `least` the cheapest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"token": 0, "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
SIZES |= {"f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8}
NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"}
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^{}]*)\})?")  # f32[512,64]{0,1:T(8,128)S(1)}
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z-]*)\(([^()]*)\)(.*)")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    op: str
    operands: str
    rest: str

    def calls(self, role: str) -> list[str]:
        """The computations that it names in a role: body, to_apply, calls, branch_computations."""
        found = re.findall(rf"\b{role}=(\{{[^}}]*\}}|%[\w.-]+)", self.rest)
        return re.findall(r"%([\w.-]+)", " ".join(found))


class Array(NamedTuple):
    size: int  # bytes
    large: bool  # in the large memory
    context: bool  # a semaphore, as what is started carries with it


def arrays(type_: str) -> list[Array]:
    """The arrays of a type, in order."""
    found = []
    for dtype, shape, layout in ARRAY.findall(type_):
        n = np.prod([int(x) for x in shape.split(",") if x], dtype=np.int64)
        large = not re.search(r"S\([1-9]", layout)
        found.append(Array(SIZES[dtype] * int(n), large, "S(2)" in layout))
    return found


def _large(type_: str) -> int:
    return sum(x.size for x in arrays(type_) if x.large)


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a program by name, and the name of the one that is run."""
    found: dict[str, list[Instruction]] = {}
    entry, here = "", []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            here = found[head[2]] = []
            entry = head[2] if head[1] else entry
        elif instruction := INSTRUCTION.match(line):
            here.append(Instruction(*instruction.groups()))
    return found, entry


def _total(
    text: str, cost: Callable[[dict, Instruction, dict[str, str]], Counter], least: bool
) -> Counter:
    """The sum of `cost(program, instruction, types by name)` over all that is run."""
    program, entry = computations(text)
    choose = min if least else max

    def of(name: str) -> Counter:
        total, types = Counter(), {}
        for x in program[name]:
            types[x.name] = x.type
            if x.op == "conditional":
                branches = x.calls("(?:branch_computations|true_computation|false_computation)")
                total += choose(map(of, branches), key=Counter.total)
            elif x.op == "while":
                turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', x.rest)
                body = of(x.calls("body")[0])
                total += Counter({k: n * int(turns[1] if turns else 1) for k, n in body.items()})
            elif x.op == "call":
                total += of(x.calls("to_apply")[0])
            else:
                total += cost(program, x, types)
        return total

    return of(entry)


def collectives(text: str, least: bool = False) -> dict[str, tuple[int, int]]:
    """How many of each kind a compiled program has, and the bytes of what they return."""

    def cost(program: dict, x: Instruction, types: dict[str, str]) -> Counter:
        # What runs beside other work stands in three fusions: its start, that work, its end.
        if x.op == "fusion" and x.name.startswith("async-collective-start"):
            inside = program[x.calls("calls")[0]]
            return sum((cost(program, y, {}) for y in inside), Counter())
        if x.op == "fusion" and any("all-reduce-scatter" in name for name in x.calls("calls")):
            kind = "reduce-scatter"  # as a TPU does it: a sum of which each chip keeps a part
        else:
            kind = x.op.removesuffix("-start")
        if kind not in KINDS:
            return Counter()
        sizes = [y.size for y in arrays(x.type) if not y.context]
        if (
            x.op.endswith("-start") and kind != "all-reduce"
        ):  # what starts one returns its operands first
            sizes = sizes[len(sizes) // 2 :]
        return Counter({(kind, "count"): 1, (kind, "bytes"): sum(sizes)})

    found = _total(text, cost, least)
    return {k: (found[k, "count"], found[k, "bytes"]) for k in KINDS if found[k, "count"]}


def moved(text: str, least: bool = False) -> int:
    """Bytes that a program reads from the large memory and writes to it.

    An operand counts whole, also where a fusion reads but a part of it, and so does what a fusion only
    passes on, as those do that work beside a collective: of a program with many the figure is too large.
    """

    def cost(program: dict, x: Instruction, types: dict[str, str]) -> Counter:
        if x.op in NO_WORK or x.op.endswith(("-done", "-update")) or "ConcatBitcast" in x.rest:
            return Counter()
        if x.op == "slice-start":  # ((whole), part, context)
            whole, part = arrays(x.type)[:2]
            return Counter(bytes=part.size * (whole.large + part.large))
        if x.op.endswith("-start") and x.op != "all-reduce-start":
            return Counter(bytes=_large(x.type))  # operands are among what it returns
        operands = re.findall(r"%([\w.-]+)", x.operands)
        return Counter(bytes=_large(x.type) + sum(_large(types[y]) for y in operands))

    return _total(text, cost, least)["bytes"]


def temporaries(assignment: str) -> int:
    """Bytes of the large memory that arrays take which are neither argument nor result.

    Of the file "buffer-assignment" of XLA's dump. XLA's own figure is the memory that it sets aside,
    with a slot of 16 KB for every scalar and every table of pointers, or 0 where there are only tables.
    """
    spans, inside = [], False
    for line in assignment.splitlines():
        if line.startswith("allocation "):
            inside = "preallocated-temp" in line and "color" not in line
        elif inside and (found := re.match(r" value: .* \(size=(\d+),offset=(\d+)\): [a-z]", line)):
            spans.append((int(found[2]), int(found[2]) + int(found[1])))
    taken = end = 0
    for start, stop in sorted(spans):
        taken += max(0, stop - max(start, end))
        end = max(end, stop)
    return taken
