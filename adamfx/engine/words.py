"""What a block may be: arithmetic of one array, or a run over the whole table of leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from adamfx.engine.leaves import Leaves

Array = Any
Tree = Any


class Leafwise(NamedTuple):
    """A block as arithmetic for one array; `leafwise` explains the fields."""

    leaf: Callable
    init: Callable | None = None
    shared: Callable | None = None
    init_shared: Callable | None = None
    moments: str | None = None
    whole_tree: bool = False
    needs: tuple[str, ...] = ()
    mask: Any = None
    each: Any = None
    sums: Callable | None = None
    norms: Callable | None = None
    elementwise: bool = True
    of_matrices: bool = False
    gradient_at: Callable | None = None
    evaluate_at: Callable | None = None
    per_leaf: tuple[str, ...] = ()
    seed: int | None = None
    together: Callable | None = None

    @property
    def looks_around(self) -> bool:
        """Whether it must see all leaves before it can change one."""
        looks = (self.sums, self.norms, self.together)
        return self.whole_tree or any(x is not None for x in looks)

    @property
    def can_be_shared_out(self) -> bool:
        """Whether several chips can run it, each on some of the matrices; what it reads comes along."""
        return self.of_matrices and self.norms is None and not self.per_leaf


class Treewise(NamedTuple):
    """A block as a run over the table of leaves; `treewise` explains the fields.

    `start(leaves)` makes what the engine only carries: the states of `inside`, labels. A `bare` block's
    whole state is what it returns.
    """

    run: Callable
    inside: Mapping[str, Any]
    init: Callable | None = None
    init_shared: Callable | None = None
    start: Callable | None = None
    carried: tuple[str, ...] = ("inner",)
    needs: tuple[str, ...] = ()
    bare: bool = False
    stateless: Callable | None = None  # leaves -> the state of a bare block that remembers nothing
    gradient_at: Callable | None = None
    evaluate_at: Callable | None = None
    through: Callable | None = None  # (leaves, memory, point of an inner transformation) -> leaves
    per_example: bool = (
        False  # takes gradients with an axis of examples in front, if it stands first
    )
    hands_on: bool = False  # the states inside are given to `run` of theirs, and nothing else
    adds: bool = False  # takes gradients that are unreduced, if it stands first
    rest: Callable | None = None  # (memory, array) -> array, of leaves that got no gradient


class Step(NamedTuple):
    """What a block may read once per step."""

    count: Array  # steps done before this one, int32
    memory: Any = None  # what this block remembers once for all leaves, by name
    rates: Any = (None, None)  # the Rates of the scale_by_moments before this block, per side
    updates: list = []  # noqa: RUF012  # whole_tree blocks: the update so far of the trained leaves
    extra: Mapping[str, Any] = {}  # extra arguments of update
    sums: Any = None  # what `sums` returned, added over the leaves
    key: str = ""  # of the block, for messages


class Here:
    """What a leaf function may read besides the update: arrays of one leaf, float32 at least.

    `param` the parameter, for blocks that declare they need it; `gradient` as the estimators saw it;
    `memory` what this block remembers of this leaf, by name; `shared` what its `shared` returned; `norms`
    the norms of what its `norms` returned; `own` what its `each` says of this leaf; `extra` what its
    `per_leaf` names hold of this leaf; `key` a random key of this leaf and step, for blocks with a `seed`;
    where they are `of_matrices`, one for each matrix of a stack (`normal` draws from either); `dtype` what
    the parameter is stored in.
    """

    __slots__ = (
        "_block", "_param", "dtype", "extra", "gradient", "key", "memory", "norms", "own", "shared",
    )  # fmt: skip

    def __init__(
        self,
        block: str,
        param: Any,
        gradient: Array,
        memory: Any,
        dtype: Any,
        own: Any = None,
        shared: Any = None,
        norms: Any = None,
        extra: Any = None,
        key: Any = None,
    ):
        self._block, self._param = block, param
        self.gradient, self.memory, self.dtype = gradient, memory, dtype
        self.own, self.shared, self.norms = own, shared, norms
        self.extra, self.key = extra, key

    def normal(self, shape: tuple, dtype: Any) -> Array:
        """Normal numbers, drawn for each matrix of a stack by itself where there are so many keys."""
        draw = lambda key: jax.random.normal(key, shape[self.key.ndim :], dtype)  # noqa: E731
        for _ in self.key.shape:
            draw = jax.vmap(draw)
        return draw(self.key)

    @property
    def param(self) -> Array:
        if self._param is None:
            raise ValueError(
                f"{self._block} reads here.param; declare it: leafwise(leaf, needs_params=True)"
            )
        return self._param


READS = {  # how a missing one is passed
    "params": "reads the parameters; call tx.update(grads, state, params)",
    "value": "reads the loss; call tx.update(grads, state, params, value=loss)",
    "value_fn": "evaluates the loss; call tx.update(..., value_fn=lambda params: loss)",
    "grad_fn": "evaluates the gradient; call tx.update(..., grad_fn=lambda params: gradient)",
}


def check_needs(key: str, needs: tuple[str, ...], leaves: Leaves, extra: Mapping) -> None:
    """Raises ValueError, saying what to pass, where a block reads what the caller did not give."""
    for name in needs:
        if name == "*":  # reads what there is
            continue
        if name == "params" and (leaves.params is not None or not len(leaves)):
            continue
        if name != "params" and extra.get(name) is not None:
            continue
        words = READS.get(name, f"reads {name}; call tx.update(grads, state, params, {name}=...)")
        both = "; fx.fit and fx.make_step pass it" if name in READS and name != "params" else ""
        raise ValueError(f"{leaves.layout.where}: {key} {words}{both}")
