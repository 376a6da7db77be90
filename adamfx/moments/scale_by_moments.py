"""`scale_by_moments`: two statistics of one gradient, and the mass that corrections divide by.

Notation: g gradient, m the first moment, v the second, b a decay, w a mass, t = count + 1 the step.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamfx import checks
from adamfx.engine.placement import beside
from adamfx.engine.record import DENOMINATORS, HERE, Denominator, Frame, Moments, Rates, Side
from adamfx.engine.trees import real_dtype
from adamfx.moments.estimators import Estimator, Own, Recursion, ema
from adamfx.moments.statistics import At, reading, shape_of
from adamfx.moments.storages import WHOLE, cast
from adamfx.schedules import Decay, value_at
from adamfx.transformation import block, leafwise
from adamfx.values.arguments import Floating
from adamfx.values.constructor import Exact

Array = Any


# ---- mass ----------------------------------------------------------------------------------------


NO_DECAY = 1e-30  # 1 - 1e-30 is 1 in any float; its steps sum up without overflow


def _log_decay(gain: Array) -> Array:
    """log b from the gain 1 - b. For b = 0 that of NO_DECAY, with its slope: the mass is one all the same,
    and its derivative that of b."""
    if isinstance(gain, float):
        return math.log1p(-gain) if gain < 1 else math.log(NO_DECAY)
    below = gain < 1
    at_zero = math.log(NO_DECAY) + (1 - gain) / NO_DECAY
    return jnp.where(below, jnp.log1p(-jnp.where(below, gain, 0)), at_zero)


def _grow(log_product: Array, gain: Array) -> Array:
    """Adds log b to (sum of log b, its rounding error), by Kahan's compensated summation.

    A plain float32 sum, or product, is wrong by 1e-6 to 5e-6 after 1,000 steps.
    """
    s, error = log_product
    y = jnp.asarray(_log_decay(gain), s.dtype) - error
    grown = s + y
    return jnp.stack([grown, (grown - s) - y])


def mass(log_product: Array) -> Array:
    """w = 1 - prod b: the sum of the weights that an average from zero has given out so far."""
    return _one_minus_exp(log_product[0])


@jax.custom_jvp
def _one_minus_exp(x: Array) -> Array:
    return -jnp.expm1(x)


@_one_minus_exp.defjvp
def _one_minus_exp_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """JAX takes the derivative of expm1 from its value, which near -1 has forgotten exp(x)."""
    (x,) = primals
    return _one_minus_exp(x), -jnp.exp(x) * tangents[0]


def rates_of(
    r: Recursion | Own, count: Array, log_product: Array | None, lags: bool
) -> tuple[Rates, Array]:
    """The scalars of one side at this step, and the new log of the product of its decays."""
    b, next_b = value_at(r.decay, count), value_at(r.decay, count + 1)
    gain = 1 - b if r.gain is None else r.gain(count, 1 - b)
    if log_product is None:
        return Rates(b, gain, 1.0, next_b, 1.0, count), None
    grown = _grow(log_product, 1 - b)
    if lags:
        return Rates(b, gain, mass(log_product), b, mass(grown), count), grown
    return Rates(b, gain, mass(grown), next_b, mass(_grow(grown, 1 - next_b)), count), grown


def adam_correction(b1: Any, b2: Any, count: Array, memory: Any) -> tuple[Array, dict[str, Array]]:
    """sqrt(w2) / w1, the two corrections of Adam as one factor, and what to remember for it."""
    mass, grown = {}, {}
    for n, b in (("mu", b1), ("nu", b2)):
        average = Recursion(lambda s, x, r: s, b, weighs=True)
        before = getattr(memory, f"{n}_log_product")
        rates, grown[f"{n}_log_product"] = rates_of(average, count, before, lags=False)
        mass[n] = rates.mass
    return jnp.sqrt(mass["nu"]) / mass["mu"], grown


# ---- one side ------------------------------------------------------------------------------------


class Running:
    """One side of `scale_by_moments` at work on one array: its statistic, recursion and storage."""

    def __init__(self, name: str, side: Any, of: str, dtype: Any, lags: bool):
        self.name, self.lags, self.dtype = name, lags, dtype
        self.meaning = (side if isinstance(side, Estimator) else ema(side)).meaning
        self.own = isinstance(self.meaning, Own)
        self.prepares = self.meaning.prepares if self.own else 0
        if self.own and (dtype is not None or lags):
            what = f"{name}_dtype" if dtype is not None else "lag"
            raise ValueError(
                f"scale_by_moments: {side!r} has a memory of its own form, without {what}"
            )
        self.reading = reading(of if self.own else self.meaning.of or of)
        self.degree = self.meaning.degree if self.own else self.reading.degree
        self.needs = () if self.own else self.reading.needs
        kept = None if self.own else self.meaning.storage
        if dtype is not None:
            if kept is not None:
                raise ValueError(
                    f"scale_by_moments: give {name}_dtype or storage={kept!r}, not both"
                )
            kept = cast(dtype)
        self.kept = kept
        self.form = WHOLE if kept is None else kept.meaning
        self.shapes: dict = {}  # of the statistic, by shape and dtype of the parameter

    def start(self, p: Array) -> dict[str, Any]:
        """What is remembered of one parameter at the start."""
        if self.own:
            return self._named(self.meaning.init(p))
        r, x = self.meaning, self.reading
        dtype = real_dtype(p.dtype) if x.is_real else p.dtype
        kind = p.shape, p.dtype
        if kind not in self.shapes:
            self.shapes[kind] = shape_of(x, p)
        shape = self.shapes[kind]
        is_zero = isinstance(r.initial, float) and r.initial == 0
        s = jnp.zeros(shape, dtype) if is_zero else jnp.full(shape, r.initial, dtype)
        if jnp.iscomplexobj(s) and not jnp.issubdtype(self.dtype or s.dtype, jnp.complexfloating):
            raise ValueError(
                f"scale_by_moments: {self.name}_dtype {self.dtype} cannot hold the complex moment {self.name}"
            )
        parts = self.form.write(s, None)
        return self._named({n: beside(p, x) for n, x in parts.items()})

    def step(
        self, g: Array, at: At, rates: Rates, memory: Any, key: Any
    ) -> tuple[Side, Array, dict]:
        """(the side as the division sees it, the new moment, what to remember)."""
        parts = self._parts(memory)
        if self.own:
            value, parts = self.meaning.step(parts, g, rates, at)
            return Side(value, rates), value, self._named(parts)
        r, form, x = self.meaning, self.form, self.reading.of(g, at)
        if form.is_linear and r.is_linear:
            written = form.write(x, key)
            new = {n: r.update(parts[n], written[n], rates) for n in parts}
            s = form.read(new, x)
        else:
            s = r.update(form.read(parts, x), x, rates)
            new = form.write(s, key)
            s = form.read(new, x) if form.divides_by_stored else s
        if self.prepares:
            unmoved = {n: parts[n].astype(y.dtype) for n, y in new.items()}
            new = {n: jnp.where(rates.count < 0, unmoved[n], y) for n, y in new.items()}
        used = form.read(parts, x) if self.lags else s
        return Side(used, rates), s, self._named(new)

    def frame(self, memory: Any) -> Frame:
        """Where the value divides."""
        return self.meaning.frame(self._parts(memory)) if self.own else HERE

    def can_lie_in_a_frame(self) -> bool:
        """Whether it is the same there: one array, a linear function of gradients."""
        r, of = self.meaning, self.reading
        plain = not self.own and r.storage is None and r.is_linear and of is reading("value")
        return plain and isinstance(r.adds, float) and r.adds == 0

    def is_of_matrices(self) -> bool:
        """Whether it treats each matrix of a stack by itself, also in what it remembers."""
        if self.own:
            return self.meaning.of_matrices
        elementwise = self.reading in (reading("value"), reading("square"))
        whole = self.kept is None or self.kept.name == "cast"
        return elementwise and self.meaning.is_linear and whole

    def before(self, memory: Any, g: Array) -> Array:
        """The moment before this step."""
        return g if self.own else self.form.read(self._parts(memory), g)

    def _named(self, parts: dict) -> dict:
        return {f"{self.name}_{n}" if n else self.name: x for n, x in parts.items()}

    def _parts(self, memory: Any) -> dict:
        start = f"{self.name}_"
        mine = [n for n in memory._fields if n == self.name or n.startswith(start)]
        return {n[len(start) :]: getattr(memory, n) for n in mine}


def average_of(side: Any) -> Recursion | None:
    """The recursion of a side that is an exponential average kept whole; None for any other."""
    r = None if side is None else (side if isinstance(side, Estimator) else ema(side)).meaning
    fits = isinstance(r, Recursion) and r.weighs and r.storage is None
    return r if fits else None


# ---- scale_by_moments ----------------------------------------------------------------------------


def _plain(side: Any) -> Any:
    """`ema(b)` with nothing else said is written b."""
    if isinstance(side, Estimator) and side.name == "ema" and side == ema(side.arguments["decay"]):
        return side.arguments["decay"]
    return side


@block
def scale_by_moments(
    b1: Decay | Estimator | None,
    b2: Decay | Estimator | None,
    *,
    eps: Exact = 1e-8,
    eps_root: Exact = 0.0,
    where: str = "out",
    power: Exact = 0.5,
    lag: str | None = None,
    mu_dtype: Floating = None,
    nu_dtype: Floating = None,
):
    """The first moment over the root of the second: u <- m / (root(v + eps_root) + eps)^(2 power).

    m <- b1(g), what b1 makes of g; v <- b2(g^2), what b2 makes of |g|^2. The root is the square root, of a v
    of degree one v itself. Without b1, m <- g; without b2, u <- m. Nothing is corrected: that is a block of
    its own, `bias_correct`. Kingma & Ba 2015, algorithm 1.

    Args:
      b1, b2: each a number in [0, 1) or a schedule of one (short for `ema`), an estimator, or None.
      eps: >= 0, added to the root.
      eps_root: >= 0, added under the root.
      where: "out", as above; "in": u <- m / root(v + eps_root + eps)^(2 power); "floor": u <- m /
        max(root(v + eps_root), eps)^(2 power); "hat": e <- eps is added before v is bias-corrected (the
        paper's second form), u <- m / (root(v + eps_root) + e)^(2 power).
      power: in (0, 1]; 1/2 is the root (less: Padam).
      lag: the side that is used as it was before this step. "first": then m <- m_prev, w1 <- w1_prev;
        "second": then v <- v_prev, w2 <- w2_prev.
      mu_dtype, nu_dtype: how the moments are stored, short for the storage `cast(dtype)`; None: as the
        parameter, float32 at least.

    Remembers `mu`, `nu` (of the shape of their statistic, real for complex parameters; other storages keep
    them in parts, such as `nu_rows`) and `mu_log_product`, `nu_log_product`, the log of the product of the
    decays so far with its rounding error, from which the mass is computed.
    """
    name = "scale_by_moments"
    for n, b in (("b1", b1), ("b2", b2)):
        if b is not None and not isinstance(b, Estimator):
            checks.decay(name, b, n)
    for n, dtype in (("mu_dtype", mu_dtype), ("nu_dtype", nu_dtype)):
        checks.floating(name, n, dtype)
    checks.number(name, "eps", eps, low=0)
    checks.number(name, "eps_root", eps_root, low=0)
    checks.number(name, "power", power, low=0, high=1)
    checks.choice(name, "where", where, tuple(DENOMINATORS))
    checks.choice(name, "lag", lag, (None, "first", "second"))
    if _plain(b1) is not b1 or _plain(b2) is not b2:
        options = {
            "where": where,
            "power": power,
            "lag": lag,
            "mu_dtype": mu_dtype,
            "nu_dtype": nu_dtype,
        }
        return scale_by_moments(_plain(b1), _plain(b2), eps=eps, eps_root=eps_root, **options)
    given = {"mu": (b1, "value", mu_dtype, "first"), "nu": (b2, "square", nu_dtype, "second")}
    sides = {
        n: Running(n, b, of, dtype, lag == which)
        for n, (b, of, dtype, which) in given.items()
        if b is not None
    }
    if not sides:
        raise ValueError(f"{name}: b1 and b2 are both None; give at least one decay or estimator")
    prepares = max(s.prepares for s in sides.values())
    for s in sides.values():
        s.prepares = prepares
    has_root = "nu" in sides and sides["nu"].degree == 2
    divide = Denominator(eps, eps_root, where, has_root, power)
    turns = "nu" in sides and sides["nu"].own and sides["nu"].meaning.carries
    carried = turns and "mu" in sides and sides["mu"].can_lie_in_a_frame()

    def init(p):
        return {n: x for s in sides.values() for n, x in s.start(p).items()}

    def init_shared():
        return {f"{n}_log_product": np.zeros(2) for n, s in sides.items() if s.meaning.weighs}

    def shared(step):
        rates, memory = {}, {}
        count = step.count - prepares
        for n, s in sides.items():
            weighs = s.meaning.weighs
            old = getattr(step.memory, f"{n}_log_product") if weighs else None
            of = jnp.maximum(count, 0) if prepares else count
            rates[n], new = rates_of(s.meaning, of, old, s.lags)
            rates[n] = rates[n]._replace(count=count)
            if weighs:
                kept = jnp.where(count < 0, old, new) if prepares and old is not None else new
                memory[f"{n}_log_product"] = kept
        return (rates.get("mu"), rates.get("nu")), memory

    def leaf(g, here):
        m_before = sides["mu"].before(here.memory, g) if "mu" in sides else g
        frame = sides["nu"].frame(here.memory) if "nu" in sides else HERE
        new, used, m = {}, {}, g
        for (n, s), rates in zip(sides.items(), filter(None, here.shared), strict=True):
            at = At(m, m_before, here.extra, here.gradient)
            x = frame.into(g) if carried and n == "mu" else g
            used[n], value, memory = s.step(x, at, rates, here.memory, here.key)
            m = value if n == "mu" else m
            new |= memory
        u = used["mu"].value if "mu" in used else g
        u = u if carried else frame.into(u)
        if prepares:  # nothing moves, whatever a correction makes of the gradient
            u, g = (jnp.where(here.shared[-1].count < 0, 0, x) for x in (u, g))
        if "mu" in used:
            used["mu"] = used["mu"]._replace(value=u)
        return Moments(u, g, used.get("mu"), used.get("nu"), divide, frame), new

    def together(us, heres):
        found = [{} for _ in us]
        for (n, s), rates in zip(sides.items(), filter(None, heres[0].shared), strict=True):
            if s.own and s.meaning.together is not None:
                lie = carried and n == "nu"
                firsts = [here.memory.mu for here in heres] if lie else []
                memories = [s._parts(here.memory) for here in heres]
                new, firsts = s.meaning.together(memories, us, rates, firsts)
                of_first = [{"mu": m} for m in firsts] if lie else [{} for _ in us]
                rows = zip(found, new, of_first, strict=True)
                found = [old | s._named(x) | m for old, x, m in rows]
        return found

    is_elementwise = not any(s.own for s in sides.values())
    per_leaf = tuple(dict.fromkeys(n for s in sides.values() for n in s.needs))
    return leafwise(
        leaf,
        init=init,
        shared=shared,
        init_shared=init_shared,
        moments="opens",
        per_leaf=per_leaf,
        elementwise=is_elementwise,
        of_matrices=not is_elementwise and all(s.is_of_matrices() for s in sides.values()),
        seed=0 if any(s.form.is_random for s in sides.values()) else None,
        together=together if any(s.own and s.meaning.together for s in sides.values()) else None,
    )
