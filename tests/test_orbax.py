"""Checkpoints by Orbax: a run goes on from them as if it had never ended."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adamfx as fx

pytest.importorskip("orbax.checkpoint")
RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(size=(3,)).astype(np.float32) for _ in range(60)]
PARAMS = {"w": jnp.zeros(3)}
TX = fx.accumulate(fx.average_params(fx.adamw(1e-2), fx.ema(0.9)), 3)


def loss(p, x):
    return jnp.sum((p["w"] - x) ** 2)


def fit(batches, checkpoints, **more):
    return fx.fit(loss, TX, PARAMS, batches, checkpoints=checkpoints, progress=False, **more)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_in_three_parts_is_the_whole_run(tmp_path):
    straight = fx.fit(loss, TX, PARAMS, BATCHES, progress=False)
    for end, steps in ((25, [10, 20, 25]), (40, [25, 30, 40]), (60, [40, 50, 60])):
        with fx.Checkpoints(tmp_path / "run", every=10) as kept:
            result = fit(BATCHES[kept.latest or 0 :], kept, steps=end)
            assert kept.steps == steps
            assert result.history.rows == end
            assert result.reason == "steps"
    equal(result.params, straight.params)
    equal(result.state, straight.state)
    assert set(result.history) == set(straight.history)
    for name, column in straight.history.items():
        np.testing.assert_array_equal(result.history[name], column)
    with fx.Checkpoints(tmp_path / "run") as kept:  # there is nothing left to do
        assert fit(iter(()), kept, steps=60).history.rows == 60


def test_the_last_step_is_kept_whatever_ends_the_run(tmp_path):
    def batches(at, end):
        for i, x in enumerate(BATCHES):
            if i == at:
                end()
            yield x

    def fails():
        raise OSError("gone")

    with fx.Checkpoints(tmp_path / "failed", every=50) as kept:
        with pytest.raises(OSError, match="gone") as caught:
            fit(batches(17, fails), kept)
        assert kept.steps == [17]
        assert caught.value.result.history.rows == 17
    with fx.Checkpoints(tmp_path / "interrupted", every=50) as kept:
        result = fit(batches(17, lambda: os.kill(os.getpid(), signal.SIGINT)), kept)
        assert result.reason == "interrupted"
        assert kept.steps == [int(result.state["count"])] == [result.history.rows]
        tree = {"params": PARAMS, "state": TX.init(PARAMS), "history": fx.History()}
        equal(kept.restore(tree)["params"], result.params)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_stays(tmp_path, mode):
    """Also where the run goes on in another process, which reads the scores of before."""
    numbers = [5.0, 1.0, 4.0, 9.0, 3.0, 2.0]

    def evaluate(params, state):
        return numbers[int(state["count"]) // 10 - 1]

    for end in (20, 50, 60):
        with fx.Checkpoints(
            tmp_path / "run", every=10, keep=1, best="evaluation", mode=mode
        ) as kept:
            batches = BATCHES[kept.latest or 0 :]
            fit(batches, kept, evaluate=evaluate, evaluate_every=10, steps=end)
    assert kept.steps == [20 if mode == "min" else 40, 60]


def test_a_best_of_which_nothing_is_known(tmp_path):
    warned = pytest.warns(UserWarning, match="no number in column 'lss'")
    with fx.Checkpoints(tmp_path / "run", best="lss") as kept, warned:
        fit(BATCHES[:3], kept)


def test_any_tree_on_any_mesh(tmp_path):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    lies = NamedSharding(mesh, P("x", "y"))
    tree = {
        "a": jax.device_put(np.arange(32, dtype=np.float32).reshape(8, 4), lies),
        "key": jax.random.key(3), "half": jnp.ones(3, jnp.bfloat16), "scalar": np.float32(2),
        "numpy": np.arange(3), "int": 5, "float": 2.5, "true": True,
        "state": TX.init(PARAMS), "history": fx.History({"step": [1, 2], "loss": [0.5, np.nan]}),
    }  # fmt: skip
    with fx.Checkpoints(tmp_path / "run") as kept:
        kept.save(3, tree)
        kept.wait()
        other = NamedSharding(jax.make_mesh((2, 2), ("p", "q"), devices=jax.devices()[4:]), P("q"))
        like = tree | {"a": jax.ShapeDtypeStruct((8, 4), np.float32, sharding=other)}
        found = kept.restore(like)
    assert found["a"].sharding == other
    assert jnp.all(jax.random.key_data(found["key"]) == jax.random.key_data(tree["key"]))
    np.testing.assert_array_equal(found["history"]["loss"], [0.5, np.nan])
    for name in ("a", "half", "scalar", "numpy", "int", "float", "true", "state"):
        equal(found[name], tree[name])
        assert type(found[name]) is type(tree[name])


def test_a_folder_is_enough(tmp_path):
    assert fit(BATCHES[:5], tmp_path / "run").history.rows == 5
    assert fit(BATCHES[5:9], str(tmp_path / "run")).history.rows == 9
    with pytest.raises(
        TypeError, match="checkpoints must be a Checkpoints, a string, a path or None, got 7"
    ):
        fit(BATCHES, 7)


def test_what_is_left_of_one_that_was_being_removed_is_removed(tmp_path):
    """A process that is killed meanwhile leaves a folder of that name, with some of what was in it."""
    fit(BATCHES[:5], tmp_path / "run")
    for step, rest in (
        (1, ["arrays/d", "histories"]),
        (2, ["metrics", "commit_success.txt"]),
        (3, []),
    ):
        for name in ("", *rest):
            (tmp_path / "run" / str(step) / name).mkdir(parents=True, exist_ok=True)
    with fx.Checkpoints(tmp_path / "run") as kept:
        assert kept.steps == [5]
    assert not [x for x in (tmp_path / "run").iterdir() if x.name in "123"]


def test_what_cannot_be_kept_or_found(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file; name a folder"):
        fx.Checkpoints(tmp_path / "file")
    with pytest.raises(ValueError, match="every"):
        fx.Checkpoints(tmp_path / "run", every=0)
    with pytest.raises(ValueError, match="mode"):
        fx.Checkpoints(tmp_path / "run", mode="least")
    with fx.Checkpoints(tmp_path / "run") as kept:
        assert kept.latest is None
        with pytest.raises(FileNotFoundError, match=r"has no checkpoint$"):
            kept.restore(PARAMS)
        with pytest.raises(TypeError, match=r"leaf at \['f'\] is .* filter the tree first"):
            kept.save(1, {"f": print})
        kept.save(1, {"params": PARAMS})
        with pytest.raises(ValueError, match="has one of step 1 already"):
            kept.save(1, {"params": PARAMS})
        kept.wait()
        with pytest.raises(
            ValueError, match=r"missing in it: \['q'\]\['w'\]; not asked for: \['params'\]"
        ):
            kept.restore({"q": PARAMS})
        with pytest.raises(
            ValueError, match=r"\['params'\]\['w'\] is float32\[3\] in .*float32\[4\]"
        ):
            kept.restore({"params": {"w": jnp.zeros(4)}})
        with pytest.raises(
            FileNotFoundError, match="has no checkpoint of step 7; there are \\[1\\]"
        ):
            kept.restore(PARAMS, 7)
    assert kept.steps == [1]
    for use in (lambda: kept.save(2, PARAMS), lambda: kept.restore(PARAMS), kept.wait):
        with pytest.raises(RuntimeError, match=r"closed; open them again: fx\.Checkpoints\('"):
            use()
    (tmp_path / "run" / "17").mkdir()
    (tmp_path / "run" / "17" / "notes").touch()
    with pytest.raises(ValueError, match=r"17 is no checkpoint, and would count as one"):
        fx.Checkpoints(tmp_path / "run")


@pytest.mark.parametrize(
    "x", [np.array([None]), np.zeros(2, [("a", int)]), np.zeros(2, "M8[s]"), np.array("a"), 2**64]
)
def test_what_orbax_cannot_hold_is_refused_before_it_begins(tmp_path, x):
    refused = pytest.raises(TypeError, match=r"Checkpoints\.save: the leaf at \['x'\] (has|is) ")
    with fx.Checkpoints(tmp_path / "run") as kept, refused:
        kept.save(1, {"x": x})
    assert kept.steps == []


def test_a_part_of_what_is_there(tmp_path):
    tree = {"params": {"w": jnp.arange(3.0), "b": jnp.ones(2)}, "state": TX.init(PARAMS)}
    with fx.Checkpoints(tmp_path / "run") as kept:
        kept.save(1, tree | {"history": fx.History({"loss": [2.0]})})
        kept.wait()
        equal(
            kept.restore({"params": {"w": tree["params"]["w"]}}, partial=True)["params"]["w"],
            np.arange(3.0),
        )
        assert kept.restore({"history": fx.History()}, partial=True)["history"]["loss"][0] == 2
        with pytest.raises(ValueError, match=r"missing in it: \['v'\]$|missing in it: \['v'\];"):
            kept.restore({"v": PARAMS["w"]}, partial=True)
        with pytest.raises(ValueError, match="partial=True leaves out"):
            kept.restore({"params": tree["params"]})


def test_a_state_beside_checkpoints_of_another_step(tmp_path):
    first = fit(BATCHES[:6], tmp_path / "run")
    more = {"state": first.state, "history": first.history}
    more |= {"checkpoints": tmp_path / "run", "progress": False}
    assert fx.fit(loss, TX, first.params, BATCHES[6:9], **more).history.rows == 9
    with pytest.raises(
        ValueError, match=r"what is given is of step 6, the newest checkpoint of step 9 in"
    ):
        fx.fit(loss, TX, first.params, BATCHES, **more)


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 leaves it on the device")
def test_a_state_on_the_host_is_kept_and_comes_back_to_it(tmp_path):
    tx, params = fx.offload(fx.adamw(1e-2)), {"w": jnp.zeros(5000)}
    batches = [np.full(5000, i, np.float32) for i in range(9)]

    def run(batches, kept=None):
        return fx.fit(loss, tx, params, batches, checkpoints=kept, progress=False)

    straight = run(batches)
    for some in (batches[:4], batches[4:]):
        with fx.Checkpoints(tmp_path / "run", every=3) as kept:
            result = run(some, kept)
    equal(result.params, straight.params)
    equal(result.state, straight.state)
    mu = fx.get(result.state, "mu")["w"]
    assert mu.sharding.memory_kind == fx.get(straight.state, "mu")["w"].sharding.memory_kind
    assert mu.sharding.memory_kind == "pinned_host"
