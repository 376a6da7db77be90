"""What XLA makes of one step on eight TPU chips that are not there.

libtpu compiles for a described topology without a device, so collectives, memory and bytes moved can be
counted on any machine; nothing can be run. A process that does so is started with `ENVIRONMENT`.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contenders import CLIPPED, SCHEDULE

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
LAYOUTS = ("FSDP", "FSDP x tensors", "FSDP, stacked")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
WIDTH, LAYERS = 512, 4


class Program(NamedTuple):
    """Of one chip. Memory and bytes moved per parameter that it holds, were they shared out evenly."""

    arguments: float
    temporaries: float
    peak: float
    moved: float
    collectives: dict[str, tuple[int, int]]  # kind: (how many, bytes of their results)
    loops: int
    seconds: float  # to compile

    @property
    def count(self) -> int:
        return sum(n for n, _ in self.collectives.values())

    @property
    def sent(self) -> int:
        return sum(size for _, size in self.collectives.values())


# ---- the model -----------------------------------------------------------------------------------


@functools.cache
def mesh(layout: str, explicit: bool = False) -> Any:
    """Eight described chips, named."""
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    shape, names = ((4, 2), ("data", "model")) if "tensors" in layout else ((8,), ("data",))
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return Mesh(np.array(chips).reshape(shape), names, axis_types=(kind,) * len(names))


def parameters(layout: str, dtype: str = "float32", explicit: bool = False) -> dict:
    """Abstract parameters of a small transformer, sharded."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    two = "model" if "tensors" in layout else None
    d = WIDTH
    layer: dict[str, tuple] = {
        "qkv": ((d, 3 * d), ("data", two)),
        "out": ((d, d), (two, "data")),
        "up": ((d, 4 * d), ("data", two)),
        "down": ((4 * d, d), (two, "data")),
        "norm": ((d,), (None,)),
        "bias": ((d,), (None,)),
    }

    def leaf(shape: tuple, spec: tuple) -> Any:
        sharding = NamedSharding(mesh(layout, explicit), P(*spec))
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=sharding)

    if "stacked" in layout:
        layers: dict = {n: leaf((LAYERS, *s), (None, *spec)) for n, (s, spec) in layer.items()}
    else:
        layers = {
            f"layer{i}": {n: leaf(s, spec) for n, (s, spec) in layer.items()} for i in range(LAYERS)
        }
    return {"embedding": leaf((16 * d, d), ("data", two)), "layers": layers}


# ---- what is compared ----------------------------------------------------------------------------


def _of_both(name: str, *arguments: Any, **named: Any) -> Callable[[Any], Any]:
    def make(lib: Any) -> Any:
        return (getattr(lib, name, None) or getattr(lib.contrib, name))(*arguments, **named)

    return make


def _clipped(lib: Any) -> Any:
    rate = lib.warmup_cosine_decay_schedule(**SCHEDULE)
    return lib.chain(lib.clip_by_global_norm(1.0), lib.adamw(rate))


