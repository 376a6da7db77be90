"""Wrong arguments by kind, a right call of everything public, and a judge of what a wrong one says."""

import ast
import functools
import inspect
import pathlib
import re
import traceback

import jax
import jax.numpy as jnp
import numpy as np

import adamfx as fx

PACKAGE = pathlib.Path(fx.__file__).parent


class Nothing:
    """A class, and an object, that is nothing to anyone."""

    def __repr__(self):
        return "Nothing()"


def generator():
    yield 1


def function(*args):
    return "a string"


NAN, INF = float("nan"), float("inf")
OBJECTS = np.array([object()], object)
STRINGS = np.array(["a"])

# What is nothing to any argument but a few; each kind leaves out what is right for it.
ANYTHING = {
    "string": "a wrong string",
    "empty string": "",
    "bytes": b"bytes",
    "list": [0.1, "a"],
    "dict": {"a": 1.5},
    "tuple": (0.1, "a"),
    "set": {1.5},
    "object": Nothing(),
    "class": Nothing,
    "int class": int,
    "generator": generator(),
    "module": np,
    "object array": OBJECTS,
    "strings": STRINGS,
    "complex": 1j,
    "lambda": function,
    "ellipsis": ...,
}


def but(*names, **more):
    return {n: x for n, x in ANYTHING.items() if n not in names} | more


NUMBER = but("lambda", true=True, nan=NAN, inf=INF, key=jax.random.key(0), none=None)
RATE = NUMBER  # a function is a schedule; what it returns is seen by a step
COUNT = but(true=True, nan=NAN, inf=INF, half=1.5, none=None, vector=np.ones(2))
FLAG = but(none=None, two=2, half=1.5, vector=np.ones(2))
WORD = but("string", "empty string", true=True, one=1, half=1.5, none=None, wrong="a wrong string")
TX = but(true=True, one=1, half=1.5, none=None, factory=fx.adam, pair=(1, 2))
LABELS = but("lambda", one=1, half=1.5, numbers={"a": 1})
MASK = but("lambda", one=1, half=1.5, numbers={"a": 1})
DTYPE = but("empty string", one=1, half=1.5, int8="int8", true=True)
FUNCTION = but("lambda", "class", "int class", one=1, half=1.5, true=True, none=None)
STATISTIC = but(one=1, half=1.5, true=True)
ESTIMATOR = but(one=1, half=1.5, true=True, word=fx.sgd(0.1))
STORAGE = but(one=1, half=1.5, true=True, word=fx.sgd(0.1))
AXES = but(half=1.5, true=True, halves=(0.5, 1.5))

KINDS = {
    "number": NUMBER, "rate": RATE, "count": COUNT, "flag": FLAG, "word": WORD, "tx": TX, "mask": MASK,
    "dtype": DTYPE, "function": FUNCTION, "statistic": STATISTIC, "estimator": ESTIMATOR,
    "storage": STORAGE, "axes": AXES,
    "labels": LABELS, "plain": but(nan=NAN, inf=INF, none=None, vector=np.ones(2)),
}  # fmt: skip

BY_KIND = {
    "mask": ("mask", "weight_decay_mask", "trust_ratio_mask", "matrices", "last"),
    "labels": ("param_labels",),
    "dtype": ("mu_dtype", "nu_dtype", "accumulator_dtype", "dtype_momentum", "dtype"),
    "statistic": ("of", "coefficients"),
    "storage": ("storage",),
    "count": ("every",),
    "plain": ("pct_start", "pct_final"),
    "word": ("method",),
    "rate": ("following",),
    "tx": ("transforms", "through"),
    "axes": (
        "axes", "axis", "rows", "columns", "betas", "init_step", "metrics", "factors", "schedules",
        "boundaries",
        "boundaries_and_scales", "cosine_kwargs",
    ),
}  # fmt: skip
BY_NAME = {name: kind for kind, names in BY_KIND.items() for name in names}
OWN_KIND = {
    ("stacked", "where"): "mask",
    ("shard_state", "axis"): "word",
    ("centralize", "axis"): "count",
    ("came", "eps"): "axes",
    ("complement", "of"): "tx",
}
# Right for this argument, though of a wrong kind elsewhere.
RIGHT = {
    ("named", "name", "wrong"), ("given", "name", "wrong"),  # any string
    ("shard_state", "axis", "wrong"),  # any string; without a mesh it says that there is none
    ("scale_by_path", "factors", "dict"),  # a pattern, which the first step looks for
    ("came", "eps", "halves"),
    ("kron", "every", "lambda"), ("scale_by_kron", "every", "lambda"),
    ("accumulate", "every", "lambda"),  # a schedule; see the test of what those return
}  # fmt: skip

