"""A fork of a process in which JAX had started has none of XLA's threads, and waits for them for ever."""

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
            f"{where}: this process is a fork of one in which JAX had started, and would wait for its "
            'threads for ever; start processes that compute by multiprocessing.get_context("spawn")'
        )


def _look() -> None:
    """Whether JAX had started, in the child: there an option that must come before cannot be set."""
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
