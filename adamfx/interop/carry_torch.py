"""Between a state of torch and one of ours.

    state = fx.interop.from_torch(fx.adamw(1e-3), optimizer.state_dict(), keys, params)
    filled = fx.interop.to_torch(tx, state, keys, optimizer.state_dict(), convert=torch.tensor)
    optimizer.load_state_dict(filled)

torch itself is never imported: its tensors are read by their methods, and made by `convert`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from adamfx.engine import trees
from adamfx.interop.directions import In, Out, checked
from adamfx.interop.level import COUNT, Derived, Entry, Form, Level, Slot, reading
from adamfx.transformation import GradientTransformation

Tree = Any
Row = dict[str, Slot] | None  # of one parameter, by torch's names; None: torch does not train it


class Part(NamedTuple):
    """A key of a parameter that stands in a flat one, as FSDP makes them: its numbers are
    flat[start : start + size], of this shape in torch."""

    key: Any
    start: int
    shape: tuple[int, ...]

    @property
    def where(self) -> slice:
        return slice(self.start, self.start + math.prod(self.shape))


# ---- the table -----------------------------------------------------------------------------------


def _nadam_product(n: int, options: Mapping) -> float:
    b1, decay = options["betas"][0], options["momentum_decay"]
    return math.prod(b1 * (1 - 0.5 * 0.96 ** (t * decay)) for t in range(1, n + 1))


def _asgd_rate(n: int, options: Mapping) -> float:
    lr = float(options["lr"])
    return lr / (1 + options["lambd"] * lr * n) ** options["alpha"]


def _asgd_share(n: int, options: Mapping) -> float:
    return 1 / max(1, n - options["t0"])


# Of the last gradient, all that is read of it.
SIGN = Form(lambda x, memory: np.sign(x), lambda x, memory: x)
FIRST: dict[str, Any] = {
    "step": COUNT,
    "mu_product": Derived(_nadam_product),
    "eta": Derived(_asgd_rate),
    "mu": Derived(_asgd_share),
    "exp_avg": "mu (ema of value)",
    "grad_avg": "mu (ema of value)",
    "exp_avg_sq": "nu (ema of square)",
    "square_avg": "nu (ema of square)",
    "exp_inf": "nu (decayed_max of abs)",
    "sum": "nu (total of square)",
    "variance": "nu (mean of square)",
    "row_var": "nu_rows (mean of square)",
    "col_var": "nu_columns (mean of square)",
    "max_exp_avg_sq": "nu_max (running_max)",
    "step_size": "step_size (scale_by_rprop)",
    "prev": Entry("sign (scale_by_rprop)", SIGN),
}
# Behind it in torch's arithmetic, so a record of its own.
SECOND = {"acc_delta": "nu (scale_by_past_rms)", "ax": "average (mean of params)"}
SGD, MUON, RMSPROP = (
    SECOND | {"momentum_buffer": f"mu ({what})"}
    for what in ("trace of value", "ema of value", "trace of direction")
)
KNOWN = FIRST | SGD
# What torch keeps of a parameter before there is anything to read it from, by options of the group that tell
# the optimizers before it apart; "?option": where that is set.
KEPT = {
    "dampening": "momentum_buffer?momentum",
    "ns_steps": "momentum_buffer",
    "centered": "step square_avg grad_avg?centered momentum_buffer?momentum",
    "amsgrad": "step exp_avg exp_avg_sq max_exp_avg_sq?amsgrad",
    "momentum_decay": "step mu_product exp_avg exp_avg_sq",
    "lr_decay": "step sum",
    "rho": "step square_avg acc_delta",
    "etas": "step prev step_size",
    "lambd": "step eta mu ax",
    "beta2_decay": "step row_var col_var variance",
    "decoupled_weight_decay capturable": "step exp_avg exp_avg_sq",  # RAdam
    "betas capturable": "step exp_avg exp_inf",  # Adamax
}


# ---- public --------------------------------------------------------------------------------------


def from_torch(
    tx: GradientTransformation,
    state: Mapping,
    keys: Tree,
    params: Tree,
    count: int | None = None,
    convert: Callable[[np.ndarray], Any] = lambda x: x,
) -> Mapping[str, Any]:
    """The state of `tx` that goes on where this torch optimizer is.

    Args:
      tx: the same optimizer in adamfx, in torch's form where the defaults differ. Parameter groups with
        different options are `partition`, whose groups may have done different numbers of steps.
      state: `optimizer.state_dict()`, its part "state", or `optimizer.state`.
      keys: a tree like params of the keys of that state: torch's parameters, their numbers in the order of
        the groups, or their names. A `Part` for a parameter inside a flat one (FSDP); None for one that
        torch does not train.
      params: the parameters.
      count: steps done, where torch did not record them (SGD, Muon).
      convert: applied to each moment, as it was to the weights (a transposed kernel: `lambda x: x.T`).

    What torch has not starts as `tx.init(params)` makes it; see `from_optax`. Raises ValueError where `tx`
    remembers something else than what is found there, or the other way round.
    """
    checked("from_torch", tx)
    if not isinstance(state, Mapping):
        raise TypeError(
            f"from_torch: state must be optimizer.state or optimizer.state_dict(), got {type(state).__name__}"
        )
    entries, groups = (state["state"], _groups(state)) if _is_whole(state) else (state, {})
    leaves, structure = trees.flatten(params)
    rows: list[Row] = []
    for path, key, p in zip(
        trees.paths(params), structure.flatten_up_to(keys), leaves, strict=True
    ):
        of = _of(key)
        if of is None:
            rows.append(None)
            continue
        if of not in entries:  # a look into a defaultdict would write into it
            raise ValueError(
                f"from_torch: the state holds nothing for the parameter at {path}; before the first step "
                "there is nothing to carry over: tx.init(params)"
            )
        row = {}
        for name, x in entries[of].items():
            value = None if x is None else _array(x)
            if name in KNOWN and value is not None:
                if not isinstance(KNOWN[name], Derived):
                    value = convert(_part(key, value))
                row[name] = Slot(value, name, groups.get(of, {}))
            elif value is not None and np.any(value):
                raise ValueError(
                    f"from_torch: the state of the parameter at {path} holds {name!r}, which would be lost; "
                    f"known are {', '.join(KNOWN)}"
                )
        if {"row_var", "col_var"} <= row.keys() and row["row_var"].value.shape[_longest(p)] != 1:
            row["row_var"], row["col_var"] = row["col_var"], row["row_var"]
        rows.append(row)
    hint = (
        "the parameters were moved {told} times; adamfx counts steps once for all, so their bias "
        "corrections would change; begin anew, or split them by partition"
    )
    return In("from_torch", _level(structure, rows), hint).whole(tx, tx.init(params), count)


def to_torch(
    tx: GradientTransformation,
    state: Mapping[str, Any],
    keys: Tree,
    like: Mapping,
    convert: Callable[[np.ndarray], Any] = lambda x: x,
) -> dict[str, Any]:
    """What `optimizer.load_state_dict` takes to go on where this state of `tx` is.

    Args:
      tx: the transformation of the state.
      state: its state.
      keys: a tree like the parameters of the keys in `like`: numbers in the order of the groups, or names;
        see `from_torch`. A `Part` needs a flat entry in `like` to be written into.
      like: `optimizer.state_dict()` of the same optimizer in torch, before or after steps of its own. Its
        options stay.
      convert: applied to each array and number, in our form: `torch.tensor`, or for transposed kernels
        `lambda x: torch.tensor(x.T)`. Without it they are NumPy arrays.

    Raises ValueError where that optimizer has no place for something that `tx` remembers, or the other way
    round.
    """
    checked("to_torch", tx)
    if not isinstance(like, Mapping) or not _is_whole(like):
        raise TypeError(
            "to_torch: like must be optimizer.state_dict(), with its param_groups, got "
            f"{type(like).__name__}"
        )
    found, structure = jax.tree.flatten(keys, is_leaf=lambda x: x is None or isinstance(x, Part))
    groups = _groups(like)
    rows = [None if key is None else _places(_of(key), like["state"], groups) for key in found]
    Out("to_torch", _level(structure, rows)).whole(tx, state)
    new = {key: dict(entry) for key, entry in like["state"].items()}
    for key, row in zip(found, rows, strict=True):
        if row:
            entry = new.setdefault(_of(key), {})
            entry |= _written(key, row, entry, convert)
    return {**like, "state": new}


# ---- reading and writing -------------------------------------------------------------------------


def _is_whole(state: Mapping) -> bool:
    return "param_groups" in state and "state" in state


def _groups(state: Mapping) -> dict[Any, Mapping]:
    """The options of each parameter."""
    return {key: group for group in state["param_groups"] for key in group["params"]}


def _of(key: Any) -> Any:
    return key.key if isinstance(key, Part) else key


def _level(structure: Any, rows: list[Row]) -> Level:
    """The rows of all parameters, by name."""
    held = {name: slot for row in rows if row for name, slot in row.items()}
    trees_of = {
        name: structure.unflatten([None if row is None else row.get(name) for row in rows])
        for name in held
    }
    options = next((slot.options for slot in held.values()), {})
    if "square_avg" in held:
        seconds = [RMSPROP]
    else:  # a state without groups does not tell
        seconds = [MUON if "ns_steps" in options else SGD] if options else [SGD, MUON]
    records = [[reading(FIRST, trees_of)], [reading(second, trees_of) for second in seconds]]
    counts = [(trees_of[n], x) for n, x in FIRST.items() if n in held and isinstance(x, Derived)]
    return Level([record for record in records if record[0]], counts)


def _places(key: Any, entries: Mapping, groups: Mapping) -> dict[str, Slot]:
    """The places of one parameter in a state to be filled."""
    if key not in groups:
        raise ValueError(
            f"to_torch: no group of `like` has a parameter {key!r}; a state_dict() goes by numbers in the "
            "order of the groups"
        )
    group = groups[key]
    names = [name for name, x in entries.get(key, {}).items() if x is not None]
    if not names:
        kept = next((n for has, n in KEPT.items() if all(o in group for o in has.split())), None)
        if kept is None:
            raise ValueError(
                f"to_torch: an optimizer with the options {', '.join(group)} is not known; take its "
                "state_dict() after a step"
            )
        wanted = [name.partition("?") for name in kept.split()]
        names = [name for name, _, option in wanted if not option or group[option]]
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise ValueError(
            f"to_torch: {unknown} of `like` is nothing that adamfx could fill; known are {', '.join(KNOWN)}"
        )
    return {name: Slot(None, name, group) for name in names}


def _array(x: Any) -> np.ndarray:
    """A tensor or an array as one of NumPy, which knows no bfloat16."""
    if not hasattr(x, "detach"):
        return np.asarray(x)
    x = x.detach().cpu()
    floats = x.is_floating_point() if hasattr(x, "is_floating_point") else True
    return np.asarray(x.float() if floats and x.dtype.itemsize < 4 else x)


def _part(key: Any, x: np.ndarray) -> np.ndarray:
    return x.reshape(-1)[key.where].reshape(key.shape) if isinstance(key, Part) else x


def _longest(p: Any) -> int:
    """The axis that `factored` has averaged over in nu_rows, torch in the last one's."""
    return int(np.argsort(np.shape(p), kind="stable")[-1])


