"""A run carried over from optax or torch goes on as it would have there, and carried back goes on there."""

import re
import sys

import blocks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import adamfx as fx
from adamfx.interop.carry_optax import OPTAX as OPTAX_STATES

STEPS = 50
QUICK = 7
# In float32: of the way gone in these steps, and of the parameters, which are rounded at every step.
TOLERANCE, ROUNDING = 2e-5, 1e-6
LR = 0.01
RATE = fx.exponential_decay(LR, 5, 0.8)
W = {"w": True, "b": False}
GROUPS = {"w": "a", "b": "b"}
SHAPES = {"w": (3, 4), "b": (3,)}


def tree(seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


def gradients(seed, steps, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=(steps, *s)), jnp.float32) for k, s in shapes.items()}


def runner(update, apply):
    """(params, state, gradients of all steps) -> (params, state), compiled once."""

    @jax.jit
    def run(params, state, grads):
        def step(carry, g):
            params, state = carry
            updates, state = update(g, state, params)
            return (apply(params, updates), state), None

        return jax.lax.scan(step, (params, state), grads)[0]

    def outside(*args):  # optax does not run under the strict promotion of conftest.py
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return run(*args)

    return outside


def assert_same_way(ours, theirs, start, tolerance=TOLERANCE):
    """|p - p'| is small beside |p' - start|, over all leaves."""
    a, b, s = (
        np.concatenate([np.ravel(x[k]) for k in sorted(SHAPES)]) for x in (ours, theirs, start)
    )
    assert np.isfinite(a).all()
    way = np.linalg.norm(b - s)
    assert way > 0
    assert np.linalg.norm(a - b) <= tolerance * way + ROUNDING * np.linalg.norm(b)


LOOSE = {"radam(LR)": 1e-3}  # optax's rectification loses digits in float32; see test_peers.py


def assert_same_state(ours, theirs):
    """Number by number, but for hyperparameters that a schedule sets anew before they are used."""
    pairs = jax.tree_util.tree_leaves_with_path(theirs)
    for (path, b), a in zip(pairs, jax.tree.leaves(ours), strict=True):
        name = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype, name
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if not jnp.issubdtype(b.dtype, jnp.inexact):
            np.testing.assert_array_equal(a, b, name)
        elif "hyperparams" not in name:
            gap = np.linalg.norm(np.ravel(a - b))
            assert gap <= 1e-4 * np.linalg.norm(np.ravel(b)) + 1e-6, name


def fast(params):
    return params.fast if hasattr(params, "fast") else params


def carried_both_ways(peer, tx, steps, pairs=False, tolerance=TOLERANCE):
    """A run of optax of three parts: the second one also here, the third also from there back."""
    p0 = tree()
    run = runner(peer.update, optax.apply_updates)
    ours = runner(with_value(tx) if tx.reads("value") else tx.update, fx.apply_updates)
    start = optax.LookaheadParams.init_synced(p0) if pairs else p0
    with jax.numpy_dtype_promotion("standard"):
        fresh = peer.init(start)
    parts = [gradients(seed, steps) for seed in (1, 2, 3)]
    points = [(start, fresh)]
    for g in parts:
        points.append(run(*points[-1], g))
    p1, s1 = points[1]
    s = fx.interop.from_optax(tx, s1, p1, count=None if _tells(s1) else steps)
    like = tx.init(p0)
    assert jax.tree.structure(s) == jax.tree.structure(like)
    p2, s2 = ours(fast(p1), s, parts[1])
    assert_same_way(p2, fast(points[2][0]), fast(p1), tolerance)
    if pairs:
        back, slow = fx.interop.to_optax(tx, s2, (fresh, start))
        p2 = optax.LookaheadParams(p2, slow.slow)
    else:
        back = fx.interop.to_optax(tx, s2, fresh)
    assert jax.tree.structure(back) == jax.tree.structure(points[2][1])
    assert_same_state(back, points[2][1])
    p3, _ = run(p2, back, parts[2])
    assert_same_way(fast(p3), fast(points[3][0]), fast(points[2][0]), tolerance)


def _tells(state):
    """Whether optax has counted the steps."""
    pairs = jax.tree_util.tree_flatten_with_path(state)[0]
    names = {getattr(key, "name", "") for path, _ in pairs for key in path}
    return bool(names & {"count", "gradient_step", "step_count", "t"}) and "avg_value" not in names


def by_call(library, call):
    names = {**vars(optax.contrib), **vars(optax)} if library is optax else vars(library)
    return eval(call, {**names, "LR": LR, "RATE": RATE, "W": W, "only_w": lambda p: W})


