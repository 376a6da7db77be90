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
from adamfx.interop.directions import In, Out, checked
from adamfx.interop.level import (
    COUNT,
    Column,
    Derived,
    Entry,
    Form,
    Level,
    Reading,
    Slot,
    Wrapped,
    reading,
    slots,
)
from adamfx.interop.words import wrappers_of
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

MU, NU = "mu (ema of value)", "nu (ema of square)"
TRACE, ON_DIRECTION = "mu (trace of value)", "mu (ema of direction)"


def _of(block: str, names: str, **others: Any) -> dict[str, Any]:
    """A row of what one block remembers: "theirs=ours same" and other entries."""
    pairs = [name.split("=") for name in names.split()]
    row = {pair[0]: f"{pair[-1]} ({block})" for pair in pairs}
    forms = {
        n: Entry(f"{x.word} ({block})", x.form) for n, x in others.items() if isinstance(x, Entry)
    }
    return row | others | forms


# What most classes call it.
COMMON: dict[str, Any] = {"count": COUNT, "mu": MU, "nu": NU, "inner_state": INSIDE}
# Several rows: several optimizers have this class.
OPTAX: dict[str, dict[str, Any] | tuple[dict[str, Any], ...]] = {
    "TraceState": ({"trace": TRACE}, {"trace": "mu (trace of direction)"}),
    "EmaState": tuple({"ema": x} for x in (MU, ON_DIRECTION, "average (ema of params)")),
    "ScaleByAdamState": (
        {},
        {"nu": "nu (decayed_max of abs)"},  # AdaMax
        {"nu": "nu (yogi_ema of square)"},
        {"mu": ON_DIRECTION, "nu": "nu (first-whole ema of square)"},  # ADOPT
    ),
    "ScaleByBeliefState": ({"nu": "nu (ema of deviation)"}, {"nu": "nu (ema of innovation)"}),
    "ScaleByNovogradState": {
        "mu": "mu (trace of direction)",
        "nu": "nu (first-whole ema of norm_square)",
    },
    "ScaleByAmsgradState": {"nu_max": "nu_max (running_max, corrected)"},
    "ScaleByRssState": {"sum_of_squares": "nu (total of square)"},
    "ScaleByAdaDeltaState": {"e_g": NU, "e_x": "nu (scale_by_past_rms)"},
    "ScaleByAdanState": _of("scale_by_adan", "m=mu v=delta n=nu g=previous", t=COUNT),
    "ScaleByAdemamixState": {"m1": MU, "m2": "mu_slow (add_slow_average)", "count_m2": COUNT},
    "ScaleBySimplifiedAdEMAMixState": {"m": TRACE, "n": NU, "t": COUNT},
    "ScaleBySM3State": {"mu": AXES, "nu": ON_DIRECTION},
    "FactoredState": {
        "v_row": "nu_rows (mean of square)",
        "v_col": "nu_columns (mean of square)",
        "v": "nu (mean of square)",
    },
    "ScaleByOptimisticGradientState": _of(
        "scale_by_optimistic_gradient", "previous_gradient=previous", is_initial_step=FIRST
    ),
    "MuonState": {"ns_coeffs": STAYS},
    "MadgradState": _of("scale_by_madgrad", "grad_sum_sq=nu s=total x0=start"),
    "COCOBState": _of(
        "scale_by_cocob",
        "init_particles=start cumulative_gradients=bets scale=largest subgradients=total reward",
    ),
    "DoGState": _of(
        "scale_by_dog",
        "init_params=start max_dist=reach sum_sq_norm_grads=total",
        is_init_step=FIRST,
    ),
    "DoWGState": _of(
        "scale_by_dowg", "init_params=start weighted_sq_norm_grads=total estim_sq_dist=reach_square"
    ),
    "ScaleByDistanceOverGradientsState": _of(
        "scale_by_dog", "init_params=start max_dist=reach grad_sum_of_squares=total"
    ),
    "ReduceLROnPlateauState": _of(
        "reduce_on_plateau",
        "scale best_value=best plateau_count=misses cooldown_count=cooling count=seen",
        avg_value=Entry("total", _sum_of("seen")),
    ),
    "ProdigyState": _of(
        "scale_by_prodigy",
        "exp_avg=mu exp_avg_sq=nu grad_sum=s estim_lr numerator_weighted=r params0=start",
    ),
    "DAdaptAdamWState": _of(
        "scale_by_dadapt_adamw", "exp_avg=mu exp_avg_sq=nu grad_sum=s estim_lr numerator_weighted=r"
    ),
    "ScheduleFreeState": _of(
        "average_iterates",
        "weight_sum=weight max_lr=largest_rate z",
        b1=STAYS,
        step_count=NEXT,
        base_optimizer_state=INSIDE,
    ),
    "AddNoiseState": _of("add_noise", "", rng_key=Entry("key", KEY)),
    "ZeroNansState": {"found_nan": STAYS},
    "MultiStepsState": _of(
        "accumulate",
        "mini_step",
        gradient_step=STEPS_INSIDE,
        acc_grads=Entry("acc_grads", _sum_of("mini_step")),
        skip_state=STAYS,
        inner_opt_state=INSIDE,
    ),
    "ApplyIfFiniteState": _of("skip_nonfinite", "notfinite_count last_finite total_notfinite"),
    "LookaheadState": _of("lookahead", "steps_since_sync", fast_state=INSIDE),
    "LookaheadParams": _of("lookahead", "slow", fast=STAYS),
    "MechanicState": _of("mechanize", "r m v s x0=start", base_optimizer_state=INSIDE),
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
    level, tree, unknown, own = _read(tx, like)
    wrong = [slot.where for slot in unknown if trees.is_trained(slot.value)]
    wrong += [slot.where for slot in own if slot.says_something()]
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
        elif isinstance(x, (Mapping, tuple, list)):
            for y in x.values() if isinstance(x, Mapping) else x:
                walk(y, level)
        else:
            unknown.extend(y for y in jax.tree.leaves(x) if isinstance(y, Slot))

    def record(x: Any, level: Level) -> None:
        rows = OPTAX.get(type(x).__name__, {})
        rows = [COMMON | row for row in (rows if isinstance(rows, tuple) else (rows,))]
        wrapper = WRAPPERS.get(type(x).__name__)
        # Without a counterpart here it is looked through.
        through = wrapper is not None and wrapper not in ours
        inner = level if wrapper is None or through else Level()
        groups: dict[str, Level] = {}
        for name, y in x._asdict().items():
            entry = rows[0].get(name)
            if isinstance(entry, Derived):
                level.counts.append((y, entry))
            elif entry is STEPS_INSIDE:
                inner.counts.append((y, COUNT))
            elif entry is HYPERPARAMS:
                level.hyperparams.update(_varying(x))
            elif entry is INSIDE:
                walk(y, inner)
            elif entry is GROUPS:
                groups = {label: level if through else Level() for label in y}
                for label, state in y.items():
                    walk(state, groups[label])
            elif entry is None:
                walk(y, level)
        columns = {name: _without_masked(y) for name, y in x._asdict().items()}
        readings = [_by_axes(row, columns) | reading(row, columns) for row in rows]
        if through:
            own.extend(s for c in readings[0].values() for s in jax.tree.leaves(c.tree))
        elif wrapper is not None:
            level.wrapped.append(Wrapped(wrapper, readings[0], groups or {"": inner}))
        elif readings[0]:
            level.records.append(readings)

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


def _by_axes(row: Mapping[str, Any], trees_of: Mapping[str, Tree]) -> Reading:
    """The accumulators of SM3, a list of arrays for each parameter; of a vector its only one."""

    def is_axes(x: Any) -> bool:
        return isinstance(x, list) and all(isinstance(y, Slot) for y in x)

    columns = {}
    for name, tree in trees_of.items():
        if row.get(name) is AXES:
            whole = jax.tree.map(lambda x: x[0] if len(x) == 1 else None, tree, is_leaf=is_axes)
            columns["nu (total of square)"] = Column(name, whole)
            most = max((len(x) for x in jax.tree.leaves(tree, is_leaf=is_axes)), default=0)
            for i in range(most):
                of = jax.tree.map(
                    lambda x, i=i: x[i] if len(x) > max(i, 1) else None, tree, is_leaf=is_axes
                )
                columns[f"nu_axis{i} (total of square)"] = Column(name, of)
    return {word: c for word, c in columns.items() if slots(c.tree)}
