"""Carrying a run over: an adamfx state from the state of optax or torch.

    state = fx.interop.from_optax(fx.adamw(1e-3), optax_state, params)
    state = fx.interop.from_torch(fx.adamw(1e-3), optimizer.state, parameters, params)

The moments are copied; what is one number per step (masses, the rate last applied, the counter) is
computed by going through the steps done so far. So the next step equals the peer's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine import trees
from adamfx.engine.memory import remember
from adamfx.engine.packed import as_given
from adamfx.engine.words import Step, Treewise
from adamfx.transformation import GradientTransformation

Tree = Any
# What optax calls otherwise, for a message.
COUNTERPARTS = {
    "MultiSteps": "accumulate(transformation, every)",
    "multi_transform": "partition(transforms, param_labels)",
    "inject_hyperparams": "live(transformation)",
    "named_chain": "named(name, transformation)",
    "scale_by_adam": "chain(scale_by_moments(b1, b2), bias_correct())",
    "scale_by_rms": "scale_by_moments(None, decay)",
    "scale_by_rss": "scale_by_moments(None, total())",
    "scale_by_schedule": "scale(schedule) or scale_by_lr(schedule)",
    "scale_by_learning_rate": "scale_by_lr(learning_rate)",
    "scale_by_lion": "chain(scale_by_moments(b2, None, lag='first'), nesterov(b1), sign())",
    "apply_if_finite": "skip_nonfinite(transformation), which never applies a NaN,",
    "tree_utils": "jax.tree",
    "ApplyEvery": "accumulate(transformation, k)",
    "apply_every": "accumulate(transformation, k), which averages where optax adds",
    "bias_correction": "bias_correct()",
    "conditionally_mask": "skip_nonfinite(transformation), skip_spikes(transformation) or treewise(...)",
    "conditionally_transform": "skip_nonfinite(transformation), skip_spikes(transformation) or treewise(...)",
    "flatten": "identity(): leaves of one shape and dtype are one program anyway",
    "inject_stateful_hyperparams": "live(transformation)",
    "measure_with_ema": "monitor(transformation, ...)",
    "microbatching": "per_example_grads(loss, microbatch_size)",
    "microbatch": "per_example_grads(loss, microbatch_size) or accumulate(transformation, k)",
    "normalize": "normalize_by_update_norm()",
    "optimistic_adam_v2": "optimistic_adam(learning_rate)",
    "per_example_global_norm_clip": "differentially_private_aggregate(l2_norm_clip, 0.0)",
    "per_example_layer_norm_clip": "differentially_private_aggregate(l2_norm_clip, 0.0), over all leaves,",
    "scale_by_acprop": "acprop(learning_rate)",
    "scale_by_adadelta": "chain(scale_by_moments(None, rho, where='in'), scale_by_past_rms(rho))",
    "scale_by_adamax": "scale_by_moments(b1, decayed_max(b2))",
    "scale_by_ademamix": "ademamix(learning_rate)",
    "scale_by_adopt": "adopt(learning_rate)",
    "scale_by_amsgrad": "chain(scale_by_moments(b1, b2), bias_correct(), running_max())",
    "scale_by_belief": "chain(scale_by_moments(b1, ema(b2, of='deviation')), bias_correct())",
    "scale_by_distance_over_gradients": "scale_by_dog()",
    "scale_by_factored_rms": "scale_by_moments(None, mean(0.8, storage=factored()))",
    "scale_by_galore": "view(scale_by_moments(b1, b2), low_rank(rank))",
    "scale_by_muon": "chain(scale_by_moments(beta, None), nesterov(), orthogonalize())",
    "scale_by_novograd": "novograd(learning_rate)",
    "scale_by_radam": "chain(scale_by_moments(b1, b2), bias_correct(), rectify())",
    "scale_by_sign": "sign()",
    "scale_by_simplified_ademamix": "simplified_ademamix(learning_rate)",
    "scale_by_sm3": "scale_by_moments(None, total(storage=cover()), where='in')",
    "scale_by_stddev": "chain(scale_by_moments(decay, decay), center())",
    "scale_by_yogi": "scale_by_moments(b1, yogi_ema(b2))",
    "hutchinson_estimator_diag_hessian": "hutchinson(loss, params, key)",
    "schedule_free_eval_params": "tx.evaluate_at(state, params)",
    "selective_transform": "partition(...) or masked(...)",
    "skip_large_updates": "skip_spikes(transformation)",
    "skip_not_finite": "skip_nonfinite(transformation)",
    "snapshot": "monitor(transformation, ...)",
    "stateless": "a block: @block and leafwise(...)",
    "stateless_with_tree_map": "a block: @block and leafwise(...)",
    "init_empty_state": "tx.init(params)",
    "with_extra_args_support": "any transformation: extra arguments reach the blocks that read them;",
    "unitwise_clip": "adaptive_grad_clip(clipping)",
    "unitwise_norm": "adaptive_grad_clip(clipping)",
    "safe_increment": "state['count'], which counts by itself",
    "safe_int32_increment": "state['count'], which counts by itself",
    "safe_norm": "global_norm(tree), whose derivative at 0 is 0",
    "safe_root_mean_squares": "global_norm(tree), whose derivative at 0 is 0",
    "scale_gradient": "scale(step_size)",
    "update_moment": "scale_by_moments(b1, b2)",
    "update_infinity_moment": "scale_by_moments(b1, decayed_max(b2))",
    "update_moment_per_elem_norm": "scale_by_moments(b1, ema(b2, of='norm_square'))",
    "matrix_inverse_pth_root": "whiten()",
    "power_iteration": "eigenbasis(decay)",
    "nnls": "keep_params_nonnegative()",
    "EmptyState": "tx.init(params), a dict by block,",
    "MaskedNode": "None, as what is left out is here,",
    "GradientTransformationExtraArgs": "GradientTransformation",
    "LookaheadParams": "lookahead(...) on ordinary parameters",
    "WrappedSchedule": "schedule(function)",
    "StatefulSchedule": "schedule(function)",
    "MuonDimensionNumbers": "view(transformation, as_matrix(rows, columns))",
    "GaLoreDimensionNumbers": "view(transformation, as_matrix(rows, columns))",
}
OPTAX = {"trace": "mu", "mu": "mu", "nu": "nu", "nu_max": "nu_max"}
OPTAX_SCALARS = ("count", "mini_step", "gradient_step", "hyperparams", "hyperparams_states")
TORCH = {
    "exp_avg": "mu",
    "momentum_buffer": "mu",
    "grad_avg": "mu",
    "exp_avg_sq": "nu",
    "square_avg": "nu",
    "max_exp_avg_sq": "nu_max",
}


def from_optax(
    tx: GradientTransformation, state: Tree, params: Tree, count: int | None = None
) -> dict[str, Any]:
    """The state of `tx` that goes on where this optax state is.

    Args:
      tx: the same optimizer in adamfx: Adam, AdamW, SGD with momentum, RMSProp, or another whose
        moments optax keeps as mu, nu or trace.
      state: optax's state; chains, schedules and inject_hyperparams around it do not matter, nor does
        MultiSteps between two of its windows.
      params: the parameters.
      count: steps done, where optax did not record them.

    Raises ValueError where what is found there is not what `tx` remembers, and for wrappers and
    averages: carry over what is inside, and put it into the state of the whole.
    """
    records, counts = [], []

    def walk(x: Any, field: str = "the state") -> None:
        if hasattr(x, "_fields"):
            moments = {OPTAX[n]: getattr(x, n) for n in x._fields if n in OPTAX}
            if moments:
                records.append(moments)
            if "count" in x._fields:
                counts.append(int(x.count))
            for name in set(x._fields) - set(OPTAX) - set(OPTAX_SCALARS):
                walk(getattr(x, name), name)
        elif isinstance(x, (tuple, list)):
            for y in x:
                walk(y, field)
        elif isinstance(x, Mapping):
            for y in x.values():
                walk(y, field)
        elif _says_something(x):
            raise ValueError(
                f"from_optax: the state holds {field}, which adamfx would lose; known are {', '.join(OPTAX)}"
            )

    walk(state)
    return _carry("from_optax", tx, params, records, count, counts)


def _says_something(x: Any) -> bool:
    """Whether it holds floating numbers that are not all zero."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact) and bool(np.any(x))


