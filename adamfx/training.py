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
import time
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
SECONDS_PER_DISPATCH = 0.02  # about; Ctrl-C and the bar wait that long
PATIENCE = 0.1  # seconds to wait for the batches of one dispatch
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
    steps_per_dispatch: int | None = None,
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
        argument. Where steps are dispatched together, one batch of another shape may have been taken
        from it when the run ends.
      state: from `tx.init` or an earlier run; None: a new one.
      history: of an earlier run, to be continued (in a copy).
      has_aux: whether loss_fn returns more; scalars in `aux`, a dict, become columns of the history.
      steps: how many at most; None: until the batches end.
      epochs: how often to go through the batches; more than one needs an iterable that starts anew.
      steps_per_dispatch: how many steps run as one program, over batches stacked on the host. None:
        as many as take about 20 ms, up to 64, and no more than the batches that came within 0.1 s; one
        where `stop` has no `evaluate` to look at. Equal runs stay equal bit for bit, however long their
        dispatches; another number given here may round differently. On the CPU a loss with a convolution
        always runs step by step: in a loop it takes 50 times as long.
      evaluate: `evaluate(params, state)` returns a number or a dict of numbers, for the history.
      evaluate_every: steps between evaluations; there is one more at the end.
      stop: an early stop: `stop(history)` is asked after each evaluation; where there are none, after
        each dispatch. See `no_improvement`.
      progress: a bar with loss, learning rate and gradient norm; None: if tqdm is installed.

    The history has the columns step, loss, gradient_norm, what `metrics(state)` finds (such as
    learning_rate), the scalars of aux and of evaluate; each step's numbers are float32. A
    skip_nonfinite that has had too many in a row ends the run with reason "nonfinite".
    """
    steps = None if steps is None else checks.steps("fit", "steps", steps)
    epochs = checks.steps("fit", "epochs", epochs, 1)
    if steps_per_dispatch is not None:
        steps_per_dispatch = checks.steps("fit", "steps_per_dispatch", steps_per_dispatch, 1)
    elif stop and not evaluate:
        steps_per_dispatch = 1
    evaluate_every = checks.steps("fit", "evaluate_every", evaluate_every, 1)
    if epochs > 1 and iter(batches) is batches:
        raise ValueError(
            f"fit: batches is an iterator, which can be gone through once, but epochs is {epochs}; give a "
            "list or another iterable that starts anew"
        )
    run, result = None, None
    try:
        with Interrupts() as interrupts, _bar(progress, _total(batches, epochs, steps)) as bar:
            run = _Run(loss_fn, tx, params, state, history, has_aux, bar)
            stream = itertools.chain.from_iterable(itertools.repeat(batches, epochs))
            groups = _Groups(stream, steps_per_dispatch, interrupts, run.suited)
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
        run.drain()
        evaluated = run.steps
        found = interrupts.leavable(evaluate, _copy(run.params), _copy(run.state))
        if found is not LEFT:
            run.history.record(_evaluated(found, run.columns))

    reason = "steps"
    while run.steps < limit:
        if interrupts.pressed:
            reason = "interrupted"
            break
        until = every - run.total % every  # in steps of all runs, so that a resumed one keeps time
        started = time.monotonic()
        n, k, stacked = groups.take(int(min(until, limit - run.steps)))
        if not n:
            reason = "interrupted" if interrupts.pressed else "end of batches"
            break
        run.dispatch(n, k, stacked)
        run.drain(keep=0 if run.needs_waiting or (stop and not evaluate) else 1)
        groups.pace(time.monotonic() - started)
        due = evaluate and run.total % every == 0
        if due and not interrupts.pressed:
            evaluation()
        if run.failed:
            break
        if stop and (due or not evaluate) and not interrupts.pressed:
            answer = interrupts.leavable(stop, run.history)
            if answer is not LEFT and answer:
                reason = "stop"
                break
    run.drain()
    reason = "nonfinite" if run.failed else reason
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

    def __init__(self, loss_fn, tx, params, state, history, has_aux, bar):
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
        self.pending: list[tuple[int, Any, dict]] = []
        self.written = 0  # steps of this run that are in the history
        self.last: Any = np.False_  # whether the last dispatch has failed, on the device
        self.bar = bar
        cached = isinstance(loss_fn, Hashable)
        self.program = (_program if cached else _program.__wrapped__)(loss_fn, has_aux)
        self.loops = True

    @property
    def total(self) -> int:
        return self.start + self.steps

    @property
    def needs_waiting(self) -> bool:
        """Whether only the host can keep a step from following a failure."""
        return self.skips and not self.loops

    def alive(self) -> bool:
        """Whether params and state are there; a step that fails has taken their memory."""
        try:
            jax.block_until_ready((self.params, self.state))
        except Exception:  # deleted, or not computed
            return False
        return not any(x.is_deleted() for x in jax.tree.leaves((self.params, self.state)))

    def suited(self, batch: Tree, asked: int | None) -> int:
        """How many steps one program can hold. By counting, not by the clock: equal runs stay equal."""
        step = self.program.one.trace(self.tx, self.params, self.state, batch)
        on_cpu = jax.default_backend() == "cpu"
        self.loops = not (on_cpu and _convolves(step.jaxpr.jaxpr))
        if not self.loops:
            return 1
        if asked:
            return asked
        cost = step.lower().cost_analysis()
        speed = 1e10 if on_cpu else 1e13  # operations per second, of an ordinary device
        by_time = SECONDS_PER_DISPATCH * speed / max((cost or {}).get("flops", 0.0), 1.0)
        by_memory = 2**23 / max(sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(batch)), 1)
        return int(np.clip(min(by_time, by_memory), 1, 64))

    def dispatch(self, n: int, k: int, batches: Tree) -> None:
        """Starts n of at most k steps; does not wait for them."""
        k_in_loop = k if self.loops else None
        done, self.last, self.params, self.state, records = self.program.run(
            self.tx, self.params, self.state, batches, np.int32(n), self.last, k_in_loop
        )
        self.pending.append((n, done, records))
        self.steps += n

    def drain(self, keep: int = 0) -> None:
        """Waits for all dispatches but the last `keep`, and writes down what they measured."""
        while len(self.pending) > keep:
            asked, done, records = self.pending.pop(0)
            n = int(done)  # fewer than asked for where a failure has ended them
            self.steps -= asked - n
            if not n:
                continue
            columns = {name: np.asarray(x)[:n] for name, x in records.items()}
            step = self.start + self.written + 1 + np.arange(n)
            self.written += n
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


class _Program(NamedTuple):
    """One step of one batch; and n of at most k steps in a loop, none after a failure, by the same code
    for any n. Without k it is one step and no loop."""

    one: Any
    run: Any


@functools.lru_cache(maxsize=16)
def _program(loss_fn: Callable, has_aux: bool) -> _Program:
    gradient = _gradient(loss_fn, has_aux)

    @jax.jit
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

    @functools.partial(jax.jit, donate_argnums=(1, 2), static_argnums=6)
    def run(tx, params, state, batches, n, failed, k):
        first = jax.tree.map(lambda x: x[0], batches)
        if k is None:
            params, state, record = one(tx, params, state, first)
            return n, record[FAILED] > 0, params, state, {c: x[None] for c, x in record.items()}
        columns = jax.eval_shape(one, tx, params, state, first)[2]
        records = {c: jnp.zeros(k, x.dtype) for c, x in columns.items()}

        def turn(carry):
            i, _, params, state, records = carry
            batch = jax.tree.map(lambda x: jnp.asarray(x)[i], batches)
            params, state, new = one(tx, params, state, batch)
            records = {c: records[c].at[i].set(x) for c, x in new.items()}
            return i + 1, new[FAILED] > 0, params, state, records

        start = (jnp.zeros_like(n), failed, params, state, records)
        return jax.lax.while_loop(lambda c: (c[0] < n) & ~c[1], turn, start)

    return _Program(one, run)


def _convolves(jaxpr: Any) -> bool:
    """Whether there is a convolution in a program."""
    for eqn in jaxpr.eqns:
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(eqn.params.values()))]
        if eqn.primitive.name == "conv_general_dilated":
            return True
        if any(_convolves(x) for x in inner if hasattr(x, "eqns")):
            return True
    return False


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
    """Batches taken together: as many of one shape as are asked for, stacked, k in length.

    k, if it is None, is what `suited` says of the first batch.
    """

    def __init__(self, stream: Iterator, k: int | None, interrupts: Interrupts, suited: Callable):
        self.stream, self.k, self.interrupts, self.suited = stream, k, interrupts, suited
        self.patience = PATIENCE if k is None else math.inf
        self.ahead = 1.0 if k is None else math.inf  # how many at most, of the k that fit
        self.begun = False
        self.held: Any = None  # of another shape than the last group
        self.error: BaseException | None = None  # to be raised when what came before is trained

    def take(self, n: int) -> tuple[int, int, Tree]:
        """(how many, k, the stacked batches); (0, k, None) at the end."""
        group: list = []
        end = math.inf
        while len(group) < min(n, self.ahead, self.k or 1) and not self.interrupts.pressed:
            if time.monotonic() > end:
                break
            batch, self.held = self.held, None
            if batch is None:
                try:
                    batch = self._next()
                except BaseException as error:
                    if not group:
                        raise
                    self.error = error
                    break
                if batch is LEFT:
                    break
                batch = jax.tree.map(
                    # A copy: the caller may fill the same array with the next batch.
                    lambda x: x if isinstance(x, jax.Array) else np.array(x),
                    tuple(batch) if isinstance(batch, (tuple, list)) else (batch,),
                )
            if group and _shapes(batch) != _shapes(group[0]):
                self.held = batch
                break
            if not self.begun:
                self.begun, self.k = True, self.suited(batch, self.k)
            if not group:
                end = time.monotonic() + self.patience
            group.append(batch)
        k = self.k or 1
        if not group:
            return 0, k, None
        whole = group + group[-1:] * (k - len(group))
        return len(group), k, jax.tree.map(_stack, *whole)

    def pace(self, seconds: float) -> None:
        """Takes more where a dispatch was short, and fewer where it was long; of equal result."""
        if seconds < SECONDS_PER_DISPATCH:
            self.ahead *= 2
        elif seconds > 2 * SECONDS_PER_DISPATCH:
            self.ahead = max(1.0, self.ahead / 2)

    def _next(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.interrupts.leavable(next, self.stream, LEFT)


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
