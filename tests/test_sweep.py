"""Many runs in one program: each is the run that it would be alone."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import blocks

import adamfx as fx
from adamfx.training import callbacks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = np.tanh(X @ np.array([1.0, -2.0, 0.5], np.float32))
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)]


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"]) * params["s"] - y) ** 2)


def init(key):
    return {"w": jax.random.normal(key, (3,)), "s": jnp.ones(())}


def sweep(values, tx=None, params=init, batches=BATCHES, **settings):
    settings = {"progress": False, **settings}
    return fx.sweep(loss, values, tx or fx.adam(0.1), params, batches, **settings)


def alone(member, params=None, **settings):
    params = init(jax.random.key(member.seed)) if params is None else params
    return fx.fit(loss, member.tx, params, BATCHES, progress=False, **settings)


KEPT = "JAX_COMPILATION_CACHE_DIR"  # what was compiled before; a user has none
RATES = {"learning_rate": [1e-3, 1e-2, 0.1], "b2": [0.9, 0.99]}


@pytest.mark.parametrize("at_once", [None, 5])
def test_each_member_is_its_own_run(at_once):
    found = sweep(RATES, seeds=2, epochs=3, at_once=at_once)
    assert len(found) == 12
    assert found.reason == "end of batches"
    for i in (0, 3, 7, 11):
        one = alone(found.members[i], epochs=3)
        np.testing.assert_allclose(found.history(i)["loss"], one.history["loss"], rtol=2e-5)
        assert set(found.history(i)) == set(one.history)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            found.params(i),
            one.params,
        )
        assert int(found.state(i)["count"]) == 15


def test_a_member_goes_on_alone():
    found = sweep(RATES, epochs=1)
    i = 5
    on = fx.fit(
        loss, found.members[i].tx, found.params(i), BATCHES, state=found.state(i), history=found.history(i),
        progress=False,
    )  # fmt: skip
    whole = alone(found.members[i], epochs=2)
    np.testing.assert_allclose(on.history["loss"], whole.history["loss"], rtol=1e-4)
    assert on.history["step"].tolist() == list(range(1, 11))


def test_numbers_alone_are_one_program():
    fresh = lambda p, x, y: loss(p, x, y) * 1.5  # noqa: E731
    callbacks.listen()
    before = callbacks.COMPILED[0]
    fx.sweep(
        fresh, RATES, fx.adam(0.1), init, BATCHES, steps=4, steps_per_dispatch=2, progress=False
    )
    first = callbacks.COMPILED[0] - before
    before = callbacks.COMPILED[0]
    other = {"learning_rate": [0.2, 0.3, 0.4], "b2": [0.8, 0.95]}
    fx.sweep(
        fresh, other, fx.adam(0.1), init, BATCHES, steps=4, steps_per_dispatch=2, progress=False
    )
    assert first > 0
    assert callbacks.COMPILED[0] == before  # another grid of this size compiles nothing


def test_what_changes_the_form_is_a_program_of_its_own():
    found = sweep(
        {"learning_rate": [0.01, 0.1], "power": [0.5, 0.25], "mu_dtype": [None, "bfloat16"]}
    )
    assert len(found) == 8
    for i in range(8):
        one = alone(found.members[i])
        np.testing.assert_allclose(found.history(i)["loss"], one.history["loss"], rtol=1e-3)
    rate = fx.cosine_decay_schedule
    found = sweep({"learning_rate": [0.1, rate(0.1, 5), rate(0.2, 5)]})
    np.testing.assert_allclose(
        found.history(2)["loss"], alone(found.members[2]).history["loss"], rtol=1e-4
    )


def test_a_rate_that_stands_in_several_groups_is_one_number():
    found = sweep({"learning_rate": [0.01, 0.1]}, fx.muon(0.3), seeds=range(4, 6))
    assert [m.tx for m in found.members] == [fx.muon(x) for x in (0.01, 0.1) for _ in range(2)]
    assert [m.seed for m in found.members] == [4, 5, 4, 5]
    several = fx.partition({"a": fx.adam(0.1)}, {"a": fx.path_matches("a")}, default=fx.sgd(0.2))
    with pytest.raises(KeyError, match="'learning_rate' is ambiguous"):  # which of the two
        sweep({"learning_rate": [0.01]}, several)


def test_sentences_are_compared():
    txs = {"adam": fx.adam(0.1), "slow": fx.lookahead(fx.sgd(0.1), 2, 0.5)}
    found = sweep({"learning_rate": [0.01, 0.1], "b2": [0.9, 0.99]}, txs, seeds=2)
    assert len(found) == 8 + 4  # sgd has no b2
    assert set(found.table) == {"optimizer", "learning_rate", "b2", "seed", "steps", "score"}
    for i in (0, 11):
        one = alone(found.members[i])
        np.testing.assert_allclose(found.history(i)["loss"], one.history["loss"], rtol=1e-4)


def test_the_best_is_an_ordinary_value():
    found = sweep({"learning_rate": [1e-4, 0.1, 1e30]}, fx.sgd(0.1), seeds=3, epochs=4)
    assert found.best == fx.sgd(0.1)
    assert hash(found.best) == hash(fx.sgd(0.1))
    (values, mean, spread), *_, (worst, infinite, _) = found.means()
    assert values == {"learning_rate": 0.1}
    scores = found.scores()[3:6]
    np.testing.assert_allclose([mean, spread], [scores.mean(), np.ptp(scores)])
    assert (worst, infinite) == ({"learning_rate": 1e30}, np.inf)
    assert "best loss" in repr(found)
    tail = found.history(4)["loss"][-2:]
    np.testing.assert_allclose(scores[1], tail.mean())


@pytest.mark.parametrize("traceable", [True, False])
def test_an_evaluation_of_all(traceable):
    calls = []

    def evaluate(params, state):
        calls.append(1)
        error = loss(params, X, Y)
        return {"right": -error if traceable else -float(error)}

    found = sweep(
        {"learning_rate": [1e-3, 0.1]},
        seeds=2,
        epochs=2,
        evaluate=evaluate,
        evaluate_every=5,
        mode="max",
    )
    assert found.score == "right"
    assert found.best == fx.adam(0.1)
    for i in range(4):
        steps, right = found.history(i).measured("right")
        assert steps.tolist() == [5, 10]
        np.testing.assert_allclose(right[-1], -loss(found.params(i), X, Y), rtol=1e-5)
        assert found.scores()[i] == right[-1]
    assert len(calls) == 1 if traceable else len(calls) >= 8


def test_one_tree_for_all():
    params = init(jax.random.key(3))
    found = sweep({"learning_rate": [0.01, 0.1]}, params=params)
    one = alone(found.members[1], params)
    np.testing.assert_allclose(found.history(1)["loss"], one.history["loss"], rtol=1e-4)


def test_ctrl_c_keeps_what_is_complete_and_a_folder_goes_on(tmp_path):
    def pressed(at):
        for step, batch in enumerate(BATCHES * 3):
            if step == at:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    settings = {"seeds": 2, "steps_per_dispatch": 1, "checkpoints": tmp_path}
    with pytest.warns(UserWarning, match="interrupted at step"):
        first = sweep(RATES, batches=pressed(7), **settings)
    assert first.reason == "interrupted"
    done = first.history(0).rows
    assert 6 <= done <= 8
    rest = sweep(RATES, batches=BATCHES * 3, **settings)
    again = sweep(RATES, batches=BATCHES * 3, **settings)
    whole = sweep(RATES, batches=BATCHES * 3, **settings | {"checkpoints": None})
    for i in range(len(whole)):
        np.testing.assert_allclose(rest.history(i)["loss"], whole.history(i)["loss"], rtol=1e-6)
        np.testing.assert_array_equal(again.history(i)["loss"], rest.history(i)["loss"])


def test_two_programs_and_ctrl_c_in_the_first():
    class Pressed:
        def __iter__(self):
            yield from BATCHES[:2]
            os.kill(os.getpid(), signal.SIGINT)
            yield from BATCHES

    with pytest.warns(UserWarning, match="interrupted"):
        found = sweep({"mu_dtype": ["float32", "bfloat16"]}, batches=Pressed())
    assert [m.values for m in found.members] == [{"mu_dtype": "float32"}]


@pytest.mark.filterwarnings("ignore:fit. the loss is nan")
def test_halving_keeps_the_better_half():
    rates = {"learning_rate": [1e-5, 1e-4, 1e-3, 0.3, 0.1, 1e30], "mu_dtype": [None, "bfloat16"]}
    found = sweep(rates, epochs=4, halve_every=3)
    steps = found.table["steps"]
    assert sorted(steps) == [3] * 6 + [6] * 3 + [9] + [12] + [20]  # 12, 6, 3, 2, 1
    for i in range(len(found)):
        alone_too = alone(found.members[i], epochs=4, steps=steps[i])
        np.testing.assert_allclose(
            found.history(i)["loss"], alone_too.history["loss"], rtol=1e-3, atol=1e-5
        )
    first = [alone(m, steps=3).history["loss"][-1] for m in found.members]
    order = np.argsort(np.where(np.isfinite(first), first, np.inf))
    assert {i for i in range(12) if steps[i] > 3} == set(order[:6].tolist())
    assert found.best == found.members[int(np.argmax(steps))].tx
    few = sweep(rates, steps=5, halve_every=3)
    assert max(few.table["steps"]) == 5


def test_halving_goes_on(tmp_path):
    rates = {"learning_rate": [1e-5, 1e-3, 0.3, 0.1]}

    class Pressed:
        def __iter__(self):
            for step, batch in enumerate(BATCHES * 3):
                if step == 8:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    settings = {"halve_every": 3, "steps_per_dispatch": 1, "checkpoints": tmp_path}
    with pytest.warns(UserWarning, match="interrupted"):
        sweep(rates, batches=Pressed(), **settings)
    on = sweep(rates, batches=BATCHES * 3, **settings)
    whole = sweep(rates, batches=BATCHES * 3, halve_every=3, steps_per_dispatch=1)
    assert on.table["steps"] == whole.table["steps"]
    for i in range(4):
        np.testing.assert_allclose(on.history(i)["loss"], whole.history(i)["loss"], rtol=1e-6)


def test_pictures():
    one = sweep(
        {"learning_rate": fx.logspace(-3, 0, 4), "mu_dtype": [None, "bfloat16"]}, seeds=2, epochs=2
    ).plot()
    (ax,) = one.axes
    assert ax.get_xscale() == "log"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "mu_dtype None",
        "mu_dtype bfloat16",
    ]
    assert one._repr_png_().startswith(b"\x89PNG")
    two = sweep(RATES, epochs=1).plot()
    assert two.axes[0].images[0].get_array().shape == (2, 3)
    named = sweep({}, {"adam": fx.adam(0.1), "sgd": fx.sgd(0.1)}, seeds=2).plot()
    assert [t.get_text() for t in named.axes[0].get_yticklabels()] == ["adam", "sgd"]
    lost = sweep({"learning_rate": [0.1, 1e30]}, fx.sgd(0.1)).plot()
    assert any(line.get_marker() == "x" for line in lost.axes[0].lines)


def test_what_does_not_fit():
    with pytest.raises(KeyError, match="'b3' is not a hyperparameter"):
        sweep({"b3": [1.0]})
    with pytest.raises(ValueError, match="params are a tree, so all seeds would be one"):
        sweep({}, params=init(jax.random.key(0)), seeds=2)
    with pytest.raises(ValueError, match="there are no values of learning_rate"):
        sweep({"learning_rate": []})
    with pytest.raises(ValueError, match="batches can be gone through once"):
        sweep({"mu_dtype": [None, "bfloat16"]}, batches=iter(BATCHES))
    with pytest.raises(KeyError, match="no column 'accuracy' to judge by"):
        sweep({}, score="accuracy", steps=1)
    with pytest.raises(ValueError, match="mode must be one of"):
        sweep({}, mode="least")
    with pytest.raises(ValueError, match="halve_every"):
        sweep({}, halve_every=0)
    with pytest.raises(ValueError, match="seeds"):
        sweep({}, seeds=0)


def test_logspace():
    assert fx.logspace(-3, -1, 3) == (0.001, 0.01, 0.1)
    assert len(fx.logspace(-4, 0)) == 7


def test_twelve_lines_one_compilation_under_a_minute(tmp_path):
    """The second program of docs/how-to/sweep.md, by itself: digits, two numbers, three seeds, a picture."""
    pytest.importorskip("sklearn")
    program = blocks("docs/how-to/sweep.md")[1]
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 12
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", KEPT)}
    environment |= {"PYTHONPATH": str(pathlib.Path(fx.__file__).parents[1])}
    environment |= {"JAX_LOG_COMPILES": "1"}
    start = time.monotonic()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Finished XLA compilation of jit(run)") == 1
    grid = [fx.adam(rate, b2=b2) for rate in fx.logspace(-4, -1) for b2 in (0.9, 0.999)]
    assert fx.read(done.stdout.strip()) in grid
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert seconds < 60, seconds


def test_a_wide_map_keeps_its_labels_apart():
    rates = {"learning_rate": fx.logspace(-4, 0, 13), "b2": [0.9, 0.999]}
    figure = sweep(rates).plot()
    figure.canvas.draw()
    ax = figure.axes[0]
    for texts in (ax.get_xticklabels(), ax.texts[:13]):
        boxes = [text.get_window_extent() for text in texts]
        assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))


# ---- a population --------------------------------------------------------------------------------


def population(values, tx=None, params=init, **settings):
    settings = {
        "progress": False,
        "explore_every": 4,
        "epochs": 4,
        "steps_per_dispatch": 2,
        **settings,
    }
    return fx.population(loss, values, tx or fx.adam(0.1), params, BATCHES, **settings)


GRID = {"learning_rate": [1e-4, 1e-3, 0.05, 0.3], "b1": [0.9]}


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_population_is_its_moves_by_hand(seeds):
    found, moves = population(GRID, seeds=seeds)
    n = 4 * seeds
    lost = max(1, round(n / 4))
    assert [m.step for m in moves] == [step for step in (4, 8, 12, 16) for _ in range(lost)]
    stream = BATCHES * 4
    txs = [fx.adam(rate, 0.9) for rate in GRID["learning_rate"] for _ in range(seeds)]
    params = [init(jax.random.key(s)) for _ in range(4) for s in range(seeds)]
    runs = [(p, None) for p in params]
    losses = [[] for _ in range(n)]
    for at in range(0, 20, 4):
        for i, (p, state) in enumerate(runs):
            one = fx.fit(loss, txs[i], p, stream[at : at + 4], state=state, progress=False)
            runs[i] = one.params, one.state
            losses[i] += one.history["loss"].tolist()
        score = [np.mean(x[-max(1, round(0.1 * len(x))) :]) for x in losses]
        order, before, old = np.argsort(score), list(runs), list(txs)
        for move in (m for m in moves if m.step == at + 4):
            assert move.member in order[-lost:]
            assert move.parent in order[:lost]
            for name, x in move.values.items():
                was = next(v for k, v in old[move.parent].hyperparams.items() if k.endswith(name))
                a, b = (1 - x, 1 - was) if 0.5 <= was < 1 else (x, was)
                assert min(abs(a / b - 0.8), abs(a / b - 1.25)) < 1e-4
            runs[move.member] = before[move.parent]
            txs[move.member] = old[move.parent].replace(**move.values)
    for i in range(n):
        np.testing.assert_allclose(found.history(i)["loss"], losses[i], rtol=2e-3, atol=1e-6)
        assert found.members[i].tx == txs[i]


def test_a_population_traces_its_evaluation_once():
    traced = []

    def evaluate(params, state):
        traced.append(0)
        return {"val_loss": loss(params, X, Y)}

    _, moves = population(GRID, evaluate=evaluate, evaluate_every=2)
    assert len({move.step for move in moves}) > 1  # several rounds
    assert len(traced) == 1


def test_a_population_compiles_once_and_ends_well(tmp_path):
    fresh = lambda p, x, y: loss(p, x, y) * 1.75  # noqa: E731
    settings = {"explore_every": 4, "epochs": 4, "steps_per_dispatch": 2, "progress": False}
    callbacks.listen()
    fx.population(fresh, GRID, fx.adam(0.1), init, BATCHES, **settings)
    before = callbacks.COMPILED[0]
    found, moves = fx.population(fresh, GRID, fx.adam(0.1), init, BATCHES, **settings)
    assert moves
    assert {move.step for move in moves} == {4, 8, 12, 16}  # of 20: none after the last batch
    again, same = fx.population(fresh, GRID, fx.adam(0.1), init, BATCHES, **settings)
    assert callbacks.COMPILED[0] == before
    assert same == moves
    np.testing.assert_array_equal(again.scores(), found.scores())
    kept = {**settings, "checkpoints": tmp_path}
    fx.population(fresh, GRID, fx.adam(0.1), init, BATCHES, **kept, steps=9)
    on, moved = fx.population(fresh, GRID, fx.adam(0.1), init, BATCHES, **kept)
    assert moved == moves
    np.testing.assert_allclose(on.scores(), found.scores(), rtol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"halve_every": 4}], ids=["at once", "halving"])
def test_what_was_complete_is_in_the_error(settings):
    def batches():
        yield from BATCHES
        raise OSError("of the loader")

    with pytest.raises(OSError, match="of the loader") as caught:
        sweep(RATES, batches=batches(), **settings)
    found = caught.value.result
    assert isinstance(found, fx.Sweep)
    assert len(found.scores()) == len(sweep(RATES).members)
    assert found.reason == "failed"


def test_no_population():
    with pytest.raises(
        TypeError, match=r"values\['learning_rate'\] must be numbers, one is constant"
    ):
        population({"learning_rate": [fx.constant_schedule(0.1), 0.2]})
    with pytest.raises(ValueError, match="different forms; give numbers alone"):
        population({"sync_period": [2, 3]}, fx.lookahead(fx.adam(0.1), 2, 0.5))
    with pytest.raises(ValueError, match="quantile must be in"):
        population(GRID, quantile=0.7)
    with pytest.raises(ValueError, match="params are a tree, so all seeds would be one"):
        population(GRID, params=init(jax.random.key(0)), seeds=2)
