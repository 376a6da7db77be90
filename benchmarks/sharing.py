"""What the words for several chips make of a step on eight TPU chips: state in shares, shared matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks import programs

# Of the training step; each array is larger than a chip's fast memory.
WIDTH, LAYERS, BATCH = 4096, 4, 64
SENTENCES = {  # of the training step: (sentence, dtype of the parameters)
    "adamw": ("adamw(1e-3)", "float32"),
    "shard_state(adamw)": ("shard_state(adamw(1e-3))", "float32"),
    "shard_state(lamb)": ("shard_state(lamb(1e-3))", "float32"),
    "shard_state(clip + adamw)": (
        "shard_state(chain(clip_by_global_norm(1.0), adamw(1e-3)))",
        "float32",
    ),
    "master_weights(adamw), bfloat16": ("master_weights(adamw(1e-3))", "bfloat16"),
    "shard_state(master_weights(adamw)), bfloat16": (
        "shard_state(master_weights(adamw(1e-3)))",
        "bfloat16",
    ),
}
KINDS = {False: "automatic axes", True: "explicit axes"}
SUMS, GATHERS = ("all-reduce", "reduce-scatter"), ("all-gather",)


def bytes_of(made: programs.Program, kinds: tuple[str, ...], parameters: float) -> float:
    """What these collectives return, per parameter."""
    return sum(made.collectives.get(kind, (0, 0))[1] for kind in kinds) / parameters


def in_shares(held: dict, name: str, explicit: bool = False) -> dict[str, float]:
    """A training step whose parameters every chip has whole, on a batch that is shared out.

    By column, in bytes per parameter: what the chip has before the step and at its peak, what the sums
    of the gradients return, what is gathered.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    text, dtype = SENTENCES[name]
    where = programs.mesh("FSDP", explicit)

    def leaf(*shape: int, along: Any = None) -> Any:
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=NamedSharding(where, P(along)))

    layer = {"up": leaf(WIDTH, 4 * WIDTH), "down": leaf(4 * WIDTH, WIDTH)}
    params = {f"layer{i}": layer for i in range(LAYERS)}

    def loss(p: dict, x: Any) -> Any:
        for w in p.values():
            x = x + jnp.tanh(x @ w["up"]) @ w["down"]
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    batch = leaf(BATCH, WIDTH, along="data")
    made = programs.of_sentence(
        text, where, params, lambda p, x: jax.grad(loss)(p, x), batch, chips=1
    )
    n = _parameters(params)
    return {
        "arguments": made.arguments,
        "peak": made.peak,
        "summed": bytes_of(made, SUMS, n),
        "gathered": bytes_of(made, GATHERS, n),
    }


def matrices(
    held: dict,
    text: str,
    layout: str,
    explicit: bool = False,
    apart: bool = False,
    layers: int = 24,
    width: int = 1024,
) -> dict[str, float]:
    """A step of the matrices of a transformer, each with its gradient.

    By column: bytes that one chip gets, over its own of the parameters; operations over an eighth of those
    of the program for one chip; bytes per parameter at the peak; numbers in the state per parameter.

    Args:
      apart: no mesh is set, so each leaf is worked on by itself.
    """
    import jax

    import adamfx as fx

    where = programs.mesh(layout, explicit)
    params = _matrices(programs.parameters(layout, explicit=explicit, layers=layers, width=width))
    made = programs.of_sentence(text, where, params, lambda p, g: g, params, apart=apart)
    n = _parameters(params)
    return {
        "sent": made.sent / (4 * n / programs.CHIPS),
        "operations": made.operations / (_operations_alone(held, text, params) / programs.CHIPS),
        "peak": made.peak,
        "remembered": _parameters(jax.eval_shape(fx.read(text).init, params)) / n,
    }


def _operations_alone(held: dict, text: str, params: Any) -> float:
    """Of the step on one chip."""
    import jax
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    key = text, *(x.shape for x in jax.tree.leaves(params))
    if key not in held:
        one = Mesh(programs.mesh("FSDP").devices[:1], ("data",))
        lies = NamedSharding(one, P())
        here = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), params)
        held[key] = programs.of_sentence(text, one, here, lambda p, g: g, here, chips=1).operations
    return held[key]


def _parameters(tree: Any) -> int:
    import jax

    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _matrices(tree: dict) -> dict:
    """Those of the layers, without embedding and vectors."""
    kept = {}
    for name, x in tree.items():
        if isinstance(x, dict):
            kept[name] = _matrices(x)
        elif name not in ("embedding", "norm", "bias"):
            kept[name] = x
    return kept
