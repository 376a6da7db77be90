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

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from adamfx import checks, sentence, trees
from adamfx.values import Container, Form, P, Value, constructor

if TYPE_CHECKING:
    import optax

Tree = Any
State = dict[str, Any]


class Sentence(tuple):
    """The meaning of a chain: its blocks, in order."""


class GradientTransformation(Value):
    """An optimizer, or a block of one, as a value.

    It prints as the call that makes it, compares and hashes by it, and is a pytree whose leaves are
    its dynamic hyperparameters: pass it to `jax.jit`, stack and `vmap` it, differentiate with
    respect to it. `init, update = tx` unpacks it, as everywhere in JAX.
    """

    __slots__ = ()

    def init(self, params: Tree) -> State:
        """The state for these parameters: {"count": 0, block name: what it remembers}.

        Moments are float32 at least, on the devices of their parameter. Integer, float0 and None
        leaves are frozen: nothing is kept for them.
        """
        return sentence.init(self.blocks, params)

    def update(
        self, grads: Tree, state: State, params: Tree = None, **extra: Any
    ) -> tuple[Tree, State]:
        """(updates, new state). Outside jit it runs as one compiled program.

        Args:
          grads: a tree like the parameters; None for a leaf leaves it and its state unchanged.
          state: from `init` or the last update.
          params: the parameters before the step; needed by weight decay and trust ratios.
          **extra: arrays or callables, passed to the blocks that read them.

        The updates have the dtype of the parameters where these are passed, else of the gradients;
        those of frozen leaves are zeros. Raises ValueError for trees or shapes that do not fit.
        """
        return _run(self, grads, state, params, extra, "update")

    def step(self, grads: Tree, state: State, params: Tree, **extra: Any) -> tuple[Tree, State]:
        """(new params, new state): the update applied in float32 at least and rounded once."""
        if params is None:
            raise ValueError("step: needs the parameters; call tx.step(grads, state, params)")
        return _run(self, grads, state, params, extra, "step")

    def __iter__(self) -> Iterator[Callable]:
        return iter((self.init, self.update))

    @property
    def blocks(self) -> list[tuple[str, GradientTransformation]]:
        """The blocks of this sentence by the key that each has in the state."""
        meaning = self.meaning
        values = meaning if isinstance(meaning, Sentence) else (self,)
        return list(zip(_keys([value._form for value in values]), values, strict=True))

    def as_optax(self) -> optax.GradientTransformationExtraArgs:
        """The same as optax's own type, for code that checks it or passes extra arguments."""
        try:
            import optax
        except ImportError:
            raise ImportError("as_optax: needs optax; run: pip install optax") from None

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            return self.update(updates, state, params, **extra)

        return optax.GradientTransformationExtraArgs(self.init, update)

    def _prefix(self) -> str:
        template = dict(self._form.arguments).get("transformations")
        return "" if template is not None else _keys([self._form])[0]

    def _child_names(self) -> dict[tuple, str]:
        names: dict[tuple, str] = {}
        arguments = self._form.arguments
        groups = [
            (name, label)
            for name, template in arguments
            if isinstance(template, Container) and template.kind is dict
            for label, item in zip(template.names, template.items, strict=True)
            if _is_transformation(item)
        ]
        names |= {place: place[1] for place in groups} | {place[:1]: "" for place in groups}
        inner = [(name, template) for name, template in arguments if _is_transformation(template)]
        if groups:  # beside groups, a transformation is the group of its argument's name
            names |= {(name,): name for name, _ in inner}
        elif len(inner) == 1:  # a wrapper adds no name of its own argument
            names[inner[0][0],] = _wrapper_key(inner[0][1])
        blocks = dict(arguments).get("transformations")
        if isinstance(blocks, Container) and all(map(_is_transformation, blocks.items)):
            keys = _keys(list(blocks.items))
            names |= {("transformations", i): key for i, key in enumerate(keys)}
            names["transformations",] = ""
        return names


def _is_transformation(template: Any) -> bool:
    return isinstance(template, Form) and issubclass(
        template.constructor.kind, GradientTransformation
    )


def _wrapper_key(form: Form) -> str:
    """The key of a wrapper, which two of a kind inside one another need; of a block or chain, none."""
    wraps = any(_is_transformation(template) for _, template in form.arguments)
    return _keys([form])[0] if wraps else ""


def _keys(forms: list[Form]) -> list[str]:
    """State keys in order: a block's name, or its argument `name`; then name_2, name_3."""
    keys: list[str] = []
    for form in forms:
        given = getattr(dict(form.arguments).get("name"), "value", None)
        name = given if isinstance(given, str) else form.constructor.name
        taken = {"count", *keys}
        numbered = (f"{name}_{n}" for n in itertools.count(2))
        keys.append(name if name not in taken else next(k for k in numbered if k not in taken))
    return keys


