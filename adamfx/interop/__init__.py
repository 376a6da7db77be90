"""Carrying a run over, from optax or torch and back."""

from adamfx.interop.carry_optax import from_optax, to_optax
from adamfx.interop.carry_torch import Part, from_torch, to_torch
from adamfx.interop.files import read_orbax, read_safetensors
from adamfx.interop.names import COUNTERPARTS

__all__ = [
    "COUNTERPARTS",
    "Part",
    "from_optax",
    "from_torch",
    "read_orbax",
    "read_safetensors",
    "to_optax",
    "to_torch",
]
