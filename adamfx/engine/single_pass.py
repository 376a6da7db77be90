"""One pass over memory per step on the CPU.

XLA makes one loop per result on the CPU. Adam has three, p, m and v, and the one for p reads m and v
again: 40 bytes per float32 parameter, of which 28 must move. With the option below XLA merges loops
that read the same arrays and do not wait for one another. So each result is computed on its own from
the old arrays, by the same function: three times the arithmetic, which costs nothing where memory is
the limit, and 28 bytes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

OPTION = "xla_cpu_use_multi_output_fusion"
OPTIONS = "--xla_backend_extra_options="


def configure(*, single_pass: bool) -> None:
    """Turns the step in a single pass over memory on or off, for this process, on the CPU.

        import adamfx as fx
        fx.configure(single_pass=True)  # before anything runs on JAX

    Large float32 parameters on the CPU take about two thirds of the time per step; small ones gain
    nothing and take longer to compile. The results are the same to rounding; a block's leaf function
    runs once for each of them, and so does a print in it. On other devices nothing changes. Without
    code: XLA_FLAGS=--xla_backend_extra_options=xla_cpu_use_multi_output_fusion

    XLA reads its flags once, when JAX runs its first computation or lists its devices; so this starts
    JAX, to see that they took effect. Call it after `jax.distributed.initialize`, before all else.

    Raises RuntimeError where JAX has started with the other setting; XLA_FLAGS is then as it was.
    """
    if not isinstance(single_pass, bool):
        raise TypeError(f"configure: single_pass must be True or False, got {single_pass!r}")
    before = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = _with_option(before, single_pass)
    is_on.cache_clear()
    if jax.default_backend() == "cpu" and _merges_loops() != single_pass:
        os.environ["XLA_FLAGS"] = before
        wanted = f"XLA_FLAGS={_with_option('', True)}" if single_pass else "no such XLA_FLAGS"
        raise RuntimeError(
            f"configure: too late for single_pass={single_pass}: JAX has run something in this process, "
            "and XLA reads its flags only once. Call fx.configure directly after the imports (in a "
            f"notebook, restart the kernel first), or start Python with {wanted}"
        )


def _with_option(flags: str, on: bool) -> str:
    """XLA_FLAGS with or without the option, whatever else they say."""
    words = flags.split()
    listed = [w.removeprefix(OPTIONS) for w in words if w.startswith(OPTIONS)]
    options = [o for o in ",".join(listed).split(",") if o and o.split("=")[0] != OPTION]
    options += [OPTION] * on
    rest = [w for w in words if not w.startswith(OPTIONS)]
    return " ".join(rest + [OPTIONS + ",".join(options)] * bool(options))


@functools.cache
def is_on() -> bool:
    """Whether steps of this process run in a single pass."""
    asked = OPTION in os.environ.get("XLA_FLAGS", "")
    return asked and jax.default_backend() == "cpu" and _merges_loops()


def _merges_loops() -> bool:
    """Whether XLA reads an array once for two results. The flags alone do not say: they may be late."""
    n = 1024
    probe = jax.jit(lambda x: (x + 1, x * 2)).lower(jax.ShapeDtypeStruct((n,), np.float32))
    cost: Any = probe.compile().cost_analysis()
    return cost["bytes accessed"] < 4 * 4 * n


def each_from_old(function: Callable, count: jax.Array, arrays: Any) -> Any:
    """`function(arrays)`, each array of its result computed on its own.

    From arrays multiplied by a one that no compiler knows to be one, another for each result: else it
    would find the common expressions, and the results would wait for one another again.
    """
    results, structure = jax.tree.flatten(jax.eval_shape(function, arrays))

    def result(i: int) -> jax.Array:
        one = jnp.where(count < -i, np.int8(2), np.int8(1))
        mine = jax.tree.map(lambda x: _times(x, one), arrays) if i else arrays
        return jax.tree.leaves(function(mine))[i]

    return structure.unflatten([result(i) for i in range(len(results))])


def _times(x: jax.Array, one: jax.Array) -> jax.Array:
    return x * one.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
