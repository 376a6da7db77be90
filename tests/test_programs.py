"""What the compiled programs look like, counted: nothing here depends on the clock."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.engine import leaves, trees
from benchmarks import contenders, report, suites, sweeps, timing

RATE = fx.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)
CLIPPED = fx.chain(fx.clip_by_global_norm(1.0), fx.adamw(RATE))


def program(tx, leaves, size=10):
    params = {f"w{i}": jnp.ones(size) for i in range(leaves)}

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return fx.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).trace(params, tx.init(params), params)


def test_a_thousand_leaves_cost_sixty_equations():
    """Rows of one kind are called several at a time: the program grows with the root of their number."""
    few, many = (len(program(fx.adamw(0.1), n).jaxpr.eqns) for n in (100, 900))
    assert many - few < 2 * 2 * (30 - 10) + 10


def test_trees_are_flattened_and_checked_once(monkeypatch):
    """However wrappers are nested: at the door of a step, and once where its updates are applied."""
    counts = collections.Counter()

    def counted(module, name):
        original = getattr(module, name)

        def call(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counted(trees, "flatten")
    counted(trees, "same_structure")
    counted(trees, "paths")
    counted(trees, "check_leaves")
    counted(leaves, "_check_pairs")
    nested = fx.partition(
        {"a": fx.adam(0.1), "b": fx.accumulate(fx.adamw(0.1), 2)},
        {"a": fx.path_matches("w0"), "b": ~fx.path_matches("w0")},
    )
    for tx in (fx.adam(0.1), nested):
        params = {f"w{i}": jnp.ones(2) for i in range(3)}
        state = tx.init(params)
        counts.clear()
        jax.jit(tx.step).trace(params, state, params)
        assert counts == {"flatten": 2, "check_leaves": 2, "_check_pairs": 1}, tx


def test_a_leaf_function_is_traced_once_per_shape():
    traced = []

    @fx.block
    def noting():
        def leaf(u, here):
            traced.append(u.shape)
            return u

        return fx.leafwise(leaf)

    tx, shapes = fx.chain(noting(), fx.sgd(0.1)), [3, 3, (2, 2), 3, (2, 2)]
    params = [jnp.ones(shape) for shape in shapes]
    jax.jit(tx.step).trace(params, tx.init(params), params)
    assert sorted(traced, key=str) == [(2, 2), (3,)]


def test_a_norm_needs_neither_branch_nor_loop():
    """And small vectors are summed sixteen at a time."""
    text = program(CLIPPED, 20, 1000).lower().as_text()
    assert text.count("stablehlo.reduce(") == 2  # of sixteen, and of four
    compiled = program(CLIPPED, 20, 1000).lower().compile().as_text()
    for word in (" while(", " conditional("):
        assert word not in compiled


def test_a_schedule_is_computed_once_for_all_leaves():
    """Not in the loop of every leaf, where XLA would put what it takes for cheap."""
    tx = fx.adam(fx.cosine_decay_schedule(1e-3, 100))
    params = [jnp.ones(1000 + i) for i in range(8)]
    step = jax.jit(tx.step)
    compiled = step.lower(params, tx.init(params), params).compile().as_text()
    assert compiled.count("cosine(") == 2  # for the leaves, and for the rate that the state tells


# ---- the benchmark's own arithmetic --------------------------------------------------------------


def test_ratio_and_its_interval():
    rng = np.random.default_rng(0)
    peer = 1 + 0.1 * rng.random((3, 41))
    r = timing.ratio(2 * peer, peer)
    assert r.middle == pytest.approx(2)
    assert r.low <= 2 <= r.high
    assert r.high - r.low < 0.1
    assert 1 <= r.same < 1.05
    apart = timing.ratio(peer, peer * np.array([[1.0], [1.3], [1.0]]))
    assert apart.same == pytest.approx(1.3, rel=0.05)
    assert apart.high - apart.low > r.high / 2 - r.low / 2  # a copy apart widens the interval


@pytest.mark.parametrize(
    ("name", "bytes_"), [("adam", 28), ("momentum", 20), ("lion", 20), (contenders.CLIPPED, 32)]
)
def test_least_bytes(name, bytes_):
    assert contenders.least_bytes(contenders.Case("adamfx", name, size=1000)) == bytes_


def test_table_and_picture_show_what_is_missed(tmp_path):
    rows = [
        suites.Row("jitted", "good", 0.5, "x", 0.4, 0.6, 1.02, 1.0, True),
        suites.Row("jitted", "bad", 1.5, "x", 1.4, 1.6, 1.02, 1.0, False),
        suites.Row("memory", "bytes", 28.0, "bytes"),
    ]
    text = report.table(rows, quick=False)
    assert "1 of 2 bars met" in text
    assert text.count("NOT MET") == 1
    rows += [suites.Row(name, "one of each", 1.0, "x", 0.9, 1.1) for name in suites.SUITES]
    report.write(tmp_path, "cpu (test)", False, rows)
    assert {p.name for p in tmp_path.iterdir()} == {"bench.json", "bench.png", "bench.svg"}


def test_sweeps_by_hand_find_the_same_losses():
    pytest.importorskip("sklearn")
    size = sweeps.Size(2, 2, 4)
    data = sweeps.batches(size.steps)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as of a user
        found = [make(size, data) for make in sweeps.CONTENDERS.values()]
    for losses in found:
        assert losses.shape == (size.members, size.steps)
        np.testing.assert_allclose(losses, found[0], sweeps.RTOL, sweeps.ATOL)
    assert np.ptp(found[0][:, -1]) > 1e-3  # rates and seeds are not all one


def test_a_worker_that_fails_says_why():
    with timing.Worker() as worker:
        assert worker.ask(timing.device_name).split()[0] in {"cpu", "gpu", "tpu"}
        with pytest.raises(RuntimeError, match=r"in a benchmark process(.|\n)*no such|has no"):
            worker.ask(timing._make, "x", contenders.Case("adamfx", "no such"))
