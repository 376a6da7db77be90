"""What XLA makes of one step on eight TPU chips that are not there.

libtpu compiles for a described topology without a device, so collectives, memory and bytes moved can be
counted on any machine; nothing can be run. A process that does so is started with `environment()`, and no
other process: one that sees libtpu looks for a TPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from benchmarks import hlo
from benchmarks.contenders import CLIPPED, SCHEDULE

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is taken from there says less of itself
    "XLA_FLAGS": "",
}
LAYOUTS = ("FSDP", "FSDP x tensors", "FSDP, stacked")
CHIPS = 8
WIDTH, LAYERS = 4096, 4  # a billion parameters: most arrays do not fit into a chip's fast memory
ALLOWED = 0.01  # so much more than optax may ours hold and move


def library() -> Path | None:
    """Where libtpu lies: TPU_LIBRARY_PATH, or where `make tpu` puts it."""
    made = Path(__file__).parents[1] / ".tpu/libtpu/libtpu.so"
    path = Path(os.environ.get("TPU_LIBRARY_PATH", made))
    return path if path.exists() else None


def environment() -> dict[str, str]:
    """Of a process that compiles for TPUs that are not there."""
    return ENVIRONMENT | {"TPU_LIBRARY_PATH": str(library())}


class Program(NamedTuple):
    """Of one chip. Bytes are of its large memory, per parameter that it holds where all are shared out."""

    arguments: float
    temporaries: float
    peak: float  # arguments, temporaries, and results that are not put where an argument was
    moved: float  # read and written
    collectives: dict[str, tuple[int, int]]  # kind: (how many, bytes of their results)
    loops: int
    operations: float  # as XLA counts them, products above all
    seconds: float  # to compile

    @property
    def number(self) -> int:
        """How many collectives."""
        return sum(n for n, _ in self.collectives.values())

    @property
    def kinds(self) -> str:
        """Collectives by kind, how many and of how many bytes."""
        found = (f"{n} {kind} of {size:,} bytes" for kind, (n, size) in self.collectives.items())
        return ", ".join(found) or "none"

    @property
    def sent(self) -> int:
        """Bytes that collectives return."""
        return sum(size for _, size in self.collectives.values())


COLUMNS: dict[str, tuple[str, Callable[[Program], float]]] = {  # name: (unit, of a program)
    "collectives": ("", lambda x: x.number),
    "MB sent": ("MB", lambda x: x.sent / 1e6),
    "loops": ("", lambda x: x.loops),
    "arguments": ("bytes", lambda x: x.arguments),
    "temporaries": ("bytes", lambda x: x.temporaries),
    "peak": ("bytes", lambda x: x.peak),
    "moved": ("bytes", lambda x: x.moved),
    "compile s": ("s", lambda x: x.seconds),
}


def bars(peer: Program) -> dict[str, float]:
    """By column, the most that ours may have beside optax's."""
    more = ALLOWED * peer.peak
    return {
        "collectives": peer.number,
        "temporaries": peer.temporaries + more,
        "peak": peer.peak + more,
        "moved": peer.moved * (1 + ALLOWED),
    }


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


