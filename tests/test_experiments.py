"""The experiments package: problems against plain NumPy, the runner, results, sentences, command line."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.checks import shortened
from adamfx.experiments import __main__ as program
from adamfx.experiments import ctrl_c, figures, lessons, results, runner
from adamfx.experiments.problems import (
    autoencoder,
    classification,
    convnet,
    curves,
    network,
    online,
)

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def ordinary_promotion():
    """The experiments are written as users write; the package's own tests are stricter."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


# ---- problems ------------------------------------------------------------------------------------


def test_the_quartic_has_the_derivative_of_the_lesson():
    for x in np.linspace(-8, 10, 19):
        given = (2 * x**3 - 3 * x**2 - 57 * x - 27) / 100
        np.testing.assert_allclose(jax.grad(curves.quartic)(x), given, rtol=1e-4, atol=1e-5)
    roots = np.sort(np.roots([2, -3, -57, -27]))
    np.testing.assert_allclose([curves.LOCAL, curves.RIDGE, curves.GLOBAL], roots, rtol=1e-6)


@pytest.mark.parametrize("name", curves.SURFACES)
def test_surfaces_are_zero_at_their_minima_and_larger_around(name):
    surface = curves.SURFACES[name]
    for minimum in surface.minima:
        p = jnp.array(minimum)
        assert surface.function(p) == pytest.approx(0, abs=1e-10)
        assert jnp.linalg.norm(jax.grad(surface.function)(p)) < 1e-5
        around = p + 0.05 * jax.random.normal(KEY, (100, 2))
        assert (jax.vmap(surface.function)(around) > 0).all()
    slope = jax.grad(surface.function)(jnp.array(surface.start))
    assert jnp.linalg.norm(slope) > 1e-3


def test_beale_and_rosenbrock_at_known_points():
    assert curves.beale(jnp.array([0.0, 0.0])) == pytest.approx(1.5**2 + 2.25**2 + 2.625**2)
    assert curves.beale(jnp.array([1.0, 2.0])) == pytest.approx(2.5**2 + 5.25**2 + 9.625**2)
    assert curves.rosenbrock(jnp.array([-1.0, 2.0])) == pytest.approx(4 + 100)


def plain_cross_entropy(scores, labels):
    e = np.exp(scores - scores.max(1, keepdims=True))
    return -np.mean(np.log(e / e.sum(1, keepdims=True))[np.arange(len(labels)), labels])


def test_a_network_against_numpy():
    rng = np.random.default_rng(0)
    model = network.network((4, 6, 5, 3), l2=0.1)
    params = model.init(KEY)
    x, y = rng.normal(size=(7, 2, 2, 1)).astype(np.float32), rng.integers(0, 3, 7)
    h, penalty = x.reshape(7, 4).astype(np.float64), 0.0
    for i, layer in enumerate(params):
        w, b = (np.asarray(layer[n], np.float64) for n in ("w", "b"))
        h = h @ w + b
        h = np.maximum(h, 0) if i < 2 else h
        penalty += 0.05 * (w**2).sum()
    expected = plain_cross_entropy(h, y)
    assert model.loss(params, x, y) == pytest.approx(expected + penalty, rel=1e-5)
    measured = model.metrics(params, x, y)
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)
    assert measured["accuracy"] == pytest.approx(np.mean(h.argmax(1) == y))


def test_he_initialisation():
    layer = network.dense(KEY, 400, 300)
    assert np.std(layer["w"]) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert not layer["b"].any()


def test_dropout_keeps_the_mean_and_only_acts_with_a_key():
    x = jnp.ones((200, 200))
    y = classification.dropout(x, 0.25, KEY)
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert np.mean(y) == pytest.approx(1, abs=0.01)
    assert classification.dropout(x, 0.25, None) is x
    model = network.network((4, 50, 3), drop_inputs=0.2, drop_hidden=0.5)
    params, x = model.init(KEY), jnp.ones((2, 4))
    one, two = (model.scores(params, x, jax.random.key(i)) for i in (1, 2))
    assert not np.allclose(one, two)
    assert np.array_equal(model.scores(params, x, None), model.scores(params, x, None))


