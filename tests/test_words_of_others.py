"""`fx.find` and `fx.explain`: the names of optax, torch and Keras, and what is said of words."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from table import TABLE, WRAPPERS

import adamfx as fx
from adamfx.notebook import facts, others

OPTAX = {**vars(optax.contrib), **vars(optax)}
STEPS = 3


def found(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return fx.find(name, **options)


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", others.KNOWN)
def test_every_name_is_a_sentence(name):
    tx = found(name)
    assert fx.read(repr(tx)) == tx
    assert found(name.upper()) == tx


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("NAdam", "torch.optim.NAdam"),
        ("Nadam", "keras.optimizers.Nadam"),
        ("nadam", "optax.nadam"),
        ("NADAM", "optax.nadam"),
        ("AdamW", "torch.optim.AdamW"),
        ("tf.keras.optimizers.AdamW", "keras.optimizers.AdamW"),
        ("optax.contrib.muon", "optax.muon"),
    ],
)
def test_spelling_says_which_library(name, full):
    assert found(name) == found(full)


def test_defaults_of_each_library():
    decays = [
        found(f"{x}.AdamW").hyperparams["add_decayed_weights.weight_decay"]
        for x in ("optax", "torch.optim", "keras.optimizers")
    ]
    assert decays == [1e-4, 1e-2, 4e-3]
    eps = [found(f"{x}.Adam").hyperparams["scale_by_moments.eps"] for x in ("torch", "keras")]
    assert eps == [1e-8, 1e-7]


def test_the_learning_rate_is_replaced():
    rate = fx.cosine_decay_schedule(0.1, 10)
    assert fx.find("torch.optim.Adam", learning_rate=rate) == fx.adam(rate)
    with pytest.raises(ValueError, match=r"optax\.scale_by_adam has no learning rate"):
        fx.find("scale_by_adam", 0.1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch.optim.Nadm", r"did you mean torch.optim.NAdam or"),
        ("jax.adam", "known libraries are optax, torch and keras"),
        ("MultiSteps", r"accumulate\(transformation, every\)"),
        ("torch.optim.SparseAdam", "sparse gradients"),
        ("keras.optimizers.Ftrl", "Adagrad"),
        ("zzz", "known are optax.adabelief"),
        ("", "known are"),
        ("torch", "no optimizer 'torch'"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(KeyError, match=words):
        fx.find(name)


def test_what_is_not_quite_the_same_is_said():
    with pytest.warns(UserWarning, match="optax is one step late"):
        fx.find("optax.rprop")
    assert others.NOTES.keys() <= others.KNOWN.keys()


# ---- signatures ----------------------------------------------------------------------------------

# Defaults of theirs, and where they stand in the sentence: "torch name: argument word.argument ...".
TORCH = """
Adam: lr learning_rate, betas.0 b1, betas.1 b2, eps scale_by_moments.eps
AdamW: lr learning_rate, betas.1 b2, eps scale_by_moments.eps, weight_decay weight_decay
NAdam: lr learning_rate, betas.0 b1, eps scale_by_moments.eps, momentum_decay decay.momentum_decay
RAdam: lr learning_rate, betas.1 b2, eps scale_by_moments.eps
Adamax: lr learning_rate, betas.0 b1, betas.1 b2.decay, eps b2.eps
RMSprop: lr learning_rate, alpha b2, eps scale_by_moments.eps
Adagrad: lr learning_rate, eps scale_by_moments.eps, initial_accumulator_value b2.initial
Adadelta: lr learning_rate, rho b2, eps scale_by_moments.eps, eps scale_by_past_rms.eps
Adafactor: lr learning_rate, d threshold
Rprop: lr scale_by_rprop.learning_rate, etas.0 eta_minus, etas.1 eta_plus, step_sizes.1 max_step_size
Muon: lr learning_rate, momentum b1, weight_decay weight_decay, eps orthogonalize.eps
SGD: lr learning_rate
ASGD: lr learning_rate, lambd weight_decay
LBFGS: lr learning_rate, history_size memory_size
"""
KERAS = """
Adam: 0.001 learning_rate, 0.9 b1, 0.999 b2, 1e-7 scale_by_moments.eps
AdamW: 0.001 learning_rate, 0.004 weight_decay, 0.999 b2, 1e-7 scale_by_moments.eps
Nadam: 0.001 learning_rate, 0.9 b1, 0.999 b2, 1e-7 scale_by_moments.eps
Adamax: 0.001 learning_rate, 0.9 b1, 0.999 b2.decay, 1e-7 scale_by_moments.eps
Adagrad: 0.001 learning_rate, 0.1 b2.initial, 1e-7 scale_by_moments.eps
Adadelta: 0.001 learning_rate, 0.95 b2, 1e-7 scale_by_moments.eps, 1e-7 scale_by_past_rms.eps
RMSprop: 0.001 learning_rate, 0.9 b2, 1e-7 scale_by_moments.eps
Lion: 0.001 learning_rate, 0.9 nesterov.decay, 0.99 b1
Lamb: 0.001 learning_rate, 0.9 b1, 0.999 b2, 1e-7 scale_by_moments.eps
Muon: 0.001 matrix.scale_by_lr.learning_rate, 0.95 b1.decay, 0.2 factor
SGD: 0.01 learning_rate
ScheduleFreeAdamW: 0.0025 scale_by_lr.learning_rate, 0.9 average_iterates.b1, 0.999 b2
Adafactor: 0.001 learning_rate, 1.0 threshold, 0.8 b2.power, 1e-30 of.eps
"""  # of the documentation


def rows(table):
    for line in table.strip().splitlines():
        name, _, pairs = line.partition(": ")
        for pair in pairs.split(", "):
            yield name, *pair.split(" ")


def value_of(tx, end):
    known = [n for n in tx.hyperparams if n == end or n.endswith("." + end)]
    assert known, (end, list(tx.hyperparams))
    return tx.hyperparams[known[0]]


def test_torch_signatures():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for name, argument, end in rows(TORCH):
        argument, _, i = argument.partition(".")
        default = inspect.signature(getattr(torch.optim, name)).parameters[argument].default
        ours = value_of(found(f"torch.optim.{name}"), end)
        assert ours == (default[int(i)] if i else default), (name, argument)
    every = {
        n
        for n, x in vars(torch.optim).items()
        if inspect.isclass(x) and issubclass(x, torch.optim.Optimizer) and n != "Optimizer"
    }
    assert {f"torch.optim.{n}" for n in every} <= {*others.FULL}


def test_keras_defaults():
    for name, default, end in rows(KERAS):
        ours = value_of(found(f"keras.optimizers.{name}"), end)
        assert ours == float(default), (name, end)
    assert {n for n, *_ in rows(KERAS)} == {*others.KERAS}


def test_every_optimizer_of_optax_has_a_name():
    makes = {
        n
        for n, x in OPTAX.items()
        if inspect.isfunction(x)
        and not n.startswith(("_", "scale_by_"))
        and "learning_rate" in inspect.signature(x).parameters
    }
    assert makes - {"schedule_free", "polyak_sgd", "inject_hyperparams"} <= {
        n.split(".")[-1] for n in others.FULL if n.startswith("optax.")
    }


# ---- numbers -------------------------------------------------------------------------------------

# optax multiplies these in float32 here and there, or iterates in it.
LOOSE = {
    "optax.adafactor": 1e-5,
    "optax.madgrad": 1e-5,
    "optax.radam": 1e-10,
    "optax.scale_by_radam": 1e-10,
}
ELSEWHERE = {"optax.lbfgs": "by evaluations, tests/test_second_order.py"}
SAME = [n for n in others.KNOWN if n.startswith("optax.") and n not in others.NOTES | ELSEWHERE]


def problem():
    rng = np.random.default_rng(3)
    params = {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=(3,))}
    targets = {n: rng.normal(size=(STEPS, *p.shape)) for n, p in params.items()}
    return params, targets


def loss(params, target):
    return sum(jnp.sum((params[n] - target[n]) ** 2) for n in params) / 2


def way(tx, apply):
    """The parameters after each step, as one vector."""

    @jax.jit
    def run(params, targets):
        def step(carry, target):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, target)
            u, state = tx.update(grads, state, params, value=value)
            params = apply(params, u)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), targets)[1]

    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(run(*problem()))])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SAME)
def test_three_steps_of_optax(name):
    make = OPTAX[name.removeprefix("optax.")]
    parameters = inspect.signature(make).parameters
    needed = {n: 1e-3 for n, p in parameters.items() if p.default is p.empty and n != "key"}
    needed |= {"key": 0} if "key" in parameters else {}
    ours = way(found(name), fx.apply_updates)
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = way(optax.with_extra_args_support(make(**needed)), optax.apply_updates)
    start = problem()[0]
    begun = np.concatenate([np.tile(start[n].ravel(), STEPS) for n in sorted(start)])
    moved = np.abs(theirs - begun).max()
    assert np.abs(ours - theirs).max() <= LOOSE.get(name, 1e-11) * moved


TORCH_LOOSE = {"Muon": 6e-2, "RAdam": 1e-10}  # bfloat16, and digits that torch loses


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [n for n in others.TORCH if n != "LBFGS"])
def test_three_steps_of_torch(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    params, targets = problem()
    if name == "Muon":
        params, targets = {"w": params["w"]}, {"w": targets["w"]}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        p = {n: torch.tensor(x, requires_grad=True) for n, x in params.items()}
        optimizer = getattr(torch.optim, name)(p.values())
        points = []
        for t in range(STEPS):
            for n, x in p.items():
                x.grad = x.detach() - torch.tensor(targets[n][t])
            optimizer.step()
            points.append({n: x.detach().numpy().copy() for n, x in p.items()})
    finally:
        torch.set_default_dtype(before)
    tx = found(f"torch.optim.{name}")
    q, state = params, tx.init(params)
    for t, point in enumerate(points):
        u, state = tx.update({n: q[n] - targets[n][t] for n in q}, state, q)
        q = {n: q[n] + np.asarray(u[n]) for n in q}
        for n in q:
            size = np.abs(point[n] - params[n]).max()
            # ASGD's rate falls by a millionth per step.
            most = {"ASGD": 1e-5}.get(name, TORCH_LOOSE.get(name, 1e-11))
            assert np.abs(q[n] - point[n]).max() <= most * size


def keras(name, grads, p):
    """The parameters after each step, by the formulas of Keras's documentation and source; p is one leaf."""
    lr, b1, b2, eps = 0.001, 0.9, 0.999, 1e-7
    m = v = x = np.zeros_like(p)
    a, product, points = np.full_like(p, 0.1), 1.0, []

    def mu(t):
        return b1 * (1 - 0.5 * 0.96**t)

    for t, g in enumerate(grads, 1):
        old, product = m, product * mu(t)
        m, a = b1 * m + (1 - b1) * g, a + g**2
        rho = {"Adadelta": 0.95, "RMSprop": 0.9}.get(name, b2)
        v = np.maximum(b2 * v, abs(g)) if name == "Adamax" else rho * v + (1 - rho) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        ahead = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        if name.startswith("Adam") and name != "Adamax":
            u = m * np.sqrt(1 - b2**t) / (1 - b1**t) / (np.sqrt(v) + eps)
        elif name == "Adadelta":
            u = g * np.sqrt(x + eps) / np.sqrt(v + eps)
            x = rho * x + (1 - rho) * u**2
        elif name == "Lion":
            u = np.sign(b1 * old + (1 - b1) * g)
            m = 0.99 * old + 0.01 * g
        elif name == "Lamb":
            u = m_hat / (np.sqrt(v_hat) + eps)
            u = u * np.linalg.norm(p) / np.linalg.norm(u)
        else:
            u = {
                "Adamax": m / (1 - b1**t) / (v + eps),
                "Nadam": ahead / (np.sqrt(v_hat) + eps),
                "Adagrad": g / np.sqrt(a + eps),
                "RMSprop": g / np.sqrt(v + eps),
                "SGD": 10 * g,
            }[name]
        p = p - lr * u - lr * 0.004 * p * (name == "AdamW")
        points.append(p)
    return points


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", [n for n in others.KERAS if n not in ("Adafactor", "Muon", "ScheduleFreeAdamW")]
)
def test_three_steps_of_the_formulas_of_keras(name):
    rng = np.random.default_rng(5)
    p, grads = rng.normal(size=(4, 3)), 1e-5 * rng.normal(size=(STEPS, 4, 3))
    tx = found(f"keras.optimizers.{name}")
    q, state = p, tx.init(p)
    for g, point in zip(grads, keras(name, grads, p), strict=True):
        q, state = tx.step(jnp.asarray(g), state, jnp.asarray(q))
        assert np.abs(q - point).max() <= 1e-11 * np.abs(point - p).max() + 1e-15


