"""Gradient transformations: pure pairs (init, update) that are ordinary values.

    tx = chain(scale_by_moments(0.9, 0.999), bias_correct(), scale_by_lr(1e-3))
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    params = apply_updates(params, updates)
    params, state = tx.step(grads, state, params)    # both at once, rounded once

A block is a plain function under `@block`. It returns `leafwise(...)`, the arithmetic for one
array, or an ordinary `(init, update)` pair over trees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine import sentence, trees
from adamfx.engine.control import zeros_or
from adamfx.engine.forked import check_computes
from adamfx.engine.leaves import Leaves, begin, enter
from adamfx.engine.words import Leafwise, Step, Treewise
from adamfx.values.arguments import check, checked
from adamfx.values.constructor import P, constructor
from adamfx.values.grammar import keys
from adamfx.values.reads import Programs, Reads, reading
from adamfx.values.value import Value

if TYPE_CHECKING:
    import optax

Tree = Any
State = Mapping[str, Any]


class Sentence(tuple):
    """The meaning of a chain: its blocks, in order."""


class GradientTransformation(Value):
    """An optimizer, or a block of one, as a value.

    It prints as the call that makes it, compares and hashes by it, and is a pytree whose leaves are
    its dynamic hyperparameters: pass it to `jax.jit`, stack and `vmap` it, differentiate with
    respect to it. `init, update = tx` unpacks it, as everywhere in JAX.
    """

    __slots__ = ()
    has_keys = True

    def init(self, params: Tree) -> State:
        """The state for these parameters: {"count": 0, block name: what it remembers}.

        Moments are float32 at least, on the devices of their parameter. Integer, float0 and None
        leaves are frozen: nothing is kept for them.
        """
        check_computes("init", params)
        return self.start(begin(params))

    def update(
        self, grads: Tree, state: State, params: Tree = None, **extra: Any
    ) -> tuple[Tree, State]:
        """(updates, new state). Outside jit it runs as one compiled program.

        Args:
          grads: a tree like the parameters; None for a leaf leaves it and its state unchanged. Of complex
            parameters the conjugate of what jax.grad returns, which `fit` and `make_step` take.
          state: from `init` or the last update.
          params: the parameters before the step; needed by weight decay and trust ratios.
          **extra: arrays or callables, passed to the blocks that read them.

        The updates have the dtype of the parameters where these are passed, else of the gradients;
        those of frozen leaves are zeros. Raises ValueError for trees or shapes that do not fit.
        """
        return _run(self, grads, state, params, extra, applies=False)

    def step(self, grads: Tree, state: State, params: Tree, **extra: Any) -> tuple[Tree, State]:
        """(new params, new state): the update applied in float32 at least and rounded once."""
        if params is None:
            raise ValueError("step: needs the parameters; call tx.step(grads, state, params)")
        return _run(self, grads, state, params, extra, applies=True)

    def gradient_at(self, state: State, params: Tree) -> Tree:
        """Where this optimizer wants the gradient: the parameters, or another point like them.

        Another for those that look ahead of the parameters, as exact Nesterov momentum does.
        """
        return self._point("gradient_at", state, params)

    def evaluate_at(self, state: State, params: Tree) -> Tree:
        """Where the model is to be used: the parameters, their average, lookahead's slow ones."""
        return self._point("evaluate_at", state, params)

    def _point(self, which: str, state: State, params: Tree) -> Tree:
        if not sentence.has_point(which, self.blocks):
            return params
        leaves = enter(which, params, params)
        found = sentence.point(which, self.blocks, leaves, state)
        pairs = zip(found.params or [], leaves.dtypes, strict=True)
        return leaves.layout.tree([p.astype(to) for p, to in pairs], params)

    # For the authors of wrappers; see `treewise`.

    def start(self, leaves: Leaves) -> State:
        """The state for a table of parameters."""
        return sentence.start(self.blocks, leaves)

    def run(self, leaves: Leaves, state: State, step: Step) -> tuple[Leaves, State]:
        """One step on a table of leaves: its `updates` afterwards are not rounded.

        The extra arguments of `step` reach the blocks inside.
        """
        table = leaves.replace(applies=False, final=False)
        out, state = sentence.run(self.blocks, table, state, step.extra)
        return out.replace(applies=leaves.applies, final=leaves.final), state

    def run_if(
        self,
        predicate: jax.Array,
        leaves: Leaves,
        state: State,
        step: Step,
        prepare: Callable = lambda leaves: leaves,
        *read: Any,
    ) -> tuple[Leaves, State]:
        """`run` on prepare(leaves, *read) if the predicate holds; else zero updates, and `state`.

        Nothing of the state is copied. The last block of a sentence that steps changes the parameters in
        place, too. Arrays reach `prepare` as arguments only.
        """
        extra = {n: x for n, x in step.extra.items() if self.reads(n)}
        arrays = {n: x for n, x in extra.items() if trees.is_arrays(x)}
        static = {n: x for n, x in extra.items() if n not in arrays}
        applies = leaves.applies

        def turn(held, updates, params, read, tx, arrays):
            moved, inner = held
            table = leaves.replace(updates=updates, gradients=updates)
            table = prepare(table.replace(params=moved if applies else params), *read)
            found = static | arrays
            if read and "grad" in found:  # that of the loss whose gradient is worked on
                found["grad"] = table.tree(table.updates)
            table, inner = sentence.run(tx.blocks, table, inner, found)
            if applies:
                return (), (table.ended(), inner)
            pairs = zip(table.updates, leaves.wide(), strict=True)
            return [u if u.dtype == d else u.astype(d) for u, d in pairs], ((), inner)

        def zeros():
            if applies:
                return ()
            rows = list(zip(leaves.updates, leaves.wide(), strict=True))
            one: dict = {}
            for u, d in rows:  # one for each kind: the compiler sees a thousand otherwise
                one.setdefault((jax.typeof(u), d), jnp.zeros_like(u, d))
            return [one[jax.typeof(u), d] for u, d in rows]

        moved, params = (leaves.params, None) if applies else ((), leaves.params)
        updates = None if read else leaves.updates
        args = (updates or [None] * len(leaves), params, read, self, arrays)
        out, (moved, state) = zeros_or(predicate, turn, zeros, (moved, state), *args)
        if applies:
            return leaves.replace(moved=moved), state
        return leaves.replace(updates=out), state

    def reads(self, name: str) -> bool:
        """Whether some block inside reads this extra argument."""
        return any({name, "*"} & set(word.meaning.needs) for word in self.words())

    def words(self) -> Iterator[GradientTransformation]:
        """Every block, also those inside of others."""
        for _, value in self.blocks:
            yield value
            for tx in getattr(value.meaning, "inside", {}).values():
                yield from tx.words()

    def __iter__(self) -> Iterator[Callable]:
        return iter((self.init, self.update))

    @property
    def blocks(self) -> list[tuple[str, GradientTransformation]]:
        """The blocks of this sentence by the key that each has in the state."""
        meaning = self.meaning
        values = meaning if isinstance(meaning, Sentence) else (self,)
        return list(zip(keys([value.form for value in values]), values, strict=True))

    def as_optax(self) -> optax.GradientTransformationExtraArgs:
        """The same as optax's own type, for code that checks it or passes extra arguments."""
        try:
            import optax
        except ImportError:
            raise ImportError("as_optax: needs optax; run: pip install optax") from None

        return optax.GradientTransformationExtraArgs(Method(self, "init"), Method(self, "update"))

    @classmethod
    def as_inner(cls, x: Any) -> GradientTransformation:
        """`x` itself, or any object with optax's `init` and `update` as a block."""
        return x if isinstance(x, GradientTransformation) else foreign(x)

    @classmethod
    def given(cls, who: str, name: str, x: Any) -> GradientTransformation:
        """`as_inner`, whose error names the argument."""
        try:
            return cls.as_inner(x)
        except TypeError as error:
            raise TypeError(f"{who}: {name}: {error}") from None

    @classmethod
    def is_one(cls, x: Any) -> bool:
        """True, or the TypeError that says what is missing."""
        return bool(cls.as_inner(x).name)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of a value, as a function that compares, hashes and pickles as the value does."""

    value: GradientTransformation
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.value, self.name)(*args, **kwargs)


def _run(
    tx: GradientTransformation, grads: Tree, state: State, params: Tree, extra: dict, applies: bool
) -> tuple[Tree, State]:
    if trees.is_traced(grads, state, params, tx, list(extra.values())):
        return _traced(tx, grads, state, params, extra, applies)
    where = "step" if applies else "update"
    check_computes(where)
    arrays = {name for name, x in extra.items() if trees.is_arrays(x)}
    static = tuple((name, x) for name, x in extra.items() if name not in arrays)
    for name, x in static:
        try:
            hash(x)
        except TypeError:
            raise TypeError(
                f"{where}: the extra argument {name} is {x!r}; outside jit, pass arrays and callables as "
                "arguments of their own"
            ) from None
    args = tx, grads, state, params, {n: extra[n] for n in arrays}, static, applies
    try:
        if not tx.form.functions:
            return _compiled(tx.form)(*args)
        run, mark = _reading(Reads(*tx.form.functions), tx.form)
        with reading(mark):
            return run(*args)
    except TypeError:
        for what, tree in (("gradients", grads), ("params", params)):
            trees.check_leaves(where, what, tree)
        sentence.check_is_state(where, state)
        raise


def _program(*_: Any) -> Any:
    """update and step as one program, of one form: those of forms that come no more are let go."""

    @functools.partial(jax.jit, static_argnums=(5, 6))
    def run(tx, grads, state, params, arrays, static, applies):
        return _traced(tx, grads, state, params, {**arrays, **dict(static)}, applies)

    return run


_compiled, _reading = functools.lru_cache(128)(_program), Programs(_program)


def _traced(tx, grads, state, params, extra, applies):
    where = "step" if applies else "update"
    sentence.check_is_state(where, state)
    leaves = enter(where, grads, params, applies, _first(tx, "per_example"), _first(tx, "adds"))
    with _promotion(leaves):
        leaves, state = sentence.run(tx.blocks, leaves, state, extra)
        return (leaves.applied() if applies else leaves.as_updates()), state


def _promotion(leaves: Leaves) -> Any:
    """A rate is real, also times a complex leaf, which JAX's strict rules take for a mistake."""
    mixes = any(map(jnp.iscomplexobj, leaves.updates))
    return jax.numpy_dtype_promotion("standard") if mixes else contextlib.nullcontext()


