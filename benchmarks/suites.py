"""What is measured, one function per question. Each yields rows; `report` shows them.

The bars are those that the project has set itself, with optax, torch or a hand-written loop as the
other side. A row without a bar is there to be seen.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks import contenders, sweeps
from benchmarks.contenders import CLIPPED, OPTIMIZERS, Case
from benchmarks.programs import COLUMNS, LAYOUTS, PEERS, bars, environment, program
from benchmarks.sharing import KINDS, SENTENCES, in_shares
from benchmarks.sharing import matrices as matrices_of
from benchmarks.storage import MAKERS, PROBLEMS, bytes_per_parameter, compared
from benchmarks.timing import Entry, Ratio, Worker, ceiling, race, ratio


class Row(NamedTuple):
    """One line of the result; `met` is None where there is no bar."""

    suite: str
    what: str
    value: float
    unit: str = "x"  # of the peer
    low: float | None = None
    high: float | None = None
    same: float | None = None  # two copies of the peer, slowest over fastest
    bar: float | None = None
    met: bool | None = None
    note: str = ""
    column: str = ""  # of a table in which `what` is a line
    peer: float | None = None  # the peer's value there


class Plan(NamedTuple):
    """How much to do: everything, or (--quick) enough to see that it runs."""

    quick: bool

    def __call__(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    @property
    def rounds(self) -> int:
        return self(41, 3)

    @property
    def burst(self) -> float:
        return self(0.02, 0.0)


def _row(suite: str, what: str, r: Ratio, bar: float, note: str = "") -> Row:
    """A ratio whose median is to be at most the bar."""
    return Row(suite, what, r.middle, "x", r.low, r.high, r.same, bar, r.middle <= bar, note)


def _per_step(times: np.ndarray) -> str:
    seconds = float(np.median(times))
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


# ---- outside jit ---------------------------------------------------------------------------------


def eager(plan: Plan) -> Iterator[Row]:
    """`update` called outside jit, against optax's."""
    bars = {"adam": 1 / 15, CLIPPED: 1 / 20}
    with Worker() as worker:
        for leaves in plan((1, 100, 1000), (2,)):
            for name in bars:
                case = Case("adamfx", name, leaves, 1000, mode="eager")
                pair = [Entry(n, case._replace(library=n), worker) for n in ("adamfx", "optax")]
                times = race(pair, plan(25, 3), plan.burst)
                r = ratio(times["adamfx"], times["optax"])
                note = _per_step(times["adamfx"])
                if leaves == 100:
                    yield _row("outside jit", f"{name}, {case.tree}", r, bars[name], note)
                else:
                    yield Row("outside jit", f"{name}, {case.tree}", *_unbarred(r), note=note)


def _unbarred(r: Ratio) -> tuple:
    return r.middle, "x", r.low, r.high, r.same


# ---- jitted, default flags -----------------------------------------------------------------------


def jitted_cases(plan: Plan) -> list[Case]:
    one = Case("adamfx")
    leaves = [one._replace(leaves=n) for n in plan((1, 10, 100, 1000, 2000), (3,))]
    sizes = [
        one._replace(size=n) for n in plan((100_000, 1_000_000, 10_000_000, 60_000_000), (10_000,))
    ]
    many = [one._replace(optimizer=o, leaves=plan(100, 2)) for o in OPTIMIZERS[1:]]
    large = [one._replace(optimizer=o, size=plan(32_000_000, 2000)) for o in OPTIMIZERS]
    kinds = [
        one._replace(dtype=d, leaves=n, size=s)
        for d in ("bfloat16", "mixed")
        for n, s in plan(((100, 1000), (2, 8_000_000)), ((2, 1000),))
    ]
    scan = [one._replace(mode="scan", leaves=plan(100, 2), dispatch=10)]
    return leaves + sizes + many + large + kinds + scan