def from_torch(
    tx: GradientTransformation,
    state: Mapping,
    keys: Tree,
    params: Tree,
    count: int | None = None,
    convert: Callable[[np.ndarray], Any] = lambda x: x,
) -> dict[str, Any]:
    """The state of `tx` that goes on where this torch optimizer is.

    Args:
      tx: the same optimizer in adamfx, in torch's form where the defaults differ.
      state: `optimizer.state`, or `optimizer.state_dict()["state"]`.
      keys: a tree like params of the keys of that state: torch's parameters, or their numbers.
      params: the parameters.
      count: steps done, where torch did not record them (SGD).
      convert: applied to each moment, as it was to the weights (a transposed kernel: `lambda x: x.T`).

    torch itself is not imported. Raises ValueError where what is found there is not what `tx`
    remembers, and for wrappers and averages.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"from_torch: state must be optimizer.state, got {type(state).__name__}; pass that of it"
        )
    structure, paths = trees.flatten(params)[1], trees.paths(params)
    entries = []
    for path, key in zip(paths, structure.flatten_up_to(keys), strict=True):
        if key is not None and key not in state:  # a look into a defaultdict would write into it
            raise ValueError(
                f"from_torch: the state holds nothing for the parameter at {path}; before the first step "
                "there is nothing to carry over, and of a state_dict() pass the part 'state'"
            )
        entries.append(None if key is None else state[key])
        for name, x in () if key is None else state[key].items():
            known = name in TORCH or name == "step"
            if not known and x is not None and np.any(_array(x) if hasattr(x, "detach") else x):
                raise ValueError(
                    f"from_torch: the state of the parameter at {path} holds {name!r}, which would be lost; "
                    f"known are {', '.join(TORCH)}"
                )
    first = next((e for e in entries if e is not None), {})
    counts = [int(e["step"]) for e in entries if e is not None and "step" in e]
    if len(set(counts)) > 1:
        raise ValueError(
            f"from_torch: the parameters were moved {sorted(set(counts))} times; adamfx counts steps once "
            "for all, so their bias corrections would change; begin anew, or split them by partition"
        )
    # A moment of moments (RMSprop's momentum) is a record of its own: torch's order is square_avg first.
    names = [n for n in TORCH if n in first and first[n] is not None]
    both = {"square_avg", "momentum_buffer"} <= set(names)
    order = [[n for n in names if n != "momentum_buffer"], ["momentum_buffer"]] if both else [names]

    def tree(name: str) -> Tree:
        missing = [
            p for p, e in zip(paths, entries, strict=True) if e is not None and name not in e
        ]
        if missing:
            raise ValueError(
                f"from_torch: the parameter at {missing[0]} has no {name!r}, others have"
            )
        return structure.unflatten(
            [None if e is None else convert(_array(e[name])) for e in entries]
        )

    records = [{TORCH[n]: tree(n) for n in group} for group in order if group]
    return _carry("from_torch", tx, params, records, count, counts)


def _array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if tensor.dtype.itemsize < 4 else tensor)


def _carry(
    caller: str,
    tx: GradientTransformation,
    params: Tree,
    records: list[dict[str, Tree]],
    count: int | None,
    counts: list[int],
) -> dict[str, Any]:
    if count is None and not counts:
        raise ValueError(
            f"{caller}: the state does not tell how many steps were done; pass count=..."
        )
    if count is None and len(set(counts)) > 1:
        raise ValueError(
            f"{caller}: the state tells of {sorted(set(counts))} steps; pass count=..."
        )
    done = counts[0] if count is None else count
    state = tx.init(params)
    for key, value in tx.blocks:
        if isinstance(value.meaning, Treewise) or hasattr(state.get(key), "average"):
            raise ValueError(
                f"{caller}: {key} cannot be carried over, only blocks with moments can. For a wrapper carry "
                "over the transformation inside, and put its state into that of the whole"
            )
    fresh, state = state, _replay(tx, state, done)
    held, left = [sorted(r) for r in records], list(records)
    for key, memory in state.items():
        fields = [n for n in getattr(memory, "_fields", ()) if n in ("mu", "nu", "nu_max")]
        new = {}
        for name in fields:
            source = next((r for r in left if name in r), None)
            if source is None:
                raise ValueError(
                    f"{caller}: {key} of {tx!r} remembers {fields}, the state given holds "
                    f"{held or 'no moments'}"
                )
            moments = source.pop(name)
            difference = trees.same_structure(moments, getattr(memory, name))
            if difference:
                raise ValueError(f"{caller}: {name} is another tree than params: {difference}")
            place = functools.partial(_placed, caller)
            new[name] = jax.tree_util.tree_map_with_path(place, getattr(memory, name), moments)
        left = [r for r in left if r]
        state[key] = _replace(memory, new) if new else memory
    if left:
        raise ValueError(
            f"{caller}: the state given holds {[sorted(r) for r in left]} beyond what {tx!r} remembers"
        )
    return as_given(fresh, state)


def _placed(caller: str, path: Any, like: jax.Array, x: Any) -> jax.Array:
    if np.shape(x) != like.shape:
        advice = "; see convert=..." if caller == "from_torch" else ""
        raise ValueError(
            f"{caller}: the moment at {jax.tree_util.keystr(path)} has shape {np.shape(x)}, the parameter "
            f"{like.shape}{advice}"
        )
    new = jnp.asarray(np.asarray(x), like.dtype)
    return jax.device_put(new, like.sharding) if like.committed else new


def _replace(memory: Any, changes: dict[str, Any]) -> Any:
    return remember(**{**memory._asdict(), **changes})


def _replay(tx: GradientTransformation, state: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The state with what is computed once per step as it is after `count` steps."""
    blocks = [(key, value.meaning) for key, value in tx.blocks]
    scalar = {
        key: spec
        for key, spec in blocks
        if getattr(spec, "init_shared", None) and not spec.whole_tree
    }

    def step(t, held):
        rates: tuple = (None, None)
        for key, spec in blocks:
            if getattr(spec, "shared", None) is None or spec.whole_tree:
                continue
            own = remember(**held.get(key, {}))
            result = spec.shared(Step(t.astype(jnp.int32), own, rates))
            if key in scalar:
                result, new = result
                held = held | {key: {n: jnp.asarray(new[n], x.dtype) for n, x in held[key].items()}}
            rates = result if spec.moments == "opens" else rates
        return held

    def run(held):
        return jax.lax.fori_loop(0, count, step, held)

    held = {}
    for key, spec in scalar.items():
        names = spec.init_shared()
        held[key] = {n: getattr(state[key], n) for n in names}
    done = jax.jit(run)(held)
    new = {key: _replace(state[key], values) for key, values in done.items() if values}
    return {**state, **new, "count": jnp.asarray(count, jnp.int32) + 0 * state["count"]}
