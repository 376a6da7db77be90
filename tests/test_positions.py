"""A run that is resumed goes on where its batches were, if they can say."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import adamfx as fx
from adamfx.training.stream import Stream

PARAMS = {"w": jnp.ones(3)}


def loss(params, x):
    return jnp.sum((params["w"] - x.reshape(-1, 3)[0].astype(jnp.float32)) ** 2)


class Loader:
    """Its iterator knows where it is."""

    def __init__(self, n=8, kind="bytes"):
        self.n, self.kind = n, kind

    def __iter__(self):
        return Order(self.n, 1, self.kind)


class Order:
    def __init__(self, n, seed, kind):
        self.n, self.seed, self.at, self.kind = n, seed, 0, kind

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == self.n:
            raise StopIteration
        self.at += 1
        return np.random.default_rng([self.seed, self.at]).normal(size=3).astype(np.float32)

    def get_state(self):
        state = {"seed": self.seed, "at": self.at}
        return json.dumps(state).encode() if self.kind == "bytes" else state

    def set_state(self, state):
        state = json.loads(state) if self.kind == "bytes" else state
        self.seed, self.at = state["seed"], state["at"]


class Stateful:
    """As torchdata's: the loader itself says it, and goes there when it is gone through next."""

    def __init__(self, n=8):
        self.n, self.epoch, self.at = n, 0, 0
        self.resumed = False

    def __iter__(self):
        if not self.resumed:
            self.epoch, self.at = self.epoch + 1, 0
        self.resumed = False
        while self.at < self.n:
            self.at += 1
            yield np.random.default_rng([self.epoch, self.at]).normal(size=3).astype(np.float32)

    def state_dict(self):
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state):
        self.epoch, self.at, self.resumed = state["epoch"], state["at"], True


def grain():
    import grain

    data = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    return grain.MapDataset.source(list(data)).seed(3).shuffle().to_iter_dataset()


def torchdata():
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    data = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    return torchdata.StatefulDataLoader(data, batch_size=None)


LOADERS = {
    "bytes": Loader,
    "a dict": lambda: Loader(kind="dict"),
    "a stateful loader": Stateful,
    "prefetched": lambda: fx.prefetch(Loader(), 3),
    "grain": grain,
    "grain, prefetched": lambda: fx.prefetch(grain(), 2),
    "torchdata": torchdata,
}


def run(folder, batches, **settings):
    settings = {"epochs": 3, "progress": False, **settings}
    return fx.fit(loss, fx.adam(0.1), PARAMS, batches, checkpoints=folder, **settings)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # by torch, of itself
@pytest.mark.parametrize("k", [1, 3, None])
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_resumed_is_straight(make, k, tmp_path):
    straight = run(None, make(), steps_per_dispatch=k)
    assert straight.history.rows == 24
    for steps in (5, 8, 13, 40):  # in an epoch, at its end, in the next, to the end
        resumed = run(tmp_path, make(), steps=steps, steps_per_dispatch=k)
    np.testing.assert_array_equal(resumed.history["loss"], straight.history["loss"])
    np.testing.assert_array_equal(resumed.params["w"], straight.params["w"])


@pytest.mark.parametrize("make", [Loader, Stateful])
def test_a_position_after_a_stop(make, tmp_path):
    """Also where more batches were taken than trained on."""
    stop = lambda history: history.rows >= 6  # noqa: E731
    straight = run(None, make())
    first = run(tmp_path, make(), stop=stop, steps_per_dispatch=4)
    assert first.reason == "stop"
    resumed = run(tmp_path, make())
    np.testing.assert_allclose(resumed.history["loss"], straight.history["loss"], rtol=1e-6)