def jitted(plan: Plan) -> Iterator[Row]:
    """update and apply_updates in one jit, donated, the optimizer closed over, against optax."""
    with Worker() as worker:
        limit = worker.ask(ceiling, plan(32_000_000, 100_000))
        yield Row("memory", "ceiling: y <- 2 y in place", limit / 1e9, "GB/s")
        for case in jitted_cases(plan):
            copies = 3 if case.leaves < 1000 else 2  # many leaves take long to compile
            pair = [
                Entry(n, case._replace(library=n), worker, copies=copies)
                for n in ("adamfx", "optax")
            ]
            times = race(pair, plan.rounds, plan.burst)
            r = ratio(times["adamfx"], times["optax"])
            met = r.low <= 1.0 and r.middle <= r.same + 0.05
            what = f"{case.optimizer}, {case.tree}{', scan' if case.mode == 'scan' else ''}"
            note = _per_step(times["adamfx"])
            if case.parameters >= 10_000_000 and case.dtype == "float32":
                note += ", " + _share(case, times["adamfx"], limit)
            yield Row("jitted", what, *_unbarred(r), bar=1.0, met=met, note=note)


def _share(case: Case, times: np.ndarray, limit: float) -> str:
    """How near to the memory's ceiling a step is that would move each byte once."""
    moved = contenders.least_bytes(case) * case.parameters / float(np.median(times))
    return f"{moved / limit:.2f} of the ceiling"


def tiny(plan: Plan) -> Iterator[Row]:
    """One leaf of ten floats: what a step costs at the least."""
    case = Case("adamfx", size=10)
    with Worker() as worker:
        times = race(
            [
                Entry("adamfx", case, worker, 3),
                Entry("argument", case._replace(mode="argument"), worker, 3),
                Entry("optax", case._replace(library="optax"), worker, 3),
            ],
            plan.rounds,
            plan.burst,
        )
    r = ratio(times["adamfx"], times["optax"])
    yield _row("tiny", f"adam, {case.tree}, closed over", r, 1.05, _per_step(times["adamfx"]))
    more = (np.median(times["argument"]) - np.median(times["optax"])) * 1e6
    what = f"adam, {case.tree}, the optimizer as argument: more than optax closed over"
    yield Row("tiny", what, float(more), "us", bar=15.0, met=bool(more <= 15))


# ---- many steps in one dispatch ------------------------------------------------------------------


def dispatch(plan: Plan) -> Iterator[Row]:
    """100 steps under one scan against 100 dispatched steps of optax."""
    bars = {(200, 1000): 0.25, (1000, 1000): 0.20, (200, 100): 0.06}
    with Worker() as worker:
        for (leaves, size), bar in bars.items():
            case = Case("adamfx", leaves=plan(leaves, 2), size=size, mode="scan")
            peer = case._replace(library="optax", mode="jit")
            entries = [Entry("adamfx", case, worker), Entry("optax", peer, worker)]
            times = race(entries, plan(15, 3), plan(0.1, 0.0))
            r = ratio(times["adamfx"], times["optax"])
            note = _per_step(times["adamfx"])
            yield _row("one dispatch", f"adam, {case.tree}, 100 steps", r, bar, note)


# ---- one pass over memory ------------------------------------------------------------------------


def single_pass(plan: Plan) -> Iterator[Row]:
    """With fx.configure(single_pass=True), against optax and torch in processes of their own."""
    size = plan(32_000_000, 10_000)
    with Worker(single_pass=True) as ours, Worker() as default:
        limit = default.ask(ceiling, size)
        peers = [("torch fused", 1.05), ("torch foreach", None)] if _has("torch") else []
        for name in ("adam", "adamw", "rmsprop", "lion", "momentum", CLIPPED, "lamb"):
            case = Case("adamfx", name, 1, size)
            entries = [
                Entry("adamfx", case, ours),
                Entry("adamfx, default flags", case, default),
                Entry("optax", case._replace(library="optax"), default),
            ]
            no_fused = ("rmsprop", "lion", "lamb")
            there = [n for n, _ in peers if name not in no_fused]
            there += [n for n, _ in peers if name == "rmsprop" and "foreach" in n]
            entries += [Entry(n, case._replace(library=n), default) for n in there]
            times = race(entries, plan.rounds, plan.burst)
            note = f"{_per_step(times['adamfx'])}, {_share(case, times['adamfx'], limit)}"
            barred = name in ("adam", "adamw", "rmsprop", "lion")
            for peer in times:
                if peer == "adamfx":
                    continue
                r = ratio(times["adamfx"], times[peer])
                what = f"{name}, {case.tree}, of {peer}"
                bar = 0.65 if peer == "optax" and barred else None
                bar = 1.05 if (peer, name) == ("torch fused", "adam") else bar
                if bar:
                    yield _row("single pass", what, r, bar, note)
                else:
                    yield Row("single pass", what, *_unbarred(r), note=note)
        for name in ("adam", "adamw", "rmsprop", "lion", "momentum", CLIPPED):
            case = Case("adamfx", name, 1, size)
            moved, least = ours.ask(_bytes_moved, case), contenders.least_bytes(case)
            bar = 28.01 if name == "adam" else None
            note = f"at least {least:.0f}; optax with default flags "
            note += f"{default.ask(_bytes_moved, case._replace(library='optax')):.2f}"
            met = abs(moved - 28) <= 0.01 if bar else None
            what = f"{name}, {case.tree}: bytes per parameter"
            yield Row("single pass", what, moved, "bytes", bar=bar, met=met, note=note)


