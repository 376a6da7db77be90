"""A block at work in one program: its meaning, and its part of the state as columns and back."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.engine import trees
from adamfx.engine.leaves import Leaves
from adamfx.engine.memory import remember
from adamfx.engine.placement import Along
from adamfx.engine.words import Leafwise
from adamfx.values.value import Value

Array = Any
ADVICE = "make it with tx.init(params)"


class Working:
    """A block with what it remembers: `columns` by name, one entry per row; `scalars`; `carried`."""

    def __init__(self, key: str, value: Value, dtype: Any):
        self.key, self.form, self.hyper = key, value.form, value.leaves
        for name, x in zip(value.leaf_names(), self.hyper, strict=True):
            if np.shape(x):
                raise ValueError(
                    f"{key}: {name} has shape {np.shape(x)}, hyperparameters are scalars; to run a "
                    "stacked transformation, vmap over it: jax.vmap(lambda tx: tx.init(params))(stacked)"
                )
        self.name, self.dtype = self.form.constructor.name, dtype
        # Scalars are computed as JAX computes floats: with 64 bits where it has them.
        self.wide = np.promote_types(dtype, jnp.result_type(float))
        self.specs: dict[Any, Any] = {}
        self.spec: Any = self.spec_for(dtype)  # Leafwise or Treewise
        self.is_leafwise = isinstance(self.spec, Leafwise)
        self.starts = self._scalars_at_the_start()
        self.columns: dict[str, list] = {}
        self.scalars: dict[str, Array] = {}
        self.carried: dict[str, Any] = {}
        self.given: Any = None  # its part of the state
        self.rest: Any = None  # what becomes of the memory of leaves that got no gradient

    def spec_for(self, dtype: Any) -> Any:
        """The meaning, with hyperparameters of this dtype."""
        if dtype not in self.specs:
            leaves = trees.cast_floats(list(self.hyper), dtype)
            self.specs[dtype] = self.form.build(leaves).meaning
        return self.specs[dtype]

    def having(self, hyper: list) -> Working:
        """Itself with these hyperparameters, such as those that a program inside of the program is given."""
        other = copy.copy(self)
        other.hyper, other.specs = hyper, {}
        return other

    def _scalars_at_the_start(self) -> dict[str, Any]:
        seed = self.spec.seed if self.is_leafwise else None
        key = {} if seed is None else {"key": jax.random.key_data(_key(seed))}
        if self.spec.init_shared is None:
            return key
        if self.is_leafwise and self.spec.shared is None:
            raise TypeError(
                f"{self.key}: it has init_shared but no shared, which would compute the new scalars of a step"
            )
        return _check_names(self.key, "init_shared", "scalar", self.spec.init_shared()) | key

    # ---- init ----

    def remember_leaf(self, p: Array) -> dict[str, Any]:
        """What it remembers of this parameter at the start: arrays, or arrays along axes."""
        if self.spec.init is None:
            return {}
        wide = p.astype(trees.at_least_float32(p.dtype))
        made = self.spec_for(trees.real_dtype(wide.dtype)).init(wide)
        out = {}
        for name, x in _check_names(self.key, "init", "array", made).items():
            array = x.array if isinstance(x, Along) else x
            if not (hasattr(array, "dtype") or isinstance(array, (bool, int, float, complex))):
                raise TypeError(
                    f"{self.key}: init must return {{name: array}}, {name} is {array!r}; several arrays of "
                    "one leaf are several names"
                )
            if jnp.iscomplexobj(array) and not jnp.iscomplexobj(p):
                raise ValueError(f"{self.key}: init made {name} complex for a real parameter")
            out[name] = x
        return out

    # ---- the state, taken apart and put together ----

    def load(self, state: Any, leaves: Leaves) -> None:
        """Takes the block's part of the state apart, by rows."""
        self.given = state
        if not self.is_leafwise and self.spec.bare:
            return
        fields = () if state is None else getattr(state, "_fields", None)
        if fields is None:
            raise ValueError(
                f"{leaves.layout.where}: the state of {self.key} is {type(state).__name__}; {ADVICE}"
            )
        carried = () if self.is_leafwise else self.spec.carried
        for name in fields:
            x = getattr(state, name)
            if name in self.starts:
                self.scalars[name] = x
            elif name in carried:
                self.carried[name] = x
            else:
                self.columns[name] = leaves.layout.column(name, x)
        lost = (set(self.starts) | set(carried)) - set(fields)
        if fields and lost:
            raise self._differs(leaves, fields, lost | set(fields))

    def _differs(self, leaves: Leaves, has: Any, wanted: Any) -> ValueError:
        return ValueError(
            f"{leaves.layout.where}: the state of {self.key} holds {sorted(has)}, this transformation "
            f"remembers {sorted(wanted)}; {ADVICE}"
        )

    def dead(self, leaves: Leaves) -> list[bool]:
        """Rows of which nothing is remembered: frozen when the state was made. Checks the others."""
        if self.spec.init is None and not self.columns:
            return [False] * len(leaves)
        dead = []
        for j, (x, own) in enumerate(zip(leaves.updates, leaves.shapes(), strict=True)):
            memory = self.memory(j)
            wanted = self._expected(own, x.dtype)
            dead.append(bool(wanted and self.columns) and not memory)
            if dead[-1]:
                continue
            if memory.keys() != wanted.keys():
                if self.given is None:
                    raise ValueError(
                        f"{leaves.layout.where}: the state has no {self.key!r}; {ADVICE}"
                    )
                others = set(self.starts) | set(self.carried)
                raise self._differs(leaves, others | set(memory), others | set(wanted))
            for name, m in memory.items():
                shape, dtype = wanted[name]
                if not _holds(m.dtype, dtype):
                    raise TypeError(
                        f"{leaves.layout.where}: the state of {self.key} holds {name} as {m.dtype}, this "
                        f"transformation remembers {dtype}; {ADVICE}"
                    )
                if m.shape != shape:
                    raise ValueError(
                        f"{leaves.layout.where}: gradient at {leaves.layout.paths()[j]} has shape {x.shape}, "
                        f"the state was made for {m.shape}, the shape of {self.key}'s {name}; {ADVICE}"
                    )
        return dead

    def _expected(self, shape: tuple, dtype: Any) -> dict[str, tuple]:
        if self.spec.init is None:
            return {}
        key = (self.form, shape, jnp.issubdtype(dtype, jnp.complexfloating))
        if key not in EXPECTED:
            if len(EXPECTED) > 10_000:
                EXPECTED.clear()
            like = jax.ShapeDtypeStruct(shape, trees.at_least_float32(dtype))
            made = jax.eval_shape(lambda p: bare_arrays(self.remember_leaf(p)), like)
            EXPECTED[key] = {name: (m.shape, m.dtype) for name, m in made.items()}
        return EXPECTED[key]

    def begin_columns(self, leaves: Leaves) -> None:
        """Columns for a table without rows: they name what would be remembered, as in any other state."""
        for shape in ((), (1, 1)):
            try:
                self.columns = {name: [] for name in self._expected(shape, np.float32)}
                return
            except Exception:  # an init that needs a matrix
                continue

    def memory(self, j: int) -> dict[str, Array]:
        """What is remembered of row j."""
        return {name: c[j] for name, c in self.columns.items() if c[j] is not None}

    def record(self, j: int, memory: Mapping[str, Array]) -> None:
        """Remembers this of row j."""
        for name, x in memory.items():
            self.columns[name][j] = x

    def only(self, keep: list[bool]) -> None:
        for name, column in self.columns.items():
            self.columns[name] = [x for x, k in zip(column, keep, strict=True) if k]

    def save(self, leaves: Leaves) -> Any:
        """The block's part of the new state."""
        if not self.is_leafwise and self.spec.bare:
            return self.given
        old = self.given
        new = {n: self._tree(leaves, c, old and getattr(old, n)) for n, c in self.columns.items()}
        new |= self.scalars | self.carried
        return remember(**({n: new[n] for n in old._fields} if old is not None else new))

    def _tree(self, leaves: Leaves, column: list, old: Any) -> Any:
        """A tree of a column; leaves without a row keep what they have in the old one."""
        if self.rest and old is not None:
            mine = set(leaves.layout.rows)
            found = leaves.layout.structure.flatten_up_to(old)
            pairs = enumerate(found)
            found = [x if x is None or j in mine else self.rest(x) for j, x in pairs]
            old = leaves.layout.structure.unflatten(found)
        return leaves.layout.tree(column, old)

    def new_scalars(self, found: Mapping[str, Any]) -> None:
        """Takes the scalars of a step; of the dtype and shape that they have."""
        old = self.own_scalars()
        if not isinstance(found, Mapping) or set(found) != set(old):
            names = sorted(found) if isinstance(found, Mapping) else repr(found)
            raise ValueError(
                f"{self.key}: shared remembers {names}, init_shared made {sorted(old)}"
            )
        self.scalars |= {n: like(self.key, "shared", n, found[n], x) for n, x in old.items()}

    def own_scalars(self) -> dict[str, Array]:
        """The scalars that `shared` reads and writes: all but the random key."""
        seeded = self.is_leafwise and self.spec.seed is not None
        return {n: x for n, x in self.scalars.items() if not (seeded and n == "key")}

    def draw(self) -> Array:
        """A random key for this step; another stays for the next."""
        new, now = jax.random.split(jax.random.wrap_key_data(self.scalars["key"], impl=KEYS))
        self.scalars["key"] = jax.random.key_data(new)
        return now


