"""The batches of all epochs, and where in them a run is."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.checks import shown
from adamfx.engine import trees

ONCE = (
    "fit: batches can be gone through once, and epochs is {}; give a list or another iterable, that makes a "
    "new iterator for every epoch"
)


def as_array(x: Any) -> Any:
    """A leaf of a batch as an array of its own: the loader may fill the same memory with the next batch."""
    if isinstance(x, jax.Array):
        return x
    try:
        x = np.array(np.asarray(x))  # not at once: NumPy warns of a tensor that it is to copy
    except TypeError:
        if not hasattr(x, "__dlpack__"):
            raise
        x = np.array(jnp.from_dlpack(x))  # PyTorch's bfloat16, which it does not give to NumPy
    if not trees.is_number(x):
        raise TypeError(
            f"fit: batches must hold arrays and numbers, in one is {shown(x)}; turn it into numbers before"
        )
    return x


def as_batch(x: Any) -> tuple:
    """A batch as the arguments after params, arrays of its own."""
    return jax.tree.map(as_array, tuple(x) if isinstance(x, (tuple, list)) else (x,))


class Stream:
    """The batches of all epochs, one by one; each iterator is asked for when its epoch begins, once.

    Where the batches can say where they are, a position can be kept and gone to: their iterator by
    `get_state` and `set_state` (Grain), or they themselves by `state_dict` and `load_state_dict` (torchdata).
    """

    def __init__(self, batches: Any, epochs: int):
        if epochs > 1 and isinstance(batches, Iterator):
            raise ValueError(ONCE.format(epochs))
        self.batches, self.epochs = batches, epochs
        self.epoch = 0
        self.one: Any = None  # the iterator of the epoch
        self.before: Any = None  # that of the epoch before
        self.taken = self.in_epoch = 0
        self.says: Any = None  # what returns where they are, if anything does
        self.marks: list[tuple[int, Any]] = []  # how many were taken, and the position there

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        while self.epoch < self.epochs:
            self._begin()
            try:
                batch = next(self.one)
            except StopIteration:
                if not self.in_epoch and self.epoch:
                    raise ValueError(
                        f"fit: epoch {self.epoch + 1} of {self.epochs} has no batches; batches must start "
                        "anew when it is gone through again"
                    ) from None
                self.before, self.one = self.one, None
                self.epoch, self.in_epoch = self.epoch + 1, 0
                continue
            self.taken, self.in_epoch = self.taken + 1, self.in_epoch + 1
            return batch
        raise StopIteration

    def _begin(self) -> None:
        if self.one is None:
            self.one = iter(self.batches)
            if self.epochs > 1 and (self.one is self.batches or self.one is self.before):
                raise ValueError(ONCE.format(self.epochs))
            self.says = getattr(self.one, "get_state", None) or getattr(
                self.batches, "state_dict", None
            )

    def mark(self) -> None:
        """Notes the position, when no batch is taken ahead of those trained on."""
        at = {"epoch": self.epoch, "in_epoch": self.in_epoch, "state": None}  # None: the beginning
        if self.one is not None and self.says is not None:
            at["state"] = self.says()
        self.marks = [*self.marks[-3:], (self.taken, at)]  # some steps before may yet fail

    def position(self, taken: int) -> str | None:
        """Where the batch after so many is, as text: the newest mark before it, and how many to pass over.
        None if these batches cannot say it."""
        found = [(at, mark) for at, mark in self.marks if at <= taken]
        if not found or self.says is None:
            return None
        at, mark = found[-1]
        return json.dumps({**mark, "skip": taken - at}, default=_as_json)

    def go_to(self, position: str) -> None:
        """Continues at a position."""
        at = json.loads(position, object_hook=_as_given)
        self.epoch, self.in_epoch = at["epoch"], at["in_epoch"]
        of_loader = hasattr(self.batches, "load_state_dict")
        if of_loader and at["state"] is not None:
            self.batches.load_state_dict(at["state"])
        self._begin()
        if not of_loader:
            if not hasattr(self.one, "set_state"):
                raise TypeError(
                    "fit: the checkpoint knows a position in the batches, and these batches have neither "
                    "set_state nor load_state_dict; give the loader with which it was made"
                )
            if at["state"] is not None:
                self.one.set_state(at["state"])
        for _ in range(at["skip"]):
            next(self)
        self.taken = 0  # of this run


def _as_json(x: Any) -> Any:
    if isinstance(x, bytes):
        return {"bytes in base64": base64.b64encode(x).decode()}
    raise TypeError(
        f"fit: the position of the batches holds {x!r} of type {type(x).__name__}, which a checkpoint does "
        "not keep; get_state and state_dict return text, bytes, numbers, lists and dicts of them"
    )


def _as_given(x: dict) -> Any:
    return base64.b64decode(x["bytes in base64"]) if set(x) == {"bytes in base64"} else x
