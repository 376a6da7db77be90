"""How values, states and histories look in a notebook: whole, escaped, without arrays, never an error."""

import html.parser
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from table import TABLE, WRAPPERS

import adamfx as fx

PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}
VOID = {"br", "polyline"}


class Page(html.parser.HTMLParser):
    """The rows of the tables of a page. Fails where a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data


def page(x):
    return Page(x._repr_html_())


# ---- values --------------------------------------------------------------------------------------


def test_every_value_is_shown_whole():
    values = [*TABLE.values(), *(wrap(fx.adam(0.1)) for wrap in WRAPPERS.values())]
    values += [fx.ema(0.9), fx.cosine_decay_schedule(1.0, 9), fx.ndim_at_least(2), fx.factored()]
    for x in values:
        shown = page(x)
        assert not isinstance(x, fx.GradientTransformation) or all(
            key.split("_2")[0] in shown.text or block.name in shown.text for key, block in x.blocks
        )


def test_a_sentence_as_rows_with_its_bytes():
    shown = page(fx.adamw(1e-3, mask=fx.ndim_at_least(2)))
    assert shown.rows == [
        ["word", "arguments", "bytes"],
        ["scale_by_moments", "b1=0.9, b2=0.999", "8"],
        ["bias_correct", "", ""],
        ["add_decayed_weights", "weight_decay=0.0001, mask=ndim_at_least(2)", ""],
        ["scale_by_lr", "learning_rate=0.001", "< 0.1"],
    ]
    assert "8 bytes of state per parameter" in shown.text


@pytest.mark.parametrize(
    ("tx", "held"), [("sgd", "0.1"), ("lion", "4"), ("adafactor", "0.1"), ("adam", "8")]
)
def test_bytes_per_parameter(tx, held):
    assert f"{held} bytes of state" in page(getattr(fx, tx)(learning_rate=0.1)).text


def test_words_inside_wrappers():
    shown = page(fx.accumulate(fx.adam(1e-3), 4))
    assert [row[0] for row in shown.rows[1:]] == [
        *("accumulate", "scale_by_moments", "bias_correct", "scale_by_lr")
    ]
    shown = page(fx.muon(0.02))
    assert ["partition.default", "", ""] in shown.rows


def test_long_arguments_are_folded_and_all_is_escaped():
    long = fx.join_schedules([fx.constant_schedule(0.1)] * 9, [*range(1, 9)])
    assert "<details>" in fx.sgd(long)._repr_html_()
    groups = {"<i>": fx.clip(1.0)}, {"<i>": fx.ndim_at_least(2)}
    tx = fx.named("<b>&'", fx.partition(*groups, default=fx.sign()))
    for x in (tx, tx.init(PARAMS), fx.show({"<u>": PARAMS["w"]})):
        assert not re.search("<b>|<i>|<u>", x._repr_html_())
    assert "named" in page(tx).text


def test_traced_and_stacked_values():
    def look(rate):
        tx = fx.adam(rate)
        state = tx.init({"w": rate})
        pages.extend((page(tx), page(state), fx.show(state).__repr__()))
        return rate

    pages = []
    jax.jit(look)(1.0)
    assert "traced" in pages[0].text
    assert "traced" in pages[2]
    page(jax.vmap(fx.adam)(jnp.asarray([0.1, 0.2])))


# ---- states and trees ----------------------------------------------------------------------------


def test_a_state_by_block_and_name():
    tx = fx.adam(1e-3)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    rows = {row[0]: row[1:] for row in page(state).rows}
    mu = rows["scale_by_moments.mu"]
    assert mu[:3] == ["2 arrays, (3), (4, 3)", "float32", "60 B"]
    assert float(mu[4]) == pytest.approx(0.1 * np.sqrt(12), rel=1e-3)
    assert rows["count"][:3] == ["", "int32", "4 B"]
    numbers = sum(x.size for x in jax.tree.leaves({**state}))
    assert f"{numbers} numbers, {4 * numbers} B" in page(state).text
    text = repr(fx.show(state))
    assert "scale_by_moments.mu" in text
    assert "Array" not in text


def test_states_inside_other_trees_and_plain_dicts():
    state = fx.live(fx.adam(1e-3)).init(PARAMS)
    names = [row[0] for row in page(fx.show({"opt": state, "p": PARAMS})).rows]
    assert {"opt.live.scale_by_moments.mu", "p.w"} <= {*names}
    assert "live.scale_by_lr.learning_rate (live)" in [row[0] for row in page(state).rows]
    assert "scale_by_moments.nu" in repr(fx.show({**fx.adam(0.1).init(PARAMS)}))


def test_arrays_that_cannot_be_read():
    tx = fx.adam(1e-3)
    state = tx.init(PARAMS)
    for x in jax.tree.leaves(state):
        x.delete()
    assert [row[5] for row in page(state).rows] == ["norm", *["deleted"] * 5]
    abstract = jax.eval_shape(tx.init, PARAMS)
    assert ["scale_by_moments.mu", "2 arrays, (3), (4, 3)"] in [r[:2] for r in page(abstract).rows]
    odd = [jax.random.key(0), "a<b", None, 3, np.float16(2), object(), {}, ()]
    for x in (odd, *odd):
        page(fx.show(x))
        assert repr(fx.show(x))


def test_shardings():
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    x = jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, PartitionSpec("data", None)))
    assert page(fx.show({"x": x})).rows[1][4] == "(data, None) on 1"


def test_many_leaves_are_folded():
    shown = fx.show({f"layer{i}": jnp.ones(2) for i in range(50)})
    assert "20 more" in page(shown).text
    assert repr(shown).count("layer") == 30
    assert "100 numbers, 400 B" in repr(shown)


# ---- histories -----------------------------------------------------------------------------------


def test_a_history_as_numbers_and_a_line():
    loss = np.exp(-np.arange(2000) / 200)
    val = np.where(np.arange(2000) % 100 == 0, loss, np.nan)
    history = fx.History({"step": np.arange(2000), "loss": loss, "val": val})
    shown = page(history)
    assert shown.rows[2] == ["loss", f"{loss[-1]:.6g}", f"{loss[-1]:.6g}", "1"]
    assert "powers of ten" in shown.text
    (points,) = re.findall('points="([^"]*)"', history._repr_html_())
    assert len(points.split()) == 400
    assert points.split()[0] == "0.0,2.0"
    assert "val" in repr(fx.show(history))


@pytest.mark.parametrize(
    "columns", [{}, {"loss": []}, {"loss": [np.nan, np.inf]}, {"<x>": [1.0, 2.0]}, {"loss": [1.0]}]
)
def test_histories_with_little_in_them(columns):
    assert "<x>" not in fx.History(columns)._repr_html_()
    page(fx.History(columns))


def test_the_update_rule_is_folded_below(monkeypatch):
    pytest.importorskip("latex2mathml")
    text = fx.adam(0.1)._repr_html_()
    assert text.count("<math") == 1
    assert "<mn>0.999</mn>" in text
    assert "<math" not in fx.ndim_at_least(2)._repr_html_()
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    assert "$$\\begin{aligned}" in page(fx.adam(0.1)).text


def test_treescope_shows_the_call():
    treescope = pytest.importorskip("treescope")
    tx = fx.chain(fx.clip(1.0), fx.adam(0.1, 0.8))
    text = treescope.render_to_text(tx)
    assert text.startswith("chain(")
    for part in ("scale_by_moments(", "b1=0.8", "clip(", "learning_rate=0.1"):
        assert part in text
    assert "PyTree children" not in text