def _run(
    tx: GradientTransformation, grads: Tree, state: State, params: Tree, extra: dict, finish: str
) -> tuple[Tree, State]:
    if trees.is_traced(grads, state, params, tx, list(extra.values())):
        return sentence.run(tx.blocks, grads, state, params, extra, finish)
    arrays = {name for name, x in extra.items() if trees.is_arrays(x)}
    static = tuple((name, x) for name, x in extra.items() if name not in arrays)
    for name, x in static:
        try:
            hash(x)
        except TypeError:
            raise TypeError(
                f"{finish}: the extra argument {name} is {x!r}; outside jit, pass arrays and callables as "
                "arguments of their own"
            ) from None
    try:
        return _compiled(tx, grads, state, params, {n: extra[n] for n in arrays}, static, finish)
    except TypeError:
        for tree in (grads, params):
            checks.leaves(finish, trees.flatten(tree)[0], tree)
        raise


@functools.partial(jax.jit, static_argnames=("static", "finish"))
def _compiled(tx, grads, state, params, arrays, static, finish):
    extra = {**arrays, **dict(static)}
    return sentence.run(tx.blocks, grads, state, params, extra, finish)


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
    the body may branch on it. The body returns `leafwise(...)`, or a pair `(init, update)` over
    trees with `update(updates, state, params, **extra) -> (updates, state)`.

    A parameter called `name` chooses the block's key in the state.
    """

    @functools.wraps(function)
    def body(*args: P.args, **kwargs: P.kwargs) -> Any:
        meaning = function(*args, **kwargs)
        if isinstance(meaning, (Sentence, sentence.Leafwise, sentence.Pair, Value)):
            return meaning
        if isinstance(meaning, tuple) and len(meaning) == 2 and all(map(callable, meaning)):
            return sentence.Pair(*meaning)
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
    mask: Any = None,
) -> sentence.Leafwise:
    """A block as arithmetic for one array.

    Args:
      leaf: `leaf(u, here) -> u`, from the update so far, float32 at least, to the new one of the
        same shape. `here` has `.param`, `.gradient`, `.memory`, `.shared` and `.dtype`, the
        parameter's. With `init` it returns `(u, {name: array})`, what to remember of this leaf.
      init: `init(p) -> {name: array}`, what is remembered of one parameter at the start. Plain
        `jnp.zeros_like(p)` will do: dtype, sharding and aliasing are taken care of.
      shared: `shared(step) -> scalars`, computed once per step for all leaves. `step` has `.count`
        (steps done before), `.memory`, `.rates`, `.extra` and, with `whole_tree`, `.updates`. With
        `init_shared` it returns `(scalars, {name: scalar})`.
      init_shared: `() -> {name: array}`, what is remembered once for all leaves.
      moments: None for an ordinary block; "opens" if `leaf` returns a Moments record; "corrects" if
        it takes one.
      whole_tree: `shared` reads the update of all leaves (`step.updates`).
      needs_params: `leaf` reads `here.param`.
      mask: where the block acts: a tree of bools, or a callable of the parameters that returns one.
    """
    checks.choice("leafwise", "moments", moments, (None, "opens", "corrects"))
    return sentence.Leafwise(
        leaf, init, shared, init_shared, moments, whole_tree, needs_params, mask
    )


@block
def identity():
    """Leaves the updates as they are: the empty chain."""
    return Sentence()


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """params + updates, leaf by leaf, computed in float32 at least, in the parameter's dtype.

    A None update and a frozen (integer) parameter leave the parameter unchanged. Raises ValueError
    where structure or shape differ, with the path of the leaf. `tx.step` rounds once instead of
    twice for parameters below float32.
    """
    difference = trees.same_structure(updates, params)
    if difference:
        raise ValueError(f"apply_updates: updates and params differ: in the updates {difference}")
    p, structure = trees.flatten(params)
    out = []
    for j, (a, u) in enumerate(zip(p, trees.flatten(updates)[0], strict=True)):
        if u is None or not trees.is_trained(a):
            out.append(a)
            continue
        if jnp.shape(a) != jnp.shape(u):
            raise ValueError(
                f"apply_updates: update at {trees.paths(params)[j]} has shape {jnp.shape(u)}, the "
                f"parameter has {jnp.shape(a)}"
            )
        out.append(_apply(jnp.asarray(a), jnp.asarray(u)))
    return structure.unflatten(out)


@jax.jit
def _apply(p: jax.Array, u: jax.Array) -> jax.Array:
    wide = trees.at_least_float32(p.dtype, u.dtype)
    return (p.astype(wide) + u.astype(wide)).astype(p.dtype)