ALIKE = """
sgd(LR, 0.9); sgd(RATE, 0.9, nesterov=True); adagrad(LR); rmsprop(LR)
rmsprop(LR, centered=True, momentum=0.9); rmsprop(LR, bias_correction=True); adadelta(LR)
adam(LR); adam(RATE, nesterov=True); adamw(RATE, weight_decay=0.1, mask=W); nadam(LR); nadamw(LR)
adamax(LR); adamaxw(LR); amsgrad(LR); radam(LR); adabelief(LR); lion(LR); signum(LR)
lamb(LR); lars(LR); novograd(LR); adopt(LR); ademamix(LR); simplified_ademamix(LR); sm3(LR)
optimistic_gradient_descent(LR); prodigy(); dadapt_adamw(); dog(); dowg(); cocob()
schedule_free_sgd(LR); schedule_free_adamw(LR); adafactor(LR, min_dim_size_to_factor=2)
adafactor(LR, min_dim_size_to_factor=2, momentum=0.9); adan(LR, b2=0.5); madgrad(LR)
chain(clip_by_global_norm(1.0), adamw(LR)); mechanize(sgd(LR))
"""
ALIKE = [call.strip() for line in ALIKE.strip().splitlines() for call in line.split(";")]

# optax's call, and ours.
OTHERWISE = {
    "yogi(LR)": "chain(scale_by_moments(ema(0.9, initial=1e-6), yogi_ema(0.999), eps=1e-3), "
    "bias_correct(), scale_by_lr(LR))",
    "noisy_sgd(LR, key=1)": "noisy_sgd(LR, seed=1)",
    "optimistic_adam_v2(LR, nesterov=False)": "optimistic_adam(LR)",
    "muon(LR, nesterov=False)": "muon(LR, nesterov=False, eps=1e-8, others=adam(LR))",
    "chain(scale_by_distance_over_gradients(1e-6, 1e-8), scale(-1.0))": "ldog(1.0)",
    "chain(ema(0.9), scale_by_learning_rate(LR))": "chain(scale_by_moments(0.9, None), bias_correct(), "
    "scale_by_lr(LR))",
}


def with_value(tx):
    return lambda g, state, params: tx.update(g, state, params, value=fx.global_norm(params))


def with_ema(optimizer, ema):
    """As people average with optax: an `ema` beside the optimizer, given the new parameters."""

    def init(params):
        return optimizer.init(params), ema.init(params)

    def update(grads, state, params):
        updates, inner = optimizer.update(grads, state[0], params)
        return updates, (inner, ema.update(optax.apply_updates(params, updates), state[1])[1])

    return optax.GradientTransformation(init, update)


# Wrappers: optax's and ours.
TWO = {"a": optax.adam(LR), "b": optax.sgd(LR, 0.9)}
OURS = {"a": fx.adam(LR), "b": fx.sgd(LR, 0.9)}
PLATEAU = [
    library.chain(library.sgd(LR, 0.9), plateau(0.9, 2, accumulation_size=3, cooldown=1))
    for library, plateau in ((optax, optax.contrib.reduce_on_plateau), (fx, fx.reduce_on_plateau))
]
MIDDLE = {  # the steps are not multiples of the windows
    "MultiSteps": (optax.MultiSteps(optax.adam(LR), 3), fx.accumulate(fx.adam(LR), 3)),
    "MultiSteps of 4": (
        optax.MultiSteps(optax.chain(optax.clip(0.5), optax.sgd(RATE, 0.9)), 4),
        fx.accumulate(fx.chain(fx.clip(0.5), fx.sgd(RATE, 0.9)), 4),
    ),
    "multi_transform": (
        optax.multi_transform(TWO, GROUPS),
        fx.partition(OURS, GROUPS),
    ),
    "masked": (optax.masked(optax.adam(LR), W), fx.masked(fx.adam(LR), W)),
    "apply_if_finite": (optax.apply_if_finite(optax.adam(LR), 5), fx.skip_nonfinite(fx.adam(LR))),
    "lookahead": (optax.lookahead(optax.adam(LR), 6, 0.5), fx.lookahead(fx.adam(LR), 6, 0.5)),
    "inject_hyperparams": (
        optax.inject_hyperparams(optax.adamw)(LR, weight_decay=0.1),
        fx.live(fx.adamw(LR, weight_decay=0.1)),
    ),
    "inject_hyperparams into plain": (optax.inject_hyperparams(optax.adam)(LR), fx.adam(LR)),
    "inject_hyperparams of a schedule": (
        optax.inject_hyperparams(optax.adam)(RATE),
        fx.adam(RATE),
    ),
    "nested": (
        optax.apply_if_finite(
            optax.MultiSteps(optax.multi_transform(TWO, GROUPS), 3).gradient_transformation(), 5
        ),
        fx.skip_nonfinite(fx.accumulate(fx.partition(OURS, GROUPS), 3)),
    ),
    "named_chain": (
        optax.named_chain(("clip", optax.clip(0.5)), ("adam", optax.adam(LR))),
        fx.chain(fx.clip(0.5), fx.named("mine", fx.adam(LR))),
    ),
    "ema of the parameters": (
        with_ema(optax.adam(LR), optax.ema(0.9)),
        fx.average_params(fx.adam(LR), fx.ema(0.9)),
    ),
    "schedule of MultiSteps": (
        optax.MultiSteps(optax.adam(LR), lambda n: jnp.where(n < 3, 2, 3)),
        fx.accumulate(fx.adam(LR), lambda n: jnp.where(n < 3, 2.0, 3.0)),
    ),
    "reduce_on_plateau": (
        optax.GradientTransformation(PLATEAU[0].init, with_value(PLATEAU[0])),
        PLATEAU[1],
    ),
    "masters": (optax.adam(LR), fx.master_weights(fx.adam(LR))),
    "monitor": (optax.adam(LR), fx.monitor(fx.adam(LR))),
    "round_stochastically": (optax.adam(LR), fx.chain(fx.adam(LR), fx.round_stochastically())),
}
FEW = {
    *("adagrad(LR)", "adadelta(LR)", "signum(LR)", "adamw(RATE, weight_decay=0.1, mask=W)"),
    *("MultiSteps of 4", "multi_transform", "masked", "apply_if_finite", "lookahead"),
    *("inject_hyperparams", "nested"),
}


