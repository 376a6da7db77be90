"""The step in one pass over memory: the flag is the process's, so each setting runs in its own.

This file is also the program that the two processes run: `python test_single_pass.py on|off OUT`.
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.engine import single_pass

CLIPPED = fx.chain(fx.clip_by_global_norm(1.0), fx.adamw(1e-3))
# Bytes that must move per float32 parameter: each array is read once, and p and the state written.
BYTES = {
    "adam": (fx.adam(1e-3), 28),
    "adamw": (fx.adamw(1e-3), 28),
    "rmsprop": (fx.rmsprop(1e-3), 20),
    "lion": (fx.lion(1e-3), 20),
    "momentum": (fx.momentum(1e-3), 20),
    "amsgrad": (fx.amsgrad(1e-3), 36),
}


def two_calls(tx):
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return fx.apply_updates(params, updates), state

    return step


def walk(tx, step, dtype):
    """Five steps of a small tree; what a gradient is None for stays."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4), "still": rng.normal(size=2)}
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    state = tx.init(params)
    for _ in range(5):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), params)
        params, state = step(grads | {"still": None}, state, params)
    return [np.asarray(x, float) for x in jax.tree.leaves((params, state))]


def child(setting, out):
    fx.configure(single_pass=setting == "on")
    jax.config.update("jax_enable_x64", True)
    assert single_pass.is_on() == (setting == "on")
    from table import QUICK, TABLE  # they run on JAX

    found = {}
    for name, tx in {**{n: TABLE[n] for n in TABLE if n in QUICK}, "clipped": CLIPPED}.items():
        forms = {"step": tx.step}
        if name in BYTES or name == "clipped":  # of which both forms are counted
            forms["two calls"] = jax.jit(two_calls(tx))
        for form, step in forms.items():
            for i, x in enumerate(walk(tx, step, jnp.float64)):
                found[f"{name}|{form}|{i}"] = x
    for i, x in enumerate(walk(CLIPPED, CLIPPED.step, jnp.bfloat16)):
        found[f"bfloat16|step|{i}"] = x
    np.savez(out + ".npz", **found)
    n, count = 1 << 20, {}
    p = {"w": jax.ShapeDtypeStruct((n,), np.float32)}
    for name, tx in {**{n: tx for n, (tx, _) in BYTES.items()}, "clipped": CLIPPED}.items():
        for form, step in (("step", tx.step), ("two calls", two_calls(tx))):
            state = jax.eval_shape(tx.init, p)
            # For donation, arguments and results in one order.
            ordered = jax.jit(lambda p, s, g, step=step: step(g, s, p), donate_argnums=(0, 1))
            compiled = ordered.lower(p, state, p).compile()
            count[f"{name}|{form}"] = compiled.cost_analysis()["bytes accessed"] / n
    with open(out + ".json", "w") as file:
        json.dump(count, file)


if __name__ == "__main__":
    child(*sys.argv[1:])
    sys.exit()


one_worker = pytest.mark.xdist_group("single_pass")  # the two processes take minutes


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the processes with the setting on and off found: numbers, bytes."""
    folder = tmp_path_factory.mktemp("single_pass")
    plain = {k: x for k, x in os.environ.items() if k != "XLA_FLAGS"}
    running = {
        setting: subprocess.Popen(
            [sys.executable, __file__, setting, str(folder / setting)], env=plain
        )
        for setting in ("on", "off")
    }
    assert [p.wait() for p in running.values()] == [0, 0]
    found = {}
    for s in running:
        with np.load(folder / f"{s}.npz") as arrays:
            found[s] = dict(arrays), json.loads((folder / f"{s}.json").read_text())
    return found


@one_worker
@pytest.mark.slow
def test_the_same_numbers(ran):
    on, off = ran["on"][0], ran["off"][0]
    assert set(on) == set(off)
    assert len(on) > 500
    for name in on:
        np.testing.assert_allclose(on[name], off[name], rtol=1e-12, atol=1e-14, err_msg=name)


@one_worker
@pytest.mark.slow
@pytest.mark.parametrize("form", ["step", "two calls"])
@pytest.mark.parametrize("name", BYTES)
def test_memory_is_crossed_once(ran, name, form):
    limit = BYTES[name][1]
    assert abs(ran["on"][1][f"{name}|{form}"] - limit) <= 0.01
    assert ran["off"][1][f"{name}|{form}"] > limit + 3  # else the switch would be for nothing


@one_worker
@pytest.mark.slow
@pytest.mark.parametrize("form", ["step", "two calls"])
def test_memory_is_crossed_once_after_a_norm(ran, form):
    """The norm passes over the gradient before that, in one pass or, on JAX 0.7, three."""
    on, off = (ran[s][1][f"clipped|{form}"] for s in ("on", "off"))
    assert off - on == pytest.approx(12, abs=0.01)


def test_too_late_says_so(monkeypatch):
    jnp.ones(1)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    with pytest.raises(RuntimeError, match=r"too late for single_pass=True.*restart the kernel"):
        fx.configure(single_pass=True)
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"
    assert not single_pass.is_on()
    fx.configure(single_pass=False)  # as it is


def test_flag_set_too_late_is_not_believed(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{single_pass.OPTIONS}{single_pass.OPTION}")
    single_pass.is_on.cache_clear()
    assert not single_pass.is_on()
    single_pass.is_on.cache_clear()


def test_other_flags_are_kept():
    with_it = single_pass.OPTIONS + single_pass.OPTION
    for flags, on, off in [
        ("", with_it, ""),
        ("--a=1", f"--a=1 {with_it}", "--a=1"),
        (
            f"{single_pass.OPTIONS}x=2 --a",
            f"--a {single_pass.OPTIONS}x=2,{single_pass.OPTION}",
            None,
        ),
        (with_it + "=false", with_it, ""),
    ]:
        assert single_pass._with_option(flags, True) == on
        assert single_pass._with_option(on, True) == on
        if off is not None:
            assert single_pass._with_option(flags, False) == off


def test_the_setting_is_a_bool():
    with pytest.raises(TypeError, match="configure: single_pass must be True or False, got 'on'"):
        fx.configure(single_pass="on")
