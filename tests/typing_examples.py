"""Checked by pyright in `make check`, never run: adamfx values where Flax and optax want theirs."""

import flax.linen as nn
import jax
import optax
from flax import nnx
from flax.training.train_state import TrainState

import adamfx as fx


def optax_expects_a_transformation(tx: optax.GradientTransformation) -> None: ...


def flax_and_optax(model: nn.Module, nnx_model: nnx.Module, params: dict[str, jax.Array]) -> None:
    tx: fx.GradientTransformation = fx.live(fx.adamw(1e-3, mask=fx.ndim_at_least(2)))
    optax_expects_a_transformation(tx.as_optax())
    optax.chain(optax.clip(1.0), tx.as_optax())
    TrainState.create(apply_fn=model.apply, params=params, tx=tx.as_optax())
    nnx.Optimizer(nnx_model, tx.as_optax(), wrt=nnx.Param)


def values_and_blocks() -> None:
    schedule: fx.Schedule = fx.cosine_decay_schedule(1e-3, 100)
    estimator: fx.Estimator = fx.ema(0.9)
    blocks: list[fx.GradientTransformation] = [
        fx.scale_by_moments(estimator, 0.999, eps=1e-8),
        fx.bias_correct(),
        fx.scale_by_lr(schedule),
        fx.scale_by_lr(lambda count: 1e-3),
        fx.scale(0.5).replace(step_size=0.25),
    ]
    tx: fx.GradientTransformation = fx.chain(*blocks, optax.clip(1.0))
    init, update = tx
    print(init, update, tx.hyperparams, tx.concrete())


@fx.block
def mine(threshold: fx.Dynamic, n: int = 2):
    return fx.leafwise(lambda u, here: u * n * threshold)


def a_block_of_ones_own_keeps_its_parameters() -> None:
    tx: fx.GradientTransformation = mine(0.1, n=3)
    mine(0.1, m=3)  # pyright: ignore[reportCallIssue]
    fx.adam(1e-3, b3=1)  # pyright: ignore[reportCallIssue]
    print(tx)
