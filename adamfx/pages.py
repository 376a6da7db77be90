"""What `page` says of an optimizer: its recursion, the meaning of each argument, its sentence, an example.

The meaning of an argument is that of the block which it is handed to, written there and nowhere else.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from adamfx.checks import shown
from adamfx.values.grammar import Container, Form

# What an example hands to arguments without a default.
EXAMPLE = {"learning_rate": 0.1, "l2_norm_clip": 1.0, "noise_multiplier": 1.1, "seed": 0}
# Optimizers that have another library's name for an argument of a block.
RENAMED = {
    "accumulator_dtype": "mu_dtype",
    "block_size": "size",
    "clip": "threshold",
    "clip_threshold": "threshold",
    "clip_value_fn": "max_delta",
    "clipping_threshold": "threshold",
    "initial_accumulator_value": "initial",
    "max_precond_dim": "max_dim",
    "min_dim_size_to_factor": "min_size",
    "precondition_frequency": "every",
    "rho": "decay",
    "shampoo_beta": "gram_decay",
    "update_interval": "every",
    "update_proj_gap": "every",
    "weight_decay_rate": "weight_decay",
}
# What a word says that the example does not have, and what no block says.
DECAY = ">= 0, or a schedule: add_decayed_weights; None or 0: no decay."
DECAYS = "a tree of bools, or a predicate such as ndim_at_least(2): which leaves decay."
MOMENTUM = "the decay of the first moment, in [0, 1), or a schedule; None where it may be: no first moment."
COMMON = {
    "beta": MOMENTUM,
    "dtype_momentum": "of the first moment; None: at least float32.",
    "linesearch": "the word that finds the length of a step.",
    "mask": DECAYS,
    "matrices": "which leaves are matrices: a predicate, or a callable of the parameters.",
    "momentum": MOMENTUM,
    "nesterov": "looks one step ahead, see `nesterov`.",
    "others": "the transformation of all other leaves; None: adamw(learning_rate).",
    "seed": "an int, of the random numbers.",
    "warmup_steps": "of a rate that grows in a line from 0; None: none.",
    "weight_decay": DECAY,
    "weight_decay_mask": DECAYS,
}
ENTRY = re.compile(r"^ {2}([\w*]+(?:, [\w*]+)*): (.*)$")


def entries(doc: str | None) -> dict[str, str]:
    """{name: meaning} of the Args of a docstring."""
    lines = inspect.cleandoc(doc or "").splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Args:") + 1 :] if "Args:" in lines else []:
        if line and not line.startswith("  "):
            break
        entry = ENTRY.match(line)
        if entry:
            names = [n.lstrip("*") for n in entry[1].split(", ")]
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith("    "):
            found |= {n: f"{found[n]} {line.strip()}" for n in names}
    return found


def _blocks(part: Any) -> Iterator[Any]:
    """The constructors in a form, from the outside in."""
    if isinstance(part, Form):
        yield part.constructor
        for _, argument in part.arguments:
            yield from _blocks(argument)
    elif isinstance(part, Container):
        for item in part.items:
            yield from _blocks(item)


def _example(function: Callable) -> dict[str, Any]:
    """What a call of the optimizer needs: the arguments without a default."""
    return {
        n: EXAMPLE[n]
        for n, p in inspect.signature(function).parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


def _meanings(function: Callable) -> dict[str, str]:
    """{argument: meaning}, from its own docstring, else from the first block that has it."""
    own = entries(function.__doc__)
    blocks = list(_blocks(function(**_example(function)).form))
    found = {}
    for name in inspect.signature(function).parameters:
        of_blocks = RENAMED.get(name, name)
        known = [own.get(name)] + [entries(c.function.__doc__).get(of_blocks) for c in blocks]
        found[name] = next(filter(None, known), COMMON.get(name, ""))
    return found


def page(function: Callable) -> str:
    """All there is to know of an optimizer of this library, as text: `print(fx.page(fx.soap))`.

    Its docstring, the meaning of each argument as the block says which it is handed to, its sentence, and an
    example. Raises TypeError for anything else.
    """
    module = getattr(function, "__module__", "")
    if not inspect.isfunction(function) or not module.startswith("adamfx.optimizers."):
        raise TypeError(
            "page: function must be an optimizer of this library, such as fx.adam, got "
            f"{shown(function)}; of words and wrappers help(...) says all"
        )
    text = inspect.cleandoc(function.__doc__ or "").split("\n\nArgs:")[0]
    example = _example(function)
    tx = function(**example)
    call = f"{function.__name__}({', '.join(map(repr, example.values()))})"
    lines = [
        textwrap.fill(f"{n}: {m}", 110, initial_indent="  ", subsequent_indent="    ")
        for n, m in _meanings(function).items()
    ]
    step = "tx.update(grads, state, params" + (
        ", value=value, grad=grads, value_fn=loss)" if tx.reads("value_fn") else ")"
    )
    return "\n".join([
        text,
        "",
        "Args:",
        *lines,
        "",
        f"{call} is",
        "",
        textwrap.indent(repr(tx), "    "),
        "",
        f"    tx = fx.{call}",
        "    state = tx.init(params)",
        f"    updates, state = {step}",
    ])  # fmt: skip
