"""`fx.plot`: the lines of each picture are what the optimizer does, recomputed here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.notebook import responses

matplotlib = pytest.importorskip("matplotlib")
BEGIN = responses.BEGIN


def lines(figure, panel=0):
    """{label: numbers} of a panel."""
    found = figure.axes[panel].get_lines()
    return {x.get_label(): x.get_ydata() for x in found if not x.get_label().startswith("_")}


def legend(figure):
    legends = [*figure.legends, *(x.get_legend() for x in figure.axes if x.get_legend())]
    return [text.get_text() for x in legends for text in x.get_texts()]


def test_schedules_over_their_steps():
    cosine, line = fx.cosine_decay_schedule(1.0, 100), fx.linear_schedule(1.0, 0.0, 50)
    figure = fx.plot([cosine, line])
    found = lines(figure)
    assert [*found] == ["cosine_decay_schedule", "linear_schedule"] == legend(figure)
    np.testing.assert_allclose(found["cosine_decay_schedule"], cosine(jnp.arange(110)), rtol=1e-5)
    alone = lines(fx.plot(lambda n: 0.1 / (n.astype(float) + 1.0), steps=7))
    np.testing.assert_allclose(*alone.values(), 0.1 / np.arange(1, 8), rtol=1e-6)


def test_schedules_of_an_optimizer():
    joined = fx.join_schedules([fx.constant_schedule(0.1), fx.constant_schedule(0.01)], [30])
    figure = fx.plot(fx.adam(joined, b1=fx.linear_schedule(0.9, 0.99, 50)), "schedule")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["scale_by_moments.b1", "scale_by_lr.learning_rate"]
    (rate,) = lines(figure, 1).values()
    assert (rate[29], rate[30]) == pytest.approx((0.1, 0.01))


def test_step_and_impulse():
    many = {"plain": fx.sgd(0.1), "heavy": fx.momentum(0.1), "sign": fx.lion(0.1, weight_decay=0.0)}
    found = lines(fx.plot(many))
    t = np.arange(100 - BEGIN)
    assert [*found] == [*many]
    np.testing.assert_allclose(found["plain"], [0.0] * BEGIN + [0.1] * len(t), rtol=1e-6)
    np.testing.assert_allclose(found["heavy"][BEGIN:], 1 - 0.9 ** (t + 1), rtol=1e-5)
    found = lines(fx.plot(many, "impulse", steps=30))
    np.testing.assert_allclose(found["heavy"][BEGIN:], 0.1 * 0.9 ** t[:25], rtol=1e-5)
    np.testing.assert_allclose(found["sign"][BEGIN:], 0.1, rtol=1e-6)


def test_noise_and_the_rate_of_it():
    one, again = (lines(fx.plot(fx.sgd(1.0), "noise", seed=3, steps=9)) for _ in range(2))
    noise = responses.noise(9, 3, 0.3)[:, 0, 0]
    np.testing.assert_allclose(*one.values(), noise, rtol=1e-6)
    np.testing.assert_array_equal(*one.values(), *again.values())
    found = lines(fx.plot([fx.sgd(0.02), fx.adam(0.02)], "effective_rate", steps=50))
    np.testing.assert_allclose(found["sgd"], 0.02, rtol=1e-5)
    late = 0.02 * np.sqrt(0.1 / 1.9)  # an average of white noise
    assert np.mean(found["adam"][-20:]) == pytest.approx(late, rel=0.1)


def test_paths():
    function, start, *_ = responses.SURFACES["Beale"]
    p, way = jnp.asarray(start), [start]
    for _ in range(20):
        p = p - 0.01 * jax.grad(lambda p: function(*p))(p)
        way.append(p)
    figure = fx.plot({"down": fx.sgd(0.01), "lost": fx.sgd(1e3)}, "paths", steps=20)
    assert [ax.get_title() for ax in figure.axes] == [*responses.SURFACES]
    assert legend(figure) == ["down", "lost"]
    (line,) = (x for x in figure.axes[1].get_lines() if x.get_label() == "down")
    np.testing.assert_allclose(line.get_xydata(), np.asarray(way), rtol=1e-4, atol=1e-5)
    for function, _, minimum, *_ in responses.SURFACES.values():
        assert function(*minimum) == pytest.approx(0)


def test_a_path_goes_where_the_model_is_used():
    function, start, *_ = responses.SURFACES["a narrow valley"]
    for tx in (fx.sam(fx.sgd(0.01)), fx.schedule_free_sgd(0.01), fx.lbfgs()):
        way = responses.way("x", tx, function, start, 30)
        np.testing.assert_allclose(way[0], start, rtol=1e-6)
        assert function(*way[-1]) < 0.5 * function(*start)


def test_spectrum_of_the_polynomial():
    figure = fx.plot({"muon": fx.muon(0.02), "word": fx.orthogonalize()}, "spectrum")
    found = lines(figure)
    values = np.logspace(-4, 0, responses.MODES)
    x = values / (np.linalg.norm(values) + 1e-7)
    for a, b, c in fx.NEWTON_SCHULZ["jordan"]:
        x = a * x + b * x**3 + c * x**5
    np.testing.assert_allclose(found["word"], x, atol=2e-4)
    np.testing.assert_allclose(found["muon"], found["word"], atol=1e-3)


def test_spectrum_of_a_sentence():
    found = lines(fx.plot([fx.sgd(0.1), fx.shampoo(0.1)], "spectrum"))
    np.testing.assert_allclose(found["sgd"], np.logspace(-2, 0, responses.MODES), rtol=1e-3)
    assert found["shampoo"].min() > 0.9


def test_labels():
    figure = fx.plot([fx.adam(0.1), fx.adam(0.1, b2=0.9), fx.sgd(0.1), fx.sgd(0.1)], steps=8)
    assert legend(figure) == ["adam, b2=0.999", "adam, b2=0.9", "sgd", "sgd (4)"]
    assert not legend(fx.plot(fx.sgd(0.1), steps=8))
    assert len(legend(fx.plot([fx.sgd(i) for i in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)], steps=8))) == 6


def test_a_notebook_shows_it():
    assert fx.plot(fx.constant_schedule(0.1))._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("x", "kind", "error", "words"),
    [
        (fx.sgd(0.1), "stpe", ValueError, "kind must be one of 'schedule', 'step'"),
        (fx.sgd(0.1), "schedule", ValueError, "no schedule in sgd"),
        (fx.constant_schedule(0.1), "paths", ValueError, "'paths' is of optimizers"),
        ([], None, TypeError, "a list or dict of some, not empty"),
        (3, None, TypeError, "plot: x must be an optimizer, a schedule or a list"),
        (fx.dpsgd(0.1, 1.0, 1.0, 0), "step", ValueError, "cannot be shown so"),
    ],
)
def test_what_cannot_be_drawn(x, kind, error, words):
    with pytest.raises(error, match=words):
        fx.plot(x, kind)


def test_steps_are_whole():
    with pytest.raises(ValueError, match="steps must be"):
        fx.plot(fx.sgd(0.1), steps=0)