REQUIRED = {
    "learning_rate": 0.1, "step_size": 0.1, "decay": 0.9, "init_value": 0.1, "end_value": 0.01, "power": 1.0,
    "transition_steps": 10, "decay_rate": 0.9, "decay_steps": 10, "warmup_steps": 3, "peak_value": 0.1,
    "value": 0.1, "stable_steps": 3, "total_steps": 10, "coefficient": 0.1, "max_delta": 1.0, "max_norm": 1.0,
    "threshold": 1.0, "clipping": 1.0, "weight_decay": 0.01, "alpha": 1.0, "eta": 0.1, "every": 2, "rank": 2,
    "size": 2, "mask": True, "b1": 0.9, "b2": 0.999, "start": 1, "ndim": 2, "l2_norm_clip": 1.0,
    "noise_multiplier": 1.0, "seed": 0, "sync_period": 2, "slow_step_size": 0.5, "dtype": "bfloat16",
    "max_backtracking_steps": 3, "max_linesearch_steps": 3, "factors": {"*": 0.5}, "following": 0.1,
    "through": fx.in_blocks(2), "of": fx.ndim_at_least(2), "interpolate_type": "linear",
    "cosine_kwargs": [{"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 2, "decay_steps": 5}],
    "schedules": (fx.constant_schedule(0.1),) * 2, "boundaries": (3,), "name": "word",
    "param_labels": {"a": fx.ndim_at_least(2)}, "transforms": {"a": fx.sgd(0.1)}, "default": fx.sgd(0.1),
    **dict.fromkeys(("transformation", "inner", "outer", "direction", "others"), fx.sgd(0.1)),
    **dict.fromkeys(("fast_optimizer", "base_optimizer"), fx.sgd(0.1)),
}  # fmt: skip


def kind_of(name, parameter):
    """The kind of an argument, from its name, else from its annotation."""
    text = str(parameter.annotation)
    if (name, parameter.name) in OWN_KIND:
        return OWN_KIND[name, parameter.name]
    if parameter.name in BY_NAME:
        return BY_NAME[parameter.name]
    for word, kind in {
        "Inner": "tx", "GradientTransformation": "tx", "Rate": "rate", "Decay": "rate", "Exact": "number",
        "Dynamic": "number", "Estimator": "estimator", "Callable": "function", "int": "count", "bool": "flag",
        "float": "number", "str": "word",
    }.items():  # fmt: skip
        if re.search(rf"\b{word}\b", text):
            return kind
    return None


def constructors():
    """The public functions that make a value."""
    found = {n: getattr(fx, n) for n in fx.__all__}
    return {
        n: f
        for n, f in found.items()
        if hasattr(f, "constructor")
        or getattr(f, "__annotations__", {}).get("return") == "GradientTransformation"
        if n not in ("block",)
    }


def right(name, function):
    """The arguments of a right call, as one would write them."""
    arguments = {}
    for n, p in inspect.signature(function).parameters.items():
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and (p.default is p.empty):
            arguments[n] = REQUIRED[n]
    if name == "scale_by_path":
        arguments["factors"] = {"*": 0.5}
    return arguments


def construction():
    """(function, argument, what is wrong, call) of all constructors."""
    for name, f in constructors().items():
        base = right(name, f)
        for n, p in inspect.signature(f).parameters.items():
            kind = kind_of(name, p)
            if kind is None or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            for what, x in KINDS[kind].items():
                if (name, n, what) in RIGHT:
                    continue
                if x is None and (p.default is None or "None" in str(p.annotation)):
                    continue
                yield name, n, what, functools.partial(f, **{**base, n: x})


# ---- the judge -----------------------------------------------------------------------------------

INTERNAL = re.compile(
    r"object is not|unsupported operand|has no attribute|not subscriptable|not supported between|"
    r"object cannot be|could not convert|ambiguous|not a valid JAX|truth value|invalid literal|"
    r"Cannot interpret|unhashable type|must be real number|takes \d|positional argument|data type .* not"
)


@functools.lru_cache
def _raises(path):
    """The lines of a file in which a raise statement stands."""
    tree = ast.parse(pathlib.Path(path).read_text())
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    return {line for n in found for line in range(n.lineno, n.end_lineno + 1)}


def is_ours(error):
    """Whether a raise statement of this package has raised it, with words of its own."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    path = pathlib.Path(last.filename)
    if PACKAGE not in path.parents or last.lineno not in _raises(last.filename):
        return False
    inner = error.__cause__ or error.__context__
    copied = inner is not None and str(inner) and str(inner) in str(error)
    return is_ours(inner) if copied else True


def verdict(call, function, argument, kinds=(TypeError, ValueError)):
    """None if the call says what is wrong; else what it did instead."""
    try:
        found = call()
    except kinds as error:
        text = str(error)
        if not is_ours(error) or INTERNAL.search(text):
            return f"internal: {type(error).__name__}: {text[:150]}"
        if not re.search(rf"(?<!\w)({argument})(?!\w)", text):
            return f"does not name {argument}: {text[:150]}"
        if function not in text:
            return f"does not name {function}: {text[:150]}"
        return None
    except Exception as error:
        return f"internal: {type(error).__name__}: {str(error)[:150]}"
    return f"silent: a {type(found).__name__}"


P = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}


def used(make):
    """The state of a transformation that was made; what `init` alone can see is seen there."""
    tx = make()
    return tx.init(P) if isinstance(tx, fx.GradientTransformation) else tx