def _written(key: Any, row: dict[str, Slot], old: Mapping, convert: Callable) -> dict[str, Any]:
    """What has been written into the slots, in torch's form: steps in float32, as plain numbers where `old`
    has such, rows as averages over the last axis."""
    new = {}
    for name, slot in row.items():
        if slot.new is None:
            continue
        before, x = old.get(name), np.array(slot.new)
        if isinstance(KNOWN[name], Derived):
            is_plain = isinstance(before, (int, float))
            new[name] = type(before)(x) if is_plain else convert(x.astype(np.float32))
            continue
        new[name] = convert(x if x.dtype.itemsize >= 4 else x.astype(np.float32))
        if isinstance(key, Part):
            if before is None:
                raise ValueError(
                    f"to_torch: {key} is to be written into a flat {name!r}, and `like` has none; take its "
                    "state_dict() after a step"
                )
            flat = np.array(_array(before))
            flat.reshape(-1)[key.where] = _array(new[name]).reshape(-1)
            new[name] = convert(flat)
    if {"row_var", "col_var"} <= new.keys():
        two = new["row_var"], new["col_var"]
        ordered = sorted(two, key=lambda x: (x.shape[-1] != 1, -math.prod(x.shape)))
        new["row_var"], new["col_var"] = ordered
    return new
