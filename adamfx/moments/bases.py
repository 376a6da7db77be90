"""Second moments of a matrix in a basis of its own: Shampoo, SOAP and their relatives.

The last two axes are the matrix, (rows, columns); leading ones are a stack of matrices. Each estimator
keeps the averages L of g g^H and R of g^H g, and from time to time their eigenvectors; what it hands to the
division is a value in that basis and the maps into it and back (`engine.record.Frame`). Eigenvalues
and QR are computed only in the steps that need them, also under vmap and scan.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adamfx import checks
from adamfx.engine.arithmetic import adjoint, safe_divide, square
from adamfx.engine.control import only_if
from adamfx.engine.decompositions import eigh, in_batches, qr
from adamfx.engine.placement import along
from adamfx.engine.record import Frame
from adamfx.engine.trees import real_dtype
from adamfx.moments.estimators import Own, estimator
from adamfx.schedules import Decay
from adamfx.values.constructor import Exact

Array = Any
SIDES = ("left", "right")


def _gram(g: Array, side: str) -> Array:
    """g g^H or g^H g."""
    return g @ adjoint(g) if side == "left" else adjoint(g) @ g


def _times(g: Array, bases: dict) -> Array:
    """Q_L^H g Q_R, with what there is of the two."""
    g = adjoint(bases["left"]) @ g if "left" in bases else g
    return g @ bases["right"] if "right" in bases else g


def _back(x: Array, bases: dict) -> Array:
    """Q_L x Q_R^H."""
    return _times(x, {side: adjoint(q) for side, q in bases.items()})


def _frame_of(memory: dict) -> Frame:
    bases = _group(memory, "basis")
    return Frame(lambda x: _times(x, bases), lambda x: _back(x, bases))


def _turned(xs: list, old: list[dict], new: list[dict]) -> list:
    """Arrays in old bases in new ones."""
    return [_times(_back(x, old[j]), new[j]) for j, x in enumerate(xs)]


def _sorted(v: Array, orders: dict) -> Array:
    for side, order in orders.items():
        v = _take(v, order, side)
    return v


def _axis(side: str) -> int:
    return -2 if side == "left" else -1


def _sides(shape: tuple, max_dim: int) -> list[str]:
    """The sides that get a basis: of a matrix, those not too long."""
    return [s for s in SIDES if len(shape) > 1 and shape[_axis(s)] <= max_dim]


def _squares(p: Array, max_dim: int, make: Any) -> dict:
    """{side: a square matrix for each matrix of the stack}, rows as that axis of the parameter lies.

    Columns as the other one, so that what cuts the parameter cuts these, too: they are most of the state.
    """
    found = {}
    for side in _sides(p.shape, max_dim):
        n = p.shape[_axis(side)]
        stack = p.shape[:-2]
        axes = (*range(len(stack)), p.ndim + _axis(side), ...)
        found[side] = along(jnp.broadcast_to(make(n), (*stack, n, n)).astype(p.dtype), axes)
    return found


@jax.custom_jvp
def _eigh(x: Array) -> tuple[Array, Array]:
    """Eigenvalues, and eigenvectors as columns; equal eigenvalues do not turn into one another.

    The derivative that JAX has divides by the difference of eigenvalues, 0 for a gradient of zeros.
    """
    return eigh((x + adjoint(x)) / 2)


@_eigh.defjvp
def _eigh_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    w, q = _eigh(*primals)
    dx = (tangents[0] + adjoint(tangents[0])) / 2
    turned = adjoint(q) @ dx @ q
    gaps = (w[..., None, :] - w[..., :, None]).astype(q.dtype)
    dw = jnp.diagonal(turned, axis1=-2, axis2=-1).real
    return (w, q), (dw, q @ safe_divide(turned, gaps))


def _eigenvectors(x: Array) -> Array:
    """As columns, the largest eigenvalue first."""
    return _eigh(x)[1][..., ::-1]


def _by_power_step(x: Array, q: Array) -> tuple[Array, Array]:
    """One power step and QR of a basis, sorted by what the basis says of the eigenvalues; the order."""
    stepped = x @ q
    held = jnp.sum((q.conj() * stepped).real, -2)
    order = jnp.argsort(-held, axis=-1, stable=True)
    return qr(_take(stepped, order, "right"))[0], order


def _take(v: Array, order: Array, side: str) -> Array:
    """Rows or columns of v in this order."""
    along_rows = order[..., :, None] if side == "left" else order[..., None, :]
    return jnp.take_along_axis(v, along_rows, _axis(side))


def _named(**groups: dict) -> dict:
    """{"grams": {"left": x}} as {"left_gram": x}, and back by `_group`."""
    return {f"{side}_{name}": x for name, xs in groups.items() for side, x in xs.items()}


def _group(memory: dict, name: str) -> dict:
    return {s: memory[f"{s}_{name}"] for s in SIDES if f"{s}_{name}" in memory}


@estimator
def eigenbasis(
    decay: Decay,
    every: int = 10,
    *,
    gram_decay: Exact | None = None,
    max_dim: int = 10_000,
    of_gradient: bool = False,
    skips_first: bool = True,
):
    """The average v of |Q_L^H g Q_R|^2, Q the eigenvectors of the averages L of g g^H and R of g^H g. SOAP.

        chain(scale_by_moments(0.95, eigenbasis(0.95), where="hat"), bias_correct(), scale_by_lr(3e-3))

    The bases are eigenvectors once, of the first gradient; later, every so many steps, one power step
    and QR of L Q, sorted, v with them. A step divides in the basis that the gradients before it made, and
    begins by making it. A plain first moment beside it is kept in the basis, too. Axes that are no matrix,
    or too long, have no basis. Vyas et al. 2024, algorithm 3.

    Args:
      decay: b of v, in [0, 1), or a schedule.
      every: steps between two new bases, >= 1.
      gram_decay: that of L and R; None: as v.
      max_dim: the longest axis that gets a basis.
      of_gradient: L and R are of the gradient, as the first moment before saw it, rather than of what comes
        in.
      skips_first: the first gradient only fills L and R, and moves nothing; otherwise it passes undivided.

    Remembers `nu`, `nu_left_gram`, `nu_right_gram`, `nu_left_basis`, `nu_right_basis`.
    """
    checks.decay("eigenbasis", decay)
    every = checks.steps("eigenbasis", "every", every, 1)
    max_dim = checks.steps("eigenbasis", "max_dim", max_dim)
    if gram_decay is not None:
        checks.decay("eigenbasis", gram_decay, "gram_decay")
    before = 1 if skips_first else 0

    def init(p):
        v = jnp.zeros(p.shape, real_dtype(p.dtype))
        grams = _squares(p, max_dim, lambda n: jnp.zeros((n, n)))
        return {"": v} | _named(gram=grams, basis=_squares(p, max_dim, jnp.eye))

    def step(memory, g, rates, at):
        v, bases, grams = memory[""], _group(memory, "basis"), _group(memory, "gram")
        k = rates.count + before  # gradients seen before this one
        v = jnp.where(k == 0, v, v + rates.gain * (square(_times(g, bases)) - v))
        used = v if skips_first else jnp.where(k == 0, 1, v)

        x = at.gradient if of_gradient else g
        gain = rates.gain if gram_decay is None else 1 - gram_decay
        grams = {s: a + gain * (_gram(x, s) - a) for s, a in grams.items()}
        return used, {"": v} | _named(gram=grams, basis=bases)

    def new_bases(memories, gs, rates, firsts):
        """Those that the gradients up to the last step made, in this one."""
        bases, grams = ([_group(m, name) for m in memories] for name in ("basis", "gram"))
        vs = [m[""] for m in memories]
        last = rates.count + before - 1

        def first(held, grams):
            old, vs, firsts = held
            new = in_batches(_eigenvectors, grams)
            return new, vs, _turned(firsts, old, new)

        def later(held, grams):
            old, vs, firsts = held
            made = in_batches(_by_power_step, grams, old)
            new = [{s: q for s, (q, _) in sides.items()} for sides in made]
            orders = [{s: order for s, (_, order) in sides.items()} for sides in made]
            return new, list(map(_sorted, vs, orders)), _turned(firsts, old, new)

        held = only_if(last == 0, first, (bases, vs, firsts), grams)
        bases, vs, firsts = only_if((last > 0) & (last % every == 0), later, held, grams)
        return [{"": v} | _named(basis=b) for v, b in zip(vs, bases, strict=True)], firsts

    return Own(
        init, step, decay, weighs=True, prepares=before,
        frame=_frame_of, together=new_bases, carries=True, of_matrices=True,
    )  # fmt: skip


@estimator
def kl_eigenbasis(
    decay: Decay,
    every: int = 10,
    *,
    gram_decay: Exact | None = None,
    init_factor: Exact = 0.1,
    clamp: Exact | None = None,
    whole_first: bool = False,
    factored: bool = False,
):
    """As `eigenbasis`, of L and R that are each weighed by the other. KL-SOAP.

    L averages g Q_R diag(1/r) Q_R^H g^H / columns, R the other way round; l, r, the eigenvalues, average
    the means of |Q_L^H g Q_R|^2 / r over the columns and of that / l over the rows. Lin et al. 2025; as in
    the authors' code the bases are not sorted, and the division is by the whole v.

    Args:
      decay, every, gram_decay: as in `eigenbasis`.
      init_factor: > 0, l and r at the start.
      clamp: the largest 1/sqrt(l); None: the size of the axis, in [10, 4000].
      whole_first: the first L and R have weight one, not 1 - b.
      factored: v is l r^T, and no whole v is kept (KL-Shampoo).

    Remembers `nu` (unless factored) and, for each side, `gram`, `basis` and `root`, 1/sqrt of its
    eigenvalues. Leaves that are no matrix have an ordinary average.
    """
    name = "kl_eigenbasis"
    checks.decay(name, decay)
    every = checks.steps(name, "every", every, 1)
    checks.number(name, "init_factor", init_factor, low=0)
    if gram_decay is not None:
        checks.decay(name, gram_decay, "gram_decay")

    def init(p):
        v = {} if factored and p.ndim > 1 else {"": jnp.zeros(p.shape, real_dtype(p.dtype))}
        grams = _squares(p, 10**9, lambda n: jnp.zeros((n, n)))
        roots = {}
        for s in grams:
            of = p.ndim + _axis(s)
            shape = (*p.shape[:-2], p.shape[of])
            start = jnp.full(shape, init_factor**-0.5, real_dtype(p.dtype))
            roots[s] = along(start, (*range(p.ndim - 2), of))
        return v | _named(gram=grams, basis=_squares(p, 10**9, jnp.eye), root=roots)

    def step(memory, g, rates, at):
        bases, grams, roots = (_group(memory, n) for n in ("basis", "gram", "root"))
        first = rates.count < 0
        seen = _times(g, bases)
        new = {}
        if "" in memory:
            v = memory[""]
            new[""] = jnp.where(first, v, v + rates.gain * (square(seen) - v))
        if not grams:
            return new[""], new
        by_row, by_column = roots["left"][..., :, None], roots["right"][..., None, :]
        used = 1 / (by_row * by_column) ** 2 if factored else new[""]
        rows, columns = g.shape[-2:]
        gain = rates.gain if gram_decay is None else 1 - gram_decay
        weight = 1.0 if whole_first else gain
        # Q^H y has the Gram matrix that the equation asks for, without leaving the basis on the other side.
        y = {
            "left": (g @ bases["right"]) * by_column,
            "right": by_row * (adjoint(bases["left"]) @ g),
        }
        over = {"left": columns, "right": rows}
        for s, a in grams.items():
            new_gram = _gram(jnp.where(first, g, y[s]), s) / over[s]
            grams[s] = jnp.where(first, weight * new_gram, a + gain * (new_gram - a))
        means = {
            "left": jnp.mean(square(seen * by_column), -1),
            "right": jnp.mean(square(seen * by_row), -2),
        }
        new_roots = {}
        for s, root in roots.items():
            n = g.shape[_axis(s)]
            most = min(max(n, 10), 4000) if clamp is None else clamp
            value = (1 - gain) / root**2 + gain * means[s]
            new_roots[s] = jnp.where(
                first, root, jnp.minimum(1 / jnp.sqrt(jnp.where(value > 0, value, most**-2)), most)
            )

        return used, new | _named(gram=grams, basis=bases, root=new_roots)

    def new_bases(memories, gs, rates, firsts):
        """Those that the gradients up to the last step made, in this one."""
        bases, grams = ([_group(m, name) for m in memories] for name in ("basis", "gram"))

        def first(held, grams):
            old, firsts = held
            new = in_batches(_eigenvectors, grams)
            return new, _turned(firsts, old, new)

        def later(held, grams):
            old, firsts = held
            new = in_batches(lambda x, q: qr(x @ q)[0], grams, old)
            return new, _turned(firsts, old, new)

        held = only_if(rates.count == 0, first, (bases, firsts), grams)
        due = (rates.count > 0) & (rates.count % every == 0)
        bases, firsts = only_if(due, later, held, grams)
        return [_named(basis=b) for b in bases], firsts

    return Own(
        init, step, decay, weighs=True, prepares=1,
        frame=_frame_of, together=new_bases, carries=True, of_matrices=True,
    )  # fmt: skip


def _where_finite(new: dict, mass: Array, old: tuple, eps: Any) -> tuple:
    """(bases, values, mass) of new roots of each matrix; its old ones where eigenvalues are not finite."""
    bases, values, then = old
    ok = jnp.ones(then.shape, bool)
    for w, q in new.values():
        ok &= jnp.all(jnp.isfinite(w), -1) & jnp.all(jnp.isfinite(q), (-2, -1))
    w = {
        s: jnp.where(ok[..., None], jnp.maximum(w, 0) + eps * mass, values[s])
        for s, (w, _) in new.items()
    }
    q = {s: jnp.where(ok[..., None, None], q, bases[s]) for s, (_, q) in new.items()}
    return q, w, jnp.where(ok, mass, then)


@estimator
def kronecker(decay: Exact = 1.0, every: int = 1, eps: Exact = 1e-12, max_dim: int = 10_000):
    """v = sqrt(l) sqrt(r)^T in the eigenvectors of L and R, l and r their eigenvalues + eps: Shampoo.

    Dividing by sqrt(v) there is L^(-1/4) g R^(-1/4). A vector has one factor, g g^H, and the power -1/2. L
    and R are sums for decay 1 (Gupta, Koren & Singer 2018, algorithm 1), else averages; `bias_correct` then
    divides them by their mass. The roots are new every so many steps; those of a matrix whose eigenvalues
    do not come out finite stay as they were. An axis longer than max_dim has no factor, and the other one
    the power -1/2: `view(tx, in_blocks(1024))` cuts them.

    Args:
      decay: b in [0, 1], a number.
      every: steps between two new roots, >= 1.
      eps: >= 0, added to the eigenvalues of the corrected L and R.
      max_dim: the longest axis that has a factor.

    Remembers for each side `gram`, `basis`, `values`, and `mass`, the mass that the roots of each matrix were
    made of.
    """
    if not isinstance(decay, (int, float)) or decay != 1:
        checks.decay("kronecker", decay)
    every = checks.steps("kronecker", "every", every, 1)
    checks.number("kronecker", "eps", eps, low=0)
    is_sum = isinstance(decay, (int, float)) and decay == 1

    def as_column(p):
        """A vector as a column, whose columns have no factor."""
        return p.reshape(-1, 1) if p.ndim < 2 else p

    def init(p):
        x, real = as_column(p), real_dtype(p.dtype)
        grams, bases = (_squares(x, max_dim, f) for f in (lambda n: jnp.zeros((n, n)), jnp.eye))
        if p.ndim < 2:
            grams.pop("right", None)
            bases.pop("right", None)
            axis = 0 if p.ndim else None
            lies = lambda a: along(a.array, (axis, None))  # noqa: E731
            grams, bases = ({s: lies(a) for s, a in d.items()} for d in (grams, bases))
        values = {}
        for s in grams:
            a = grams[s]
            values[s] = along(jnp.ones(a.array.shape[:-1], real), a.axes[:-1])
        stack = p.shape[:-2]
        mass = along(jnp.ones(stack, real), tuple(range(len(stack))))
        return _named(gram=grams, basis=bases, values=values) | {"mass": mass}

    def new_roots(memories, gs, rates, firsts):
        """Of the Gram matrices with the gradients of this step."""
        gain = 1.0 if is_sum else rates.gain
        keep = 1.0 if is_sum else 1 - rates.gain
        grams = [
            {s: keep * a + gain * _gram(as_column(g), s) for s, a in _group(m, "gram").items()}
            for m, g in zip(memories, gs, strict=True)
        ]
        mass = jnp.asarray(rates.mass, memories[0]["mass"].dtype)

        def roots(held, grams, mass, eps):
            return [
                _where_finite(new, mass, old, eps)
                for new, old in zip(in_batches(_eigh, grams), held, strict=True)
            ]

        names = ("basis", "values")
        held = [(*(_group(m, n) for n in names), m["mass"]) for m in memories]
        held = only_if(rates.count % every == 0, roots, held, grams, mass, eps)
        new = [
            _named(gram=gram, basis=basis, values=values) | {"mass": then}
            for gram, (basis, values, then) in zip(grams, held, strict=True)
        ]
        return new, firsts

    def step(memory, g, rates, at):
        values = _group(memory, "values")
        mass = jnp.asarray(rates.mass, memory["mass"].dtype)
        then = memory["mass"]
        power = 1 / max(len(values), 1)
        v = jnp.ones(as_column(g).shape, then.dtype)
        for s, w in values.items():
            v = v * jnp.expand_dims(w, -1 if s == "left" else -2) ** power
        # bias_correct divides by the mass of today; these roots are of averages of another one.
        v = v * (mass / then)[..., None, None] if values else v * mass
        return v.reshape(g.shape), memory

    def frame(memory):
        into, back = _frame_of(memory)
        return Frame(
            lambda x: into(as_column(x)).reshape(x.shape),
            lambda x: back(as_column(x)).reshape(x.shape),
        )

    decay = 0.0 if is_sum else decay
    return Own(
        init, step, decay, weighs=not is_sum, frame=frame, together=new_roots, of_matrices=True
    )
