"""A wrong number or a missing word in an optimizer is noticed by the test that compares it with its paper.

Those tests hold the updates to a tolerance of their oracle's. So here every number of every optimizer is
changed, and every word left out, on the parameters and gradients of the same tests: the updates must leave
those of the right sentence by more than ten times that tolerance, or have a reason not to. Every third of
them, from another one on in each row; ADAMFX_FAULTS=all makes all 1,189.
"""

import contextlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_iterates
import test_matrices
import test_oracles
import test_parameter_free

import adamfx as fx

STEPS = 30


@jax.jit
def _updates(tx, params, grads, values):
    def one(carry, now):
        p, state = carry
        g, value = now
        extra = {"value": value} if tx.reads("value") else {}
        if tx.reads("grad_fn"):
            extra["grad_fn"] = lambda q: jax.tree.map(lambda g, x: g + 0.3 * x, g, q)
            g = extra["grad_fn"](p)
        u, state = tx.update(g, state, p, **extra)
        p = fx.apply_updates(p, u)
        return (p, state), (u, tx.evaluate_at(state, p))

    carry = (params, tx.init(params))
    return jax.lax.scan(one, carry, (grads, values))[1]


def updates(tx, of):
    """Those of thirty steps, and the points for the model, as one vector for each leaf."""
    params, grads = of
    found = _updates(tx, params, grads, jnp.asarray(test_parameter_free.VALUES[:STEPS]))
    return [np.asarray(x).reshape(-1) for x in jax.tree.leaves(found)]


def other(x):
    """Another value of an argument; none for what has no neighbour."""
    if isinstance(x, bool):
        return not x
    if isinstance(x, int):
        return x + 1
    if isinstance(x, float):  # what is small stands beside gradients and parameters around 1
        return 3.0 if abs(x) < 0.011 else 1 - 0.5 * (1 - x) if 0.5 < x < 1 else 1.5 * x
    return None


def without_a_word(text):
    """(word, sentence without it), for each word of each chain in the sentence."""
    opened = []  # where each open bracket's parts begin, and whether it is a chain
    spans = []
    for i, c in enumerate(text):
        if c in "([{":
            opened.append([text[:i].endswith("chain"), i + 1])
        elif c in ")]}," and opened:
            chain, start = opened[-1]
            if chain and (c == "," or c == ")"):
                spans.append((start, i, c))
                opened[-1][1] = i + 2
            if c != ",":
                opened.pop()
    for start, end, c in spans:
        left = text[: start if c == "," else start - 2] + text[end + 2 if c == "," else end :]
        yield text[start:end], left


def faults(tx):
    """{what was done: sentence}."""
    found = {}
    for name, x in tx.hyperparams.items():
        if other(x) is not None:
            with contextlib.suppress(TypeError, ValueError):  # the mistake is an error already
                found[f"{name} = {other(x)}"] = tx.replace(**{name: other(x)})
    for word, text in without_a_word(repr(tx)):
        found[f"without {word}"] = fx.read(text)
    return found


def of_matrices():
    shapes = {"w": (4, 5), "b": (5,)}
    grads = {n: jnp.asarray(test_matrices.GRADS[s][:STEPS]) for n, s in shapes.items()}
    return {n: jnp.asarray(test_matrices.PARAM[s]) for n, s in shapes.items()}, grads


def of_oracles():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(3, 4)).astype(np.float32)
    grads = rng.normal(size=(40, 3, 4)).astype(np.float32)
    return jnp.asarray(theta, float), jnp.asarray(grads[:STEPS], float)


def of_trees():
    of = test_parameter_free
    grads = {n: jnp.asarray(g[:STEPS]) for n, g in of.GRADS.items()}
    return {n: jnp.asarray(p) for n, p in of.PARAMS.items()}, grads


def sentences():
    """{name: (sentence, problem, tolerance)}."""
    found = {}
    for name, (make, _, arguments) in test_oracles.CASES.items():
        if getattr(make, "__module__", "").startswith("adamfx"):
            rate = {} if "learning_rate" in arguments else {"learning_rate": 0.01}
            found[name] = (make(**rate, **arguments), of_oracles, 1e-12)
    for name, (tx, _) in test_parameter_free.CASES.items():
        found[name] = (tx, of_trees, 1e-12)
    none = {"others": fx.identity()}
    decayed = {"weight_decay": 0.1, **none}
    matrix = {
        "muon": fx.muon(0.02, **decayed),
        "muon jordan": fx.muon(0.02, form="jordan", **decayed),
        "muon moonlight": fx.muon(0.02, form="moonlight", consistent_rms=0.2, **decayed),
        "normuon": fx.normuon(0.02, **decayed),
        "muonh": fx.muonh(0.02, **none),
        "adamh": fx.adamh(0.02, **none),
        "scion": fx.scion(0.02, radius=2.0),
        "soap": fx.soap(0.02, precondition_frequency=3, **decayed),
        "kl_soap": fx.kl_soap(0.02, precondition_frequency=3, **decayed),
        "shampoo": fx.shampoo(0.02, 0.9, 0.9, 1e-6, 3, **decayed),
        "kron": fx.kron(0.02, **decayed),
        "galore": fx.galore(0.02, 2, 4, 0.25, **decayed),
        "apollo": fx.apollo(0.02, 2, 4, 2.0, **decayed),
    }
    for name, tx in matrix.items():
        found[name] = (tx, of_matrices, 1e-9)
    adam = test_iterates.ADAM
    of_two_points = {
        "schedule_free_sgd": fx.schedule_free_sgd(0.05, 5, b1=0.8, weight_decay=0.1),
        "schedule_free_adamw": fx.schedule_free_adamw(0.05, 5, b1=0.8, weight_decay=0.1),
        "ema_nesterov": fx.ema_nesterov(adam, 0.3, decay=0.9, start=3, stop=8),
        "swa": fx.swa(adam, 2, 3),
        "outer_step": fx.outer_step(adam, fx.sgd(0.7, 0.5, nesterov=True), 4),
        "sam": fx.sam(adam, 0.5),
        "asam": fx.asam(adam),
    }
    for name, tx in of_two_points.items():
        found[name] = (tx, of_trees, 1e-12)
    return found


