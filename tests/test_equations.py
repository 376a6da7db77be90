"""The equations of values: read as LaTeX by an evaluator of its own, they are what the code does."""

import inspect
import re

import equations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table
import test_oracles
from conftest import enable_x64

import adamfx as fx
from adamfx.notebook.equations import latex

STEPS = 5
SHAPES = {"b": (4,), "s": (), "w": (3, 4)}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s) for k, s in SHAPES.items()}


def stepped(tx):
    """The parameters after some steps of the code; the loss, and a Hessian, for those that read them."""
    with enable_x64():
        p = {k: jnp.asarray(x) for k, x in tree(0).items()}
        state = tx.init(p)
        for t in range(STEPS):
            grads, hessian = ({k: jnp.asarray(x) for k, x in tree(t + s).items()} for s in (1, 100))
            p, state = tx.step(grads, state, p, value=jnp.asarray(1.0 + t), hessian=hessian)
        return [np.asarray(x) for x in p.values()]


# Said in words, for there is no formula of one line: the noise is random; bases, factors and projections
# come from decompositions; several traces, whose number is an argument.
WORDS = ("noisy_sgd", "aggmo", "shampoo", "soap", "kl_soap", "kron", "galore", "apollo")
# Other sentences that are, wholly or in part: what a wrapper makes of what is inside; and words that pass
# vectors as they are, which `partition` says and a lone word does not.
WORDS_TOO = (
    *(
        "view",
        "stacked",
        "in_blocks(muon)",
        "low_rank",
        "mechanize",
        "ema_nesterov",
        "swa",
        "mixed",
    ),
    *(
        "outer_step",
        "stored",
        "whiten",
        "eigenbasis",
        "kl_eigenbasis",
        "kron",
        "orthogonalize",
        "graft",
    ),
    *("centralize", "add_noise", "scale_by_path", "zero_nans", "masked", "partition", "accumulate"),
    *(
        "skip_nonfinite",
        "lookahead",
        "average_params",
        "monitor",
        "compensate",
        "round_stochastically",
    ),
    *(
        "freeze",
        "master_weights",
        "accumulate by schedule",
        "lookahead with reset",
        "stacked(lamb)",
    ),
    *("all metrics", "polyak average"),
)
SENTENCES = {
    name: tx
    for name, tx in table.SENTENCES.items()
    if name.removesuffix("(adamw)") not in WORDS_TOO
}


def evaluated(text):
    masks = {"ndim\\_at\\_least(2)": [False, False, True]}
    masks["path\\_matches('w*')"] = [False, False, True]
    masks["complement(ndim\\_at\\_least(2))"] = [True, True, False]
    gradients = [list(tree(t + 1).values()) for t in range(STEPS)]
    params, found = list(tree(0).values()), {}
    for mask, part in groups(text):
        chosen = masks[mask] if mask else [j not in found for j in range(len(params))]
        at = [j for j, x in enumerate(chosen) if x]
        mine = {n: [x[j] for j in at] for n, x in masks.items()}
        made = equations.Rows(part)
        assert not made.words, text
        picked = [[g[j] for j in at] for g in gradients]
        made.known |= {("f", t + 1): 1.0 + t for t in range(STEPS)}
        for t in range(STEPS):
            made.known["\\mathrm{hessian}", t + 1] = list(tree(t + 100).values())
        found |= dict(zip(at, made.run(picked, [params[j] for j in at], mine), strict=True))
    return [found[j] for j in range(len(params))]


def groups(text):
    """(mask, rows) of each group of leaves, that of all others last."""
    text = text.replace("}\\_\\text{", "\\_")
    heads = r"& \\text{partition.*\n|& \\text{\w+, (.*):} \\\\\n|& \\text{default:} \\\\\n"
    _, *parts = re.split(heads, text)
    if not parts:
        return [(None, text)]
    return [
        (mask, rows.rstrip("\\\n ")) for mask, rows in zip(parts[::2], parts[1::2], strict=True)
    ][1:]


@pytest.mark.parametrize("name", [n for n in table.OPTIMIZERS if n not in WORDS])
def test_the_equation_is_the_optimizer(name):
    assert is_the_code(table.OPTIMIZERS[name])


@pytest.mark.parametrize(
    "tx",
    [
        fx.polyak_sgd(0.3),
        fx.polyak_sgd(0.3, f_min=2.0, variant="sps+"),
        fx.sophia(0.01, estimator=None, update_interval=2),
    ],
    ids=["polyak_sgd", "polyak_sgd sps+", "sophia"],
)
def test_the_equations_of_those_that_read_more(tx):
    assert is_the_code(tx)


def test_the_equations_of_other_sentences():
    for name, tx in SENTENCES.items():
        assert is_the_code(tx), name


def is_the_code(tx):
    pairs = zip(evaluated(latex(tx)), stepped(tx), strict=True)
    return all(np.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in pairs)


# Their schedules are functions of the test, or several joined.
OF_USERS = ("nadam_torch", "adopt", "adopt unclipped")


@pytest.mark.parametrize("name", [n for n in test_oracles.CASES if n not in (*WORDS, *OF_USERS)])
def test_the_equations_of_other_arguments(name):
    """The sentences of test_oracles.py, which vary the arguments."""
    sentence, _, kwargs = test_oracles.CASES[name]
    known = inspect.signature(sentence).parameters
    kwargs = {"learning_rate": 0.01} | kwargs
    if "eps" in known and name != "came":  # whose eps are two
        kwargs["eps"] = 0.01
    assert is_the_code(sentence(**{n: x for n, x in kwargs.items() if n in known}))


