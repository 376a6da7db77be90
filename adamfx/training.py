"""Training: one compiled step, and a loop that shows its progress and never loses its result.

step = make_step(loss_fn)                              # step(tx, params, state, *batch)
params, state, loss = step(tx, params, tx.init(params), x, y)

params, state, history, reason = fit(loss_fn, tx, params, batches)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks, sentence, trees
from adamfx.clipping import global_norm
from adamfx.combine import as_transformation
from adamfx.history import History
from adamfx.interrupts import LEFT, Interrupts
from adamfx.monitoring import metrics

Tree = Any
State = Any
FAILED = "failed"  # the column that says whether to end the run; not in the history


def _gradient(loss_fn: Callable, has_aux: bool) -> Callable:
    return jax.value_and_grad(loss_fn, has_aux=has_aux, allow_int=True)


def make_step(loss_fn: Callable, has_aux: bool = False, donate: bool = False) -> Callable:
    """A compiled `step(tx, params, state, *batch) -> (params, state, loss)`.

    The transformation is an argument: another learning rate compiles nothing.

    Args:
      loss_fn: `loss_fn(params, *batch)`, a scalar; with has_aux `(scalar, aux)`.
      has_aux: whether it returns more than the loss; then `step` returns `(loss, aux)` for `loss`.
      donate: whether params and state give their memory to the new ones and are gone afterwards.

    Blocks that read the extra argument `value` get the loss.
    """
    gradient = _gradient(loss_fn, has_aux)

    @functools.partial(jax.jit, donate_argnums=(1, 2) if donate else ())
    def compiled(tx, params, state, *batch):
        out, grads = gradient(params, *batch)
        params, state = tx.step(grads, state, params, value=out[0] if has_aux else out)
        return params, state, out

    @functools.wraps(compiled)
    def step(tx: Any, params: Tree, state: State, *batch: Any) -> tuple[Tree, State, Any]:
        return compiled(as_transformation(tx), params, state, *batch)

    return step


class Fit(NamedTuple):
    """What `fit` returns: everything up to the last complete step."""

    params: Tree
    state: State
    history: History
    reason: (
        str  # "end of batches", "steps", "stop", "interrupted", "nonfinite"; of an error "failed"
    )


def fit(
    loss_fn: Callable,
    tx: Any,
    params: Tree,
    batches: Iterable,
    *,
    state: State = None,
    history: History | None = None,
    has_aux: bool = False,
    steps: int | None = None,
    epochs: int = 1,
    steps_per_dispatch: int = 1,
    evaluate: Callable[[Tree, State], Any] | None = None,
    evaluate_every: int = 100,
    stop: Callable[[History], bool] | None = None,
    progress: bool | None = None,
) -> Fit:
    """Trains over the batches and returns `(params, state, history, reason)`.

    What is passed in stays as it is: `fit` works on copies, so that a cell of a notebook can be run
    again. Ctrl-C ends it after the running dispatch, whenever and however often it is pressed, and it
    returns what is complete; pressed again, it also leaves a batch or an evaluation that hangs. An
    exception raised by the batches, `evaluate` or `stop` carries the same as `error.result`.

    Args:
      loss_fn: `loss_fn(params, *batch)`, a scalar; with has_aux `(scalar, aux)`. Compiled once per
        function, as by jax.jit: globals it reads are read then.
      tx: an adamfx or optax transformation.
      params: a tree of arrays.
      batches: an iterable of batches; each a tuple (or list) of the arguments after params, or one
        argument. With several steps per dispatch one batch of another shape may have been taken from
        it when the run ends.
      state: from `tx.init` or an earlier run; None: a new one.
      history: of an earlier run, to be continued (in a copy).
      has_aux: whether loss_fn returns more; scalars in `aux`, a dict, become columns of the history.
      steps: how many at most; None: until the batches end.
      epochs: how often to go through the batches; more than one needs an iterable that starts anew.
      steps_per_dispatch: how many steps run as one program, over batches stacked on the host; larger
        is faster for small models. Batches of another shape start a new program.
      evaluate: `evaluate(params, state)` returns a number or a dict of numbers, for the history.
      evaluate_every: steps between evaluations; there is one more at the end.
      stop: an early stop: `stop(history)` is asked after each dispatch, from the first evaluation on
        where there are some; see `no_improvement`.
      progress: a bar with loss, learning rate and gradient norm; None: if tqdm is installed.

    The history has the columns step, loss, gradient_norm, what `metrics(state)` finds (such as
    learning_rate), the scalars of aux and of evaluate; each step's numbers are float32. A
    skip_nonfinite that has had too many in a row ends the run with reason "nonfinite".
    """
    steps = None if steps is None else checks.steps("fit", "steps", steps)
    epochs = checks.steps("fit", "epochs", epochs, 1)
    steps_per_dispatch = checks.steps("fit", "steps_per_dispatch", steps_per_dispatch, 1)
    evaluate_every = checks.steps("fit", "evaluate_every", evaluate_every, 1)
    if epochs > 1 and iter(batches) is batches:
        raise ValueError(
            f"fit: batches is an iterator, which can be gone through once, but epochs is {epochs}; give a "
            "list or another iterable that starts anew"
        )
    run, result = None, None
    try:
        with Interrupts() as interrupts, _bar(progress, _total(batches, epochs, steps)) as bar:
            run = _Run(loss_fn, tx, params, state, history, has_aux, steps_per_dispatch, bar)
            stream = itertools.chain.from_iterable(itertools.repeat(batches, epochs))
            groups = _Groups(stream, steps_per_dispatch, interrupts)
            limit = math.inf if steps is None else steps
            try:
                reason = _loop(run, groups, limit, evaluate, evaluate_every, stop, interrupts)
                result = run.result(reason)
            except BaseException as error:
                error.result = run.result("failed")  # type: ignore[attr-defined]
                held = "" if run.params is not None else ", but params and state: the step had them"
                error.add_note(
                    f"fit: what was complete before this error is in its attribute result{held}"
                )
                raise
    except KeyboardInterrupt:  # pressed before the first step, or after the last
        if result is None:
            raise
    if run is not None:
        _warn(run, result.reason)
    return result


def _loop(
    run: _Run,
    groups: _Groups,
    limit: float,
    evaluate: Callable | None,
    every: int,
    stop: Callable | None,
    interrupts: Interrupts,
) -> str:
    """Runs until something ends it, and says what."""
    evaluated = 0

    def evaluation() -> None:
        nonlocal evaluated
        evaluated = run.steps
        run.drain()
        found = interrupts.leavable(evaluate, _copy(run.params), _copy(run.state))
        if found is not LEFT:
            run.history.record(_evaluated(found, run.columns))

    reason = "steps"
    while run.steps < limit:
        if interrupts.pressed:
            reason = "interrupted"
            break
        until = every - run.total % every  # in steps of all runs, so that a resumed one keeps time
        group, stacked = groups.take(int(min(until, limit - run.steps)))
        if not group:
            reason = "interrupted" if interrupts.pressed else "end of batches"
            break
        run.dispatch(group, stacked)
        run.drain(keep=0 if stop else 1)
        if evaluate and run.total % every == 0 and not interrupts.pressed:
            evaluation()
        if run.failed:
            reason = "nonfinite"
            break
        ready = evaluated or not evaluate  # with an evaluation to look at, if there are any
        if stop and ready and not interrupts.pressed:
            answer = interrupts.leavable(stop, run.history)
            if answer is not LEFT and answer:
                reason = "stop"
                break
    if evaluate and run.steps > evaluated and not interrupts.pressed:
        evaluation()
    return reason


def _warn(run: _Run, reason: str) -> None:
    """Says what is easily overlooked."""
    if not run.steps and reason == "end of batches":
        warnings.warn(
            "fit: there were no batches; an iterator can be gone through once", stacklevel=3
        )
    elif run.steps and not np.isfinite(run.history["loss"][-1]) and not run.skips:
        bad = run.history["step"][~np.isfinite(run.history["loss"])]
        warnings.warn(
            f"fit: the loss is {run.history['loss'][-1]} at the end; it was not finite {len(bad)} times, at "
            f"first at step {bad[0]:.0f}; skip_nonfinite(tx) leaves such gradients out",
            stacklevel=3,
        )


class _Run:
    """Parameters, state and history of a run, always those of one step that is complete."""

    def __init__(self, loss_fn, tx, params, state, history, has_aux, k, bar):
        self.tx = as_transformation(tx)
        checks.leaves("fit", trees.flatten(params)[0], params)
        self.params = _copy(params)
        if state is not None:
            checks.is_state("fit", state)
        self.state = self.tx.init(self.params) if state is None else _copy(state)
        self.history = History({} if history is None else history)
        self.start = int(self.state["count"])  # steps of the runs before
        self.steps = 0  # of this run
        self.columns: set[str] = set()  # that every step writes
        self.failed = False
        self.skips = bool(sentence.memories(self.state, "too_many"))
        self.pending: list[tuple[int, int, dict]] = []
        self.bar, self.k = bar, k
        cached = isinstance(loss_fn, Hashable)
        self.program = (_program if cached else _program.__wrapped__)(loss_fn, has_aux)

    @property
    def total(self) -> int:
        return self.start + self.steps

    def alive(self) -> bool:
        """Whether params and state are there; a step that fails has taken their memory."""
        try:
            jax.block_until_ready((self.params, self.state))
        except Exception:  # deleted, or not computed
            return False
        return not any(x.is_deleted() for x in jax.tree.leaves((self.params, self.state)))

    def dispatch(self, n: int, batches: Tree) -> None:
        """Starts n steps; does not wait for them."""
        self.params, self.state, records = self.program(
            self.tx, self.params, self.state, batches, np.int32(n), self.k
        )
        self.pending.append((self.steps, n, records))
        self.steps += n

    def drain(self, keep: int = 0) -> None:
        """Waits for all dispatches but the last `keep`, and writes down what they measured."""
        while len(self.pending) > keep:
            before, n, records = self.pending.pop(0)
            columns = {name: np.asarray(x)[:n] for name, x in records.items()}
            step = self.start + before + 1 + np.arange(n)
            self.failed = self.failed or bool(columns.pop(FAILED)[-1])
            self.columns |= {"step", *columns}
            self.history.extend({"step": step, **columns})
            if self.bar is not None:
                shown = {"loss": "loss", "learning_rate": "lr", "gradient_norm": "grad"}
                last = {to: f"{columns[c][-1]:.3g}" for c, to in shown.items() if c in columns}
                self.bar.set_postfix(last, refresh=False)
                self.bar.update(n)

    def result(self, reason: str) -> Fit:
        try:
            self.drain()
        except Exception:  # the device failed: its numbers are gone, the rows before are not
            if reason != "failed":
                raise
        if not self.alive():
            self.params = self.state = None
        return Fit(self.params, self.state, self.history, reason)


@functools.lru_cache(maxsize=16)
def _program(loss_fn: Callable, has_aux: bool) -> Callable:
    """Up to k steps as one compiled loop, the same code for any number of them."""
    gradient = _gradient(loss_fn, has_aux)

    def one(tx, params, state, batch):
        out, grads = gradient(params, *batch)
        loss, aux = out if has_aux else (out, {})
        params, state = tx.step(grads, state, params, value=loss)
        record = {"loss": loss, "gradient_norm": global_norm(trees.map_trained(lambda g: g, grads))}
        for name, x in metrics(state).items():  # a monitor inside a wrapper sees other gradients
            record[f"monitor/{name}" if name in record else name] = x
        taken = {"step", *record} & set(_scalars(aux))
        if taken:
            raise ValueError(
                f"fit: aux holds {', '.join(sorted(taken))}, which is a column of the history already; give "
                "it another name"
            )
        record |= _scalars(aux)
        failed = [jnp.any(m.too_many) for m in sentence.memories(state, "too_many")]
        record[FAILED] = functools.reduce(jnp.logical_or, failed, jnp.asarray(False))
        return params, state, {n: jnp.asarray(x).astype(jnp.float32) for n, x in record.items()}

    @functools.partial(jax.jit, donate_argnums=(1, 2), static_argnums=5)
    def run(tx, params, state, batches, n, k):
        def turn(i, carry):
            params, state, records = carry
            batch = jax.tree.map(lambda x: jnp.asarray(x)[i], batches)
            params, state, new = one(tx, params, state, batch)
            return params, state, {c: records[c].at[i].set(x) for c, x in new.items()}

        first = jax.tree.map(lambda x: x[0], batches)
        columns = jax.eval_shape(one, tx, params, state, first)[2]
        records = {c: jnp.zeros(k, x.dtype) for c, x in columns.items()}
        return jax.lax.fori_loop(0, n, turn, (params, state, records))

    return run


def _scalars(aux: Any) -> dict[str, Any]:
    items = aux.items() if isinstance(aux, dict) else ()
    return {str(name): x for name, x in items if trees.is_arrays(x) and np.ndim(x) == 0}


def _copy(tree: Tree) -> Tree:
    """Copies of the arrays; numbers become arrays of a dtype that a step does not change."""

    def copy(x):
        if isinstance(x, jax.Array) and not getattr(x, "weak_type", False):  # random keys have none
            return x.copy()
        return jnp.array(x, trees.dtype_of(x))

    return jax.tree.map(copy, tree)


def _evaluated(found: Any, taken: set[str]) -> dict[str, float]:
    """What `evaluate` returned, as numbers by name."""
    numbers = {}
    for name, x in (found if isinstance(found, dict) else {"evaluation": found}).items():
        if name in taken:
            raise ValueError(
                f"fit: evaluate returned {name!r}, which is a column of every step; call it e.g. "
                f"{'test_' + name!r}"
            )
        try:
            numbers[str(name)] = float(x)
        except (TypeError, ValueError):
            raise TypeError(
                f"fit: evaluate must return a number or a dict of numbers, {name!r} is {x!r}"
            ) from None
    return numbers


class _Groups:
    """Batches taken together: as many of one shape as are asked for, stacked, k in length."""

    def __init__(self, stream: Iterator, k: int, interrupts: Interrupts):
        self.stream, self.k, self.interrupts = stream, k, interrupts
        self.held: Any = None  # of another shape than the last group

    def take(self, n: int) -> tuple[int, Tree]:
        """(how many, the stacked batches); (0, None) at the end."""
        group: list = []
        while len(group) < min(n, self.k) and not self.interrupts.pressed:
            batch = self.held
            self.held = None
            if batch is None:
                batch = self.interrupts.leavable(next, self.stream, LEFT)
                if batch is LEFT:
                    break
                batch = jax.tree.map(
                    lambda x: x if isinstance(x, jax.Array) else np.asarray(x),
                    tuple(batch) if isinstance(batch, (tuple, list)) else (batch,),
                )
            if group and _shapes(batch) != _shapes(group[0]):
                self.held = batch
                break
            group.append(batch)
        if not group:
            return 0, None
        whole = group + group[-1:] * (self.k - len(group))
        return len(group), jax.tree.map(_stack, *whole)


def _shapes(batch: Tree) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(x.shape, x.dtype) for x in leaves]


def _stack(*xs: Any) -> Any:
    if len(xs) == 1:
        return xs[0][None]
    return (jnp if isinstance(xs[0], jax.Array) else np).stack(xs)


def _total(batches: Any, epochs: int, steps: int | None) -> int | None:
    try:
        length = len(batches) * epochs
    except TypeError:  # there is no length, or asking for it says so
        length = None
    return min((x for x in (length, steps) if x is not None), default=None)


def _bar(progress: bool | None, total: int | None) -> Any:
    """A tqdm bar, or nothing, as a context."""
    if progress is False:
        return contextlib.nullcontext()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if progress:
            raise ImportError("fit: progress=True needs tqdm; run: pip install tqdm") from None
        return contextlib.nullcontext()
    return tqdm(total=total, unit="step", dynamic_ncols=True)
