"""The page of every optimizer: each argument has a meaning, the sentence is its own, the example runs."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from table import tree

import adamfx as fx
from adamfx import pages

OPTIMIZERS = {
    n: f
    for n, f in vars(fx).items()
    if inspect.isfunction(f) and f.__module__.startswith("adamfx.optimizers.")
}
OPTIMIZERS.pop("on_matrices")
every = pytest.mark.parametrize("name", OPTIMIZERS)


@every
def test_every_argument_has_a_meaning(name):
    found = pages._meanings(OPTIMIZERS[name])
    assert list(found) == list(inspect.signature(OPTIMIZERS[name]).parameters)
    assert all(found.values()), found


@every
def test_the_example_runs(name):
    lines = fx.page(OPTIMIZERS[name]).splitlines()
    code = [line.strip() for line in lines if line.startswith("    ")][-3:]
    (sentence,) = (line.strip() for line in lines if line.startswith(("    chain(", "    partition(",
        "    scale_by_", "    with_hessian(")))  # fmt: skip
    assert code[0].startswith(f"tx = fx.{name}(")
    names = {"fx": fx, "params": tree(), "grads": tree(seed=1), "value": jnp.float32(1.0)}
    names["loss"] = lambda p: sum(jnp.sum(x * x) for x in p.values())
    exec(code[0], names)
    assert fx.read(sentence) == names["tx"]
    if name not in (
        "dpsgd",
        "sophia",
        "momo",
        "momo_adam",
        "polyak_sgd",
    ):  # the first wants one more axis
        tx = names["tx"]

        def updated(params, grads):
            exec("\n".join(code[1:]), names | {"params": params, "grads": grads}, out)
            return out["updates"]

        out = {}
        u = jax.eval_shape(updated, tree(), tree(seed=1))
        assert jax.tree.structure(u) == jax.tree.structure(tree())
        assert tx == names["tx"]


def test_meanings_come_from_the_blocks():
    of = pages._meanings(fx.adamw)
    assert of["eps_root"] == ">= 0, added under the root."
    assert of["b1"] == of["b2"]
    assert "eigenvectors" not in fx.page(fx.adam)


def test_what_is_no_optimizer_is_refused():
    for x in (fx.clip, "adam", fx.adam(0.1)):
        with pytest.raises(TypeError, match="must be an optimizer of this library"):
            fx.page(x)