# (word whose docstring is falsified, what it says, the falsehood, an optimizer of which it is a word).
FALSE = [
    (fx.ema, "(1 - b) x + eps", "b x + eps", "adam"),
    (fx.bias_correct, "v <- v / w2 + [w2 = 0];", "v <- v / w1 + [w2 = 0];", "adam"),
    (fx.scale_by_moments, "/ (root(v + eps_root) + eps)", "/ (v + eps_root + eps)", "adam"),
    (fx.scale_by_moments, '"in": u <- m / root(v', '"in": u <- m / (v', "adagrad"),
    (fx.scale_by_moments, "v <- v_prev, w2 <- w2_prev", "v <- v_prev", "acprop"),
    (fx.nesterov, "w1 / w1_next", "w1_next / w1", "nadam"),
    (fx.scale_by_lr, "u <- -alpha u", "u <- alpha u", "sgd"),
    (fx.scale_by_lr, "False: u <- alpha u", "False: u <- -alpha u", "cocob"),
    (fx.add_decayed_weights, "u + weight_decay p", "u - weight_decay p", "adamw"),
    (fx.trace, "b s + (1 - dampening) x", "b s + (1 - b) x", "momentum"),
    (fx.scale_by_trust_ratio, "[r = 0]", "[r > 0]", "lamb"),
    (fx.scale_by_dog, "True: r <- max(r, |p - p_0|)", "True: r <- max(r, |p|)", "ldog"),
    (fx.scale_by_prodigy, "sqrt(v) + d eps", "sqrt(v) + d_prev eps + d", "prodigy"),
    (fx.scale_by_rprop, "s <- [c >= 0] sign(u)", "s <- sign(u)", "rprop"),
    (fx.contract, "sqrt(1 + alpha^2)", "(1 + alpha^2)", "fromage"),
    (fx.cover, "s_prev <- cover(s_prev)", "s_prev is cover(s_prev)", "sm3"),
]


@pytest.mark.parametrize(("word", "says", "falsehood", "name"), FALSE)
def test_a_false_docstring_is_found(word, says, falsehood, name, monkeypatch):
    function = word.constructor.function
    text = " ".join(function.__doc__.split(" "))
    assert text.count(says) == 1, text
    monkeypatch.setattr(function, "__doc__", text.replace(says, falsehood))
    assert not is_the_code(table.OPTIMIZERS[name])


SCHEDULES = [
    fx.constant_schedule(0.3),
    fx.polynomial_schedule(0.3, 0.1, 2.0, 6, 2),
    fx.linear_schedule(0.3, 0.1, 6, 2),
    fx.inverse_sqrt_schedule(0.3),
    fx.lambda_decay_schedule(0.9, 0.99),
    fx.cosine_decay_schedule(0.3, 6, 0.1, 2.0),
    fx.power_schedule(0.25),
    fx.warmup_cosine_decay_schedule(0.01, 0.3, 3, 8, 0.1, 2.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_the_equation_of_a_schedule(schedule):
    rows = equations.Rows(latex(schedule))
    ((_, right),) = rows.rows
    for n in range(9):
        rows.t = n + 1
        with enable_x64():
            np.testing.assert_allclose(
                rows.evaluated(right), schedule(n), rtol=1e-12, err_msg=right
            )


@pytest.mark.parametrize("name", WORDS)
def test_said_in_words(name):
    assert "\\text{" in latex(table.OPTIMIZERS[name])


def test_every_row_is_a_picture():
    """Of all transformations: mathtext reads each row, and texts hold no sign of a command."""
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("path")
    for name, tx in table.TABLE.items():
        for row in rows(latex(tx)):
            assert not [
                x for x in re.findall(r"\\text{([^{}]*)}", row) if set(x) & set("\\\\_^%#&$<>")
            ]
            try:
                parser.parse(f"${row}$")
            except ValueError as error:
                raise AssertionError(f"{name}: {row}") from error


def rows(text):
    text = text.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    return [row.replace("&", "") for row in text.split(" \\\\\n")]


def test_a_notebook_never_sees_an_error():
    @fx.block
    def of_a_user():
        """u <- whatever this may be. Not mathematics."""
        return fx.leafwise(lambda u, here: u)

    tx = fx.chain(fx.adam(0.1), of_a_user())
    assert "u'_t" in tx._repr_latex_()
    assert fx.sgd(0.1)._repr_latex_().startswith("$$")
    assert fx.int8()._repr_latex_() is None
    assert fx.ndim_at_least(2)._repr_latex_() is None
    assert r"\alpha" in fx.inverse_sqrt_schedule(0.1)._repr_latex_()
    assert r"m_t &= 0.9 \,m_{t-1}" in fx.ema(0.9)._repr_latex_()
    several = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), fx.sgd(jnp.float32(0.1)))
    assert r"\alpha g_t" in several._repr_latex_()
    assert "0.1" in fx.sgd(jnp.float32(0.1))._repr_latex_()

    @jax.jit
    def traced(tx):
        assert r"\alpha g_t" in tx._repr_latex_()
        return 0

    traced(fx.sgd(0.1))


def test_adam_is_algorithm_1_of_the_paper():
    assert latex(fx.adam(0.001)).splitlines()[1:-1] == [
        r"m_t &= 0.9 \,m_{t-1} + 0.1 \,g_t \\",
        r"v_t &= 0.999 \,v_{t-1} + 0.001 \,g_t^{2} \\",
        r"\hat{m}_t &= \frac{m_t}{1 - 0.9^{t}} \\",
        r"\hat{v}_t &= \frac{v_t}{1 - 0.999^{t}} \\",
        r"\theta_t &= \theta_{t-1} - 0.001 \,\frac{\hat{m}_t}{\sqrt{\hat{v}_t} + 10^{-8}}",
    ]
