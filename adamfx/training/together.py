"""What several processes that train together decide: the same in all of them, in one exchange."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adamfx.training.interrupts import Interrupts

Tree = Any
FAILED = np.iinfo(np.int32).min  # below every number that is agreed on
MOST = np.iinfo(np.int32).max
WIDTH = 6  # how many numbers at most; always as many are sent
LONGEST = 500  # bytes of a message to the others


class Elsewhere(RuntimeError):
    """Another process of the run has failed."""


class Left(Exception):
    """A second Ctrl-C has left what another process, or the device, lets this one wait for."""


class Together:
    """One process among those of a run. Alone, it agrees with itself.

    A run is common where an array of it lies on devices of several processes; then all of them go through
    the same exchanges in the same order, each of some whole numbers, of which all get the least. A process
    that fails sends less than any number, so the others learn of it in the exchange that is next.
    """

    def __init__(self, tree: Tree, interrupts: Interrupts):
        arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
        spread = [x.sharding.device_set for x in arrays if not x.is_fully_addressable]
        self.common = bool(spread)
        self.leads, self.interrupts = True, interrupts
        self.index, self.count = 0, 1  # which of how many
        self.in_step = self.common  # false while only this process knows where it is
        if self.common:
            devices = sorted(set().union(*spread), key=lambda d: (d.process_index, d.id))
            one_each = {d.process_index: d for d in reversed(devices)}
            self.processes = sorted(one_each)
            self.index, self.count = self.processes.index(jax.process_index()), len(self.processes)
            self.leads = self.index == 0
            mesh = Mesh(np.array([one_each[i] for i in self.processes]), ("process",))
            self.rows = NamedSharding(mesh, PartitionSpec("process"))
            whole = NamedSharding(mesh, PartitionSpec())
            self.spread = jax.jit(lambda x: x, out_shardings=whole)

    def least(self, *numbers: int) -> list[int]:
        """The least of each number over all processes; Elsewhere where one of them has failed."""
        if not self.common:
            return list(numbers)
        own = np.full(WIDTH, MOST, np.int32)
        own[: len(numbers)] = numbers
        found = self._all(own).min(0)
        if found[0] == FAILED:
            raise self._told(b"")
        return [int(x) for x in found[: len(numbers)]]

    def any(self, answer: Any) -> bool:
        """Whether it is so in one of the processes."""
        return self.least(-bool(answer))[0] < 0

    def texts(self, own: str) -> list[str]:
        """The texts of all processes, in their order."""
        if not self.common:
            return [own]
        said = own.encode()
        longest = -self.least(-len(said))[0]
        room = np.zeros(1 << longest.bit_length(), np.uint8)  # few sizes, each a program
        room[: len(said)] = list(said)
        return [bytes(row).rstrip(b"\0").decode() for row in self._all(room)]

    def failed(self, error: BaseException) -> None:
        """Tells the others, at their next exchange, that this process goes no further."""
        if self.in_step:
            self._all(np.full(WIDTH, FAILED, np.int32))
            self._told(f"{type(error).__name__}: {error}".encode()[:LONGEST])

    def _told(self, own: bytes) -> Elsewhere:
        said = np.zeros(LONGEST + 1, np.uint8)
        said[: len(own) + 1] = [len(own) > 0, *own]
        rows = self._all(said)
        self.in_step = False
        which = [i for i, row in enumerate(rows) if row[0]]
        words = bytes(rows[which[0]][1:]).rstrip(b"\0").decode(errors="replace")
        return Elsewhere(f"fit: process {self.processes[which[0]]} failed with {words}")

    def _all(self, own: np.ndarray) -> np.ndarray:
        """The arrays of all processes. Waits so that a second Ctrl-C is heard."""
        self.in_step = False
        mine = jax.make_array_from_process_local_data(self.rows, own[None])
        found = self.spread(mine)

        if not self.interrupts.until(found.is_ready):
            raise Left
        self.in_step = True
        return np.asarray(found)