# ---- explain -------------------------------------------------------------------------------------


def test_facts_are_about_words_there_are():
    for key in facts.ELSEWHERE:
        name, _, argument = key.partition(".")
        function = getattr(fx, name)
        assert not argument or argument in inspect.signature(function).parameters
    assert all(hasattr(fx, name) for name in facts.PAPERS)


def test_every_transformation_is_explained():
    for tx in [*TABLE.values(), *(wrap(fx.adam(0.1)) for wrap in WRAPPERS.values())]:
        said = fx.explain(tx)
        assert said.words or tx == fx.identity()
        assert all(e.does for e in said.words), tx
        assert repr(said)
        assert "<script" not in said._repr_html_()


def test_adam_word_by_word():
    said = fx.explain(fx.adam(1e-3))
    assert said.whole.startswith("adam: m_hat / (sqrt(v_hat) + eps). Kingma & Ba 2015")
    moments, correct, rate = said.words
    assert ("eps", "1e-08", ">= 0, added to the root.") in moments.arguments
    assert any("Keras" in x for n, x in moments.elsewhere if n == "eps")
    assert correct.papers == ["Kingma & Ba 2015, section 3"]
    assert rate.arguments[0][:2] == ("learning_rate", "0.001")


def test_a_fact_is_told_once_and_where_it_is_in_use():
    said = fx.explain(fx.muon(0.02))
    told = [x for e in said.words for x in e.elsewhere]
    assert len(told) == len(set(told))
    first = fx.explain(fx.momentum(0.1)).words[0]
    assert not any(n == "eps" for n, _ in first.elsewhere)


def test_inside_and_arguments_that_are_values():
    said = fx.explain(fx.accumulate(fx.adam(fx.cosine_decay_schedule(1.0, 10)), 4))
    assert said.words[0].text == "accumulate(…, every=4)"
    last = said.words[-1]
    assert last.text.startswith("learning_rate = cosine_decay_schedule(")
    assert (last.depth, last.path) == (2, "accumulate.scale_by_lr.learning_rate")


def test_only_values_are_explained():
    with pytest.raises(TypeError, match="explain: value must be an optimizer"):
        fx.explain("adam")