KEYS = "threefry2x32"  # what a state holds must not depend on a setting of JAX


def _key(seed: int) -> Array:
    return jax.random.key(seed, impl=KEYS)


EXPECTED: dict[Any, dict[str, tuple]] = {}  # shapes and dtypes of memory by form and shape of leaf
WIDE = [{"float32", "float64"}, {"complex64", "complex128"}]  # which of two, the parameter decides


def _holds(dtype: Any, wanted: Any) -> bool:
    return dtype == wanted or any({str(dtype), str(wanted)} <= kinds for kinds in WIDE)


def bare_arrays(memory: dict[str, Any]) -> dict[str, Any]:
    return {n: jnp.asarray(x.array if isinstance(x, Along) else x) for n, x in memory.items()}


def _check_names(key: str, function: str, what: str, made: Any) -> dict[str, Any]:
    if not isinstance(made, dict):
        raise TypeError(
            f"{key}: {function} must return {{name: {what}}}, such as {{'m': jnp.zeros_like(p)}}; it "
            f"returned {made!r}"
        )
    for name in made:
        if not (isinstance(name, str) and name.isidentifier()) or name.startswith("_"):
            raise ValueError(
                f"{key}: {function} names {name!r}; a name is read as state[{key!r}].name, so it must be a "
                "word of letters, digits and underscores that begins with a letter"
            )
    return made