def _pair(ours: Callable[[Any], Any], theirs: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda lib: (ours if lib.__name__ == "adamfx" else theirs)(lib)


def _averaging(lib: Any, tx: Any) -> Any:
    """An average of the parameters as users of optax write it."""

    def init(params: Any) -> Any:
        return tx.init(params), params

    def update(updates: Any, state: Any, params: Any) -> Any:
        updates, inner = tx.update(updates, state[0], params)
        moved = lib.apply_updates(params, updates)
        return updates, (inner, lib.incremental_update(moved, state[1], 0.001))

    return lib.GradientTransformation(init, update)


PEERS: dict[str, Callable[[Any], Any]] = {
    **{
        name: _of_both(name, 1e-3)
        for name in (
            "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "adan", "amsgrad",
            "fromage", "lamb", "lars", "lion", "nadam", "nadamw", "novograd", "radam", "rmsprop", "rprop",
            "sign_sgd", "sm3", "yogi", "muon", "ademamix", "schedule_free_adamw",
        )
    },
    "momentum": _of_both("sgd", 1e-3, momentum=0.9),
    "prodigy": _of_both("prodigy"),
    CLIPPED: _clipped,
    "clip_by_block_rms": lambda lib: lib.chain(lib.clip_by_block_rms(1.0), lib.adam(1e-3)),
    "adaptive_grad_clip": lambda lib: lib.chain(lib.adaptive_grad_clip(0.01), lib.adam(1e-3)),
    "masked": lambda lib: lib.masked(
        lib.adam(1e-3), lambda params: __import__("jax").tree.map(lambda x: x.ndim > 1, params)
    ),
    "accumulate": _pair(
        lambda lib: lib.accumulate(lib.adamw(1e-3), 8),
        lambda lib: lib.MultiSteps(lib.adamw(1e-3), 8).gradient_transformation(),
    ),
    "skip": _pair(
        lambda lib: lib.skip_nonfinite(lib.adamw(1e-3)),
        lambda lib: lib.apply_if_finite(lib.adamw(1e-3), 5),
    ),
    "average": _pair(
        lambda lib: lib.average_params(lib.adamw(1e-3), lib.ema(0.999)),
        lambda lib: _averaging(lib, lib.adamw(1e-3)),
    ),
}  # fmt: skip
OURS: dict[str, Callable[[Any], Any]] = {
    "monitor": lambda lib: lib.monitor(lib.adamw(1e-3)),
    "soap": _of_both("soap"),
}


# ---- the program ---------------------------------------------------------------------------------


def program(held: dict, library: str, name: str, layout: str = "FSDP") -> Program:
    """The compiled step of an optimizer, `update` and `apply_updates`, with donated arguments."""
    lib = __import__(library)
    return compiled((PEERS | OURS)[name](lib), lib.apply_updates, parameters(layout))


def compiled(tx: Any, apply_updates: Callable, params: Any) -> Program:
    import jax

    state = abstract_state(tx, params)

    def step(p: Any, s: Any, g: Any) -> Any:
        updates, s = tx.update(g, s, p)
        return apply_updates(p, updates), s

    where = jax.tree.map(lambda x: x.sharding, (params, state))
    start = time.perf_counter()
    made = jax.jit(step, donate_argnums=(0, 1), out_shardings=where)
    return read(made.lower(params, state, params).compile(), params, start)


def read(made: Any, params: Any, start: float) -> Program:
    """The figures of a compiled program, of which `start` is when it was begun."""
    import jax

    seconds = time.perf_counter() - start
    memory, text, cost = made.memory_analysis(), made.as_text(), made.cost_analysis()
    own = sum(np.prod(x.shape, dtype=np.int64) for x in jax.tree.leaves(params)) / 8
    return Program(
        memory.argument_size_in_bytes / own,
        memory.temp_size_in_bytes / own,
        memory.peak_memory_in_bytes / own,
        cost["bytes accessed"] / own,
        collectives(text),
        len(re.findall(r" while\(", text)),
        seconds,
    )


def abstract_state(tx: Any, params: Any) -> Any:
    """Shapes of a state, each array sharded as the first parameter of its shape."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    leaves = jax.tree.leaves(params)
    by_shape = {x.shape: x.sharding for x in reversed(leaves)}
    whole = NamedSharding(leaves[0].sharding.mesh, P())

    def lies(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_shape.get(x.shape, whole))

    return jax.tree.map(lies, jax.eval_shape(tx.init, params))


SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """How many of each kind a compiled program has, and the bytes of what they return."""
    found: dict[str, tuple[int, int]] = {}
    for kind in KINDS:
        sizes = []
        for result, start in re.findall(rf"= (.*?) {kind}(-start)?\(", text):
            parts = [
                SIZES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64))
                for dtype, shape in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", result)
            ]
            # What starts one returns the operands before the results, all but an all-reduce.
            again = start and kind != "all-reduce"
            sizes.append(sum(parts[len(parts) // 2 :] if again else parts))
        if sizes:
            found[kind] = (len(sizes), sum(sizes))
    return found