def _first(tx: GradientTransformation, what: str) -> bool:
    """Whether the first word says this of itself: how it wants the gradients."""
    first = tx.blocks[0][1].meaning if tx.blocks else None
    inner = getattr(first, "inside", {}).get("")  # of named and live
    return _first(inner, what) if inner is not None else getattr(first, what, False)


_construct = constructor(GradientTransformation)


def block(function: Callable[P, Any]) -> Callable[P, GradientTransformation]:
    """Decorator: makes a constructor of transformation values from a plain function.

        @fx.block
        def sign_of_large(threshold: fx.Dynamic = 0.1):
            def leaf(u, here):
                return jnp.where(jnp.abs(u) > threshold, jnp.sign(u), 0)
            return fx.leafwise(leaf)

    Parameters annotated `fx.Dynamic` (always a leaf) or `fx.Exact` (a number stays a number, an
    array is a leaf) are hyperparameters; every other one stays the Python object that was given, so
    the body may branch on it. A parameter annotated `fx.Inner` is a transformation inside. The body
    returns `leafwise(...)`, `treewise(...)`, or a pair `(init, update)` over trees with
    `update(updates, state, params, **extra) -> (updates, state)`.

    A parameter called `name` chooses the block's key in the state.
    """
    if not inspect.isfunction(function):
        raise TypeError(
            f"block: it decorates a function, whose name and signature make the constructor, got "
            f"{function!r}; write def name(...): return leafwise(...)"
        )

    @functools.wraps(function)
    def body(*args: P.args, **kwargs: P.kwargs) -> Any:
        meaning = function(*args, **kwargs)
        if isinstance(meaning, (Sentence, Leafwise, Treewise, Value)):
            return meaning
        if isinstance(meaning, tuple) and len(meaning) == 2 and all(map(callable, meaning)):
            return pair(*meaning)
        raise TypeError(
            f"{function.__name__}: a block returns leafwise(...) or a pair (init, update), got {meaning!r}"
        )

    return _construct(body)


