"""What flows between the blocks of a chain, for one array: the record `Moments`.

Ordinary blocks read and replace `direction`. `scale_by_moments` opens the record: two statistics
of the same gradient, not yet divided. Corrections change its parts. The first block that wants a
plain direction closes it, by `close`. Nothing of it is ever seen outside a chain.

An open record may be in a frame: direction and moments are then in its coordinates, in which the second one
divides elementwise, and `close` takes the quotient back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from adamfx.engine.arithmetic import safe_divide, safe_power, safe_root

Array = Any


class Rates(NamedTuple):
    """The scalars of one side at one step; computed once per step, not per leaf."""

    decay: Array  # b of this step
    gain: Array  # weight of the newest value: 1 - b for an average
    mass: Array  # sum of the weights given out so far, w_t
    next_decay: Array  # b of the next step
    next_mass: Array  # w_{t+1}
    count: Any = None  # steps done before this one; below 0 while a side prepares


class Frame(NamedTuple):
    """Linear maps to the coordinates in which a second moment divides elementwise, and back."""

    into: Callable[[Array], Array]
    back: Callable[[Array], Array]


HERE = Frame(lambda x: x, lambda x: x)


class Side(NamedTuple):
    """One statistic with its scalars; `mass` stays what it is after a correction."""

    value: Array
    rates: Rates
    corrected: bool = False


class Denominator(NamedTuple):
    """How the second statistic v divides the numerator."""

    eps: Array = 0.0
    eps_root: Array = 0.0
    where: str = "out"
    root: bool = True  # square root for statistics of degree two, none for abs(g)
    power: Any = 0.5  # of v in all: the denominator is raised to twice this


NO_DENOMINATOR = Denominator()


@dataclasses.dataclass(frozen=True)
class Moments:
    """The record of one leaf; see the head of this file."""

    direction: Array  # the update so far; the numerator where there is no first moment
    gradient: Array  # the gradient as the estimators saw it, outside of any frame
    first: Side | None = None
    second: Side | None = None
    denominator: Denominator = NO_DENOMINATOR
    frame: Frame = HERE

    def replace(self, **changes: Any) -> Moments:
        return dataclasses.replace(self, **changes)

    @property
    def is_open(self) -> bool:
        return self.first is not None or self.second is not None

    @property
    def seen(self) -> Array:
        """The gradient in the frame."""
        return self.frame.into(self.gradient)

    def close(self) -> Moments:
        """The quotient becomes the direction; nothing is left to correct."""
        u = self.frame.back(quotient(self))
        return self.replace(direction=u, first=None, second=None, frame=HERE)


DENOMINATORS = {
    "out": lambda v, root, eps: root(v) + eps,
    "in": lambda v, root, eps: root(v + eps),
    "hat": lambda v, root, eps: root(v) + eps,  # bias_correct divides eps by sqrt(w), with v by w
    "floor": lambda v, root, eps: jnp.maximum(root(v), eps),
}


def quotient(r: Moments) -> Array:
    """u = m / (sqrt(v + eps_root) + eps), or what `where` and `power` make of it, in the frame; 0 for x/0."""
    numerator = r.direction if r.first is None else r.first.value
    if r.second is None:
        return numerator
    d = r.denominator
    root = safe_root if d.root else lambda v: v
    denominator = DENOMINATORS[d.where](r.second.value + d.eps_root, root, d.eps)
    return safe_divide(numerator, safe_power(denominator, 2 * d.power))