def test_a_batch_of_another_shape_is_taken_and_comes_again(tmp_path):
    class Ragged(Loader):
        def __iter__(self):
            return Uneven(self.n, 1, "dict")

    class Uneven(Order):
        def __next__(self):
            x = super().__next__()
            return np.tile(x, 1 + self.at % 2)

    straight = run(None, Ragged(), epochs=1, steps_per_dispatch=4)
    for steps in (3, 5, 8):
        resumed = run(tmp_path, Ragged(), epochs=1, steps_per_dispatch=4, steps=steps)
    np.testing.assert_allclose(resumed.history["loss"], straight.history["loss"], rtol=1e-6)


def test_batches_without_a_position_begin_where_one_lets_them(tmp_path):
    data = [np.full(3, i, np.float32) for i in range(6)]
    run(tmp_path, data[:3], epochs=1)
    resumed = run(tmp_path, data[3:], epochs=1)
    straight = run(None, data, epochs=1)
    np.testing.assert_array_equal(resumed.history["loss"], straight.history["loss"])


def test_a_position_that_does_not_fit(tmp_path):
    run(tmp_path, Loader(), steps=3)
    with pytest.raises(TypeError, match="neither set_state nor load_state_dict"):
        run(tmp_path, [np.ones(3, np.float32)] * 8)
    with fx.Checkpoints(tmp_path) as checkpoints:
        assert set(checkpoints.notes(3)) == {"sentence", "positions"}


def test_a_position_that_cannot_be_kept(tmp_path):
    class Odd(Loader):
        def __iter__(self):
            found = super().__iter__()
            found.get_state = lambda: {"at": object()}
            return found

    with pytest.raises(TypeError, match="which a checkpoint does not keep"):
        run(tmp_path, Odd(), steps=3)


def test_positions_of_a_stream():
    stream = Stream(Loader(3, "dict"), 2)
    stream.mark()
    assert stream.position(0) is None  # nothing is begun, nobody knows whether they can say it
    next(stream)
    assert json.loads(stream.position(1)) == {"epoch": 0, "in_epoch": 0, "state": None, "skip": 1}
    stream.mark()
    next(stream)
    assert json.loads(stream.position(1))["skip"] == 0
    assert json.loads(stream.position(2)) == {
        "epoch": 0, "in_epoch": 1, "state": {"seed": 1, "at": 1}, "skip": 1,
    }  # fmt: skip


def test_another_optimizer_over_the_same_state_says_so(tmp_path):
    data = [np.full(3, i, np.float32) for i in range(6)]
    settings = {"progress": False, "checkpoints": tmp_path}
    fx.fit(loss, fx.adam(0.1), PARAMS, data[:2], **settings)
    fx.fit(loss, fx.adam(0.1), PARAMS, data[:2], **settings)
    with pytest.warns(UserWarning, match=r"was trained by .* up to step 4; it goes on with .*0.2"):
        fx.fit(loss, fx.adam(0.2), PARAMS, data[:2], **settings)


def test_checkpoints_by_the_clock(tmp_path):
    data = [np.full(3, i, np.float32) for i in range(6)]
    with fx.Checkpoints(tmp_path, every=None, minutes=1e-9, keep=10) as checkpoints:
        fx.fit(
            loss,
            fx.adam(0.1),
            PARAMS,
            data,
            checkpoints=checkpoints,
            steps_per_dispatch=2,
            progress=False,
        )
        assert checkpoints.steps == [2, 4, 6]
    for wrong in (0, -1, "1"):
        with pytest.raises((TypeError, ValueError), match="minutes must be"):
            fx.Checkpoints(tmp_path, minutes=wrong)


def test_tensors_of_torch_are_batches():
    torch = pytest.importorskip("torch")
    x = torch.arange(6.0).reshape(2, 3)
    for dtype in (torch.float32, torch.bfloat16):
        for batches in (list(x.to(dtype)), fx.prefetch(list(x.to(dtype)))):
            found = fx.fit(loss, fx.adam(0.1), PARAMS, batches, progress=False)
            straight = fx.fit(loss, fx.adam(0.1), PARAMS, list(x.numpy()), progress=False)
            np.testing.assert_allclose(found.history["loss"], straight.history["loss"], rtol=1e-6)
