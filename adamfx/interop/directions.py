"""The two directions of the walk: their state into ours, ours into theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.combine import LIVE
from adamfx.engine import trees
from adamfx.interop.carry import BEGIN_ANEW, Carrier, large_of
from adamfx.interop.level import Level, slots
from adamfx.interop.replay import replayed, steps_outside
from adamfx.interop.words import only_groups
from adamfx.transformation import GradientTransformation

# Wrappers of which nothing is lost with what they remember themselves, always or under a condition.
NOTHING_LOST: dict[str, Callable[[Any], bool]] = {
    "monitor": lambda memory: True,
    "accumulate": lambda memory: int(memory.mini_step) == 0,
}
ADVICE = {
    "lookahead": "pass optax's LookaheadParams as params",
    "accumulate": "carry over where a window begins",
}


def checked(caller: str, tx: Any) -> None:
    if not isinstance(tx, GradientTransformation):
        raise TypeError(f"{caller}: tx must be a transformation of adamfx, got {tx!r}")


class In(Carrier):
    """The other state is read into a new one of ours."""

    def count(self, tx, state, level, given, outer):
        done = self.found(tx, level) if given is None else given
        done = outer if done is None else done
        if done is None:
            raise self.error("the state does not tell how many steps were done; pass count=...")
        return done

    def found(self, tx: GradientTransformation, level: Level) -> int | None:
        """The steps that a level tells of; None where it tells of none."""
        told = {
            derived.into(self.one_run(slot.value))
            for tree, derived in level.counts
            if derived.into
            for slot in slots(tree)
        }
        if len(told) > 1 and not only_groups(tx):  # each of which has a counter of its own
            raise self.error(self.hint.format(told=sorted(told)))
        if told:
            return max(told)
        for wrapped in level.wrapped:
            inner = [self.found(tx, x) for x in wrapped.inside.values()]
            if inner := [n for n in inner if n is not None]:
                return steps_outside(tx, wrapped, max(inner))
        return None

    def begin(self, tx, state, done):
        return replayed(tx, state, done)

    def move(self, path, x, slot, form, memory):
        value = np.asarray(slot.value) if form is None else form.into(slot.value, memory)
        if not self.fits(np.shape(value), x.shape):
            raise self.error(
                f"{slot.where} at {path} has shape {np.shape(value)}, here it is {x.shape}"
                + ("; see convert=..." if self.caller == "from_torch" else "")
            )
        # A copy: torch goes on in the memory that a NumPy array of it looks at.
        new = jnp.array(np.asarray(value).reshape(x.shape), x.dtype)
        return jax.device_put(new, x.sharding) if x.committed else new

    def passed_over(self, path, slot, column, kept):
        if slot.says_something():
            raise self.error(
                f"nothing is remembered here of {column.theirs} at {path}; train that parameter here, too, "
                "or leave it out there (masked)"
            )

    def begin_anew(self, key, block, memory, fields):
        if block.name not in BEGIN_ANEW and (large := large_of(memory, fields)):
            self.lacks(key, block, memory, large)

    def lacks(self, key, block, memory, large):
        advice = ADVICE.get(block.name, "begin with tx.init")
        raise self.error(f"{key} remembers {large}, the state given does not hold them; {advice}")


class Out(Carrier):
    """Our state is written into the slots of the other."""

    def count(self, tx, state, level, given, outer):
        done = int(self.one_run(state["count"]))
        for tree, derived in level.counts:
            for slot in slots(tree):
                slot.new = np.asarray(derived.back(done, slot.options))
        return done

    def begin(self, tx, state, done):
        extra = set(state) - {"count", LIVE} - {key for key, _ in tx.blocks}
        if extra:
            raise self.error(
                f"the state holds {', '.join(sorted(extra))}, which {tx!r} does not know; a plain dict of "
                "the other entries may be passed"
            )
        return {**state}

    def move(self, path, x, slot, form, memory):
        new = x if form is None else form.back(x, memory)
        there = None if slot.value is None else np.shape(slot.value)
        if form is None and there is not None and not self.fits(there, np.shape(new)):
            raise self.error(
                f"{slot.where} at {path} has shape {there}, here it is {np.shape(new)}"
            )
        slot.new = new
        return x

    def passed_over(self, path, slot, column, kept):
        if not kept and (slot.value is None or trees.is_trained(slot.value)):
            raise self.error(
                f"{column.theirs} at {path} has nothing here that could fill it; train that parameter here, "
                "too, or leave it out there (masked, or a key of None)"
            )

    def not_live(self, name, value, given):
        if given is not None and not np.allclose(value, np.asarray(given), 1e-6, 0):
            raise self.error(
                f"{name} is {float(value):g} in the state, {float(given):g} in the transformation, and the "
                "other side holds no such hyperparameter; write the number into both transformations"
            )

    def begin_anew(self, key, block, memory, fields):
        if large := large_of(memory, fields):
            self.lacks(key, block, memory, large)

    def lacks(self, key, block, memory, large):
        if not NOTHING_LOST.get(block.name, lambda memory: False)(memory):
            raise self.error(
                f"{key} remembers {large}, which the other side has no place for and would lose; read them "
                "first, then pass the transformation without that block and a plain dict of the rest"
            )
