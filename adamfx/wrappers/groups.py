"""Parameter groups: another transformation, or none, for some of the parameters.

Which leaf belongs where is decided once, by `init`, and kept in the structure of the state; `update`
needs no parameters to know it. A frozen leaf has no state, no update and no decay:

    partition({"frozen": set_to_zero()}, {"frozen": path_matches("encoder/*")}, default=adamw(1e-3))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from adamfx.checks import shown
from adamfx.engine import trees
from adamfx.engine.words import Treewise
from adamfx.transformation import GradientTransformation, block, leafwise
from adamfx.values.arguments import Kind, Mask, checked
from adamfx.values.constructor import Inner


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The group of each leaf, in the order of the leaves; part of the structure of a state.

    Those of a tree without leaves fit any: so optax.tree_map_params, which asks `init` what a state is
    made of by a tree without leaves, works for groups too.
    """

    of: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels) and (not self.of or not other.of or self.of == other.of)

    def __hash__(self) -> int:
        return hash(Labels)


Labelled = Annotated[
    Any,
    Kind(
        lambda x: not isinstance(x, type),
        (
            "a dict of label to predicate",
            "a tree of labels",
            "a callable of the parameters that returns one",
        ),
    ),
]


@block
def set_to_zero():
    """u <- 0, also where u is not finite. Remembers nothing."""
    return leafwise(lambda u, here: jnp.zeros_like(u))


@block
def masked(inner: Inner, mask: Mask):
    """`inner` where the mask is True; elsewhere the update passes as it came, as in optax.

    So `masked(add_decayed_weights(1e-2), mask)` is a block of a chain. To freeze what is outside,
    use `partition` or `freeze`: a lone `masked(adam(1e-3), mask)` would add raw gradients there.

    Args:
      inner: a transformation.
      mask: a tree of bools, a prefix of one, or a callable of the parameters that returns one, e.g.
        `ndim_at_least(2)`. Evaluated by `init`, once.

    Remembers `labels`, the mask, and `inner`, the state of `inner` without the leaves outside.
    """
    tx = inner

    def start(leaves):
        params = leaves.param_tree()
        chosen = trees.evaluate_mask("masked", mask, params)
        return {"labels": Labels(tuple(chosen)), "inner": tx.start(leaves.among(chosen))}

    def run(leaves, memory, step):
        part, own = tx.run(leaves.among(memory.labels.of), memory.inner, step)
        return leaves.put(part), {"labels": memory.labels, "inner": own}

    def through(leaves, memory, point):
        return leaves.put(point(tx, leaves.among(memory.labels.of), memory.inner))

    carried = ("labels", "inner")
    return Treewise(
        run, {"inner": tx}, start=start, carried=carried, through=through, hands_on=True
    )


@checked
def freeze(mask: Mask) -> GradientTransformation:
    """Zero updates where the mask is True: the last block of a chain."""
    return masked(set_to_zero(), mask)


@block
def partition(transforms: Inner, param_labels: Labelled, default: Inner = None):
    """A transformation for each group of parameters.

        partition({"embed": adam(1e-2)}, {"embed": path_matches("embed/*")}, default=adamw(1e-3))

    Args:
      transforms: the transformation of each group, by its label.
      param_labels: which leaf is in which group: a dict of label to predicate (`path_matches`,
        `ndim_at_least`, `has_dtype`, or any callable of the parameters that returns a tree of bools);
        a tree of labels or a prefix of one; or a callable of the parameters that returns one.
        Evaluated by `init`, once.
      default: the transformation of the leaves without a label, in a group of the name "default".

    Remembers `labels` and `inner`, the state of each group by its label. A norm over the whole tree
    is, within a group, one over the group. Raises ValueError, with the path, for a leaf that no group
    or more than one claims, for an unknown label, and for a path pattern that matches nothing.
    """
    if not isinstance(transforms, Mapping) or not all(isinstance(k, str) for k in transforms):
        raise TypeError(
            f"partition: transforms must be a dict of label to transformation, got {transforms!r}"
        )
    groups = dict(transforms)
    if default is not None:
        if "default" in groups:
            raise ValueError(
                "partition: the group of the leaves without a label is called 'default'; give the label "
                "'default' another name"
            )
        groups["default"] = default
    if _by_predicate(param_labels):
        _known(param_labels, groups)

    def start(leaves):
        labels = _labels(param_labels, groups, leaves.param_tree())
        states = {k: tx.start(leaves.among([x == k for x in labels])) for k, tx in groups.items()}
        return {"labels": Labels(tuple(labels)), "inner": states}

    def parts(leaves, memory):
        if set(memory.inner) != set(groups):
            raise ValueError(
                f"partition: the state has the groups {', '.join(memory.inner)}, this transformation "
                f"{', '.join(groups)}; make it with tx.init(params)"
            )
        for k, tx in groups.items():
            yield k, tx, leaves.among([x == k for x in memory.labels.of])

    def run(leaves, memory, step):
        states, out = {}, leaves
        for k, tx, part in parts(leaves, memory):
            part, states[k] = tx.run(part, memory.inner[k], step)
            out = out.put(part)
        return out, {"labels": memory.labels, "inner": states}

    def through(leaves, memory, point):
        for k, tx, part in parts(leaves, memory):
            leaves = leaves.put(point(tx, part, memory.inner[k]))
        return leaves

    return Treewise(
        run, groups, start=start, carried=("labels", "inner"), through=through, hands_on=True
    )


def _by_predicate(labels: Any) -> bool:
    return isinstance(labels, dict) and bool(labels) and all(map(callable, labels.values()))


def _known(labels: Any, groups: dict) -> None:
    for label in labels:
        if not isinstance(label, str):
            raise TypeError(
                f"partition: the labels in param_labels are strings, got {shown(label)}; a predicate goes "
                "with its label: {label: predicate}"
            )
        if label not in groups:
            raise ValueError(
                f"partition: there is no transformation for the label {label!r} in param_labels; known are "
                f"{', '.join(map(repr, groups))}"
            )


def _labels(given: Any, groups: dict, params: Any) -> list[str | None]:
    """The label of each leaf; None for frozen ones."""
    paths, leaves = trees.paths(params), trees.flatten(params)[0]
    if _by_predicate(given):
        masks = {k: trees.evaluate_mask("partition", p, params) for k, p in given.items()}
        whole = leaves and all(map(trees.is_trained, leaves))  # not what another wrapper left over
        for k, mask in masks.items():
            by_path = getattr(given[k], "name", None) == "path_matches"
            if by_path and whole and not any(mask):  # a typing error; fewer matrices may be none
                raise ValueError(
                    f"partition: the paths of the group {k!r} match no parameter; the paths are "
                    f"{', '.join(paths[:20])}"
                )
        claims = [[k for k, mask in masks.items() if mask[j]] for j in range(len(leaves))]
    else:
        labels = trees.spread("partition", "tree of labels in param_labels", given, params)
        _known([x for x in labels if x is not None], groups)
        claims = [[] if x is None else [x] for x in labels]
    found: list[str | None] = []
    for path, p, claim in zip(paths, leaves, claims, strict=True):
        if trees.is_trained(p) and not claim and "default" in groups:
            claim = ["default"]
        if trees.is_trained(p) and len(claim) != 1:
            who = f"the groups {', '.join(map(repr, claim))} claim" if claim else "no group claims"
            raise ValueError(
                f"partition: {who} the parameter at {path}; each must be in one group, and those in no "
                "other go to default=..."
            )
        found.append(claim[0] if trees.is_trained(p) else None)
    return found