# ---- matrices ------------------------------------------------------------------------------------


def matrices(plan: Plan) -> Iterator[Row]:
    """Ten steps in one program of what multiplies and decomposes matrices; a new basis in one of them."""
    shape = {"leaves": plan(24, 2), "size": plan(256, 8), "columns": plan(256, 8)}
    case = Case("adamfx", "muon", mode="scan", dispatch=10, **shape)
    peers = {"muon": ("optax", 0.8), "soap": ("pytorch_optimizer", 1.0)}
    if not _has("pytorch_optimizer"):
        peers.pop("soap")
    with Worker() as worker:
        for name, (library, bar) in peers.items():
            ours = case._replace(optimizer=name)
            pair = [
                Entry(n, ours._replace(library=n), worker, copies=1) for n in ("adamfx", library)
            ]
            times = race(pair, plan(21, 2), plan.burst)
            r, note = ratio(times["adamfx"], times[library]), _per_step(times["adamfx"])
            yield _row("matrices", f"{name}, {ours.tree}, beside {library}", r, bar, note)
        for name in plan(("normuon", "shampoo", "kl_soap", "kron", "scion"), ("normuon",)):
            alone = case._replace(optimizer=name)
            times = race([Entry("adamfx", alone, worker, copies=1)], plan(5, 2), plan.burst)
            seconds = float(np.median(times["adamfx"]))
            yield Row("matrices", f"{name}, {alone.tree}", seconds * 1e3, "ms")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _program(case: Case) -> tuple[Any, tuple]:
    """A jitted step, not yet traced, and what to call it with."""
    import jax

    params, grads = contenders.trees(case)
    tx, _ = contenders.optimizer(case)
    return jax.jit(contenders.step(case), donate_argnums=(0, 1)), (params, tx.init(params), grads)


def _bytes_moved(held: dict, case: Case) -> float:
    """Per parameter, by XLA's own count."""
    program, args = _program(case)
    cost: Any = program.lower(*args).compile().cost_analysis()
    return cost["bytes accessed"] / case.parameters


# ---- compiling -----------------------------------------------------------------------------------


def compiling(plan: Plan) -> Iterator[Row]:
    """Tracing, lowering and compiling 1,000 leaves; both sides start without caches."""
    bars = {"trace": 0.30, "lower": None, "compile": 0.95}
    for name in (CLIPPED, "adam"):
        case = Case("adamfx", name, plan(1000, 3), 1000)
        found: dict[str, dict[str, list]] = {"adamfx": {}, "optax": {}}
        with Worker() as worker:
            for _ in range(plan(4, 2)):
                for library in found:
                    parts = worker.ask(_compile, case._replace(library=library))
                    for part, seconds in parts.items():
                        found[library].setdefault(part, []).append(seconds)
        for part, bar in bars.items():
            ours, peer = (np.asarray([found[n][part]]) for n in ("adamfx", "optax"))
            r = ratio(ours, peer)._replace(same=float(peer.max() / peer.min()))
            what, note = f"{part}, {name}, {case.tree}", f"{np.median(ours):.3g} s"
            if bar and name == CLIPPED:
                yield _row("compiling", what, r, bar, note)
            else:
                yield Row("compiling", what, *_unbarred(r), note=note)
        ours, peer = found["adamfx"]["equations"][0], found["optax"]["equations"][0]
        what = f"equations, {name}, {case.tree}"
        yield Row(
            "compiling", what, ours / peer, "x", note=f"{ours:,} and {peer:,}, inner ones once"
        )