def leafwise(
    leaf: Callable,
    *,
    init: Callable | None = None,
    shared: Callable | None = None,
    init_shared: Callable | None = None,
    moments: str | None = None,
    whole_tree: bool = False,
    needs_params: bool = False,
    needs: Sequence[str] = (),
    mask: Any = None,
    each: Any = None,
    sums: Callable | None = None,
    norms: Callable | None = None,
    elementwise: bool = True,
    of_matrices: bool = False,
    gradient_at: Callable | None = None,
    evaluate_at: Callable | None = None,
    per_leaf: Sequence[str] = (),
    seed: int | None = None,
    together: Callable | None = None,
) -> Leafwise:
    """A block as arithmetic for one array.

    Args:
      leaf: `leaf(u, here) -> u`, from the update so far, float32 at least, to the new one of the
        same shape. `here` has `.param`, `.gradient`, `.memory`, `.shared`, `.norms`, `.own` and `.dtype`,
        the parameter's. With `init` it returns `(u, {name: array})`, what to remember of this leaf.
      init: `init(p) -> {name: array}`, what is remembered of one parameter at the start: arrays of
        any shape, other ones or none for other leaves. Plain `jnp.zeros_like(p)` will do: dtype, sharding
        and aliasing are taken care of. `along(x, axes)` says how another shape is sharded.
      shared: `shared(step) -> scalars`, computed once per step for all leaves. `step` has `.count`
        (steps done before), `.memory`, `.rates`, `.extra`, `.sums` and, with `whole_tree`, `.updates`. With
        `init_shared` it returns `(scalars, {name: scalar})`.
      init_shared: `() -> {name: array}`, what is remembered once for all leaves.
      moments: None for an ordinary block; "opens" if `leaf` returns a Moments record; "corrects" if
        it takes one.
      whole_tree: `shared` reads the update of all leaves (`step.updates`).
      needs_params: `leaf` reads `here.param`; the same as needs=("params",).
      needs: what the block reads of "params", "value", "value_fn", "grad_fn" and other extra arguments of
        `update`; all but the parameters are in `step.extra`. Where one is missing, an error says so.
      mask: where the block acts: a tree of bools, or a callable of the parameters that returns one.
      each: a fact about each leaf, static, read as `here.own`: a tree like the parameters, a prefix of
        one, or a callable of the parameters that returns one.
      sums: `sums(u, here) -> {name: array}`, added up over the leaves: `step.sums.name` in `shared`. Here and
        in `norms`, `here.shared` is the step so far, with `.count`, `.memory` and `.extra`.
      norms: `norms(u, here) -> {name: array}`, of which the 2-norm is `here.norms.name` in `leaf`; those
        of all leaves are computed together.
      elementwise: False for arithmetic that must not run once per result (see `configure`).
      of_matrices: True for products and decompositions of matrices, the last two axes, if each matrix of a
        stack is treated by itself and all that is remembered has the axes of the stack in front; also for a
        correction behind such a block. Several chips then share out the matrices.
      gradient_at, evaluate_at: `(p, here) -> p`, where this block wants the gradient, or the model to
        be used; `here.memory`, and `here.shared` with `.count` and `.memory`, as in a step.
      per_leaf: extra arguments of `update` that are trees like the parameters: `here.extra.name`.
      seed: an int, for blocks that draw at random: `here.key` is a key of this leaf and step, or with
        `of_matrices` keys of the shape of the stack, () for one matrix or a vector. Remembered as
        `key`, threefry key data of shape (2,), uint32.
      together: `together(us, heres) -> [{name: array}]`, before `leaf`: new values of what is remembered of
        each leaf, from all of them at once. For decompositions, of which leaves of one shape make one batch.
    """
    check(leafwise, locals())
    checks.choice("leafwise", "moments", moments, (None, "opens", "corrects"))
    needs = (*needs, *(("params",) if needs_params and "params" not in needs else ()), *per_leaf)
    return Leafwise(
        leaf, init, shared, init_shared, moments, whole_tree, needs, mask, each, sums, norms,
        elementwise, of_matrices, gradient_at, evaluate_at, tuple(per_leaf), seed, together,
    )  # fmt: skip


