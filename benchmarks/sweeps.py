"""A sweep of many short trainings by `fx.sweep`, beside loops of optax as they are written by hand.

20 learning rates from 5 seeds each, adamw, a small network on scikit-learn's digits. All contenders train on
the same batches from the same parameters, and each begins with nothing traced or compiled: what is measured
is what one waits for. Beside fx.sweep:

- a step per member: `optax.adamw(rate)` is closed over by a new jitted step, which compiles anew
- one step: the rate is a number in the state (`inject_hyperparams`), one jitted step for all members
- one scan: the same, and all steps of a member are one jitted scan
- one vmap: that scan under vmap, which is what fx.sweep writes for its user
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

RATES = (-4.0, -1.5)  # of ten
HIDDEN = 32
BATCH = 64
RTOL, ATOL = 1e-3, 1e-4  # of losses: hundreds of steps in float32, with sums in another order


class Size(NamedTuple):
    """How many rates, seeds and steps."""

    rates: int
    seeds: int
    steps: int

    @property
    def members(self) -> int:
        return self.rates * self.seeds


def init(key: Any) -> dict:
    import jax
    import jax.numpy as jnp

    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (64, HIDDEN)) / 8,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(second, (HIDDEN, 10)) / HIDDEN**0.5,
        "b2": jnp.zeros(10),
    }


def loss_fn(params: dict, x: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    logits = jax.nn.log_softmax(hidden @ params["w2"] + params["b2"])
    return -jnp.mean(jnp.take_along_axis(logits, y[:, None], 1))


def batches(steps: int) -> list:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), labels.astype(np.int32)
    rng = np.random.default_rng(0)
    rows = [rng.choice(len(x), BATCH, replace=False) for _ in range(steps)]
    return [(x[i], y[i]) for i in rows]


def rates(size: Size) -> list[float]:
    return [float(f"{x:.4g}") for x in np.logspace(*RATES, size.rates)]


# ---- the contenders: each returns losses of (members, steps) -------------------------------------


def by_sweep(size: Size, data: list) -> np.ndarray:
    import adamfx as fx

    values = {"learning_rate": rates(size)}
    found = fx.sweep(loss_fn, values, fx.adamw(1e-3), init, data, seeds=size.seeds, progress=False)
    return np.stack([found.history(i)["loss"] for i in range(len(found))])


def by_a_step_per_member(size: Size, data: list) -> np.ndarray:
    import jax
    import optax

    found = []
    for rate in rates(size):
        for seed in range(size.seeds):
            tx = optax.adamw(rate)

            @jax.jit
            def step(params, state, x, y, tx=tx):
                loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
                updates, state = tx.update(grads, state, params)
                return optax.apply_updates(params, updates), state, loss

            params = init(jax.random.key(seed))
            state, losses = tx.init(params), []
            for x, y in data:
                params, state, loss = step(params, state, x, y)
                losses.append(loss)
            found.append(jax.device_get(losses))
    return np.array(found)


def by_one_step(size: Size, data: list) -> np.ndarray:
    import jax
    import optax

    tx = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    found, start = [], jax.jit(init)
    for rate in rates(size):
        for seed in range(size.seeds):
            params = start(jax.random.key(seed))
            state, losses = tx.init(params), []
            state.hyperparams["learning_rate"] = np.float32(rate)
            for x, y in data:
                params, state, loss = step(params, state, x, y)
                losses.append(loss)
            found.append(jax.device_get(losses))
    return np.array(found)


def training() -> Callable:
    """A whole run of a member, to be jitted."""
    import jax
    import optax

    tx = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)

    def run(rate, key, data):
        params = init(key)
        state = tx.init(params)
        state.hyperparams["learning_rate"] = rate

        def step(carry, batch):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, state), data)[1]

    return run


def stacked(data: list) -> Any:
    import jax

    return jax.device_put(jax.tree.map(lambda *xs: np.stack(xs), *data))


def by_one_scan(size: Size, data: list) -> np.ndarray:
    import jax

    run, data = jax.jit(training()), stacked(data)
    found = [
        run(np.float32(rate), jax.random.key(seed), data)
        for rate in rates(size)
        for seed in range(size.seeds)
    ]
    return np.array(jax.device_get(found))


def by_one_vmap(size: Size, data: list) -> np.ndarray:
    import jax

    run = jax.jit(jax.vmap(training(), in_axes=(0, 0, None)))
    of_rates = np.repeat(np.float32(rates(size)), size.seeds)
    keys = jax.vmap(jax.random.key)(np.tile(np.arange(size.seeds), size.rates))
    return np.asarray(run(of_rates, keys, stacked(data)))


CONTENDERS: dict[str, Callable[[Size, list], np.ndarray]] = {
    "fx.sweep": by_sweep,
    "a step per member": by_a_step_per_member,
    "one step": by_one_step,
    "one scan": by_one_scan,
    "one vmap": by_one_vmap,
}


def timed(held: dict, name: str, size: Size) -> tuple[float, np.ndarray]:
    """Seconds of a contender, from nothing compiled to all losses on the host; and the losses."""
    import jax

    data = batches(size.steps)
    jax.clear_caches()
    start = time.perf_counter()
    losses = CONTENDERS[name](size, data)
    return time.perf_counter() - start, losses


def raced(worker: Any, size: Size, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each contender in each round, in random order; all have found the same losses."""
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    same, order = None, np.random.default_rng(0)
    for name in CONTENDERS:  # what is imported and looked up at the first use of a library
        worker.ask(timed, name, Size(1, 1, 2))
    for _ in range(rounds):
        for name in order.permutation(list(CONTENDERS)):
            seconds, losses = worker.ask(timed, str(name), size)
            found[name].append(seconds)
            same = losses if same is None else same
            np.testing.assert_allclose(losses, same, RTOL, ATOL, err_msg=str(name))
    return {name: np.asarray([seconds]) for name, seconds in found.items()}
