"""Between a state of optax and one of ours.

    state = fx.interop.from_optax(fx.adamw(1e-3), optax_state, params)
    optax_state = fx.interop.to_optax(fx.adamw(1e-3), state, optax.adamw(1e-3).init(params))

optax itself is not imported: its states are named tuples, known here by the names of their classes and
fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine import trees
from adamfx.interop.carry import (
    COUNT,
    Column,
    Derived,
    Entry,
    Form,
    In,
    Level,
    Out,
    Slot,
    Wrapped,
    checked,
    wrappers_of,
)
from adamfx.transformation import GradientTransformation

Tree = Any

# ---- the table -----------------------------------------------------------------------------------

# Other entries than a name here, an Entry or a Derived:
STAYS = object()  # a constant of the optimizer, or a note about the last step: nothing to carry
INSIDE = object()  # the state of what is inside
GROUPS = object()  # those of several, by label
STEPS_INSIDE = object()  # the counter of what is inside
HYPERPARAMS = object()  # numbers by name
AXES = object()  # one array per axis of a parameter: nu_axis0, nu_axis1, ...; of a vector nu

FIRST = Derived(lambda n, options: n == 0)
NEXT = Derived(lambda n, options: n + 1, lambda x: int(x) - 1)


def _sum_of(counter: str) -> Form:
    """A mean over so many there, their sum here."""

    def back(total: Any, memory: Any) -> Any:
        n = int(getattr(memory, counter))
        return total / n if n else jnp.zeros_like(total)

    return Form(lambda mean, memory: np.asarray(mean) * int(getattr(memory, counter)), back)


KEY = Form(
    lambda key, memory: jax.random.key_data(key) if _is_key(key) else key,
    lambda data, memory: np.asarray(data),
)

# What most classes call it.
COMMON: dict[str, Any] = {
    "count": COUNT,
    "mu": "mu",
    "nu": "nu",
    "nu_max": "nu_max",
    "inner_state": INSIDE,
}
OPTAX: dict[str, dict[str, Any]] = {
    "TraceState": {"trace": "mu"},
    "EmaState": {"ema": ("mu", "average")},
    "ScaleByRssState": {"sum_of_squares": "nu"},
    "ScaleByAdaDeltaState": {"e_g": "nu", "e_x": "nu"},
    "ScaleByAdanState": {"m": "mu", "v": "delta", "n": "nu", "g": "previous", "t": COUNT},
    "ScaleByAdemamixState": {"m1": "mu", "m2": "mu_slow", "count_m2": COUNT},
    "ScaleBySimplifiedAdEMAMixState": {"m": "mu", "n": "nu", "t": COUNT},
    "ScaleBySM3State": {"mu": AXES, "nu": "mu"},
    "FactoredState": {"v_row": "nu_rows", "v_col": "nu_columns", "v": "nu"},
    "ScaleByOptimisticGradientState": {
        "previous_gradient": "previous",
        "is_initial_step": FIRST,
    },
    "MuonState": {"ns_coeffs": STAYS},
    "MadgradState": {"grad_sum_sq": "nu", "s": "total", "x0": "start"},
    "COCOBState": {
        "init_particles": "start",
        "cumulative_gradients": "bets",
        "scale": "largest",
        "subgradients": "total",
        "reward": "reward",
    },
    "DoGState": {
        "is_init_step": FIRST,
        "init_params": "start",
        "max_dist": "reach",
        "sum_sq_norm_grads": "total",
    },
    "DoWGState": {
        "init_params": "start",
        "weighted_sq_norm_grads": "total",
        "estim_sq_dist": "reach_square",
    },
    "ScaleByDistanceOverGradientsState": {
        "init_params": "start",
        "max_dist": "reach",
        "grad_sum_of_squares": "total",
    },
    "ReduceLROnPlateauState": {
        "scale": "scale",
        "best_value": "best",
        "plateau_count": "misses",
        "cooldown_count": "cooling",
        "count": "seen",
        "avg_value": Entry("total", _sum_of("seen")),
    },
    "ProdigyState": {
        "exp_avg": "mu",
        "exp_avg_sq": "nu",
        "grad_sum": "s",
        "params0": "start",
        "estim_lr": "estim_lr",
        "numerator_weighted": "r",
    },
    "DAdaptAdamWState": {
        "exp_avg": "mu",
        "exp_avg_sq": "nu",
        "grad_sum": "s",
        "estim_lr": "estim_lr",
        "numerator_weighted": "r",
    },
    "ScheduleFreeState": {
        "b1": STAYS,
        "weight_sum": "weight",
        "step_count": NEXT,
        "max_lr": "largest_rate",
        "z": "z",
        "base_optimizer_state": INSIDE,
    },
    "AddNoiseState": {"rng_key": Entry("key", KEY)},
    "ZeroNansState": {"found_nan": STAYS},
    "MultiStepsState": {
        "mini_step": "mini_step",
        "gradient_step": STEPS_INSIDE,
        "acc_grads": Entry("acc_grads", _sum_of("mini_step")),
        "skip_state": STAYS,
        "inner_opt_state": INSIDE,
    },
    "ApplyIfFiniteState": {
        "notfinite_count": "notfinite_count",
        "last_finite": "last_finite",
        "total_notfinite": "total_notfinite",
    },
    "LookaheadState": {"fast_state": INSIDE, "steps_since_sync": "steps_since_sync"},
    "LookaheadParams": {"fast": STAYS, "slow": "slow"},
    "MechanicState": {
        "r": "r",
        "m": "m",
        "v": "v",
        "s": "s",
        "x0": "start",
        "base_optimizer_state": INSIDE,
    },
    "PartitionState": {"inner_states": GROUPS},
    "InjectHyperparamsState": {"hyperparams": HYPERPARAMS},
    "InjectStatefulHyperparamsState": {"hyperparams": HYPERPARAMS, "hyperparams_states": INSIDE},
}
WRAPPERS = {
    "MultiStepsState": "accumulate",
    "ApplyIfFiniteState": "skip_nonfinite",
    "LookaheadState": "lookahead",
    "MechanicState": "mechanize",
    "PartitionState": "partition",
}


# ---- public --------------------------------------------------------------------------------------


def from_optax(
    tx: GradientTransformation, state: Tree, params: Tree, count: int | None = None
) -> Mapping[str, Any]:
    """The state of `tx` that goes on where this optax state is.

    Args:
      tx: the same optimizer in adamfx. MultiSteps is `accumulate`, multi_transform `partition` with the
        same labels, apply_if_finite `skip_nonfinite`, inject_hyperparams `live`, or nothing where its
        numbers are those of `tx`. An `ema` of the parameters, in a tuple with the rest, goes into
        `average_params`.
      state: optax's state, or a tuple of several.
      params: the parameters, for optax's lookahead its LookaheadParams.
      count: steps done, calls of update, where optax did not record them.

    What optax has not starts as `tx.init(params)` makes it: an average at the parameters, the copies of
    `master_weights` from them, the measurements of `monitor`, the key of `round_stochastically`, a window of
    `accumulate`. Raises ValueError where `tx` remembers something else than what is found there, or the
    other way round.
    """
    checked("from_optax", tx)
    if type(params).__name__ == "LookaheadParams":
        state, params = (state, params), params.fast
    level, _, unknown, own = _read(tx, state)
    lost = [slot.where for slot in unknown + own if slot.says_something()]
    if lost:
        raise ValueError(
            f"from_optax: the state holds {', '.join(dict.fromkeys(lost))}, which adamfx would lose; "
            "write the wrapper or block that remembers it, or carry over what is inside. docs/coming-from.md "
            "has the states that are known"
        )
    hint = "the state tells of {told} steps; pass count=..."
    return In("from_optax", level, hint).whole(tx, tx.init(params), count)


def to_optax(tx: GradientTransformation, state: Mapping[str, Any], like: Tree) -> Tree:
    """The optax state that goes on where this state of `tx` is.

    Args:
      tx: the transformation of the state.
      state: its state.
      like: what to fill, `optax_tx.init(params)` of the same optimizer in optax, or a tuple of several. For
        lookahead `(optax_tx.init(pairs), pairs)` with `pairs = optax.LookaheadParams(params, params)`, whose
        slow ones are filled.

    Counters follow from `state["count"]`; constants stay those of `like`. Raises ValueError where `like` has
    no place for something that `tx` remembers, or the other way round.
    """
    checked("to_optax", tx)
    level, tree, unknown, _ = _read(tx, like)
    wrong = [slot.where for slot in unknown if trees.is_trained(slot.value)]
    if wrong:
        raise ValueError(
            f"to_optax: {', '.join(dict.fromkeys(wrong))} of `like` is nothing that adamfx could fill; "
            "docs/coming-from.md has the states that are known"
        )
    Out("to_optax", level).whole(tx, state)
    return jax.tree.map(_result, tree)


def _result(slot: Slot) -> Any:
    old, new = slot.value, slot.new
    if new is None:
        return old
    if _is_key(old):
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old))
    if not hasattr(old, "dtype"):
        return type(old)(new)
    new = jnp.asarray(np.asarray(new).reshape(old.shape), old.dtype)
    return jax.device_put(new, old.sharding) if getattr(old, "committed", False) else new


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# ---- reading -------------------------------------------------------------------------------------


def _read(tx: GradientTransformation, state: Tree) -> tuple[Level, Tree, list[Slot], list[Slot]]:
    """(the state as a level, the tree of its slots, those of no table, those of wrappers looked through)."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(state)
    tree = structure.unflatten([Slot(x, _name(path)) for path, x in pairs])
    ours, level = wrappers_of(tx), Level()
    unknown: list[Slot] = []
    own: list[Slot] = []

    def walk(x: Any, level: Level) -> None:
        if isinstance(x, Slot):
            unknown.append(x)
        elif hasattr(x, "_fields"):
            record(x, level)
        elif isinstance(x, Mapping):
            for y in x.values():
                walk(y, level)
        elif isinstance(x, (tuple, list)):
            for y in x:
                walk(y, level)
        else:
            unknown.extend(y for y in jax.tree.leaves(x) if isinstance(y, Slot))

    def record(x: Any, level: Level) -> None:
        kind = type(x).__name__
        row = COMMON | OPTAX.get(kind, {})
        pairs = {name: (row.get(name), getattr(x, name)) for name in x._fields}
        wrapper = WRAPPERS.get(kind)
        # Without a counterpart here it is looked through.
        through = wrapper is not None and wrapper not in ours
        inner = level if wrapper is None or through else Level()
        columns: list[Column] = []
        groups: dict[str, Level] = {}
        for name, (entry, y) in pairs.items():
            if isinstance(entry, Derived):
                level.counts.append((y, entry))
            elif entry is STEPS_INSIDE:
                inner.counts.append((y, COUNT))
            elif entry is HYPERPARAMS:
                level.hyperparams.update(_varying(x))
            elif entry is AXES:
                columns += _by_axes(name, y)
            elif isinstance(entry, (str, tuple, Entry)):
                entry = entry if isinstance(entry, Entry) else Entry(entry)
                names = (entry.name,) if isinstance(entry.name, str) else entry.name
                columns.append(Column(names, name, _without_masked(y), entry.form))
            elif entry is INSIDE:
                walk(y, inner)
            elif entry is GROUPS:
                groups = {label: level if through else Level() for label in y}
                for label, state in y.items():
                    walk(state, groups[label])
            elif entry is not STAYS:
                walk(y, level)
        if through:
            own.extend(s for c in columns for s in jax.tree.leaves(c.tree))
        elif wrapper is not None:
            inside = groups if wrapper == "partition" else {"": inner}
            level.wrapped.append(Wrapped(wrapper, columns, inside))
        elif columns:
            level.records.append(columns)

    walk(tree, level)
    return level, tree, unknown, own


