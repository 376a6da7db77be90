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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks, trees
from adamfx.clipping import global_norm
from adamfx.combine import as_transformation
from adamfx.history import History
from adamfx.interrupts import LEFT, Interrupts
from adamfx.monitoring import metrics

Tree = Any
State = Any


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
    reason: str  # "end of batches", "steps", "stop", "interrupted", "nonfinite"


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
    again. Ctrl-C ends it after the running step, whenever and however often it is pressed, and it
    returns what is complete; pressed again, it also leaves a batch or an evaluation that hangs. An
    exception raised by the batches, `evaluate` or `stop` carries the same as `error.result`.

    Args:
      loss_fn: `loss_fn(params, *batch)`, a scalar; with has_aux `(scalar, aux)`.
      tx: an adamfx or optax transformation.
      params: a tree of arrays.
      batches: an iterable of batches; each a tuple (or list) of the arguments after params, or one
        argument.
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

    The history has the columns step, loss, gradient_norm, learning_rate, what `metrics(state)` finds,
    the scalars of aux and of evaluate. A skip_nonfinite that has had too many in a row ends the run
    with reason "nonfinite".
    """
    for name, x, low in (
        ("steps", 0 if steps is None else steps, 0),
        ("epochs", epochs, 1),
        ("steps_per_dispatch", steps_per_dispatch, 1),
        ("evaluate_every", evaluate_every, 1),
    ):
        checks.steps("fit", name, x, low)
    if epochs > 1 and iter(batches) is batches:
        raise ValueError(
            f"fit: batches is an iterator, which can be gone through once, but epochs is {epochs}; give a "
            "list or another iterable that starts anew"
        )
    result = None
    try:
        with Interrupts() as interrupts, _bar(progress, _total(batches, epochs, steps)) as bar:
            run = _Run(loss_fn, tx, params, state, history, has_aux, bar)
            stream = itertools.chain.from_iterable(itertools.repeat(batches, epochs))
            groups = _Groups(stream, steps_per_dispatch, interrupts)
            limit = math.inf if steps is None else steps
            try:
                reason = _loop(run, groups, limit, evaluate, evaluate_every, stop, interrupts)
                result = run.result(reason)
            except Exception as error:
                error.result = run.result("failed")  # type: ignore[attr-defined]
                error.add_note(
                    "fit: what was complete before this error is in its attribute result"
                )
                raise
    except KeyboardInterrupt:  # pressed before the first step, or after the last
        if result is None:
            raise
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
            run.history.record(found if isinstance(found, dict) else {"evaluation": found})

    reason = "steps"
    while run.steps < limit:
        group, stacked = groups.take(int(min(every - run.steps % every, limit - run.steps)))
        if interrupts.pressed:
            reason = "interrupted"
            break
        if not group:
            reason = "end of batches"
            break
        run.dispatch(group, stacked)
        run.drain(keep=0 if stop else 1)
        if evaluate and run.steps % every == 0:
            evaluation()
        if run.failed:
            reason = "nonfinite"
            break
        ready = evaluated or not evaluate  # with an evaluation to look at, if there are any
        if stop and ready and interrupts.leavable(stop, run.history) is True:
            reason = "stop"
            break
    if evaluate and run.steps > evaluated and not interrupts.pressed:
        evaluation()
    return reason


class _Run:
    """Parameters, state and history of a run, always those of one step that is complete."""

    def __init__(self, loss_fn, tx, params, state, history, has_aux, bar):
        self.tx = as_transformation(tx)
        checks.leaves("fit", trees.flatten(params)[0], params)
        self.params = _copy(params)
        self.state = self.tx.init(self.params) if state is None else _copy(state)
        self.history = History({} if history is None else history)
        self.start = int(self.state["count"])
        self.steps = 0  # of this run
        self.failed = False
        self.pending: list[tuple[int, int, dict]] = []
        self.bar = bar
        self.program = _program(loss_fn, has_aux)

    def dispatch(self, n: int, batches: Tree) -> None:
        """Starts n steps; does not wait for them."""
        self.params, self.state, records = self.program(
            self.tx, self.params, self.state, batches, np.int32(n)
        )
        self.pending.append((self.steps, n, records))
        self.steps += n

    def drain(self, keep: int = 0) -> None:
        """Waits for all dispatches but the last `keep`, and writes down what they measured."""
        while len(self.pending) > keep:
            before, n, records = self.pending.pop(0)
            columns = {name: np.asarray(x)[:n] for name, x in records.items()}
            step = self.start + before + 1 + np.arange(n)
            self.history.extend({"step": step, **columns})
            too_many = (x[-1] for name, x in columns.items() if name.endswith("too_many"))
            self.failed = self.failed or any(too_many)
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
        record |= metrics(state) | _scalars(aux)
        return params, state, {n: jnp.asarray(x).astype(jnp.float32) for n, x in record.items()}

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def run(tx, params, state, batches, n):
        def turn(i, carry):
            params, state, records = carry
            batch = jax.tree.map(lambda x: x[i], batches)
            params, state, new = one(tx, params, state, batch)
            return params, state, {c: records[c].at[i].set(x) for c, x in new.items()}

        first = jax.tree.map(lambda x: x[0], batches)
        columns = jax.eval_shape(one, tx, params, state, first)[2]
        k = jax.tree.leaves(batches)[0].shape[0]
        records = {c: jnp.zeros(k, x.dtype) for c, x in columns.items()}
        return jax.lax.fori_loop(0, n, turn, (params, state, records))

    return run


def _scalars(aux: Any) -> dict[str, Any]:
    items = aux.items() if isinstance(aux, dict) else ()
    return {str(name): x for name, x in items if trees.is_arrays(x) and np.ndim(x) == 0}


def _copy(tree: Tree) -> Tree:
    def copy(x):
        x = jnp.asarray(x)
        return jnp.copy(x).astype(x.dtype)

    return jax.tree.map(copy, tree)


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
    length = len(batches) * epochs if hasattr(batches, "__len__") else None
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