def scalar(x: Any, dtype: Any) -> Array:
    """A scalar of a state: floats in this dtype; a NumPy array of a plain number, which needs no program."""
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
        kind = (
            dtype if np.issubdtype(x.dtype, np.floating) else jax.dtypes.canonicalize_dtype(x.dtype)
        )
        return x.astype(kind)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(dtype if floating else x.dtype) if floating or x.weak_type else x


def like(block: str, function: str, name: str, new: Any, old: Array) -> Array:
    """`new` in the dtype of `old`, of its shape and kind."""
    if jnp.shape(new) != old.shape:
        raise ValueError(
            f"{block}: its {function} returned {name} of shape {jnp.shape(new)} for {old.shape}; "
            "the arithmetic of one array must keep its shape"
        )
    if jnp.iscomplexobj(new) and not jnp.iscomplexobj(old):
        raise ValueError(f"{block}: its {function} returned {name} complex for a real one")
    return jnp.asarray(new).astype(old.dtype)


def scalar_dtype(leaves: Leaves) -> Any:
    """The dtype of what is computed once per step: the widest of the leaves, float32 at least."""
    return _widest(frozenset(x.dtype for c in (leaves.updates, leaves.params or []) for x in c))


@functools.cache
def _widest(dtypes: frozenset) -> Any:
    return trees.at_least_float32(*(trees.real_dtype(d) for d in dtypes))


def working(blocks: Any, leaves: Leaves) -> list[Working]:
    """The blocks of a sentence, ready to work on these leaves."""
    dtype = scalar_dtype(leaves)
    return [Working(key, value, dtype) for key, value in blocks]