SENTENCES = sentences()

# What changes nothing in any sentence, and why.
# Of scale_by_moments, where no second moment is divided by.
NO_SECOND = ("eps", "eps_root", "power")
NEUTRAL = {
    "without add_decayed_weights()",  # by its default of 0
    "without add_decayed_weights(mask=True)",
}
# What changes nothing in these, and where it is noticed.
UNSEEN = {
    "lars": {"add_decayed_weights.mask = False"},  # there is no decay; lars decayed
    "adopt unclipped": {
        "clip.max_delta.schedules.1.value = 1.5000000000000002e+30",  # as good as no clip
    },
    "adafactor": {"scale_by_moments.b2.storage.min_dim_size = 2"},  # both axes are longer
    "came": {
        "scale_by_moments.b2.storage.min_dim_size = 2",
        "scale_by_moments_2.b2.storage.min_dim_size = 2",
        "clip_by_block_rms.threshold = 1.5",  # not reached on random gradients
        "without undivided(complement(ndim_at_least(2)))",  # of what is no matrix; the table's vectors
    },
    "rprop": {"scale_by_rprop.max_step_size = 75.0"},  # not reached
    "prodigy": {"scale_by_prodigy.safeguard_warmup = True"},  # at a rate of 1; prodigy, safeguard
    "momo": {"scale_by_momo.eps = 3.0"},  # divides in the form of Adam only: momo_adam
    "momo, bound": {"scale_by_momo.eps = 3.0"},
    "momo_adam, bound": {"scale_by_momo.learning_rate = 0.75"},  # the model allows less; momo_adam
    "polyak_sgd, sps+": {"scale_by_polyak.max_learning_rate = 1.5"},  # not reached; polyak_sgd
    "muonh": {  # twelve iterations converge from any scale, and hyperball sets the size
        "partition.matrix.orthogonalize.eps = 3.0",
        "partition.matrix.orthogonalize.margin = 1.5",
        "partition.matrix.orthogonalize.adaptive = True",
    },
    "soap": {
        "partition.matrix.scale_by_moments.b2.max_dim = 10001",  # all axes are shorter
        "partition.matrix.scale_by_moments.b2.of_gradient = True",  # nothing stands before the moments
    },
    "shampoo": {
        "partition.matrix.graft.direction.scale_by_moments.b2.max_dim = 10001",
        "partition.matrix.graft.direction.through.size = 1025",
    },
    "kron": {
        "partition.matrix.scale_by_kron.max_dim = 8193",
        "partition.matrix.clip_by_block_rms.threshold = 1.6500000000000001",
        "without clip_by_block_rms(1.1)",
    },
    # Weights of an average, relative to each other.
    "schedule_free_sgd": {"average_iterates.learning_rate.end_value = 0.07500000000000001"},
    "schedule_free_adamw": {"average_iterates.learning_rate.end_value = 0.07500000000000001"},
    # COCOB's bets do not change with the scale of the gradients.
    "cocob": {"scale_by_lr.learning_rate = 1.5", "without scale_by_lr(1.0, flip_sign=False)"},
    "cocob, alpha": {
        "scale_by_lr.learning_rate = 3.0",
        "without scale_by_lr(2.0, flip_sign=False)",
    },
}


def neutral(tx, fault):
    """Whether this changes nothing by what its block is."""
    name = fault.split(" = ")[0]
    of, _, argument = name.rpartition(".")
    if argument in NO_SECOND and of.rpartition(".")[2].startswith("scale_by_moments"):
        return tx.hyperparams.get(f"{of}.b2") is None or "arctan2" in repr(tx)
    if argument == "initial" and tx.hyperparams.get(f"{of}.first_whole"):
        return True  # the first gradient takes its place
    if argument == "first_whole":  # what a trace takes in is whole, where nothing dampens it
        return tx.hyperparams.get(f"{of}.dampening") == 0
    return fault in NEUTRAL


def apart(wrong, want, problem):
    """The largest difference of a leaf's updates, of the largest of them; an error is as far as can be."""
    try:
        got = updates(wrong, problem())
    except (TypeError, ValueError):
        return np.inf
    return max(
        np.nan_to_num(np.max(np.abs(a - b)), nan=np.inf) / np.max(np.abs(b))
        for a, b in zip(got, want, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SENTENCES)
def test_every_fault_is_noticed(name, x64):
    tx, problem, tolerance = SENTENCES[name]
    want = updates(tx, problem())
    made = {f: wrong for f, wrong in faults(tx).items() if not neutral(tx, f)}
    if os.environ.get("ADAMFX_FAULTS") != "all":
        chosen = list(made)[list(SENTENCES).index(name) % 3 :: 3]
        made = {f: made[f] for f in chosen}
    unseen = {f for f, wrong in made.items() if apart(wrong, want, problem) < 10 * tolerance}
    assert unseen == UNSEEN.get(name, set()) & set(made)
