"""Hyperparameters by descent: the gradient is that of what a run comes to."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import enable_x64

import adamfx as fx

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = np.tanh(X @ np.array([1.0, -2.0, 0.5]))
BATCHES = [(X[i : i + 6], Y[i : i + 6]) for i in range(0, 60, 6)]


def params():
    return {"w": jnp.asarray([0.3, 0.1, -0.2], float)}


def loss(p, x, y):
    return jnp.mean((jnp.tanh(x @ p["w"]) - y) ** 2)


def tune(names, tx, **settings):
    settings = {"optimizer": fx.sgd(1.0), "progress": False, **settings}
    return fx.tune(loss, names, tx, params(), settings.pop("batches", BATCHES), **settings)


def after(tx, n=4):
    """The loss of the next batch after n steps, by a run of its own."""
    done = fx.fit(loss, tx, params(), BATCHES[:n], progress=False)
    return float(loss(done.params, *BATCHES[n]))


def logit(b):
    return np.log(b / (1 - b))


CASES = {
    "learning_rate": (fx.adam(0.1), np.log, np.exp),
    "b1": (fx.adam(0.1, 0.8), logit, lambda x: 1 / (1 + np.exp(-x))),
    "init_value": (fx.sgd(fx.cosine_decay_schedule(0.5, 10)), np.log, np.exp),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_a_run(name):
    with enable_x64():
        tx, to, back = CASES[name]
        found = tune([name], tx, every=4, turns=1)
        full = next(n for n in tx.hyperparams if n.endswith(name))
        start, h = to(tx.hyperparams[full]), 1e-5
        at = lambda free: after(tx.replace(**{full: float(back(free))}))  # noqa: E731
        slope = (at(start + h) - at(start - h)) / (2 * h)
        moved = to(found.tx.hyperparams[full]) - start
        np.testing.assert_allclose(-moved, slope, rtol=1e-3)  # the number found has six digits
        np.testing.assert_allclose(found.history["loss"][0], after(tx), rtol=1e-9)


def test_a_rate_that_is_far_off_comes_near():
    found = tune(["learning_rate"], fx.adam(1e-4), optimizer=fx.adam(0.3), every=4, epochs=20)
    assert found.reason == "end of batches"
    assert found.tx.hyperparams["scale_by_lr.learning_rate"] > 3e-3
    assert found.history["loss"][-1] < 0.1 * found.history["loss"][0]
    assert found.history["learning_rate"][0] == pytest.approx(1e-4, rel=1e-5)
    again = tune(
        ["learning_rate"], fx.adam(1e-4), optimizer=fx.adam(0.3), every=4, turns=3, restart=True
    )
    assert again.reason == "end of batches"
    assert again.history.rows == 2  # of ten batches
    assert int(again.state["count"]) == 4


def test_ctrl_c_and_numbers_that_are_not_finite():
    def pressed():
        for i, batch in enumerate(BATCHES * 3):
            if i == 12:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    found = tune(["learning_rate"], fx.adam(0.1), every=4, batches=pressed())
    assert found.reason == "interrupted"
    assert found.history.rows == 2
    assert np.isfinite(found.params["w"]).all()
    bad = [(x * np.nan, y) for x, y in BATCHES]
    found = tune(["learning_rate"], fx.adam(0.1), every=4, batches=bad)
    assert found.reason == "nonfinite"
    assert found.tx == fx.adam(0.1)


def assert_equal(a, b):
    for name in ("loss", "b1"):
        np.testing.assert_array_equal(a.history[name], b.history[name])
    for x, y in zip(jax.tree.leaves(a[1:3]), jax.tree.leaves(b[1:3]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_goes_on_where_it_was_interrupted(tmp_path):
    settings = {"optimizer": fx.adam(0.3), "every": 1, "epochs": 2}
    straight = tune(["learning_rate", "b1"], fx.adam(0.01), **settings)
    kept = {**settings, "checkpoints": tmp_path}
    first = tune(["learning_rate", "b1"], fx.adam(0.01), turns=3, **kept)
    assert first.history.rows == 3
    on = tune(["learning_rate", "b1"], fx.adam(0.01), **kept)
    assert on.history.rows == straight.history.rows == 10
    assert_equal(on, straight)
    assert on.tx == straight.tx
    again = tune(["learning_rate", "b1"], fx.adam(0.01), **kept)  # there is nothing left
    assert again.tx == straight.tx
    with fx.Checkpoints(tmp_path / "each", every=2) as each:
        tune(["b1"], fx.adam(0.01), turns=5, checkpoints=each, **settings)
        assert each.steps == [2, 4, 5]


def test_an_error_carries_what_was_complete_and_keeps_it(tmp_path):
    def batches():
        yield from BATCHES[:6]
        raise OSError("of the loader")

    with pytest.raises(OSError, match="of the loader") as caught:
        tune(["b1"], fx.adam(0.1), every=1, batches=batches(), checkpoints=tmp_path)
    with fx.Checkpoints(tmp_path) as kept:
        assert kept.latest == 3
    whole = tune(["b1"], fx.adam(0.1), every=1, batches=BATCHES[:6])
    found = caught.value.result
    assert found.reason == "failed"
    assert found.tx == whole.tx
    assert_equal(found, whole)


def test_what_cannot_be_tuned():
    ragged = [*BATCHES[:2], (X[:5], Y[:5])]
    with pytest.raises(ValueError, match="batches of a turn must have one shape"):
        tune(["b1"], fx.adam(0.1), every=2, batches=ragged)
    with pytest.raises(KeyError, match="'b9' is not a hyperparameter"):
        tune(["b9"], fx.adam(0.1))
    with pytest.raises(ValueError, match=r"eps_root must be a number > 0 to be tuned, it is 0\.0"):
        tune(["eps_root"], fx.adam(0.1))
    with pytest.raises(ValueError, match="every"):
        tune(["b1"], fx.adam(0.1), every=0)
    with pytest.raises(TypeError, match="tune: optimizer"):
        tune(["b1"], fx.adam(0.1), optimizer=3)


def test_one_program_for_all_turns():
    calls = []

    def counted(p, x, y):
        calls.append(1)
        return loss(p, x, y)

    fx.tune(
        counted,
        ["b1"],
        fx.adam(0.1),
        params(),
        BATCHES,
        optimizer=fx.sgd(0.1),
        every=1,
        progress=False,
    )
    assert len(calls) <= 6  # of five turns: traced, and not again for each


def test_state_is_as_a_run_has_it():
    found = tune(["learning_rate"], fx.adam(0.1), optimizer=fx.sgd(0.0), every=4, turns=2)
    done = fx.fit(loss, fx.adam(0.1), params(), BATCHES[:4] + BATCHES[5:9], progress=False)
    np.testing.assert_allclose(found.params["w"], done.params["w"], rtol=1e-4)
    assert jax.tree.structure(found.state) == jax.tree.structure(done.state)
