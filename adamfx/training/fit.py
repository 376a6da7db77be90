"""A training loop that shows its progress and never loses its result.

params, state, history, reason = fit(loss_fn, tx, params, batches)
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from adamfx import checks
from adamfx.engine import trees
from adamfx.engine.forked import check_computes
from adamfx.training.bar import Bar
from adamfx.training.callbacks import Callback, Callbacks
from adamfx.training.dispatch import Groups
from adamfx.training.history import History
from adamfx.training.interrupts import LEFT, Interrupts
from adamfx.training.orbax import Checkpoints, opened
from adamfx.training.run import Fit, Run, copied
from adamfx.training.stream import Stream
from adamfx.training.together import Elsewhere, Left, Together
from adamfx.values.arguments import check

Tree = Any
State = Any


def fit(
    loss_fn: Callable,
    tx: Any,
    params: Tree,
    batches: Iterable,
    *,
    state: State = None,
    history: History | Mapping | None = None,
    has_aux: bool = False,
    steps: int | None = None,
    epochs: int = 1,
    steps_per_dispatch: int | None = None,
    evaluate: Callable[[Tree, State], Any] | None = None,
    evaluate_every: int = 100,
    stop: Callable[[History], bool] | None = None,
    progress: bool | None = None,
    checkpoints: Checkpoints | str | os.PathLike | None = None,
    callbacks: Iterable[Callback | Callable[[Any], Any]] = (),
) -> Fit:
    """Trains over the batches and returns `(params, state, history, reason)`.

    What is passed in stays as it is: `fit` works on copies, so that a cell of a notebook can be run
    again. Ctrl-C ends it after the running dispatch, whenever and however often it is pressed, and it
    returns what is complete; pressed again a quarter of a second later, it also leaves what hangs: a batch,
    a trace, an evaluation, a computation (whose result comes later then). SIGTERM is taken as Ctrl-C. An
    exception raised by the batches, `evaluate`, `stop` or a callback carries the same as `error.result`.

    Args:
      loss_fn: `loss_fn(params, *batch)`, a scalar; with has_aux `(scalar, aux)`. Compiled once, for all
        runs in which it reads the same: its closure, globals, the attributes of its object.
      tx: an adamfx or optax transformation.
      params: a tree of arrays.
      batches: an iterable of batches; each a tuple (or list) of the arguments after params, or one
        argument. Where steps are dispatched together, one batch of another shape may have been taken
        from it when the run ends.
      state: from `tx.init` or an earlier run; None: a new one.
      history: of an earlier run, to be continued (in a copy), also by a new state.
      has_aux: whether loss_fn returns more; scalars in `aux`, a dict, become columns of the history.
      steps: how many at most; None: until the batches end.
      epochs: how often to go through the batches; more than one needs an iterable that starts anew.
      steps_per_dispatch: how many steps run as one program, over batches stacked on the host. None:
        as many as take about 20 ms, up to 64, and no more than the batches that came within 0.1 s; one
        where `stop` has no `evaluate` to look at. Equal runs stay equal bit for bit, however long their
        dispatches; another number given here may round differently. On the CPU a loss with a convolution
        always runs step by step: in a loop it takes 50 times as long.
      evaluate: `evaluate(params, state)` returns a number or a dict of numbers, for the history. The
        parameters are those to use the model with, `tx.evaluate_at(state, params)`: an average where the
        transformation keeps one, lookahead's slow ones.
      evaluate_every: steps between evaluations; there is one more at the end.
      stop: an early stop: `stop(history)` is asked after each evaluation; where there are none, after
        each dispatch. See `no_improvement`.
      progress: a bar with loss, learning rate and gradient norm; None: if tqdm is installed.
      checkpoints: where to keep params, state and history: a folder, or `Checkpoints("run", every=100)`. What
        is there already goes on from the newest, with `steps` counted from the beginning; the last step is
        kept whatever ends the run. Batches that can say where they are (an iterator with get_state and
        set_state, as Grain's; a loader with state_dict and load_state_dict, as torchdata's) go on there;
        others begin where you let them: `checkpoints.latest` says at which step. Needs Orbax.
      callbacks: what is told of the run between dispatches: `Table`, `TensorBoard`, `WandB`, `Profile`,
        `Summary`, a `Callback` of yours, or a function of the run (`run.step`, `run.history`, `run.params`).

    Several processes train together where params lie on devices of several (`jax.distributed`), each with
    batches of global arrays. They take equally many batches, and end at the same step for the same
    reason: where one of them is interrupted, has no more batches, stops or fails. Of a failure, the others
    raise a RuntimeError that says where. `evaluate` is called in all. The bar is process 0's.

    The gradient is taken at `tx.gradient_at(state, params)`, and `value`, `grad`, `value_fn`, `grad_fn` reach
    the transformation, so that line searches work: `fit(loss, optax.lbfgs(), params, batches)`.

    The history has the columns step, loss, gradient_norm, what `metrics(state)` finds (such as
    learning_rate), the scalars of aux and of evaluate; each step's numbers are float32. A
    skip_nonfinite that has had too many in a row ends the run with reason "nonfinite".
    """
    given = dict(locals())
    check(fit, given)
    return train(**given)


def train(
    loss_fn, tx, params, batches, *, state=None, history=None, has_aux=False, steps=None, epochs=1,
    steps_per_dispatch=None, evaluate=None, evaluate_every=100, stop=None, progress=None, checkpoints=None,
    callbacks=(), members=False,
):  # fmt: skip
    """`fit`; with members, of several runs at once, each in a row of tx, params and state."""
    check_computes("fit")
    steps = None if steps is None else checks.steps("fit", "steps", steps)
    epochs = checks.steps("fit", "epochs", epochs, 1)
    if steps_per_dispatch is not None:
        steps_per_dispatch = checks.steps("fit", "steps_per_dispatch", steps_per_dispatch, 1)
    elif stop and not evaluate:
        steps_per_dispatch = 1
    evaluate_every = checks.steps("fit", "evaluate_every", evaluate_every, 1)
    stream = Stream(batches, epochs)
    run, result = None, None
    try:
        with Interrupts() as interrupts, opened(checkpoints) as kept:
            together = Together(params, interrupts)
            total = interrupts.leavable(_total, batches, epochs, steps)
            total = None if total is LEFT else total
            with Bar(progress if together.leads else False, total) as bar:
                told = Callbacks(callbacks, interrupts)
                about = state, history, has_aux, bar, together, interrupts, stream, members
                begun = interrupts.leavable(Run, loss_fn, tx, params, *about)
                if begun is LEFT:
                    raise KeyboardInterrupt
                run = begun
                groups = Groups(stream, steps_per_dispatch, interrupts, run.suited)
                limit = math.inf if steps is None else steps
                try:
                    try:
                        if kept is not None:
                            limit -= run.go_on(kept)
                        told.begin(run)
                        reason = _loop(run, groups, limit, evaluate, evaluate_every, stop, told)
                        run.keep_last()
                    except Left:
                        reason = "interrupted"
                    result = run.result(reason)
                    together.in_step = False  # the others are done; what fails now is this one's
                    told.end(reason)
                except BaseException as error:
                    _tell(together, error)
                    error.result = run.result("failed")  # type: ignore[attr-defined]
                    gone = ", but params and state: the step had them"
                    held = "" if run.params is not None else gone
                    error.add_note(
                        f"fit: what was complete before this error is in its attribute result{held}"
                    )
                    for last, of in (
                        (run.keep_last, "a checkpoint be written"),
                        (told.fail, "callbacks end"),
                    ):
                        try:
                            last()
                        except Exception as more:
                            error.add_note(f"fit: nor could {of}: {more}")
                    raise
            try:
                _warn(run, result.reason)
            except Warning as warning:  # made an error by a filter
                warning.result = result  # type: ignore[attr-defined]
                raise
    except KeyboardInterrupt:  # pressed before the first step, or after the last
        if result is None:
            raise
    return result


def _loop(
    run: Run,
    groups: Groups,
    limit: float,
    evaluate: Callable | None,
    every: int,
    stop: Callable | None,
    told: Callbacks,
) -> str:
    """Runs until something ends it, and says what."""
    evaluated, interrupts = 0, run.interrupts
    times = [n for n in (every, run.keeps_every, *told.every) if n]

    def evaluation() -> None:
        nonlocal evaluated
        run.drain()
        evaluated = run.steps
        args = "fit", "evaluate", evaluate, copied(run.used()), copied(run.state)
        found = interrupts.leavable(checks.call, *args)
        if found is not LEFT:
            run.history.record(_evaluated(found, run.columns))

    def pressed() -> bool:
        return together.any(interrupts.pressed)

    reason, together = "steps", run.together
    while run.steps < limit:
        # In steps of all runs, so that a resumed one keeps time.
        until = min(n - run.total % n for n in times)
        started = time.monotonic()
        if run.checkpoints is not None and groups.empty:
            run.stream.mark()
        n = 0 if interrupts.pressed else groups.fill(int(min(until, limit - run.steps)))
        form = groups.form(together.common)
        n, groups.k, low, high = together.least(n, groups.k or 1, form, -form)
        if not n:
            reason = "interrupted" if pressed() else "end of batches"
            break
        if low != -high:
            raise ValueError(
                f"fit: the batches of step {run.total + 1} differ from process to process, in shape or as "
                "local arrays; make global arrays of what each process has: "
                "jax.make_array_from_process_local_data(sharding, x)"
            )
        run.dispatch(n, groups.k, groups.stacked(n))
        run.drain(keep=0 if run.needs_waiting or (stop and not evaluate) else 1)
        groups.pace(time.monotonic() - started)
        due = evaluate and run.total % every == 0
        if due and not pressed():
            evaluation()
        if run.failed:
            break
        run.keep(due=run.due())
        if any(run.total % n == 0 for n in told.every):
            run.drain()
        told.turn()
        if stop and (due or not evaluate) and not pressed():
            args = "fit", "stop", stop, run.history.shown()
            answer = interrupts.leavable(checks.call, *args)
            if answer is not LEFT and (not trees.is_number(answer) or np.shape(answer)):
                raise TypeError(f"fit: stop must return True or False, got {checks.shown(answer)}")
            if together.any(answer is not LEFT and bool(answer)):
                reason = "stop"
                break
    else:  # all steps are done, and yet nobody shall miss that what follows is to end
        reason = "interrupted" if pressed() else reason
    run.drain()
    reason = "nonfinite" if run.failed else reason
    if evaluate and run.steps > evaluated and not pressed():
        evaluation()
    return reason


def _tell(together: Together, error: BaseException) -> None:
    """Lets the other processes know; if they cannot be reached, they learn of it otherwise."""
    if isinstance(error, Elsewhere):
        return
    with contextlib.suppress(Exception, KeyboardInterrupt):
        together.failed(error)


def _warn(run: Run, reason: str) -> None:
    """Says what is easily overlooked."""
    if reason == "interrupted":
        warnings.warn(
            f"fit: interrupted at step {run.total}; it has returned what is complete, and what comes after "
            "it goes on: Ctrl-C again ends that, too",
            stacklevel=4,
        )
    if run.members:  # where it is usual that some diverge
        return
    if not run.steps and reason == "end of batches":
        warnings.warn(
            "fit: there were no batches; an iterator can be gone through once", stacklevel=4
        )
    elif run.steps and not np.isfinite(run.history["loss"][-1]) and not run.skips:
        bad = run.history["step"][~np.isfinite(run.history["loss"])]
        warnings.warn(
            f"fit: the loss is {run.history['loss'][-1]} at the end; it was not finite {len(bad)} times, at "
            f"first at step {bad[0]:.0f}; skip_nonfinite(tx) leaves such gradients out",
            stacklevel=4,
        )


def _evaluated(found: Any, taken: set[str]) -> dict[str, float]:
    """What `evaluate` returned, as numbers by name."""
    numbers = {}
    for name, x in (found if isinstance(found, dict) else {"evaluation": found}).items():
        if name in taken:
            raise ValueError(
                f"fit: evaluate returned {name!r}, which is a column of every step; call it e.g. "
                f"{'test_' + name!r}"
            )
        if not trees.is_number(x) or np.shape(x) or np.iscomplexobj(x):
            raise TypeError(
                f"fit: evaluate must return a number or a dict of numbers, {name!r} is {checks.shown(x)}"
            )
        numbers[str(name)] = float(x)
    return numbers


def _total(batches: Any, epochs: int, steps: int | None) -> int | None:
    try:
        length = len(batches) * epochs
    except TypeError:  # there is no length, or asking for it says so
        length = None
    return min((x for x in (length, steps) if x is not None), default=None)