@checked
def treewise(
    run: Callable,
    inside: GradientTransformation | Mapping | None = None,
    *,
    init: Callable | None = None,
    init_shared: Callable | None = None,
    needs: Sequence[str] = (),
    gradient_at: Callable | None = None,
    evaluate_at: Callable | None = None,
) -> Treewise:
    """A block that works on all leaves at once: a wrapper.

    Args:
      run: `run(leaves, memory, step) -> (leaves, {name: what to remember})`. `leaves` is a table with
        one row per trained leaf: its columns `updates`, `gradients`, `params` are lists of arrays, and
        `leaves.replace(updates=...)` is the table with another column. What is inside runs by
        `leaves, state = inner.run(leaves, memory.inner, step)`, unrounded. `memory` has what `init` made as
        columns of the table, what `init_shared` made, and `inner`, the state of what is inside.
        `step` has `.count` (steps done before) and `.extra`. `leaves.each(f, *columns)` is
        [f(*row) for row in zip(*columns)], compiled once per shape.
      inside: the transformation inside, or a dict of several by label.
      init: `init(p) -> {name: array}`, what is remembered of each parameter at the start.
      init_shared: `() -> {name: array}`, what is remembered once.
      needs: as in `leafwise`.
      gradient_at, evaluate_at: `(leaves, memory, step) -> a column of parameters`, from `leaves.params`,
        which are already where the transformation inside wants them.
    """
    inner = {} if inside is None else {"inner": inside}
    if isinstance(inside, Mapping):
        inner = dict(inside)
    for tx in inner.values():
        if not isinstance(tx, GradientTransformation):
            raise TypeError(
                f"treewise: inside must be a transformation, or a dict of such, got {tx!r}"
            )
    return Treewise(
        run, inner, init, init_shared, carried=tuple(inner), needs=tuple(needs),
        gradient_at=gradient_at, evaluate_at=evaluate_at,
    )  # fmt: skip


