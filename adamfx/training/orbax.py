"""Checkpoints of long and of distributed runs: a folder that Orbax keeps.

with fx.Checkpoints("run", every=1000) as checkpoints:
    params, state, history, reason = fx.fit(loss_fn, tx, params, batches, checkpoints=checkpoints)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.training.checkpoints import (
    NUMBERS,
    check_names,
    check_numbers,
    is_history,
    is_key,
    named,
    renamed,
)
from adamfx.training.history import History
from adamfx.values.arguments import check

Tree = Any
ITEMS = ("arrays", "histories")
MARK = "_CHECKPOINT_METADATA"  # a file of Orbax in the folder of every step
BESIDE = ("metrics", "commit_success.txt")  # what else it writes there


class Checkpoints:
    """The newest checkpoints of a run, and the best: written beside the training, by all its processes.

    Works with arrays that are sharded over several processes, and restores them on another mesh and by
    another number of processes. What is half written when a process dies does not count.

    Args:
      folder: of these checkpoints alone, made where there is none; on a file system that all processes
        see.
      every: steps between two of them, in `fit`; None: see minutes.
      minutes: in `fit`, there is also one when that many have passed since the last, > 0.
      keep: how many of the newest stay, >= 1.
      best: a column of the history, such as an evaluation's; the checkpoint where it was best stays, too.
      mode: "min" or "max": which is best.

    Raises ImportError without Orbax, NotADirectoryError where the folder is a file, and ValueError where
    something else in it has a number for a name, which would count as a step.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        every: int | None = 1000,
        minutes: float | None = None,
        keep: int = 3,
        best: str | None = None,
        mode: str = "min",
    ):
        check(Checkpoints.__init__, locals())
        self.folder = os.path.abspath(os.fspath(folder))
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise NotADirectoryError(f"Checkpoints: {self.folder} is a file; name a folder")
        if foreign := _foreign(self.folder):
            raise ValueError(
                f"Checkpoints: {foreign} is no checkpoint, and would count as one; give them a folder of "
                "their own"
            )
        self.every = None if every is None else checks.steps("Checkpoints", "every", every, 1)
        if minutes is not None and not (isinstance(minutes, (int, float)) and minutes > 0):
            raise ValueError(f"Checkpoints: minutes must be a number > 0 or None, got {minutes!r}")
        self.minutes = minutes
        keep = checks.steps("Checkpoints", "keep", keep, 1)
        checks.choice("Checkpoints", "mode", mode, ("min", "max"))
        try:
            import orbax.checkpoint as ocp
        except ImportError:
            raise ImportError(
                "Checkpoints: Orbax is missing; run: pip install orbax-checkpoint"
            ) from None
        self._ocp, self._best, self._sign = ocp, best, 1 if mode == "max" else -1
        policies = ocp.checkpoint_managers
        kept, score = policies.LatestN(keep), None
        if best is not None:
            score = lambda metrics: metrics["score"]  # noqa: E731
            kept = policies.AnyPreservationPolicy([kept, policies.BestN(get_metric_fn=score, n=1)])
        self._closed_with: list[int] = []
        self._open: Any = ocp.CheckpointManager(
            self.folder,
            item_handlers={n: ocp.PyTreeCheckpointHandler() for n in ITEMS},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=kept, best_fn=score, cleanup_tmp_directories=True
            ),  # without best_fn the scores would not be written
        )

    @property
    def _manager(self) -> Any:
        if self._open is None:
            raise RuntimeError(
                f"Checkpoints: they are closed; open them again: fx.Checkpoints({self.folder!r})"
            )
        return self._open

    @property
    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, the oldest first."""
        return self._closed_with if self._open is None else sorted(self._open.all_steps())

    @property
    def latest(self) -> int | None:
        """The newest of them; None without any."""
        return max(self.steps, default=None)

    def save(self, step: int, tree: Tree, notes: dict[str, Any] | None = None) -> None:
        """Begins to write a tree of arrays, numbers and histories; the arrays may be used up meanwhile.

        `notes` is for what is no array: text, numbers, lists and dicts of them, as in JSON.

        Every process of the run calls it, at the same step. Raises TypeError, with the path, for leaves
        that are neither, and ValueError where there is a checkpoint of that step.
        """
        if step in self.steps:
            raise ValueError(f"Checkpoints.save: {self.folder} has one of step {step} already")
        arrays, histories = {}, {}
        for name, x in named("Checkpoints.save", tree):
            if is_history(x):
                histories[name] = {"rows": np.int64(x.rows), "columns": dict(x)}
                if x:  # Orbax sorts them
                    histories[name]["order"] = np.array([sorted(x).index(c) for c in x])
            elif hasattr(x, "dtype") or isinstance(x, NUMBERS):
                arrays[name] = y = jax.random.key_data(x) if is_key(x) else _strict(x)
                # Orbax would find out in a thread of its own.
                check_numbers("Checkpoints.save", name, x, y.dtype, "OMmSU")
            else:
                raise TypeError(
                    f"Checkpoints.save: the leaf at {name} is {x!r} of type {type(x).__name__}; leaves must "
                    "be arrays, numbers or histories: filter the tree first"
                )
        args, parts = self._ocp.args, {}
        if arrays:
            parts["arrays"] = args.PyTreeSave(arrays)
        if histories:
            parts["histories"] = args.PyTreeSave(histories)
        args, scores = args.Composite(**parts), self._metrics(tree)
        self._manager.save(step, args=args, metrics=scores, custom_metadata=notes)

    def notes(self, step: int) -> dict[str, Any]:
        """What was noted beside a checkpoint; `fit` notes the sentence and the position in the batches."""
        if step not in self.steps:
            raise FileNotFoundError(
                f"Checkpoints.notes: {self.folder} has no checkpoint of step {step}; there are {self.steps}"
            )
        return dict(self._manager.metadata(step).custom_metadata or {})

    def restore(self, like: Tree, step: int | None = None, partial: bool = False) -> Tree:
        """The tree of a step, by default the newest, with the structure of `like`, and lying as it does.

        Args:
          like: as for `fx.load`: arrays, or what `fx.abstract_state` gives; on any mesh.
          step: of the checkpoint.
          partial: whether it may hold more than `like`, such as a state where only params are wanted; the
            rest is not read.

        Raises FileNotFoundError without a checkpoint of that step, ValueError, with the paths, where it holds
        other leaves, shapes or dtypes.
        """
        step = self.latest if step is None else step
        if step is None or step not in self.steps:
            of = "" if step is None else f" of step {step}; there are {self.steps}"
            raise FileNotFoundError(f"Checkpoints.restore: {self.folder} has no checkpoint{of}")
        path = os.path.join(self.folder, str(step))
        wanted = dict(named("Checkpoints.restore", like))
        about = self._manager.item_metadata(step)
        there = {item: getattr(about.get(item), "tree", None) or {} for item in ITEMS}
        found = {name for names in there.values() for name in names}
        check_names(
            "Checkpoints.restore", path, set(wanted), found & set(wanted) if partial else found,
            "; partial=True leaves out what is not asked for",
        )  # fmt: skip
        abstract = {n: _abstract(x) for n, x in wanted.items() if not is_history(x)}
        for name, x in abstract.items():
            kept = there["arrays"][name]
            if (tuple(kept.shape), kept.dtype) != (x.shape, x.dtype):
                raise ValueError(
                    f"Checkpoints.restore: {name} is {kept.dtype}{list(kept.shape)} in {path}, "
                    f"{x.dtype}{list(x.shape)} in `like`"
                )
        args, parts = self._ocp.args, {}
        if abstract:
            like_these = self._ocp.checkpoint_utils.construct_restore_args(abstract)
            parts["arrays"] = args.PyTreeRestore(abstract, like_these, partial_restore=partial)
        if len(abstract) < len(wanted):
            parts["histories"] = args.PyTreeRestore()
        got = self._manager.restore(step, args=args.Composite(**parts))
        leaves = []
        for name, x in wanted.items():
            if is_history(x):
                columns = got["histories"][name].get("columns", {})
                names = sorted(columns)
                order = got["histories"][name].get("order", range(len(names)))
                leaves.append(History({names[i]: columns[names[i]] for i in order}))
            else:
                leaves.append(_as_given(got["arrays"][name], x))
        return renamed(like, leaves)

    def wait(self) -> None:
        """Until all that was begun is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        if self._open is not None:
            self._open.wait_until_finished()
            self._closed_with = self.steps
            self._open.close()
            self._open = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _metrics(self, tree: Tree) -> dict | None:
        if self._best is None:
            return None
        for _, x in named("Checkpoints.save", tree):
            if is_history(x) and self._best in x:
                measured = x.measured(self._best)[1]
                if len(measured):
                    return {"score": float(self._sign * measured[-1])}
        warnings.warn(
            f"Checkpoints: there is no number in column {self._best!r} of a history yet, by which to know "
            "the best",
            stacklevel=3,
        )
        return {"score": -float("inf")}


