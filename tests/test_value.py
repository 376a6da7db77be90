"""Values: what they hold, print, pickle and run."""

import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamfx as fx

ONE = jnp.ones(1)


@fx.block
def both(a: fx.GradientTransformation, b: fx.GradientTransformation):
    def init(params):
        return {"a": a.init(params), "b": b.init(params)}

    def update(updates, state, params=None, **extra):
        u, sa = a.update(updates, state["a"], params)
        v, sb = b.update(updates, state["b"], params)
        return jax.tree.map(jnp.add, u, v), {"a": sa, "b": sb}

    return init, update


MODULE = """
from __future__ import annotations
from typing import TYPE_CHECKING
import adamfx as fx
from adamfx.schedules import Rate
if TYPE_CHECKING:
    from nowhere import Thing

@fx.block
def mine(rate: Rate, thing: Thing | None = None):
    return fx.leafwise(lambda u, here: u * rate)
"""


@fx.block
def variadic(a: fx.Dynamic = 1.0, *rest: fx.Dynamic, **named: fx.Dynamic):
    return fx.leafwise(lambda u, here: u * (a + sum(rest) + sum(named.values())))


TWO_ONES = jnp.ones(2)


FORK = """
import os, threading, sys
import adamfx as fx

go = True
def build():
    n = 0
    while go:
        n += 1
        fx.scale(1.0 + n % 7).replace(step_size=2.0)

threads = [threading.Thread(target=build, daemon=True) for _ in range(4)]
[t.start() for t in threads]
sys.setswitchinterval(1e-5)
for i in range(60):
    pid = os.fork()
    if pid == 0:
        import signal
        signal.alarm(20)
        fx.chain(fx.clip(1.0 + i), fx.sgd(0.1))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "a forked child hung in its first constructor call"
go = False
"""


def test_a_mask_changed_later_changes_nothing():
    mask = {"w": True, "b": True}
    fx.adamw(1e-3, mask=mask)
    first = fx.adamw(1e-3, mask=mask)
    mask["w"] = False
    assert first == fx.adamw(1e-3, mask={"w": True, "b": True})
    assert "'w': True" in repr(first)


def test_names_of_two_inner_transformations_differ():
    tx = both(fx.scale_by_lr(1.0), fx.scale_by_lr(2.0))
    assert {"both.a.learning_rate", "both.b.learning_rate"} <= set(tx.hyperparams)
    assert jax.tree.map(jnp.asarray, tx).concrete() == tx
    live = fx.live(tx)
    np.testing.assert_allclose(live.update(ONE, live.init(ONE))[0], -3.0)
    with pytest.raises(KeyError, match="ambiguous"):
        tx.replace(learning_rate=5.0)


def test_a_block_pickles_into_another_process_and_keeps_its_declarations(tmp_path, monkeypatch):
    (tmp_path / "usermodule.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import usermodule

    tx = usermodule.mine(0.5)
    assert jax.tree.leaves(tx) == [0.5]
    load = f"import pickle, sys; sys.path.insert(0, {str(tmp_path)!r}); "
    in_chain = fx.chain(tx, fx.scale(2.0))
    load += f"print(*pickle.loads({pickle.dumps((tx, in_chain))!r}))"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True)
    assert done.stdout == "mine(0.5) chain(mine(0.5), scale(2.0))\n"


def test_a_block_made_in_a_function_says_so_when_pickled():
    @fx.block
    def local(x: fx.Dynamic):
        return fx.leafwise(lambda u, here: u * x)

    with pytest.raises(pickle.PicklingError, match="local is defined inside a function"):
        pickle.dumps(local(1.0))


def test_variadic_signatures():
    tx = variadic(1.0, 5, 6, x=2)
    assert len(jax.tree.leaves(tx)) == 4
    assert repr(tx) == "variadic(1.0, 5.0, 6.0, x=2.0)"
    assert eval(repr(tx)) == tx
    np.testing.assert_allclose(tx.update(ONE, tx.init(ONE))[0], 14.0)


def test_as_optax_compares_hashes_and_pickles_as_its_value():
    tx = fx.adam(0.1).as_optax()
    assert tx == fx.adam(0.1).as_optax()
    assert tx != fx.adam(0.2).as_optax()
    assert hash(tx) == hash(fx.adam(0.1).as_optax())
    again = pickle.loads(pickle.dumps(tx))
    assert again == tx
    assert isinstance(again, optax.GradientTransformationExtraArgs)
    u, _ = again.update(TWO_ONES, again.init(TWO_ONES), TWO_ONES)
    np.testing.assert_allclose(u, -0.1, rtol=1e-5)


def test_a_body_runs_once_when_a_value_is_built():
    calls = []

    @fx.block
    def noting(rate: fx.Dynamic):
        calls.append(rate)
        return fx.leafwise(lambda u, here: u * rate)

    tx = fx.chain(noting(0.5), fx.scale(1.0))
    assert calls == [0.5]
    assert (repr(tx), tx.hyperparams["noting.rate"], tx.blocks[0][0]) == (
        "chain(noting(0.5), scale(1.0))",
        0.5,
        "noting",
    )
    assert calls == [0.5]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_builds_values():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_pickles_of_earlier_versions_load():
    """Constructors are found by their public name, whatever module held them."""
    text = pickle.dumps(fx.scale(2.0)).replace(b"adamfx.blocks.scaling", b"adamfx.scaling_of_old")
    assert pickle.loads(text) == fx.scale(2.0)


def test_values_tell_one_number_from_another():
    assert fx.ema(0.5) != fx.ema(0.25)
    assert fx.ema(0.5) == fx.ema(0.5)


def test_an_exact_number_is_no_leaf():
    assert jax.tree.leaves(fx.ema(0.5)) == []
    assert jax.tree.leaves(fx.scale(0.5)) == [0.5]
