"""What is compared: one step of an optimizer of one library on one tree of parameters.

A contender is made from a Case and is called with a number of steps. It keeps what it steps on, so
that calls follow one another as in a training run, and it returns when the device has finished.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SCHEDULE = {"init_value": 0.0, "peak_value": 1e-3, "warmup_steps": 10, "decay_steps": 10_000}
CLIPPED = "clip + adamw + schedule"
OPTIMIZERS = ("adam", "momentum", "rmsprop", "adamw", CLIPPED, "lion", "lamb")


class Case(NamedTuple):
    """What to run. `library`: adamfx, optax, torch fused, torch foreach, pytorch_optimizer."""

    library: str
    optimizer: str = "adam"
    leaves: int = 1
    size: int = 1000
    dtype: str = "float32"  # or bfloat16, or mixed: every second leaf bfloat16
    mode: str = "jit"  # jit, argument (the optimizer is one), eager (update only), scan
    dispatch: int = 100  # steps per dispatch for scan
    columns: int = 0  # leaves are matrices of `size` rows, of random numbers

    @property
    def parameters(self) -> int:
        return self.leaves * self.size * max(self.columns, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.columns) if self.columns else (self.size,)

    @property
    def tree(self) -> str:
        kind = "" if self.dtype == "float32" else f" {self.dtype}"
        size = f"({self.size} x {self.columns})" if self.columns else f"{self.size:,}"
        return f"{self.leaves:,} x {size}{kind}"


def optimizer(case: Case) -> tuple[Any, Callable]:
    """The optimizer and the function that applies its updates."""
    if case.library == "adamfx":
        import adamfx as lib
    else:
        import optax as lib
    make: Any = lib
    if case.optimizer == "momentum":
        return make.sgd(1e-3, momentum=0.9), make.apply_updates
    if case.optimizer == CLIPPED:
        rate = make.warmup_cosine_decay_schedule(**SCHEDULE)
        return make.chain(make.clip_by_global_norm(1.0), make.adamw(rate)), make.apply_updates
    if case.optimizer in WRAPPED:
        return WRAPPED[case.optimizer](make, case.library == "adamfx"), make.apply_updates
    if not hasattr(make, case.optimizer):
        return getattr(make.contrib, case.optimizer)(1e-3), make.apply_updates
    return getattr(make, case.optimizer)(1e-3), make.apply_updates


def _accumulate(lib: Any, ours: bool, tx: Any) -> Any:
    return lib.accumulate(tx, 8) if ours else lib.MultiSteps(tx, 8).gradient_transformation()


def _skip(lib: Any, ours: bool) -> Any:
    clipped = lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(1e-3))
    inside = _accumulate(lib, ours, clipped)
    return lib.skip_nonfinite(inside) if ours else lib.apply_if_finite(inside, 5)


def _partition(lib: Any, ours: bool) -> Any:
    groups = {f"g{i}": lib.adam(1e-3 * (i + 1)) for i in range(6)}
    make = lib.partition if ours else lib.multi_transform
    return make(groups, lambda params: {name: f"g{int(name[1:]) % 6}" for name in params})


WRAPPED: dict[str, Callable] = {
    "accumulate": lambda lib, ours: _accumulate(lib, ours, lib.adam(1e-3)),
    "skip + accumulate + clip + adamw": _skip,
    "partition of 6": _partition,
}


def dtypes(case: Case) -> list[str]:
    mixed = ["float32", "bfloat16"]
    return [mixed[i % 2] if case.dtype == "mixed" else case.dtype for i in range(case.leaves)]


def trees(case: Case) -> tuple[dict, dict]:
    """Parameters and gradients."""
    import jax.numpy as jnp

    kinds = dtypes(case)
    params = {f"w{i}": jnp.full(case.shape, 1.0, kind) for i, kind in enumerate(kinds)}
    if case.columns:
        rng = np.random.default_rng(
            0
        )  # of full rank: decompositions take longer than for constants
        return params, {
            n: jnp.asarray(rng.normal(size=case.shape), x)
            for n, x in zip(params, kinds, strict=False)
        }
    return params, {name: jnp.full_like(x, 0.1) for name, x in params.items()}


def step(case: Case) -> Callable:
    """(params, state, grads) -> (params, state): update and apply, as users write it."""
    tx, apply_updates = optimizer(case)

    def one(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state

    return one


def contender(case: Case) -> Callable[[int], None]:
    """Runs so many steps; compiled and warm."""
    if "torch" in case.library:
        return torch_contender(case)
    import jax

    tx, apply_updates = optimizer(case)
    params, grads = trees(case)
    state = tx.init(params)

    if case.mode == "eager":

        def eager(steps: int) -> None:
            for _ in range(steps):
                out = tx.update(grads, state, params)
            jax.block_until_ready(out)

        eager(1)
        return eager

    one, each = step(case), 1
    if case.mode == "scan":
        each = case.dispatch

        def many(params, state, grads):
            def body(carry, _):
                return one(*carry, grads), None

            return jax.lax.scan(body, (params, state), length=case.dispatch)[0]

        run: Any = jax.jit(many, donate_argnums=(0, 1))
    elif case.mode == "argument":

        def with_tx(params, state, grads, tx):
            updates, state = tx.update(grads, state, params)
            return apply_updates(params, updates), state

        compiled = jax.jit(with_tx, donate_argnums=(0, 1))

        def run(params, state, grads):
            return compiled(params, state, grads, tx)

    else:
        run = jax.jit(one, donate_argnums=(0, 1))
    held = [params, state]

    def call(steps: int) -> None:
        for _ in range(steps // each):
            held[:] = run(*held, grads)
        jax.block_until_ready(held)

    call(each)
    return call


def torch_contender(case: Case) -> Callable[[int], None]:
    """torch's step, fused or foreach, after clipping where the case has it."""
    import torch

    kinds = [getattr(torch, kind) for kind in dtypes(case)]
    params = [torch.ones(case.shape, dtype=kind) for kind in kinds]
    for p in params:
        p.grad = torch.randn_like(p) if case.columns else torch.full_like(p, 0.1)
    how = dict.fromkeys(case.library.split()[1:], True)
    make: dict[str, Callable] = {
        "adam": functools.partial(torch.optim.Adam, lr=1e-3),
        "adamw": functools.partial(torch.optim.AdamW, lr=1e-3),
        CLIPPED: functools.partial(torch.optim.AdamW, lr=1e-3),
        "momentum": functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
        "rmsprop": functools.partial(torch.optim.RMSprop, lr=1e-3),
    }
    if case.library == "pytorch_optimizer":
        import pytorch_optimizer

        make["soap"] = functools.partial(pytorch_optimizer.SOAP, lr=1e-3)
    opt = make[case.optimizer](params, **how)

    def call(steps: int) -> None:
        for _ in range(steps):
            if case.optimizer == CLIPPED:
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            opt.step()

    call(1)
    return call


def least_bytes(case: Case) -> float:
    """Bytes per parameter that must move: read p, g and the state, write p and the state."""
    import jax

    tx, _ = optimizer(case._replace(library="adamfx"))
    params = {"w": jax.ShapeDtypeStruct((case.size,), np.dtype(np.float32))}
    memory = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(tx.init, params))
    )
    once_more = 4 if case.optimizer in (CLIPPED, "lamb") else 0  # a norm comes first
    return round(2 * memory / case.size) + 12 + once_more
