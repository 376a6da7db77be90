"""The same numbers as pytorch_optimizer, an implementation by other people, in float64; test only.

A bound above 1e-12 has its reason beside it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx

torch = pytest.importorskip("torch", reason="torch is not installed")
po = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")

STEPS, LR = 30, 0.01
RNG = np.random.default_rng(7)
PARAMS = {"w": RNG.normal(size=(4, 5)), "b": RNG.normal(size=3)}
GRADS = {n: RNG.normal(size=(STEPS, *p.shape)) for n, p in PARAMS.items()}

# Class, its arguments besides lr, our sentence, bound.
CASES = {
    "AdEMAMix": ({"alpha": 5.0}, fx.ademamix(LR), 1e-12),
    "Adan": ({"betas": (0.98, 0.92, 0.99)}, fx.adan(LR), 1e-12),
    "AggMo": ({}, fx.aggmo(LR), 1e-12),
    "QHM": ({"momentum": 0.999, "nu": 0.7}, fx.qhm(LR), 1e-12),
    "CAME": ({}, fx.came(LR), 1e-12),
    "Lion": ({}, fx.lion(LR, weight_decay=0.0), 1e-12),
    "Fromage": ({}, fx.fromage(LR), 1e-12),
    "MADGRAD": ({"momentum": 0.9}, fx.madgrad(LR), 1e-12),
    "AdaFactor": ({"betas": (None, 0.999)}, fx.adafactor(LR, min_dim_size_to_factor=1), 1e-12),
    "AdaBelief": ({}, fx.adabelief(LR), 1e-12),
    "ScheduleFreeSGD": ({}, fx.schedule_free_sgd(LR), 1e-11),  # sums in another order
    "ScheduleFreeAdamW": ({}, fx.schedule_free_adamw(LR), 1e-11),
    "Shampoo": (
        {"momentum": 0.0},
        fx.chain(fx.whiten(eps=1e-6), fx.scale_by_lr(LR)),
        1e-6,
    ),  # roots by SVD
    "QHAdam": (
        {"betas": (0.995, 0.999), "nus": (0.7, 1.0)},
        fx.qhadam(LR),
        1e-6,
    ),  # eps not corrected
    "LaProp": ({"betas": (0.9, 0.999)}, fx.laprop(LR), 1e-6),  # eps 4e-4 of ours
    "StableAdamW": ({"betas": (0.9, 0.99)}, fx.stable_adamw(LR, weight_decay=0.0), 1e-4),  # eps
    "SM3": ({"momentum": 0.9}, fx.sm3(LR), 1e-5),  # eps
    "SOAP": ({}, fx.soap(LR, weight_decay=0.0, others=fx.set_to_zero()), 1e-6),  # bases in float32
}
NO_DECAY = {"Fromage", "SM3"}  # have no such argument, or none by default
ONLY_MATRICES = {"SOAP"}  # its vectors diverge there: pytorch_optimizer 4.1.0 divides by zero


def theirs(name, arguments):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        p = {n: torch.nn.Parameter(torch.tensor(x)) for n, x in PARAMS.items()}
        decay = {} if name in NO_DECAY else {"weight_decay": 0.0}
        optimizer = getattr(po, name)(list(p.values()), lr=LR, **arguments, **decay)
        points = [PARAMS]
        for t in range(STEPS):
            for n, x in p.items():
                x.grad = torch.tensor(GRADS[n][t])
            optimizer.step()
            points.append({n: x.detach().numpy().copy() for n, x in p.items()})
    finally:
        torch.set_default_dtype(default)
    return {n: np.diff([point[n] for point in points], axis=0) for n in PARAMS}


def ours(tx):
    def one(carry, g):
        p, s = carry
        u, s = tx.update(g, s, p)
        return (jax.tree.map(jnp.add, p, u), s), u

    start, grads = jax.tree.map(jnp.asarray, (PARAMS, GRADS))
    return jax.jit(lambda p, g: jax.lax.scan(one, (p, tx.init(p)), g)[1])(start, grads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_as_others_have_it(x64, name):
    arguments, tx, bound = CASES[name]
    want, got = theirs(name, arguments), ours(tx)
    for n in ("w",) if name in ONLY_MATRICES else ("w", "b"):
        gap = np.linalg.norm((np.asarray(got[n]) - want[n]).reshape(STEPS, -1), axis=1)
        size = np.linalg.norm(want[n].reshape(STEPS, -1), axis=1)
        assert size.any()
        assert np.max(gap / np.where(size == 0, 1, size)) <= bound, n