def optax_pair(name):
    if name in MIDDLE:
        return MIDDLE[name]
    with jax.numpy_dtype_promotion("standard"):
        return by_call(optax, name), by_call(fx, OTHERWISE.get(name, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALIKE, *OTHERWISE, *MIDDLE])
def test_optax_both_ways(name):
    pairs, tolerance = name == "lookahead", LOOSE.get(name, TOLERANCE)
    carried_both_ways(*optax_pair(name), STEPS, pairs, tolerance)


@pytest.mark.parametrize("name", sorted(FEW))
def test_optax_both_ways_in_a_few_steps(name):
    carried_both_ways(*optax_pair(name), QUICK, pairs=name == "lookahead")


# ---- torch ---------------------------------------------------------------------------------------


def scaled(*blocks, rate=LR):
    return fx.chain(*blocks, fx.scale_by_lr(rate))


def look_ahead(n):
    return 0.9 * (1 - 0.5 * 0.96 ** ((n + 1).astype(float) * 0.5))


L2, ADAM, AFTER = fx.add_decayed_weights(0.1), fx.scale_by_moments(0.9, 0.999), fx.bias_correct()
RMS, CENTERED = fx.scale_by_moments(None, 0.99), [fx.scale_by_moments(0.99, 0.99), fx.center()]
BUFFER = fx.scale_by_moments(fx.trace(0.9), None)
DAMPENED = fx.scale_by_moments(fx.trace(0.9, 0.3, first_whole=True), None)
TOTAL = fx.scale_by_moments(None, fx.total(), eps=1e-10)
TORCH = {
    "SGD(momentum=0.9)": fx.sgd(LR, 0.9),
    "SGD(momentum=0.9, nesterov=True, weight_decay=0.1)": fx.chain(L2, fx.sgd(LR, 0.9, True)),
    "SGD(momentum=0.9, dampening=0.3)": scaled(DAMPENED),
    "SGD(momentum=0.9, foreach=True)": fx.sgd(LR, 0.9),
    "Adam()": fx.adam(LR),
    "Adam(fused=True)": fx.adam(LR),
    "Adam(foreach=True)": fx.adam(LR),
    "Adam(amsgrad=True)": scaled(ADAM, fx.running_max(), AFTER),
    "AdamW()": fx.adamw(LR, weight_decay=1e-2),
    "AdamW(amsgrad=True, weight_decay=0.0)": scaled(ADAM, fx.running_max(), AFTER),
    "NAdam(momentum_decay=0.5)": scaled(ADAM, AFTER, fx.nesterov(look_ahead)),
    "RAdam()": scaled(fx.scale_by_moments(0.9, 0.999, where="hat"), AFTER, fx.rectify()),
    "RMSprop()": scaled(RMS),
    "RMSprop(momentum=0.9)": scaled(RMS, BUFFER),
    "RMSprop(centered=True)": scaled(*CENTERED),
    "RMSprop(centered=True, momentum=0.9, weight_decay=0.1)": scaled(L2, *CENTERED, BUFFER),
    "Adagrad()": scaled(TOTAL),
    "Adagrad(lr_decay=0.5)": scaled(TOTAL, rate=lambda n: LR / (1 + 0.5 * n.astype(float))),
    "Adadelta(lr=1.0)": fx.adadelta(),
    "Adamax()": fx.adamax(LR),
    "Rprop()": fx.rprop(LR),
    "ASGD(lambd=0.1, t0=-1)": fx.average_params(
        fx.chain(
            fx.add_decayed_weights(0.1),
            fx.scale_by_lr(lambda n: LR / (1 + 0.1 * LR * n.astype(float)) ** 0.75),
        )
    ),
    "Muon(weight_decay=0.1)": scaled(
        fx.scale_by_moments(0.95, None),
        fx.nesterov(),
        fx.orthogonalize(),
        fx.scale_by_shape("fan"),
        L2,
    ),
    "Adafactor()": fx.adafactor(
        lambda n: jnp.minimum(LR, (n + 1).astype(float) ** -0.5), min_dim_size_to_factor=1
    ),
}
MATRICES = {"w": (3, 4), "b": (2, 5)}
LOOSE_TORCH = {"RAdam()": 1e-3}  # as in optax
FEW_TORCH = (
    "SGD(momentum=0.9)",
    "Adam(amsgrad=True)",
    "NAdam(momentum_decay=0.5)",
    "Adadelta(lr=1.0)",
    "Rprop()",
    "Adafactor()",
)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def transposed(x):
    return x.T