def _name(path: tuple) -> str:
    """The field of the innermost named tuple on this path."""
    names = [k.name for k in path if isinstance(k, jax.tree_util.GetAttrKey)]
    return names[-1] if names else jax.tree_util.keystr(path)


def _varying(x: Any) -> dict[str, Slot]:
    """The hyperparameters that are numbers of their own, not those of a schedule."""
    scheduled = getattr(x, "hyperparams_states", {})
    return {name: s for name, s in x.hyperparams.items() if name not in scheduled}


def _without_masked(tree: Any) -> Any:
    def is_masked(x: Any) -> bool:
        return type(x).__name__ == "MaskedNode"

    return jax.tree.map(lambda x: None if is_masked(x) else x, tree, is_leaf=is_masked)


def _by_axes(name: str, tree: Any) -> list[Column]:
    def is_axes(x: Any) -> bool:
        return isinstance(x, list) and all(isinstance(y, Slot) for y in x)

    def part(found: list[Slot], i: int, whole: bool) -> Slot | None:
        fits = i < len(found) and (len(found) < 2) == whole
        return found[i] if fits else None

    def column(to: str, i: int, whole: bool) -> Column:
        of = jax.tree.map(lambda x: part(x, i, whole), tree, is_leaf=is_axes)
        return Column((to,), name, of)

    most = max((len(x) for x in jax.tree.leaves(tree, is_leaf=is_axes)), default=0)
    columns = [column("nu", 0, True), *(column(f"nu_axis{i}", i, False) for i in range(most))]
    return [c for c in columns if any(x is not None for x in trees.flatten(c.tree)[0])]
