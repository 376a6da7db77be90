"""A process forked from one in which JAX had started has none of XLA's threads: what it compiles never ends."""

from __future__ import annotations

import os
from typing import Any

import jax

from adamfx.engine import trees

_cut_off = False


def check_computes(where: str, *given: Any) -> None:
    """Raises RuntimeError where a computation would wait for threads that are not there; a trace goes on."""
    if _cut_off and not trees.is_traced(*given):
        raise RuntimeError(
            f"{where}: this process is a fork of one in which JAX had started, and would wait for its threads "
            'for ever; start processes that compute by multiprocessing.get_context("spawn")'
        )


def _look() -> None:
    """In the child, which has one thread: whether JAX had started is asked of an option that is too late then."""
    global _cut_off
    name, now = "jax_num_cpu_devices", getattr(jax.config, "jax_num_cpu_devices", -1)
    try:
        jax.config.update(name, now + 1)
        jax.config.update(name, now)
    except RuntimeError:
        _cut_off = True
    except AttributeError:  # a JAX without it
        pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_look)