def as_tensor(x):
    import torch

    return torch.tensor(x.T)


class Peer:
    """A run in torch, whose parameters are transposed."""

    def __init__(self, torch, call, params, groups=None):
        name, _, arguments = call.partition("(")
        options = {"lr": LR} | eval(f"dict({arguments}")
        self.torch = torch
        self.p = {k: torch.nn.Parameter(torch.tensor(np.array(params[k]).T)) for k in SHAPES}
        given = groups(self.p) if groups else list(self.p.values())
        self.optimizer = getattr(torch.optim, name)(given, **options)

    def run(self, grads):
        for t in range(len(grads["w"])):
            for k, x in self.p.items():
                x.grad = self.torch.tensor(np.array(grads[k][t]).T)
            self.optimizer.step()

    def params(self):
        return {k: jnp.asarray(x.detach().numpy().T.copy()) for k, x in self.p.items()}


def torch_both_ways(torch, call, tx, steps, tolerance=TOLERANCE, shapes=SHAPES, **more):
    """As `carried_both_ways`; the optimizer that it comes back to has done no step."""
    p0 = tree(shapes=shapes)
    peer, there = Peer(torch, call, p0, **more), [p0]
    parts = [gradients(seed, steps, shapes) for seed in (1, 2, 3)]
    keys = {"w": 0, "b": 1}
    for i, g in enumerate(parts):
        if i == 1:
            s = fx.interop.from_torch(
                tx, peer.optimizer.state_dict(), keys, there[1], _steps_of(peer, steps), transposed
            )
        if i == 2:
            wanted = {k: dict(v) for k, v in peer.optimizer.state_dict()["state"].items()}
            wanted = {k: {n: _copied(x) for n, x in v.items()} for k, v in wanted.items()}
        peer.run(g)
        there.append(peer.params())
    assert jax.tree.structure(s) == jax.tree.structure(tx.init(p0))
    p2, s2 = runner(tx.update, fx.apply_updates)(there[1], s, parts[1])
    assert_same_way(p2, there[2], there[1], tolerance)
    other = Peer(torch, call, p2, **more)
    back = fx.interop.to_torch(tx, s2, keys, other.optimizer.state_dict(), as_tensor)
    for key, entry in wanted.items():
        assert {n for n, x in entry.items() if x is not None} == set(back["state"][key])
        for n, x in back["state"][key].items():
            if n != "prev":  # of which torch reads the sign
                np.testing.assert_allclose(x.numpy(), entry[n], rtol=2e-4, atol=2e-6, err_msg=n)
    other.optimizer.load_state_dict(back)
    other.run(parts[2])
    assert_same_way(other.params(), there[3], there[2], tolerance)


def _copied(x):
    return None if x is None else x.detach().numpy().copy()


def _steps_of(peer, steps):
    entry = peer.optimizer.state_dict()["state"][0]
    return None if "step" in entry else steps


def torch_options(name):
    return {
        "tolerance": LOOSE_TORCH.get(name, TOLERANCE),
        "shapes": MATRICES if "Muon" in name else SHAPES,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCH)
def test_torch_both_ways(torch, name, monkeypatch):
    # Muon's iteration rounds to bfloat16, which is 1 % of its way.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    torch_both_ways(torch, name, TORCH[name], STEPS, **torch_options(name))


@pytest.mark.parametrize("name", FEW_TORCH)
def test_torch_both_ways_in_a_few_steps(torch, name):
    torch_both_ways(torch, name, TORCH[name], QUICK, **torch_options(name))


# ---- torch: groups, keys, parts ------------------------------------------------------------------


def two_groups(p):
    return [{"params": [p["w"]], "lr": LR}, {"params": [p["b"]], "lr": 0.1, "betas": (0.5, 0.9)}]


def test_groups_of_torch_are_a_partition(torch):
    tx = fx.partition({"a": fx.adam(LR), "b": fx.adam(0.1, 0.5, 0.9)}, GROUPS)
    torch_both_ways(torch, "Adam()", tx, QUICK, groups=two_groups)


def test_groups_count_their_own_steps(torch):
    peer = Peer(torch, "Adam()", tree(), groups=two_groups)
    peer.run(gradients(1, 3))
    peer.p["b"].grad = None
    peer.p["w"].grad = torch.ones(4, 3)
    peer.optimizer.step()
    tx, keys, p = fx.partition({"a": fx.adam(LR)}, {"a": fx.path_matches("w")}, fx.adam(0.1)), {
        "w": 0, "b": 1, "steps": None, "none": None,
    }, peer.params() | {"steps": jnp.arange(3), "none": None}  # fmt: skip
    s = fx.interop.from_torch(tx, peer.optimizer.state_dict(), keys, p, None, transposed)
    assert fx.get(s, "a.count") == 4
    assert fx.get(s, "default.count") == 3
    other = Peer(torch, "Adam()", tree(), groups=two_groups)
    back = fx.interop.to_torch(tx, s, keys, other.optimizer.state_dict(), as_tensor)
    assert [back["state"][i]["step"].item() for i in (0, 1)] == [4, 3]
    assert_same_entries(back["state"], peer.optimizer.state_dict()["state"])


