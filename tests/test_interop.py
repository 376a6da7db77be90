"""States carried over: what would be lost is an error."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamfx as fx

P = {"w": jnp.zeros(3)}


G = {"w": jnp.ones(3)}


def moved(tx, n=5):
    state = tx.init(P)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(n):
            _, state = tx.update(G, state, P)
    return state


class Tensor:
    """As much of a tensor as is looked at."""

    def __init__(self, x):
        self.x = np.asarray(x, np.float32)
        self.dtype = self.x.dtype

    def detach(self):
        return self

    cpu = detach

    def __array__(self, *args, **kwargs):
        return self.x

    def __int__(self):
        return int(self.x)


def entry(step=5, **more):
    return {
        "step": Tensor(step),
        "exp_avg": Tensor(np.ones(3)),
        "exp_avg_sq": Tensor(np.ones(3)),
        **more,
    }


TWO = {"a": jnp.zeros(3), "b": jnp.zeros(3)}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fx.average_params(fx.adam(0.1), fx.ema(0.9)), optax.adam(0.1)),
        (fx.average_params(fx.adam(0.1)), optax.adam(0.1)),
        (fx.skip_nonfinite(fx.sgd(fx.inverse_sqrt_schedule(0.1))), optax.sgd(lambda t: 0.1)),
        (fx.lookahead(fx.adam(0.1), 2, 0.5), optax.adam(0.1)),
    ],
)
def test_averages_and_wrappers_are_not_carried_over_in_silence(ours, theirs):
    with pytest.raises(ValueError, match="cannot be carried over"):
        fx.interop.from_optax(ours, moved(theirs), P)


def test_half_a_window_is_not_lost_in_silence():
    tx = optax.MultiSteps(optax.adam(0.1), 3)
    fx.interop.from_optax(fx.adam(0.1), moved(tx, 6), P)
    with pytest.raises(ValueError, match="holds acc_grads, which adamfx would lose"):
        fx.interop.from_optax(fx.adam(0.1), moved(tx, 5), P)


@pytest.mark.parametrize(
    ("tx", "state", "words"),
    [
        (fx.adam(0.1), {0: entry(5), 1: entry(3)}, r"moved \[3, 5\] times"),
        (fx.adam(0.1), {0: entry()}, "nothing for the parameter at .*b"),
        (fx.adam(0.1), {0: entry(), 1: {"step": Tensor(5)}}, "b.* has no 'exp_avg'"),
        (fx.sgd(0.1), {k: {"step": Tensor(5), "sum": Tensor(np.ones(3))} for k in (0, 1)}, "'sum'"),
        (fx.adam(0.1), {0: entry(), 1: entry(exp_avg=Tensor(np.ones(2)))}, r"b.*shape \(2,\)"),
        (fx.adam(0.1), object(), "must be optimizer.state, got object"),
    ],
)
def test_what_torch_has_and_we_cannot_hold(tx, state, words):
    with pytest.raises((ValueError, TypeError), match=words):
        fx.interop.from_torch(tx, state, {"a": 0, "b": 1}, TWO)


def test_another_tree_of_moments():
    with pytest.raises(ValueError, match="from_optax: mu is another tree than params"):
        fx.interop.from_optax(fx.adam(0.1), moved(optax.adam(0.1)), TWO)


def test_names_of_optax_point_to_ours():
    with pytest.raises(AttributeError, match=r"MultiSteps.*accumulate\("):
        _ = fx.MultiSteps
    with pytest.raises(AttributeError, match=r"adamfx has no 'nothing'$"):
        _ = fx.nothing
    for name, other in fx.interop.COUNTERPARTS.items():
        assert any(hasattr(m, name) for m in MODULES), name
        assert not hasattr(fx, name), name
        first = re.match(r"\w+", other).group()
        assert hasattr(fx, first) or first in ("jax", "optax", "tx", "state", "None", "a", "any"), (
            other
        )


MODULES = (optax, optax.contrib, optax.transforms, optax.schedules)
ASIDE = {  # of other kinds: modules, losses, distributions, types of annotations, tree functions
    "contrib", "experimental", "losses", "projections", "schedules", "transforms", "tree", "tree_utils",
    "second_order", "perturbations", "monte_carlo", "assignment", "multi_normal", "tree_map_params",
    "MaskOrFn", "OptState", "Params", "ScalarOrSchedule", "ShouldSkipUpdateFunction", "ConditionFn",
    "TransformInitFn", "TransformUpdateFn", "TransformUpdateExtraArgsFn", "Updates", "ZoomLinesearchInfo",
}  # fmt: skip


def test_every_name_of_optax_has_one_here():
    """Losses, projections, tree functions, types and the classes of states aside (here a state is a dict)."""
    missing = [
        name
        for module in MODULES
        for name in dir(module)
        if not (
            name.startswith("_")
            or name in ASIDE
            or name.endswith("State")
            or name in dir(optax.losses)
        )
        and not hasattr(fx, name)
        and name not in fx.interop.COUNTERPARTS
    ]
    assert not missing
