"""Batches fetched ahead by a thread, on the device when they are asked for."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from adamfx import checks
from adamfx.training.stream import as_array
from adamfx.values.arguments import checked

Tree = Any
PATIENCE = 0.1  # seconds until the thread looks whether anybody still wants a batch


@checked
def prefetch(batches: Iterable, size: int = 2, sharding: Any = None) -> Prefetch:
    """`batches`, of which the next few are read and moved to the device while a step runs.

    For loaders that read or compute in Python; a thread of its own does it, so that what releases Python's
    lock (files, NumPy, PyTorch) costs the run no time. Order, errors and positions stay as they are.

    Args:
      batches: an iterable of trees of arrays.
      size: how many are kept ready at most, >= 1.
      sharding: of the arrays, or a tree of shardings; None: the default device. In a run of several
        processes each gives its part of a batch.
    """
    if isinstance(batches, (str, bytes)):
        raise TypeError(
            f"prefetch: batches must be an iterable of trees of arrays, got {batches!r}"
        )
    return Prefetch(batches, checks.steps("prefetch", "size", size, 1), sharding)


class Prefetch:
    """An iterable that can be gone through as often as what is in it."""

    def __init__(self, batches: Iterable, size: int, sharding: Any):
        self.batches, self.size, self.sharding = batches, size, sharding

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Ahead:
        return Ahead(iter(self.batches), self.size, self.sharding)


class Ahead:
    """Hands out what a thread has read; knows the position after what it has handed out."""

    def __init__(self, source: Iterator, size: int, sharding: Any):
        self._source, self._sharding = source, sharding
        self._ready: queue.Queue = queue.Queue(size)
        self._unwanted = threading.Event()
        self._begun = False
        self._position: Any = None
        if hasattr(source, "get_state"):
            self.get_state, self.set_state = self._where, source.set_state  # type: ignore[attr-defined]
        weakref.finalize(self, self._unwanted.set)

    def _where(self) -> Any:
        return self._position if self._begun else self._source.get_state()  # type: ignore[attr-defined]

    def __iter__(self) -> Ahead:
        return self

    def __next__(self) -> Tree:
        if not self._begun:
            self._begun = True
            args = self._source, self._ready, self._unwanted, self._sharding
            threading.Thread(target=_read, args=args, daemon=True).start()
        batch, position, error = self._ready.get()
        if error is not None:
            self._ready.put((batch, position, error))  # asked again, it says so again
            raise error
        self._position = position
        return batch


def _read(source: Iterator, ready: queue.Queue, unwanted: threading.Event, sharding: Any) -> None:
    # Knows nothing of who hands it out, so that it learns when nobody does any more.
    where, error = getattr(source, "get_state", lambda: None), None
    while error is None and not unwanted.is_set():
        try:
            batch = _placed(next(source), sharding)
            found = batch, where(), None
        except BaseException as caught:  # the end, too
            found = None, None, (error := caught)
        while not unwanted.is_set():
            try:
                ready.put(found, timeout=PATIENCE)
                break
            except queue.Full:
                continue


def _placed(batch: Tree, sharding: Any) -> Tree:
    def put(x: Any, to: Any = None) -> Any:
        x = as_array(x)
        if to is not None and jax.process_count() > 1 and not isinstance(x, jax.Array):
            return jax.make_array_from_process_local_data(to, x)
        return jax.device_put(x, to)

    if isinstance(sharding, jax.sharding.Sharding) or sharding is None:
        return jax.tree.map(lambda x: put(x, sharding), batch)
    return jax.tree.map(put, batch, sharding)