def opened(checkpoints: Any) -> Any:
    """Checkpoints, or nothing, as a context that closes what was opened here."""
    if checkpoints is None or isinstance(checkpoints, Checkpoints):
        return contextlib.nullcontext(checkpoints)
    return Checkpoints(checkpoints)


def _foreign(folder: str) -> str | None:
    """What in a folder has the name of a step and is none.

    What is left of one that a process was removing when it was killed is removed.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    paths = (os.path.join(folder, name) for name in names if name.isdigit())
    for path in paths:
        if not os.path.exists(os.path.join(path, MARK)):
            if not os.path.isdir(path) or set(os.listdir(path)) - {*ITEMS, *BESIDE}:
                return path
            shutil.rmtree(path, ignore_errors=True)
    return None


def _strict(x: Any) -> Any:
    return x if hasattr(x, "dtype") else np.asarray(x)


def _abstract(x: Any) -> Any:
    """What Orbax is to restore."""
    if is_key(x):
        x = jax.eval_shape(jax.random.key_data, x)
    if not hasattr(x, "dtype"):
        return np.asarray(x)
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _as_given(x: Any, like: Any) -> Any:
    if isinstance(like, NUMBERS):
        return type(like)(np.asarray(x).item())
    if is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(x), impl=jax.random.key_impl(like))
    if isinstance(like, np.generic):
        return np.asarray(x)[()]
    if isinstance(like, np.ndarray) or getattr(like, "committed", True):
        return x
    return jnp.asarray(np.asarray(x))  # committed to devices only where `like` is