def assert_same_entries(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, entry in theirs.items():
        assert ours[key].keys() == entry.keys()
        for name, x in entry.items():
            np.testing.assert_allclose(ours[key][name], x, rtol=1e-6)


@pytest.mark.parametrize("step", [int, float, lambda n: np.float32(n)])
def test_steps_of_torch_are_tensors_or_numbers(torch, step):
    peer = Peer(torch, "Adam()", tree())
    peer.run(gradients(1, 3))
    state = peer.optimizer.state_dict()["state"]
    keys, p, tx = {"w": 0, "b": 1}, peer.params(), fx.adam(LR)
    wanted = fx.interop.from_torch(tx, state, keys, p, None, transposed)
    older = {k: {**entry, "step": step(3)} for k, entry in state.items()}
    found = fx.interop.from_torch(tx, older, keys, p, None, transposed)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    by_parameter = fx.interop.from_torch(tx, peer.optimizer.state, peer.p, p, None, transposed)
    jax.tree.map(np.testing.assert_array_equal, by_parameter, wanted)


def test_steps_are_where_torch_wants_them(torch):
    """Capturable and fused optimizers keep them beside the parameter, the others on the CPU."""
    tx, keys, p = fx.adam(LR), {"w": 0, "b": 1}, tree()
    s = fx.set(tx.init(p), count=3)
    for call in ("Adam(capturable=True)", "Adam(fused=True)"):
        optimizer = Peer(torch, call, p).optimizer
        back = fx.interop.to_torch(tx, s, keys, optimizer.state_dict(), as_tensor)
        optimizer.load_state_dict(back)
        for entry in optimizer.state.values():
            assert entry["step"].dtype == torch.float32
            assert entry["step"] == 3
        again = fx.interop.from_torch(tx, optimizer.state_dict(), keys, p, None, transposed)
        assert again["count"] == 3


def test_parameters_that_stand_in_a_flat_one(torch):
    """As FSDP keeps them: one array of all numbers, with padding behind."""
    p, g = tree(), gradients(1, 4)
    flat = torch.nn.Parameter(torch.zeros(16))
    optimizer = torch.optim.AdamW([flat], lr=LR, weight_decay=0.0)
    with torch.no_grad():
        flat[:15] = torch.tensor(np.concatenate([np.array(p["w"]).T.ravel(), np.array(p["b"])]))

    def step(t):
        of = [np.array(g["w"][t]).T.ravel(), np.array(g["b"][t]), np.zeros(1, np.float32)]
        flat.grad = torch.tensor(np.concatenate(of))
        optimizer.step()

    keys = {"w": fx.interop.Part(0, 0, (4, 3)), "b": fx.interop.Part(0, 12, (3,))}
    tx = fx.adam(LR)
    step(0), step(1)
    start = optimizer.state_dict()
    s = fx.interop.from_torch(tx, start, keys, p, None, transposed)
    np.testing.assert_allclose(s["scale_by_moments"].mu["b"], start["state"][0]["exp_avg"][12:15])
    _, s = runner(tx.update, fx.apply_updates)(p, s, {k: x[2:4] for k, x in g.items()})
    like = {**start, "state": {0: {n: x.clone() for n, x in start["state"][0].items()}}}
    step(2), step(3)
    back = fx.interop.to_torch(tx, s, keys, like, as_tensor)
    assert_same_entries(back["state"], optimizer.state_dict()["state"])
    with pytest.raises(ValueError, match="`like` has none"):
        fx.interop.to_torch(tx, s, keys, {**like, "state": {}}, as_tensor)


@pytest.mark.parametrize(
    ("call", "tx", "words"),
    [
        ("Adam(amsgrad=True)", fx.adam(LR), "holds .*'max_exp_avg_sq'.* beyond"),
        ("Adam()", scaled(ADAM, fx.running_max(), AFTER), "remembers .*nu_max"),
        ("SGD()", fx.sgd(LR, 0.9), r"remembers mu \(trace of value\); .* holds no moments; write"),
        ("Adam()", fx.average_params(fx.adam(LR)), "average.* would lose"),
        ("Adam()", fx.adan(LR), "remembers .*delta"),
    ],
)
def test_what_torch_has_no_place_for(torch, call, tx, words):
    like = Peer(torch, call, tree()).optimizer.state_dict()
    with pytest.raises(ValueError, match=words):
        fx.interop.to_torch(tx, tx.init(tree()), {"w": 0, "b": 1}, like, as_tensor)


def test_optimizers_of_others_are_known_by_what_they_hold(torch):
    like = Peer(torch, "Adam()", tree()).optimizer.state_dict()
    group = {n: x for n, x in like["param_groups"][0].items() if n in ("params", "lr", "betas")}
    like, tx, keys = {"state": {}, "param_groups": [group]}, fx.adam(LR), {"w": 0, "b": 1}
    s = tx.init(tree())
    with pytest.raises(ValueError, match="is not known; take its"):
        fx.interop.to_torch(tx, s, keys, like, as_tensor)
    like["state"] = {i: {"exp_avg": torch.ones(1), "exp_avg_sq": torch.ones(1)} for i in (0, 1)}
    back = fx.interop.to_torch(tx, s, keys, like, as_tensor)
    assert back["state"][0]["exp_avg"].shape == (4, 3)
    like["state"] = {i: {"exp_avg": torch.ones(1), "hessian": torch.ones(1)} for i in (0, 1)}
    with pytest.raises(ValueError, match=r"hessian.* is nothing that adamfx could fill"):
        fx.interop.to_torch(tx, s, keys, like, as_tensor)


def test_what_to_torch_wants(torch):
    tx, p = fx.adam(LR), tree()
    like, s = Peer(torch, "Adam()", p).optimizer.state_dict(), tx.init(p)
    with pytest.raises(TypeError, match="like must be optimizer"):
        fx.interop.to_torch(tx, s, {"w": 0, "b": 1}, like["state"])
    with pytest.raises(ValueError, match="no group of `like` has a parameter 7"):
        fx.interop.to_torch(tx, s, {"w": 0, "b": 7}, like)


# ---- what is called alike, and is not the same ---------------------------------------------------


def once(rate, name="mu"):
    """A lone moment of what comes in."""
    return fx.scale_by_moments(*((rate, None) if name == "mu" else (None, rate)))


BEFORE = "chain(ema(0.9), adam(LR))"


def assert_refused(words, call):
    try:
        call()
        said = "nothing"
    except ValueError as error:
        said = str(error)
    assert re.search(words, said), said


OTHERS = [  # optax's call, and ours
    (
        "adagrad(LR)",
        fx.rmsprop(LR),
        r"nu \(ema of square\).*sum_of_squares: nu \(total of square\)",
    ),
    ("rmsprop(LR)", fx.adagrad(LR), r"nu \(total of square\).*nu: nu \(ema of square\); write"),
    ("adabelief(LR)", fx.adam(LR), "nu: nu .ema of deviation. or nu .ema of innovation"),
    ("adam(LR)", fx.adabelief(LR), "ema of deviation.*nu: nu .ema of square"),
    ("adam(LR)", fx.laprop(LR), "remembers mu .ema of direction"),
    ("amsgrad(LR)", scaled(ADAM, fx.running_max(), AFTER), "running_max, corrected"),
    ("sgd(LR, 0.9)", fx.lion(LR), "mu .ema of value.*trace: mu .trace of value"),
    ("lion(LR)", fx.sgd(LR, 0.9), "mu .trace of value.*mu: mu .ema of value"),
    ("chain(ema(0.9), scale(-LR))", fx.sgd(LR, 0.9), "mu .trace of value"),
    ("simplified_ademamix(LR)", fx.adam(LR), "m: mu .trace of value"),
    (
        "chain(trace(0.9), scale_by_rms())",
        scaled(RMS, BUFFER),
        "trace of direction.*trace: .*then nu",
    ),
    (BEFORE, fx.chain(fx.adam(LR), once(0.9)), "remembers mu .ema of .*ema: .*then mu: "),
    (BEFORE, fx.average_params(fx.adam(LR), fx.ema(0.9)), "holds .*'ema'.* beyond"),
    ("noisy_sgd(LR, key=1)", fx.sgd(LR, 0.9), "remembers mu"),
    ("sgd(LR)", fx.noisy_sgd(LR), "remembers key .add_noise.*no moments"),
    ("adafactor(LR, min_dim_size_to_factor=2)", fx.came(LR), "mean of square"),
]


@pytest.mark.parametrize(("call", "tx", "words"), OTHERS)
def test_another_recursion_is_not_taken_for_ours(call, tx, words):
    with jax.numpy_dtype_promotion("standard"):
        state = by_call(optax, call).init(tree())
    assert_refused(words, lambda: fx.interop.from_optax(tx, state, tree(), count=0))
    assert_refused(
        r"to_optax: .*(remembers|lose|holds)",
        lambda: fx.interop.to_optax(tx, tx.init(tree()), state),
    )


OTHERS_TORCH = [
    ("RMSprop()", fx.adagrad(LR), r"square_avg: nu \(ema of square\)"),
    ("Adagrad()", scaled(RMS), r"sum: nu \(total of square\)"),
    ("Adamax()", fx.adam(LR), "exp_inf: nu .decayed_max of abs"),
    ("RMSprop(momentum=0.9)", fx.adam(LR), "momentum_buffer: mu .trace of direction"),
    ("Adam(amsgrad=True)", fx.amsgrad(LR), "max_exp_avg_sq: nu_max .running_max."),
    ("SGD(momentum=0.9)", scaled(once(0.95)), "momentum_buffer: mu .trace of value"),
    ("Muon()", fx.sgd(LR, 0.9), "momentum_buffer: mu .ema of value"),
    ("ASGD()", fx.average_params(fx.sgd(LR), fx.ema(0.9)), "'ax'.* beyond"),
]


@pytest.mark.parametrize(("call", "tx", "words"), OTHERS_TORCH)
def test_another_recursion_of_torch_is_not_taken_for_ours(torch, call, tx, words):
    peer = Peer(torch, call, tree(shapes=MATRICES))
    peer.run(gradients(1, 2, MATRICES))
    state, keys = peer.optimizer.state_dict(), {"w": 0, "b": 1}
    assert_refused(
        words, lambda: fx.interop.from_torch(tx, state, keys, peer.params(), 2, transposed)
    )
    fresh = tx.init(peer.params())
    assert_refused(
        r"to_torch: .*(remembers|lose|holds)",
        lambda: fx.interop.to_torch(tx, fresh, keys, state, as_tensor),
    )


def test_a_bare_state_of_torch_does_not_tell_whose_buffer_it_is(torch):
    peer = Peer(torch, "SGD(momentum=0.9)", tree())
    peer.run(gradients(1, 2))
    state, keys = peer.optimizer.state_dict()["state"], {"w": 0, "b": 1}
    for tx in (fx.sgd(LR, 0.9), scaled(once(0.95))):
        fx.interop.from_torch(tx, state, keys, peer.params(), 2, transposed)
    assert_refused(
        r"trace of value.* or mu .ema of value",
        lambda: fx.interop.from_torch(fx.adam(LR), state, keys, peer.params(), 2, transposed),
    )


def plateau(**more):
    return {"factor": 0.5, "patience": 3, "accumulation_size": 4, "cooldown": 2} | more


def plateau_of(**counters):
    state = optax.contrib.reduce_on_plateau(**plateau()).init(tree())
    return state._replace(**{n: jnp.asarray(x) for n, x in counters.items()})


WINDOWS = [
    (lambda: MIDDLE["MultiSteps"][0].init(tree())._replace(mini_step=jnp.asarray(4)),
     fx.accumulate(fx.adam(LR), 3), "mini_step is 4, .* every=3 never reaches; write the every"),
    (lambda: MIDDLE["MultiSteps"][0].init(tree())._replace(mini_step=jnp.asarray(3)),
     fx.accumulate(fx.adam(LR), lambda n: jnp.where(n < 1, 3.0, 5.0)), "mini_step is 3, .* every=3 "),
    (lambda: plateau_of(count=4), fx.reduce_on_plateau(**plateau()), "seen is 4"),
    (lambda: plateau_of(plateau_count=3), fx.reduce_on_plateau(**plateau()), "misses is 3"),
    (lambda: plateau_of(cooldown_count=3), fx.reduce_on_plateau(**plateau()), "cooling is 3, .*=2 "),
]  # fmt: skip


@pytest.mark.parametrize(("state", "tx", "words"), WINDOWS)
def test_a_counter_beyond_its_window(state, tx, words):
    assert_refused(
        f"from_optax: {words}", lambda: fx.interop.from_optax(tx, state(), tree(), count=0)
    )


def test_windows_may_be_as_long_as_they_were():
    for cooling in (1, 2):
        state = plateau_of(best_value=1.0, count=3, plateau_count=2, cooldown_count=cooling)
        tx = fx.reduce_on_plateau(**plateau())
        s = fx.interop.from_optax(tx, state, tree(), count=0)
        assert_same_state(fx.interop.to_optax(tx, s, plateau_of()), state)


def test_windows_on_the_way_out():
    long, short = (fx.accumulate(fx.adam(LR), n) for n in (5, 3))
    s = long.init(tree())
    for _ in range(4):
        _, s = long.update(tree(1), s, tree())
    like = optax.MultiSteps(optax.adam(LR), 5).init(tree())
    fx.interop.to_optax(long, s, like)
    assert_refused("to_optax: mini_step is 4", lambda: fx.interop.to_optax(short, s, like))
    p = optax.LookaheadParams.init_synced(tree())
    state = (
        optax.lookahead(optax.adam(LR), 6, 0.5).init(p)._replace(steps_since_sync=jnp.asarray(4))
    )
    assert_refused(
        r"steps_since_sync is 4, .*sync_period=3 ",
        lambda: fx.interop.from_optax(fx.lookahead(fx.adam(LR), 3, 0.5), state, p),
    )


def test_losses_of_half_a_window_are_not_lost_in_silence():
    tx = fx.accumulate(fx.chain(fx.adam(LR), fx.reduce_on_plateau()), 3)
    peer = optax.MultiSteps(optax.chain(optax.adam(LR), optax.contrib.reduce_on_plateau()), 3)
    state = peer.init(tree())
    s = fx.interop.from_optax(tx, state, tree())
    fx.interop.to_optax(tx, s, state)
    assert_refused(
        r"acc_value.* carry over where a window begins",
        lambda: fx.interop.from_optax(tx, state._replace(mini_step=jnp.asarray(1)), tree()),
    )
    _, s = tx.update(tree(1), s, tree(), value=1.0)
    assert_refused(r"acc_value.* would lose", lambda: fx.interop.to_optax(tx, s, state))


def test_a_parameter_that_is_trained_on_one_side_only():
    masked, whole = fx.masked(fx.adam(LR), W), optax.adam(LR)
    assert_refused(
        r"mu at \['b'\] has nothing here that could fill it; train",
        lambda: fx.interop.to_optax(masked, masked.init(tree()), whole.init(tree())),
    )
    moved = jax.tree.map(jnp.ones_like, whole.init(tree()))
    assert_refused(
        r"nothing is remembered here of mu at \['b'\]; train",
        lambda: fx.interop.from_optax(masked, moved, tree()),
    )
    p = tree() | {"steps": jnp.arange(3)}  # what nobody trains
    tx = fx.adam(LR)
    fx.interop.from_optax(tx, fx.interop.to_optax(tx, tx.init(p), whole.init(p)), p)


def test_a_wrapper_whose_memory_the_moments_are_written_in():
    """Those of GaLore lie in a basis, even where they have the same shape."""
    assert_refused(
        r"view remembers \['basis'\], .* begin with tx.init",
        lambda: fx.interop.from_optax(fx.galore(LR), optax.adam(LR).init(tree()), tree()),
    )


def test_what_is_of_another_library_or_shape_or_name():
    own = fx.chain(optax.scale_by_adam(), fx.scale_by_lr(LR))
    p, like = tree(), optax.adam(LR).init(tree())
    assert_refused("is of another library", lambda: fx.interop.from_optax(own, like, p))
    other = fx.adam(LR).init(tree(shapes={"w": (2, 4), "b": (3,)}))
    words = r"mu at \['w'\] has shape \(3, 4\), here it is \(2, 4\)"
    assert_refused(words, lambda: fx.interop.to_optax(fx.adam(LR), other, like))
    entry = {"step": 3, "exp_avg": p["b"], "exp_avg_sq": p["b"], "hessian": np.ones(3)}
    words = r"holds 'hessian', which would be lost; known are step, .*momentum_buffer"
    assert_refused(
        words, lambda: fx.interop.from_torch(fx.adam(LR), {0: entry}, {"b": 0}, {"b": p["b"]})
    )


def test_live_hyperparameters_stay_where_the_other_side_has_none():
    tx = fx.live(fx.adam(LR))
    s = fx.interop.from_optax(tx, optax.adam(0.5).init(tree()), tree())
    assert fx.hyperparams(s) == {"live.scale_by_lr.learning_rate": np.float32(LR)}
    injected = optax.inject_hyperparams(optax.adam)(0.5).init(tree())
    fx.interop.from_optax(fx.adam(RATE), injected, tree())  # a schedule is not compared


def test_counters_that_are_numbers_of_python_stay_such():
    (adam, *rest), tx = optax.adam(LR).init(tree()), fx.adam(LR)
    back = fx.interop.to_optax(
        tx, fx.set(tx.init(tree()), count=3), (adam._replace(count=0), *rest)
    )
    assert type(back[0].count) is int
    assert back[0].count == 3


def test_a_wrapper_that_would_have_to_know_the_start():
    tx, like = fx.sgd(LR, 0.9), optax.contrib.mechanize(optax.sgd(LR, 0.9)).init(tree())
    assert_refused(r"x0.* of `like`", lambda: fx.interop.to_optax(tx, tx.init(tree()), like))


# ---- files ---------------------------------------------------------------------------------------


def test_orbax_files_of_optax(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    tx, p = optax.adamw(LR), tree()
    state = {"opt_state": tx.init(p)}
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", state)
    found = fx.interop.read_orbax(tmp_path / "run", state)
    fx.interop.from_optax(fx.adamw(LR), found["opt_state"], p)
    assert fx.interop.read_orbax(tmp_path / "run")["opt_state"]


def test_safetensors_files_of_torch(tmp_path, torch):
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    peer = Peer(torch, "Adam()", tree())
    peer.run(gradients(1, 3))
    entries = dict(zip("wb", peer.optimizer.state_dict()["state"].values(), strict=True))
    flat = {
        f"layer.{k}.{n}": x.contiguous() for k, entry in entries.items() for n, x in entry.items()
    }
    save_file(flat, tmp_path / "run.safetensors")
    found = fx.interop.read_safetensors(tmp_path / "run.safetensors")
    assert all(isinstance(x, jax.Array) for x in found.values())
    state: dict = {}
    for name, x in found.items():
        key, _, entry = name.rpartition(".")
        state.setdefault(key, {})[entry] = x
    keys, tx = {"w": "layer.w", "b": "layer.b"}, fx.adam(LR)
    s = fx.interop.from_torch(tx, state, keys, peer.params(), None, transposed)
    assert s["count"] == 3
    np.testing.assert_array_equal(s["scale_by_moments"].mu["w"], entries["w"]["exp_avg"].T.numpy())


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("read_orbax", "orbax.checkpoint", r"adamfx\[interop\]"),
        ("read_safetensors", "safetensors.flax", r"adamfx\[interop\]"),
    ],
)
def test_what_to_install(monkeypatch, name, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=words):
        getattr(fx.interop, name)("somewhere")


def test_the_code_of_the_page_runs(tmp_path, torch, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    held = blocks.run_as_a_user("docs/coming-from.md")
    page = (blocks.ROOT / "docs" / "coming-from.md").read_text()
    assert held["state"]["count"] == 6
    for name in OPTAX_STATES:
        assert name in page