@pytest.mark.parametrize("size", [8, 7])
def test_windows_are_convolution_and_pooling(size):
    x = jax.random.normal(KEY, (2, size, size, 3))
    w = jax.random.normal(jax.random.key(1), (5, 5, 3, 4))
    ours = jnp.einsum("nhwkc,kcd->nhwd", convnet.windows(x, 5, 1), w.reshape(25, 3, 4))
    dimensions = ("NHWC", "HWIO", "NHWC")
    theirs = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dimensions)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    pooled = jnp.max(convnet.windows(jax.nn.relu(x), 3, 2), axis=3)
    assert pooled.shape == (2, (size + 1) // 2, (size + 1) // 2, 3)
    plain = np.pad(np.maximum(x, 0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(pooled.shape[1:3]):
        around = plain[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        np.testing.assert_array_equal(pooled[:, i, j], around.max((1, 2)))


def test_the_convolutional_network_of_the_paper():
    model = convnet.convnet((32, 32, 3), 10)
    shapes = jax.tree.map(lambda x: x.shape, jax.eval_shape(model.init, KEY))
    stages = [s["w"] for s in shapes["stages"]]
    assert stages == [(25, 3, 64), (25, 64, 64), (25, 64, 128)]
    assert shapes["hidden"]["w"] == (4 * 4 * 128, 1000)
    small = convnet.convnet((8, 8, 1), 10, (2, 3), 5, 0.2, 0.5)
    x = jnp.ones((2, 8, 8, 1))
    assert small.scores(small.init(KEY), x, KEY).shape == (2, 10)


def test_the_autoencoder_against_numpy():
    model = autoencoder.autoencoder(6, hidden=5, latent=3)
    params = model.init(KEY)
    x = np.random.default_rng(0).uniform(size=(4, 6)).astype(np.float32)
    noise = np.asarray(jax.random.normal(jax.random.key(7), (4, 3)), np.float64)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def layer(name, h):
        return h @ p[name]["w"] + p[name]["b"]

    def softplus(a):
        return np.log1p(np.exp(a))

    code = layer("posterior", softplus(layer("encode", x)))
    mu, var = code[:, :3], np.exp(code[:, 3:])
    q = 1 / (1 + np.exp(-layer("pixels", softplus(layer("decode", mu + np.sqrt(var) * noise)))))
    likelihood = (x * np.log(q) + (1 - x) * np.log(1 - q)).sum(1)
    kl = 0.5 * (var + mu**2 - 1 - np.log(var)).sum(1)
    expected = np.mean(kl - likelihood)
    assert model.loss(params, x, jax.random.key(7)) == pytest.approx(expected, rel=1e-5)


def test_regret_against_the_best_point_found_by_search():
    x, y = map(np.asarray, online.stream(KEY, 40, 2))
    paid = np.abs(np.random.default_rng(0).normal(size=40))
    found = online.regret(paid, x, y, np.array([20, 40]))
    side = np.linspace(-1.5, 1.5, 301)
    thetas = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    for at, r in zip((20, 40), found, strict=True):
        best = (0.5 * (thetas @ x[:at].T - y[:at]) ** 2).sum(1).min()
        assert r == pytest.approx(paid[:at].sum() - best, abs=1e-3)
        assert r >= paid[:at].sum() - best


# ---- the runner ----------------------------------------------------------------------------------


def quadratic():
    """A problem of which every step can be followed by hand."""

    def loss(p, data, t, key):
        return jnp.sum(data * p**2) / 2 + p[0] * jax.random.normal(key) + 0.01 * t * p[1]

    return runner.Problem(
        jnp.array([1.0, 3.0]),
        lambda key: jax.random.normal(key, (2,)),
        loss,
        lambda p, state, data: {"p": p[0], "count": state["count"]},
    )


def by_hand(tx, seed, steps, every):
    problem, key = quadratic(), jax.random.key(seed)
    p = problem.init(jax.random.fold_in(key, 0))
    state, losses, found = tx.init(p), [], []
    for t in range(steps):
        f = jax.value_and_grad(problem.loss)
        value, g = f(p, problem.data, t, jax.random.fold_in(key, t + 1))
        p, state = tx.step(g, state, p)
        losses.append(float(value))
        if (t + 1) % every == 0:
            found.append((np.mean(losses), float(p[0]), int(state["count"])))
            losses = []
    return np.array(found).T


@pytest.mark.parametrize("together", [64, 4, 1])
def test_runs_are_those_of_a_plain_loop(together):
    axes = {"learning_rate": [0.01, 0.1], "b1": [0.0, 0.9]}
    tx = fx.adam(fx.inverse_sqrt_schedule(1.0))
    study = runner.Study("p", quadratic(), {"Adam": tx}, 110, 1, axes, 3, together)
    records = list(runner.run(study))
    assert len(records) == 12
    seen = set()
    for r in records:
        a, b1 = r["point"].values()
        tx = fx.adam(fx.inverse_sqrt_schedule(a), b1=b1)
        assert r["sentence"] == repr(tx)
        loss, p, count = by_hand(tx, r["seed"], 110, 1)
        np.testing.assert_allclose(r["loss"], loss, rtol=2e-4, atol=1e-4)
        np.testing.assert_allclose(r["p"], p, rtol=2e-4, atol=1e-4)
        np.testing.assert_array_equal(r["count"], count)
        assert r["step"].tolist() == list(range(1, 111))
        seen.add((a, b1, r["seed"]))
    assert len(seen) == 12


def test_measurements_are_means_over_the_steps_between():
    study = runner.Study("p", quadratic(), {"SGD": fx.sgd(0.1)}, 23, 5)
    (r,) = runner.run(study)
    loss, p, _ = by_hand(fx.sgd(0.1), 0, 20, 5)
    assert r["step"].tolist() == [5, 10, 15, 20]
    np.testing.assert_allclose(r["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(r["p"], p, rtol=1e-5)


def test_one_program_for_each_composition_and_progress_to_the_end():
    traced, done = [], []
    problem = quadratic()

    def loss(*args):
        traced.append(args)
        return problem.loss(*args)

    compositions = {"Adam": fx.adam(0.1), "SGD": fx.sgd(0.1)}
    axes = {"learning_rate": [0.1, 0.2, 0.3]}
    study = runner.Study("p", problem._replace(loss=loss), compositions, 120, 1, axes, 2, 4)
    list(runner.run(study, lambda text, n: done.append((text, n))))
    assert len(traced) == 2
    assert sum(n for _, n in done) == runner.measurements(study) == 2 * 6 * 120
    assert {text for text, _ in done} == {"p Adam", "p SGD"}


def test_float64_is_what_is_asked_for_and_gone_afterwards():
    study = runner.Study("p", quadratic(), {"SGD": fx.sgd(0.1)}, 3, float64=True)
    (r,) = runner.run(study._replace(problem=study.problem._replace(init=lambda key: jnp.ones(2))))
    assert r["p"].dtype == np.float64
    assert not jax.config.jax_enable_x64


def test_found_are_whole_runs_of_this_very_study():
    study = runner.Study("p", quadratic(), {"SGD": fx.sgd(0.1)}, 6, 2, seeds=2)
    records = [{**r, "step": r["step"].tolist()} for r in runner.run(study)]
    assert runner.found(study, records[::-1]) == records
    for other in (
        study._replace(part="q"),
        study._replace(compositions={"SGD": fx.sgd(0.2)}),
        study._replace(seeds=3),
        study._replace(steps=8),
        study._replace(every=3),
    ):
        assert runner.found(other, records) is None


# ---- results -------------------------------------------------------------------------------------

HEADER = {"experiment": "x", "title": "a title", "data": "some data", "quick": True, "versions": {}}
RECORD = {"part": "p", "name": "n", "sentence": "s", "point": {"a": 1}, "seed": 0, "step": [1, 2]}


def test_results_are_written_whole_and_read_back(tmp_path):
    path = tmp_path / "x.jsonl"
    records = [{**RECORD, "x": np.array([1.5, np.nan])}]
    results.save(path, HEADER, records)
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
    header, read = results.load(path)
    assert header == {"schema": 1, **HEADER}
    np.testing.assert_array_equal(read[0]["x"], [1.5, np.nan])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        results.save(path, HEADER, [{"x": object()}])
    assert path.read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"schema": 2}', '{"schema": 1}\n{"part":'])
def test_what_is_no_results_file_says_so(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(results.ResultsError, match=r"x\.jsonl.*run the experiment again"):
        results.load(path)
    with pytest.raises(results.ResultsError, match="run the experiment first"):
        results.load(tmp_path / "y.jsonl")


def lines(**changes):
    """A file of one run with these changes."""
    header = {"schema": 1, **HEADER, "experiment": "noise"}
    record = {**RECORD, "loss": [1, 2], "x": [1, 2], "value": [1, None], **changes}
    return f"{json.dumps(header)}\n{json.dumps(record)}\n"


DAMAGED = {
    "cut off": (lines()[:-20], "line 2: Expecting"),
    "no runs": (lines().splitlines()[0], "1 lines, expected a header and runs"),
    "true as schema": (lines().replace('"schema": 1', '"schema": true'), "line 1: .*schema 1"),
    "a number as title": (lines().replace('"a title"', "5"), "line 1: expected texts for title"),
    "deep": ("[" * 100_000, "line 1: maximum recursion depth"),
    "a list as run": (lines().splitlines()[0] + "\n[1]", "line 2: expected a run"),
    "no point": (lines(point=3), "expected a run with its point"),
    "a list as part": (lines(part=[1]), "expected texts for part"),
    "a text in a point": (lines(point={"b1": "x"}), "expected numbers for the seed and"),
    "a long name": (lines(name="n" * 200_000), "of 100,000 characters at most"),
    "texts in a list": (lines(x=["1", "2"]), "expected a list of numbers for 'x'"),
    "lists in a list": (lines(x=[[1], [1, 2]]), "expected a list of numbers for 'x'"),
    "a number for a list": (lines(x=1), "expected a list of numbers for 'x'"),
    "another length": (lines(x=[1, 2, 3]), "as many numbers for 'x' as for 'step'"),
    "nothing": (lines(step=[], loss=[], x=[], value=[]), "at least 1"),
    "no steps": (lines().replace('"step": [1, 2], ', ""), "as for 'step'"),
    "a huge number": (lines(x=[10**400, 1]), "line 2: int too large"),
    "more digits than Python reads": (
        lines().replace("0,", "1" * 5000 + ",", 1),
        "line 2: Exceeds",
    ),
    "latin-1": (lines().encode() + b"\xff", "line 3: 'utf-8' codec"),
    "a long line": ("[" + "{}," * 2_000_000, "line 1: more than 4,194,304 bytes"),
    "another experiment": (lines().replace("noise", "digits"), "'digits', expected those of noise"),
    "no such column": (lines().replace('"value"', '"other"').replace('"x"', '"y"'), "be drawn"),
    "many parts": (
        lines() + "".join(lines(part=str(i)).splitlines()[1] + "\n" for i in range(500)),
        "501 x 2 panels, expected at most 200",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_results_are_one_line(tmp_path, capsys, name):
    text, words = DAMAGED[name]
    text = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "noise.jsonl").write_bytes(text)
    assert call(tmp_path, "plot", "noise") == 1
    assert_one_line(capsys, str(tmp_path / "noise.jsonl"), words)


def test_results_without_end_are_not_read(tmp_path, capsys, monkeypatch):
    path = tmp_path / "noise.jsonl"
    os.mkfifo(path)
    assert call(tmp_path, "plot", "noise") == 1
    assert_one_line(capsys, "not a file")
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    assert call(tmp_path, "plot", "noise") == 1
    assert_one_line(capsys, "1,099,511,627,776 bytes, expected at most 67,108,864")
    monkeypatch.setattr(results, "LARGEST", 1000)
    with pytest.raises(results.ResultsError, match=r"would have .* take fewer seeds"):
        results.save(tmp_path / "x.jsonl", HEADER, [{**RECORD, "x": [0.1] * 1000}])


def test_formulas_and_strange_letters_in_sentences_are_drawn_as_they_are(tmp_path):
    (tmp_path / "noise.jsonl").write_text(lines(sentence="$\\frac{$ \x00 \u5b57", name="$"))
    assert call(tmp_path, "plot", "noise") == 0
    assert figures.literal("a$b") == r"a\$b"


def test_questions():
    def record(name, rate, seed, end):
        curve = np.array([9.0] * 5 + [end])
        point = {"learning_rate": rate}
        sentence = f"{name}({rate})"
        return {
            "part": "p",
            "name": name,
            "sentence": sentence,
            "point": point,
            "seed": seed,
            "c": curve,
        }

    records = [record("a", 1, 0, 1.0), record("a", 1, 1, 3.0), record("a", 2, 0, np.nan)]
    records += [record("b", 1, 0, 5.0), record("b", 2, 0, 4.0)]
    best = results.at_best(records, "c")
    assert {name: runs[0]["sentence"] for name, runs in best.items()} == {"a": "a(1)", "b": "b(2)"}
    np.testing.assert_array_equal(results.final(best["a"], "c"), [1, 3])
    mean, std = results.mean_and_std(best["a"], "c")
    assert (mean[-1], std[-1]) == (2, pytest.approx(2**0.5))
    text = results.table(records, "c")
    assert "1 of 2 points diverged" in text
    assert "a(1)" in text


# ---- the command line ----------------------------------------------------------------------------


def call(tmp_path, *args):
    return program.main([*args, "--out", str(tmp_path)])


def assert_one_line(capsys, *words):
    """On stderr there is, beside the bar, one line, with these words (regular expressions)."""
    said = [x for x in re.split("[\r\n]", capsys.readouterr().err) if "measurement" not in x]
    (line,) = filter(str.strip, said)
    for word in ("^error: ", *words):
        assert re.search(word, line), line


def test_list_names_every_experiment(capsys):
    assert program.main(["list"]) == 0
    assert capsys.readouterr().out.count("\n") == len(program.EXPERIMENTS) == 18


def test_run_with_sentences_of_ones_own_and_plot_again(tmp_path, capsys):
    text = "chain(scale_by_moments(0.9, None), scale_by_lr(0.1))"
    assert (
        call(
            tmp_path, "run", "noise", "--optimizer", text, "--optimizer", "sgd(0.2)", "--seeds", "3"
        )
        == 0
    )
    header, records = results.load(tmp_path / "noise.jsonl")
    assert {r["name"] for r in records} == {text, "scale_by_lr(0.2)"}
    assert {r["seed"] for r in records} == {0, 1, 2}
    assert header["experiment"] == "noise"
    assert text in capsys.readouterr().out
    picture = (tmp_path / "noise.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"<svg" in (tmp_path / "noise.svg").read_bytes()
    (tmp_path / "noise.png").unlink()
    assert call(tmp_path, "plot", "noise") == 0
    assert (tmp_path / "noise.png").read_bytes() == picture


def test_the_same_seeds_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        assert call(tmp_path / name, "run", "noise", "digits", "--quick", "--seeds", "1") == 0
    for file in ("noise.jsonl", "digits.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "nothing"], "invalid choice: 'nothing'"),
        (["run", "noise", "--optimizer", "adm(1.0)"], "did you mean adam"),
        (["run", "noise", "--seeds", "0"], "from 1 to 1,000, got '0'"),
        *((["run", "noise", "--seeds", n], "whole number") for n in ("-1", "1.5", "nan", "", "٣")),
        (["run", "noise", "--seeds", "9" * 5000], "from 1 to 1,000"),
        (["run", "noise", "--out", ""], "must name a folder"),
        (["run", "\udcff\udcfe"], "invalid choice"),
        (["run", "noise", "--optimizer", "adam(\udcff)"], "cannot be read"),
        (["run", "noise", "--optimizer", "adam(\x1b[31m)"], "cannot be read"),
        (["run", "noise", "--optimizer", "adam(\n-1.0,\n)"], "must be finite and >= 0"),
        (["run", "noise", "--optimizer", "adam(float('nan'))"], "must be finite"),
        (["run", "noise", "--optimizer", "a" * 100_000], "see help"),
        (
            ["run", "noise", "--optimizer", "chain(" + "sgd(0.1)," * 120_000 + ")"],
            "at most 100,000",
        ),
        (["run", "noise", "--optimizer", "chain(" * 5000], "nested"),
        (["run", "noise", "--optimizer", "partition({[]: sgd(1.0)}, {})"], "unhashable"),
        (["run", "noise", "--optimizer", "ema(0.9)"], "not an optimizer"),
        (["run"], "NAME"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "noise", "--fly"], "--fly"),
        ([], "COMMAND"),
    ],
    ids=lambda x: None if isinstance(x, str) else shortened(ascii(x), 60),
)
def test_bad_arguments_end_with_a_line(args, words, capsys):
    with pytest.raises(SystemExit) as info:
        program.main(args)
    assert info.value.code == 2
    assert_one_line(capsys, words, "--help$")


@pytest.mark.parametrize(
    ("name", "sentence", "words"),
    [
        ("noise", "masked(sgd(0.1), {'w': True})", "the mask does not match the parameters"),
        ("noise", "partition({'a': sgd(0.1)}, {'a': path_matches('x')})", "match no param"),
        ("noise", "sgd(jnp.asarray([0.1, 0.2], 'float32'))", r"\(full batch\) does not fit"),
        ("noise", "scale_by_zoom_linesearch(10)", "evaluates the loss"),
        ("quartic", "scale_by_lbfgs(1000000000000)", r"\(yours\) does not fit the experiment"),
        ("averaging", "masked(sgd(0.1), [True])", "the mask does not match"),
    ],
)
def test_optimizers_that_do_not_fit_are_said_before_anything_runs(
    tmp_path, name, sentence, words, capsys
):
    assert call(tmp_path, "run", name, "rescaling", "--optimizer", sentence) == 2
    assert_one_line(capsys, words, "does not fit the experiment")
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("x")
    for out in (file, file / "below", "/proc/nothing"):
        assert call(out, "run", "noise") == 1
        assert_one_line(capsys, "expected a folder to write in; choose another with --out")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert call(tmp_path, "run", "noise", "--optimizer", "sgd(0.1)", "--seeds", "1") == 1
    assert_one_line(capsys, r"noise\.jsonl: No space left on device.*make room")
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("missing", ["matplotlib", "sklearn", "tqdm"])
def test_packages_that_are_not_installed(tmp_path, missing, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    assert call(tmp_path, "run", "noise") == 1
    assert_one_line(capsys, rf"{missing} not installed; run: pip install 'adamfx\[experiments\]'")


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 TB")]
)
def test_too_little_memory(tmp_path, capsys, monkeypatch, error):
    def run(study, progress):
        raise error

    monkeypatch.setattr(runner, "run", run)
    assert call(tmp_path, "run", "noise") == 1
    assert_one_line(capsys, "memory|9 TB", "--quick and fewer --seeds take less memory")


def test_a_bug_of_ours_keeps_its_traceback_and_a_fault_has_one_on_demand(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("ADAMFX_TRACEBACK", "1")
    assert call(tmp_path, "plot", "noise") == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(runner, "run", lambda study, progress: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(tmp_path, "run", "noise")


def python(*args, stdout=subprocess.PIPE):
    return subprocess.Popen(
        [sys.executable, "-m", "adamfx.experiments", *map(str, args)],
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_outputs_that_are_closed_or_full():
    with open("/dev/full", "w") as full:
        process = python("list", stdout=full)
    _, err = process.communicate()
    assert process.returncode == 1
    assert err == (
        "error: the output: No space left on device; see where it goes, what was saved is whole\n"
    )
    process = python("list")
    process.stdout.close()  # as `| head` does
    assert process.wait() == 1
    assert process.stderr.read().startswith("error: the output: Broken pipe; ")
    process.stderr.close()


@pytest.mark.parametrize("when", ["while Python imports", "while it runs"])
def test_ctrl_c_in_a_process_of_its_own(tmp_path, when):
    file = tmp_path / "noise.jsonl"
    process = python("run", "noise", "words", "--out", tmp_path)
    time.sleep(0.3)
    while when == "while it runs" and not file.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    lines = [x for x in re.split("[\r\n]", err) if x.strip() and "measurement" not in x]
    assert len(lines) == 1, err
    assert "stopped" in lines[0]
    if file.exists():
        assert f"are kept in {tmp_path}; the same command with --resume continues" in lines[0]
        assert len(results.load(file)[1]) >= 20


SECOND = """
import hashlib
from adamfx.experiments import ctrl_c
ctrl_c.running()
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)  # minutes, in which no handler of Python's is called
"""


def test_a_second_ctrl_c_does_not_wait():
    process = subprocess.Popen(
        [sys.executable, "-c", SECOND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.startswith("\nstopped at once; files that were written are whole")


def test_missing_data_and_results_end_with_a_message(tmp_path, capsys):
    assert call(tmp_path, "run", "logistic", "--data-dir", str(tmp_path / "nowhere")) == 1
    err = capsys.readouterr().err
    assert "train-images-idx3-ubyte" in err
    assert call(tmp_path, "plot", "logistic") == 1
    assert "run the experiment first" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_complete(tmp_path, monkeypatch, capsys):
    def problem_with_ctrl_c(problem):
        pressed = []

        def measure(*args):
            if pressed:
                signal.raise_signal(signal.SIGINT)  # while the second composition is traced
            pressed.append(1)
            return problem.measure(*args)

        return problem._replace(measure=measure)

    study = runner.Study(
        "p", problem_with_ctrl_c(quadratic()), {"a": fx.sgd(0.1), "b": fx.adam(0.1)}, 60
    )
    experiment = runner.Experiment(
        "t", lambda options: ("d", [study]), lessons.EXPERIMENTS["noise"].draw
    )
    monkeypatch.setitem(
        program.EXPERIMENTS, "noise", experiment._replace(draw=lambda h, r: Blank())
    )
    handler = signal.getsignal(signal.SIGINT)
    assert call(tmp_path, "run", "noise") == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert_one_line(
        capsys,
        rf"stopped in noise, experiment 1 of 1: 1 of 2 compositions are kept in {tmp_path}; ",
    )
    _, records = results.load(tmp_path / "noise.jsonl")
    assert [r["name"] for r in records] == ["a"]


def test_resume_computes_what_is_missing_and_the_file_is_that_of_one_run(tmp_path, monkeypatch):
    args = ["run", "noise", "--seeds", "2", "--optimizer", "sgd(0.2)", "--optimizer", "adam(0.1)"]
    assert call(tmp_path, *args) == 0
    file = tmp_path / "noise.jsonl"
    whole = file.read_text()
    run, ran = runner.run, []

    def counted(study, progress):
        ran.append((study.part, *study.compositions))
        return run(study, progress)

    monkeypatch.setattr(runner, "run", counted)
    assert call(tmp_path, *args, "--resume") == 0
    assert not ran
    head, *rest = whole.splitlines(keepends=True)
    file.write_text(head + "".join(rest[:5]))  # one of the second composition's two seeds is lost
    assert call(tmp_path, *args, "--resume") == 0
    assert len(ran) == 4
    assert file.read_text() == whole
    file.write_text(whole.replace(jax.__version__, "0.0.1"))  # what another version has computed
    assert call(tmp_path, *args, "--resume") == 0
    assert len(ran) == 4 + 6
    assert call(tmp_path, *args) == 0
    assert len(ran) == 4 + 6 + 6
    assert file.read_text() == whole


def test_ctrl_c_that_a_callback_swallows_is_heard_at_the_next_step(tmp_path, capsys, monkeypatch):
    class Info:
        exc_type = KeyboardInterrupt

    monkeypatch.setattr(ctrl_c, "swallowed", threading.Event())
    ctrl_c.unraisable(Info)
    assert call(tmp_path, "run", "noise") == 130
    assert_one_line(capsys, "0 of 9 compositions are kept")


class Blank:
    """In place of a figure."""

    def savefig(self, path, format, dpi):
        path.write_bytes(b"")


def test_a_legend_that_would_fill_the_page_has_names_alone():
    fig, axes = figures.figure({"title": "", "data": ""}, 1, 1)
    look = figures.looks(str(i) for i in range(14))
    assert len({(x["color"], x["marker"]) for x in look.values()}) == 14
    for n, style in look.items():
        axes[0, 0].plot(
            [0, 1], label=figures.label(n, "chain(scale_by_lr(0.1), scale(2.0)) " * 5), **style
        )
    figures.legend(fig, axes)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == list(look)