def _compile(held: dict, case: Case) -> dict[str, float]:
    import jax

    jax.clear_caches()
    program, args = _program(case)
    marks = [time.perf_counter()]
    traced = program.trace(*args)
    marks.append(time.perf_counter())
    lowered = traced.lower()
    marks.append(time.perf_counter())
    lowered.compile()
    marks.append(time.perf_counter())
    parts = dict(zip(("trace", "lower", "compile"), np.diff(marks).tolist(), strict=True))
    return parts | {"equations": _equations(traced.jaxpr.jaxpr, set())}


def _equations(jaxpr: Any, seen: set) -> int:
    """Equations of a program; a function inside that is called many times counts once."""
    count = 0
    for eqn in jaxpr.eqns:
        count += 1
        for x in eqn.params.values():
            for inner in x if isinstance(x, (tuple, list)) else (x,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns") and id(inner) not in seen:
                    seen.add(id(inner))
                    count += _equations(inner, seen)
    return count


def tracing(plan: Plan) -> Iterator[Row]:
    """Tracing 1,000 leaves of 10 and compiling 100, of sentences and wrappers; the first use of one leaf."""
    bars = {  # trace, compile
        "adam": (0.15, None),
        "lamb": (0.09, 1.0),
        CLIPPED: (0.18, 1.0),
        "accumulate": (0.22, 1.0),
        "skip + accumulate + clip + adamw": (0.22, 1.0),
        "partition of 6": (0.17, 1.0),
    }
    with Worker() as worker:
        for name, of in bars.items():
            for part, leaves, bar in zip(
                ("trace", "compile"), plan((1000, 100), (7, 7)), of, strict=True
            ):
                case = Case("adamfx", name, leaves, 10)
                r = _apart(worker, _compile, case, part, plan(4, 2))
                what = f"{part}, {name}, {case.tree}"
                yield Row("tracing", what, *_unbarred(r), bar=bar, met=bar and r.middle <= bar)
        case = Case("adamfx", "adam", 1, 10)
        r = _apart(worker, _first_use, case, "init and trace", plan(6, 2))
        what = f"init and first trace, adam, {case.tree}"
        yield Row("tracing", what, *_unbarred(r), bar=1.2, met=r.middle <= 1.2)


def _apart(worker: Worker, measure: Callable, case: Case, part: str, rounds: int) -> Ratio:
    """A part of what `measure` finds, of both libraries in turn; the first round warms up."""
    found: dict[str, list] = {"adamfx": [], "optax": []}
    for _ in range(rounds + 1):
        for library, seconds in found.items():
            seconds.append(worker.ask(measure, case._replace(library=library))[part])
    ours, peer = (np.asarray([found[n][1:]]) for n in ("adamfx", "optax"))
    return ratio(ours, peer)._replace(same=float(peer.max() / peer.min()))


def _first_use(held: dict, case: Case) -> dict[str, float]:
    import jax

    jax.clear_caches()
    tx, _ = contenders.optimizer(case)
    params, grads = contenders.trees(case)
    program = jax.jit(contenders.step(case))
    start = time.perf_counter()
    program.trace(params, tx.init(params), grads)
    return {"init and trace": time.perf_counter() - start}


# ---- memory, and compilations of a run -----------------------------------------------------------


def memory(plan: Plan) -> Iterator[Row]:
    """What a state holds, what a step needs at its peak, and how often a run compiles."""
    size = plan(1_000_000, 1000)
    with Worker() as worker:
        for dtype in ("float32", "bfloat16"):
            for name in ("adam", CLIPPED):
                case = Case("adamfx", name, 4, size, dtype)
                (ours, peak), (theirs, their_peak) = (
                    worker.ask(_memory, case._replace(library=n)) for n in ("adamfx", "optax")
                )
                what, note = f"{name}, {case.tree}", f"optax {theirs:.2f}"
                yield Row("memory", f"{what}: state bytes per parameter", ours, "bytes", note=note)
                what += ": bytes per parameter at the peak of a step"
                yield Row("memory", what, peak, "bytes", note=f"optax {their_peak:.2f}")
        for mode in ("jit", "argument", "scan"):
            count = worker.ask(_compilations, Case("adamfx", CLIPPED, 3, 10, mode=mode))
            what = f"{CLIPPED}, {mode}: compilations in 100 steps"
            yield Row("compiling", what, count, "", bar=1, met=count == 1)


def _memory(held: dict, case: Case) -> tuple[float, float]:
    import jax

    program, args = _program(case)
    state = sum(x.nbytes for x in jax.tree.leaves(args[1]))
    m = program.lower(*args).compile().memory_analysis()
    peak = (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        + m.temp_size_in_bytes
        - m.alias_size_in_bytes
    )
    return state / case.parameters, peak / case.parameters


def _compilations(held: dict, case: Case) -> int:
    """How many programs XLA compiles from the second step of a run to its end, plus the first."""
    import jax

    events: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    run = contenders.contender(case._replace(dispatch=10))  # has made its first step, or dispatch
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(100)
    finally:
        jax.monitoring.clear_event_listeners()
    return 1 + len(events)


# ---- accumulation --------------------------------------------------------------------------------


def accumulation(plan: Plan) -> Iterator[Row]:
    """accumulate(adam, 8) against seven additions and a step, compiled apart and donated."""
    size = plan(10_000_000, 1000)
    with Worker() as worker:
        found = worker.ask(_accumulation, size, plan(15, 3))
    r = ratio(np.asarray([found["accumulate"]]), np.asarray([found["ideal"]]))
    what = f"accumulate(adam, 8), 2 x {size:,}, of the ideal by hand"
    yield _row("wrappers", what, r._replace(same=1.0), 1.2, "the ideal does not look for NaN")


def _accumulation(held: dict, size: int, rounds: int) -> dict[str, list[float]]:
    import jax
    import jax.numpy as jnp

    import adamfx as fx

    k, tx = 8, fx.adam(1e-3)
    params = {"a": jnp.ones(size), "b": jnp.ones(size)}
    grads = jax.tree.map(lambda x: x * 0.1, params)
    ours = fx.accumulate(tx, k)

    @functools.partial(jax.jit, donate_argnums=0)
    def add(total, grads):
        return jax.tree.map(jnp.add, total, grads)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def emit(params, state, total):
        params, state = tx.step(jax.tree.map(lambda x: x / k, total), state, params)
        return params, state, jax.tree.map(jnp.zeros_like, total)

    step = jax.jit(lambda p, s, g: ours.step(g, s, p), donate_argnums=(0, 1))
    copy: Callable = functools.partial(jax.tree.map, jnp.copy)
    zeros = jax.tree.map(jnp.zeros_like, params)
    have = {
        "ideal": (copy(params), tx.init(params), zeros),
        "accumulate": (copy(params), ours.init(params)),
    }

    def ideal() -> None:
        params, state, total = have["ideal"]
        for _ in range(k):
            total = add(total, grads)
        have["ideal"] = jax.block_until_ready(emit(params, state, total))

    def accumulate() -> None:
        for _ in range(k):
            have["accumulate"] = step(*have["accumulate"], grads)
        jax.block_until_ready(have["accumulate"])

    calls = {"ideal": ideal, "accumulate": accumulate}
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(0)
    for r in range(rounds + 1):
        for name in order.permutation(list(calls)):
            start = time.perf_counter()
            calls[name]()
            if r:
                times[name].append(time.perf_counter() - start)
    return times


# ---- programs for chips that are not there -------------------------------------------------------


def programs(plan: Plan) -> Iterator[Row]:
    """One step compiled for eight TPU chips, counted, against optax's."""
    names = plan(list(PEERS), ["adamw"])
    with Worker(environment=environment()) as worker:
        for name, layout in itertools.product(names, plan(LAYOUTS, LAYOUTS[:1])):
            ours, peer = (worker.ask(program, n, name, layout) for n in ("adamfx", "optax"))
            most = bars(peer)
            for column, (unit, of) in COLUMNS.items():
                bar, value = most.get(column), of(ours)
                met = None if bar is None else value <= bar
                kinds = column == "collectives"
                note = f"{ours.kinds}; optax {peer.kinds}" if kinds else ""
                row = Row("programs", f"{name}, {layout}", value, unit, bar=bar, met=met, note=note)
                yield row._replace(column=column, peer=of(peer))


def sharing(plan: Plan) -> Iterator[Row]:
    """What shard_state and the sharing out of matrices cost on eight TPU chips."""
    with Worker(environment=environment()) as worker:
        for name, explicit in itertools.product(plan([*SENTENCES], ["shard_state(adamw)"]), KINDS):
            what = f"{name}, {KINDS[explicit]}"
            for column, value in worker.ask(in_shares, name, explicit).items():
                yield Row("state in shares", what, value, "bytes", column=column)
        # Layers and their width; of Muon the update moves, of the others also all that is remembered.
        sizes = {
            "muon": plan((), (2, 256)),
            "soap": (8, 128),
            "kl_soap": (8, 128),
            "kron": (8, 128),
        }
        names = plan([*sizes], ["muon"])
        for name, layout, explicit in itertools.product(names, plan(LAYOUTS, LAYOUTS[:1]), KINDS):
            stacked = ", matrices=ndim_at_least(3)" * ("stacked" in layout)
            text = f"{name}(1e-3{stacked})"
            for apart in plan((False, True), (False,)):
                what = f"{name}, {layout}, {KINDS[explicit]}{', apart' * apart}"
                found = worker.ask(matrices_of, text, layout, explicit, apart, *sizes[name])
                moving = 1 + found["remembered"] * (name != "muon")
                most = {"sent": 2.005 * moving, "operations": 1.25}
                for column, value in found.items():
                    bar = None if apart else most.get(column)
                    met = None if bar is None else value <= bar
                    yield Row(
                        "matrices shared out", what, value, "", bar=bar, met=met, column=column
                    )


# ---- memory of 8 bits ----------------------------------------------------------------------------


def storage(plan: Plan) -> Iterator[Row]:
    """How many rates of a sweep end within the spread of float32; bytes of state per parameter."""
    makers = plan(list(MAKERS), ["adamw", "lion"])
    on_digits = () if _has("sklearn") else ("classes", "auto-encoder")
    names = [n for n in plan(list(PROBLEMS), ["factors"]) if n not in on_digits]
    if on_digits:
        yield Row("storage", "left out without scikit-learn", len(on_digits), "problems")
    with Worker() as worker:
        for name in makers:
            bar = 1.05 * len(MAKERS[name][2])
            for model, value in worker.ask(bytes_per_parameter, name, names).items():
                row = Row("storage", f"{name}, {model}: state per parameter", value, "bytes")
                of_bar = model not in names  # the problems' axes are narrow, and have more scales
                yield row._replace(bar=bar, met=value <= bar) if of_bar else row
        for of, name in itertools.product(names, makers):
            found = worker.ask(compared, name, of, plan(8, 3), plan(300, 10), plan(5, 2))
            for rounding, x in found.items():
                note = (
                    f"{x.best:+.2%} at the best rate, at most {np.nanmax(abs(x.gaps)):.2g} spreads"
                )
                share, what = float(np.mean(x.within)), f"{name}, {of}, rounded {rounding}"
                met = bool(np.all(x.within))
                yield Row("storage", what, share, "of rates", bar=1.0, met=met, note=note)


# ---- a sweep -------------------------------------------------------------------------------------


def sweep(plan: Plan) -> Iterator[Row]:
    """100 short trainings by fx.sweep and by loops of optax, from nothing compiled to all losses."""
    if not _has("sklearn"):
        yield Row("sweep", "left out without scikit-learn", len(sweeps.CONTENDERS) - 1, "loops")
        return
    size = sweeps.Size(*plan((20, 5, 300), (2, 2, 5)))
    with Worker() as worker:
        times = sweeps.raced(worker, size, plan(3, 2))
    ours = times.pop("fx.sweep")
    for name, peer in times.items():
        r = ratio(ours, peer)._replace(same=float(peer.max() / peer.min()))
        what = f"{size.members} members, {size.steps} steps, of {name}"
        note = f"{np.median(ours):.3g} s and {np.median(peer):.3g} s"
        if name == "one vmap":
            yield Row("sweep", what, *_unbarred(r), note=note)
        else:
            yield _row("sweep", what, r, 0.1, note)


SUITES: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "eager": eager,
    "jitted": jitted,
    "tiny": tiny,
    "dispatch": dispatch,
    "single_pass": single_pass,
    "compiling": compiling,
    "tracing": tracing,
    "memory": memory,
    "accumulation": accumulation,
    "matrices": matrices,
    "sweep": sweep,
    "programs": programs,
    "sharing": sharing,
    "storage": storage,
}