def pair(init: Callable, update: Callable, foreign: bool = False) -> Treewise:
    """A block from functions over trees: `update(updates, state, params, **extra) -> (updates, state)`.

    Frozen leaves are None in what they are given. A foreign one gets updates in the dtype of the
    output, and zeros where a gradient is missing. Extra arguments reach `update` where it takes them.
    """
    parameters = inspect.signature(update).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD][3:]
    known = {p.name for p in named}

    def trees_of(leaves: Leaves) -> tuple[Tree, Tree]:
        layout, updates = leaves.layout, leaves.updates
        wide = leaves.dtypes if foreign else leaves.wide()
        updates = [u.astype(d) for u, d in zip(updates, wide, strict=True)]
        tree = layout.tree(updates)
        absent = [None] * len(layout.grads)
        for j in layout.absent:
            absent[j] = layout.params[j]
        if foreign and layout.absent:
            zeros = [None if p is None else jnp.zeros_like(p) for p in absent]
            tree = layout.tree(updates, layout.structure.unflatten(zeros))
        if leaves.params is None:
            return tree, None
        return tree, layout.tree(leaves.params, layout.structure.unflatten(absent))

    def start(leaves: Leaves) -> Any:
        return init(leaves.layout.tree(leaves.params or []))

    def stateless(leaves: Leaves) -> Any:
        return jax.eval_shape(init, trees_of(leaves)[0])

    def run(leaves: Leaves, state: Any, step: Step) -> tuple[Leaves, Any]:
        tree, params = trees_of(leaves)
        # optax's line searches refuse what their value_fn does not take, and grad_fn is a name of ours.
        unknown = {"grad_fn"} if foreign else set()
        extra = {
            n: x for n, x in step.extra.items() if n in known or (takes_all and n not in unknown)
        }
        out = update(tree, state, params, **extra)
        if type(out) is not tuple or len(out) != 2:
            raise TypeError(f"{step.key}: its update must return (updates, state), got {out!r}")
        new, after = out
        difference = trees.same_structure(new, tree)
        if difference:
            raise ValueError(
                f"{step.key}: its update returned another tree than it was given: {difference}"
            )
        if not foreign and jax.tree.structure(after) != jax.tree.structure(state):
            raise ValueError(
                f"{step.key}: its update turned the state {jax.tree.structure(state)} into "
                f"{jax.tree.structure(after)}; the structure of a state must stay, for scan and checkpoints"
            )
        flat = trees.flatten(new)[0]
        return leaves.replace(updates=[flat[j] for j in leaves.layout.rows]), after

    reads = ("*",) if takes_all or known else ()
    return Treewise(run, {}, start=start, stateless=stateless, carried=(), needs=reads, bare=True)


@block
def identity():
    """Leaves the updates as they are: the empty chain."""
    return Sentence()


@block
def foreign(transformation: Any):
    """Any object with optax's `init` and `update`, or a pair of them, as a block.

    Arguments declared `Inner` become one by themselves. The object is static: it is compared as it
    compares itself.
    """
    tx = transformation
    is_pair = type(tx) is tuple and len(tx) == 2
    init, update = tx if is_pair else (getattr(tx, "init", None), getattr(tx, "update", None))
    if inspect.isfunction(tx):
        name = tx.__name__
        raise TypeError(f"{name} is a function, not yet a transformation; call it: {name}(...)")
    if isinstance(tx, Value):
        words = {
            "Estimator": f"scale_by_moments({tx!r}, None)",
            "Schedule": f"scale_by_lr({tx!r})",
            "Predicate": f"masked(transformation, {tx!r})",
        }
        raise TypeError(
            f"{tx!r} is an adamfx {type(tx).__name__}, not a transformation (in optax it may be one); "
            f"write {words.get(type(tx).__name__, 'it as an argument of a block')}"
        )
    if isinstance(tx, list):
        raise TypeError(
            "a list is not a gradient transformation; write chain(a, b), or chain(*blocks)"
        )
    if not (callable(init) and callable(update)):
        raise TypeError(
            f"{reprlib.repr(tx)} is not a gradient transformation: it needs init(params) and "
            "update(updates, state, params), or to be a pair of such functions"
        )
    return pair(init, update, foreign=True)