def parameters(
    layout: str,
    dtype: str = "float32",
    explicit: bool = False,
    layers: int = LAYERS,
    width: int = WIDTH,
) -> dict:
    """Abstract parameters of a transformer, sharded."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    two = "model" if "tensors" in layout else None
    d = width
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
        below: dict = {n: leaf((layers, *s), (None, *spec)) for n, (s, spec) in layer.items()}
    else:
        below = {
            f"layer{i}": {n: leaf(s, spec) for n, (s, spec) in layer.items()} for i in range(layers)
        }
    return {"embedding": leaf((16 * d, d), ("data", two)), "layers": below}


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


# What users of optax write by hand.


def _averaging(lib: Any, tx: Any) -> Any:
    """With an average of the parameters."""

    def update(updates: Any, state: Any, params: Any) -> Any:
        updates, inner = tx.update(updates, state[0], params)
        moved = lib.apply_updates(params, updates)
        return updates, (inner, lib.incremental_update(moved, state[1], 0.001))

    return SimpleNamespace(init=lambda params: (tx.init(params), params), update=update)


def _watched(lib: Any, tx: Any) -> Any:
    """With the numbers that `monitor` keeps."""
    norm = lib.global_norm

    def init(params: Any) -> Any:
        return tx.init(params), dict.fromkeys(("gradient", "update", "ratio"), np.float32(0))

    def update(updates: Any, state: Any, params: Any) -> Any:
        new, inner = tx.update(updates, state[0], params)
        size = norm(new)
        return new, (
            inner,
            {"gradient": norm(updates), "update": size, "ratio": size / norm(params)},
        )

    return SimpleNamespace(init=init, update=update)


def _clip_by_norm(lib: Any) -> Any:
    import jax.numpy as jnp

    def clip(u: Any, _: Any) -> Any:
        return u / jnp.maximum(1.0, jnp.linalg.norm(u))

    return lib.stateless_with_tree_map(clip)


def _accumulating(lib: Any, **options: Any) -> Any:
    return lib.MultiSteps(lib.adamw(1e-3), 8, **options).gradient_transformation()


def _muon_of_stacks(lib: Any) -> Any:
    """On the last two axes of everything that has two, as ours; by itself it takes what has exactly two."""
    import jax

    def matrices(params: Any) -> Any:
        of = lib.contrib.MuonDimensionNumbers
        return jax.tree.map(lambda x: of(-2, -1) if x.ndim > 1 else None, params)

    return lib.contrib.muon(1e-3, muon_weight_dimension_numbers=matrices)


BETWEEN = "accumulate, between"  # the cheapest branches are counted, not the dearest
PEERS: dict[str, Callable[[Any], Any]] = {
    **{
        name: _of_both(name, 1e-3)
        for name in (
            "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "adan", "amsgrad",
            "fromage", "lamb", "lars", "lion", "nadam", "nadamw", "novograd", "radam", "rmsprop", "rprop",
            "sign_sgd", "sm3", "yogi", "ademamix", "schedule_free_adamw",
        )
    },
    "momentum": _of_both("sgd", 1e-3, momentum=0.9),
    "prodigy": _of_both("prodigy"),
    "muon": _pair(lambda lib: lib.muon(1e-3), _muon_of_stacks),
    CLIPPED: _clipped,
    "clip_by_global_norm": lambda lib: lib.chain(lib.clip_by_global_norm(1.0), lib.adam(1e-3)),
    "clip_by_norm": _pair(
        lambda lib: lib.chain(lib.clip_by_norm(1.0), lib.adam(1e-3)),
        lambda lib: lib.chain(_clip_by_norm(lib), lib.adam(1e-3)),
    ),
    "clip_by_block_rms": lambda lib: lib.chain(lib.clip_by_block_rms(1.0), lib.adam(1e-3)),
    "adaptive_grad_clip": lambda lib: lib.chain(lib.adaptive_grad_clip(0.01), lib.adam(1e-3)),
    "masked": lambda lib: lib.masked(
        lib.adam(1e-3), lambda params: __import__("jax").tree.map(lambda x: x.ndim > 1, params)
    ),
    # In a step that emits; in one that does not; and beside one that looks for what is not finite, as ours.
    "accumulate": _pair(lambda lib: lib.accumulate(lib.adamw(1e-3), 8), _accumulating),
    BETWEEN: _pair(lambda lib: lib.accumulate(lib.adamw(1e-3), 8), _accumulating),
    "accumulate, finite": _pair(
        lambda lib: lib.accumulate(lib.adamw(1e-3), 8),
        lambda lib: _accumulating(lib, should_skip_update_fn=lib.skip_not_finite),
    ),
    "skip": _pair(
        lambda lib: lib.skip_nonfinite(lib.adamw(1e-3)),
        lambda lib: lib.apply_if_finite(lib.adamw(1e-3), 5),
    ),
    "average": _pair(
        lambda lib: lib.average_params(lib.adamw(1e-3), lib.ema(0.999)),
        lambda lib: _averaging(lib, lib.adamw(1e-3)),
    ),
    "monitor": _pair(
        lambda lib: lib.monitor(lib.adamw(1e-3)), lambda lib: _watched(lib, lib.adamw(1e-3))
    ),
}  # fmt: skip


# ---- the program ---------------------------------------------------------------------------------


def program(held: dict, library: str, name: str, layout: str = "FSDP") -> Program:
    """The compiled step of an optimizer as its users write it, with donated arguments."""
    lib = __import__(library)
    tx = PEERS[name](lib)

    def by_hand(p: Any, s: Any, g: Any) -> Any:
        updates, s = tx.update(g, s, p)
        return lib.apply_updates(p, updates), s

    def in_one(p: Any, s: Any, g: Any) -> Any:
        return tx.step(g, s, p)

    step = in_one if library == "adamfx" else by_hand
    return compiled(step, tx, mesh(layout), parameters(layout), name == BETWEEN)


def of_text(held: dict, text: str, layout: str = "FSDP") -> Program:
    """The compiled step of one of our sentences, its state where `abstract_state` says."""
    params = parameters(layout)
    return of_sentence(text, mesh(layout), params, lambda p, g: g, params)


def of_sentence(
    text: str,
    where: Any,
    params: Any,
    gradient: Callable,
    batch: Any,
    chips: int = CHIPS,
    apart: bool = False,
) -> Program:
    """The compiled step with gradient(params, batch) on a mesh, which is set around it unless `apart`."""
    import jax

    import adamfx as fx

    tx = fx.read(text)
    around = jax.sharding.use_abstract_mesh(where.abstract_mesh)
    with contextlib.nullcontext() if apart else around:
        state = fx.abstract_state(tx, params)
        lie = jax.tree.map(lambda x: x.sharding, (params, state))

        def step(p: Any, s: Any, x: Any) -> Any:
            return tx.step(gradient(p, x), s, p)

        function = jax.jit(step, donate_argnums=(0, 1), out_shardings=lie)
        return read(function, (params, state, batch), chips=chips)


def compiled(step: Callable, tx: Any, mesh: Any, params: Any, least: bool = False) -> Program:
    import jax

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        state = abstract_state(tx, params)
        where = jax.tree.map(lambda x: x.sharding, (params, state))
        function = jax.jit(step, donate_argnums=(0, 1), out_shardings=where)
        return read(function, (params, state, params), least)


def read(function: Any, arguments: tuple, least: bool = False, chips: int = CHIPS) -> Program:
    """The figures of a jitted function, compiled; its arguments are abstract, the first the parameters.

    `chips`: over how many the parameters are shared out.
    """
    import jax

    lowered, start = function.lower(*arguments), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = lowered.compile(compiler_options={"xla_dump_to": folder})
        seconds = time.perf_counter() - start
        (assignment,) = Path(folder).glob("*.after_optimizations-buffer-assignment.txt")
        temporaries = hlo.temporaries(assignment.read_text())
    memory, text = made.memory_analysis(), made.as_text()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    own = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(arguments[0])) / chips
    return Program(
        memory.argument_size_in_bytes / own,
        temporaries / own,
        (memory.argument_size_in_bytes + results + temporaries) / own,
        hlo.moved(text, least) / own,
        hlo.collectives(text, least),
        len(re.findall(r" while\(", text)),
        made.cost_analysis()["flops"],
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
