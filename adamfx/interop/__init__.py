"""Carrying a run over from optax or torch."""

from adamfx.interop.carry import COUNTERPARTS, from_optax, from_torch

__all__ = ["COUNTERPARTS", "from_optax", "from_torch"]
