"""What a long run meets: signals, kills, full disks, other meshes, a thousand of everything.

ADAMFX_SOAK=5 runs the full counts, and the random sequence for five minutes.
"""

import concurrent.futures
import gc
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soak

import adamfx as fx

MINUTES = float(os.environ.get("ADAMFX_SOAK", 0))
FULL = MINUTES > 0
HERE = pathlib.Path(__file__)
P = {"w": jnp.zeros(4)}
TX = fx.adam(0.1)
DATA = [np.random.default_rng(i).normal(size=4).astype(np.float32) for i in range(3000)]


def loss(p, x):
    return jnp.sum((p["w"] - x) ** 2)


def fit(loss=loss, tx=TX, params=P, batches=DATA, **more):
    return fx.fit(loss, tx, params, batches, **{"progress": False, **more})


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x, x.dtype), np.asarray(y))


def start(name, *arguments, devices=8, **more):
    """A process of tests/soak.py."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, HERE.with_name("soak.py"), name, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.fspath(HERE.parents[1])},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more},
    )  # fmt: skip


def ends(process, seconds=600):
    """What it has written, once it has ended well."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, (out + err)[-3000:]
    return out


# ---- Ctrl-C --------------------------------------------------------------------------------------


def straight(n, known={}):  # noqa: B006
    if n not in known:
        known[n] = fit(batches=DATA[:n])
    return known[n]


def pressed(draw, cold, report):
    """Ctrl-C at a random moment of one fit."""
    about = (lambda p, x: loss(p, x)) if cold else loss
    delay, sent, taken = draw.uniform(0, 0.5 if cold else 0.15), [], []

    def press():
        time.sleep(delay)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def batches():
        for x in itertools.cycle(DATA):
            taken.append(1)
            time.sleep(1e-4)
            yield x

    thread = threading.Thread(target=press)
    try:
        thread.start()
        result = fit(about, batches=batches())
        took = time.monotonic() - sent[0]
    except KeyboardInterrupt:
        assert not taken  # before the first batch there is nothing to lose
        report["before"] += 1
        thread.join()
        return
    thread.join()
    report["cold" if cold else "warm"].append(took)
    assert result.reason == "interrupted"
    n = int(result.state["count"])
    assert n == result.history.rows
    if n:
        same((result.params, result.state), straight(n)[:2])
    else:
        same(result.params, P)


def presses(cold, warm):
    draw, report = random.Random(0), {"cold": [], "warm": [], "before": 0}
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        fit(batches=DATA[:64])
        for _ in range(cold):
            pressed(draw, True, report)
        for _ in range(warm):
            pressed(draw, False, report)
    finally:
        signal.signal(signal.SIGINT, old)
    for kind in ("cold", "warm"):
        x = np.sort(report[kind])
        print(f"\n{kind}: {len(x)}, 50% {np.quantile(x, 0.5):.4f} s, 95% {np.quantile(x, 0.95):.4f} s, "
              f"most {x[-1]:.4f} s; raised before the first step: {report['before']}")  # fmt: skip
    assert np.quantile(report["warm"], 0.9) < 1  # .1 s where nothing else runs


def test_ctrl_c_at_any_moment_loses_nothing():
    presses(2, 8)


@pytest.mark.slow
def test_ctrl_c_at_hundreds_of_moments_loses_nothing():
    presses(*((100, 300) if FULL else (10, 50)))


@pytest.mark.parametrize("at", ["interrupted", "empty"])
def test_ctrl_c_while_fit_says_how_it_ended_loses_nothing(monkeypatch, at):
    """Where a warning is shown, a press once raised instead of the result."""

    def show(*_, **__):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)

    def batches():
        for i, x in enumerate(DATA):
            if i == 5 and at == "interrupted":
                signal.raise_signal(signal.SIGINT)
            yield x

    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            monkeypatch.setattr(warnings, "showwarning", show)
            result = fit(batches=batches() if at == "interrupted" else [])
    finally:
        signal.signal(signal.SIGINT, old)
    assert result.history.rows == (6 if at == "interrupted" else 0)


# ---- kill -9 -------------------------------------------------------------------------------------


def killed(count, folder):
    pytest.importorskip("orbax.checkpoint")
    found = json.loads(ends(start("kills", count, folder)).splitlines()[-1])
    print("\nkills:", found)
    assert found["lost"] == []
    assert found["killed"] == count
    assert found["hidden"] <= 1  # what the last one left; the next save removes it
    assert found["file"] > count / 2


@pytest.mark.slow
def test_a_process_killed_while_it_saves_loses_nothing(tmp_path):
    killed(200 if FULL else 20, tmp_path)


# ---- resumed is straight -------------------------------------------------------------------------

W = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32), "b": jnp.zeros(6)}
STEPS, AT = 24, 11
MODEL = [
    tuple(np.random.default_rng(i).normal(size=s).astype(np.float32) for s in ((5, 4), (5, 6)))
    for i in range(STEPS)
]


def model(p, x, y):
    return jnp.mean((jnp.tanh(x @ p["w"].astype(x.dtype)) + p["b"][None].astype(x.dtype) - y) ** 2)


ADAMW = fx.adamw(0.01)
RUNS = {
    "accumulate": fx.accumulate(ADAMW, 3),
    "lookahead": fx.lookahead(ADAMW, 4, 0.5),
    "average_params": fx.average_params(ADAMW, fx.ema(0.9)),
    "skip_nonfinite": fx.skip_nonfinite(ADAMW),
    "skip_spikes": fx.skip_spikes(ADAMW, 8),
    "monitor": fx.monitor(ADAMW),
    "master_weights": fx.master_weights(ADAMW),
    "stored": fx.stored(
        ADAMW, mu=fx.int8(2, min_size=0), nu=fx.uint8(2, min_size=0, stochastic=True)
    ),
    "schedule_free": fx.schedule_free(ADAMW, 0.01),
    "mechanize": fx.mechanize(ADAMW, s_init=1e-2),
    "partition": fx.partition({"m": fx.muon(0.01)}, {"m": fx.ndim_at_least(2)}, ADAMW),
    "offload": fx.offload(ADAMW),
    "round_stochastically": fx.chain(ADAMW, fx.round_stochastically()),
    "compensate": fx.chain(ADAMW, fx.compensate()),
    "swa": fx.swa(ADAMW, 5),
    "outer_step": fx.outer_step(ADAMW, fx.sgd(0.7, 0.5), 4),
    "ema_nesterov": fx.ema_nesterov(ADAMW),
    "sam": fx.sam(ADAMW),
    "view": fx.view(ADAMW, fx.in_blocks(2)),
    "all": fx.skip_nonfinite(
        fx.monitor(fx.accumulate(fx.average_params(fx.lookahead(ADAMW, 3, 0.5), fx.ema(0.9)), 2))
    ),
    "noise, soap": fx.chain(fx.add_noise(0.01, 0.55, 0), fx.soap(0.01, precondition_frequency=3)),
}
BF16 = {"master_weights", "round_stochastically", "compensate"}


class Again:
    """Starts anew for every iterator."""

    def __init__(self, start):
        self.start = start

    def __iter__(self):
        return iter(MODEL[self.start :])


def torch_loader(start):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.Subset(MODEL, range(start, STEPS))
    return torch.utils.data.DataLoader(data, batch_size=None)


LOADERS = {
    "list": lambda start: MODEL[start:],
    "islice": lambda start: itertools.islice((x for x in MODEL), start, None),
    "DataLoader": torch_loader,
    "class": Again,
}


def interrupting(batches):
    for i, x in enumerate(batches):
        if i == AT:
            signal.raise_signal(signal.SIGINT)
        yield x


def by_ctrl_c(run, loader, folder):
    first = run(interrupting(loader(0)))
    assert first.reason == "interrupted"
    n = first.history.rows
    assert AT <= n < STEPS
    return run(loader(n), first.params, state=first.state, history=first.history)


def by_stop(run, loader, folder):
    first = run(loader(0), stop=lambda history: history.rows >= AT)
    assert (first.reason, first.history.rows) == ("stop", AT)
    return run(loader(AT), first.params, state=first.state, history=first.history)


def by_folder(run, loader, folder):
    pytest.importorskip("orbax.checkpoint")
    run(loader(0), steps=AT, checkpoints=folder)
    return run(loader(AT), steps=STEPS, checkpoints=folder)


def by_file(run, loader, folder):
    first = run(loader(0), steps=AT)
    tree = {"params": first.params, "state": first.state, "history": first.history}
    fx.save(folder.with_suffix(".npz"), tree)
    found = fx.load(folder.with_suffix(".npz"), tree | {"history": fx.History()})
    return run(loader(AT), found["params"], state=found["state"], history=found["history"])


WAYS = {"Ctrl-C": by_ctrl_c, "stop": by_stop, "folder": by_folder, "file": by_file}


def resumed(name, pairs, folder):
    tx = RUNS[name]
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), W) if name in BF16 else W

    def run(batches, params=p, **more):
        return fit(model, tx, params, batches, **more)

    whole = run(MODEL)
    for loader, way in pairs:
        again = WAYS[way](run, LOADERS[loader], folder / f"{loader}-{way}")
        assert again.history.rows == STEPS, (loader, way)
        same(again[:2], whole[:2])
        assert list(again.history) == list(whole.history)
        for column, x in whole.history.items():
            np.testing.assert_array_equal(again.history[column], x, f"{loader} {way} {column}")


@pytest.mark.parametrize("name", ["all"])
def test_resumed_is_straight(name, tmp_path):
    ways = [w for w in WAYS if w != "folder"]
    resumed(name, list(zip(["list", "islice", "class"], ways, strict=True)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_resumed_is_straight_whatever_wraps_loads_and_ends_it(name, tmp_path):
    if name == "offload" and jax.__version_info__ < (0, 8):
        pytest.skip("JAX 0.7 leaves it on the device")
    i = list(RUNS).index(name)
    turned = list(WAYS)[i % 4 :] + list(WAYS)[: i % 4]
    pairs = itertools.product(LOADERS, WAYS) if FULL else zip(LOADERS, turned, strict=True)
    resumed(name, list(pairs), tmp_path)


# ---- everything, one after the other -------------------------------------------------------------


def final(way, folder, devices, steps):
    p = soak.params(devices)
    like = {"params": p, "state": soak.TX.init(p), "history": fx.History()}
    if way == "file":
        found = fx.load(folder / "run.npz", like)
    else:
        with fx.Checkpoints(folder / "run") as kept:
            found = kept.restore(like)
    assert found["history"].rows == steps
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", ["file", "folder"])
@pytest.mark.parametrize("meshes", [(1,), (1, 2, 4)], ids=["one mesh", "meshes"])
def test_a_run_survives_whatever_comes(way, meshes, tmp_path):
    if way == "folder":
        pytest.importorskip("orbax.checkpoint")
    seed = int(os.environ.get("ADAMFX_SEED", 0))
    draw, steps, events = random.Random(f"{way} {meshes} {seed}"), 0, []
    end = time.monotonic() + (MINUTES * 60 / 4 if FULL else 10)
    while time.monotonic() < end or len(events) < 3:
        steps += 40
        event = draw.choice(["kill", "SIGINT", "SIGTERM", "full", "none"])
        events.append(event)
        space = draw.choice([300, 3000, 6000]) if event == "full" else "all"
        chosen = draw.choice(meshes)
        one = start(
            "trains", way, tmp_path, chosen, steps, space, devices=4, stderr=subprocess.STDOUT
        )
        said = []
        for _ in range(draw.randrange(1, 35)):
            said.append(one.stdout.readline())
        if event in ("kill", "SIGINT", "SIGTERM"):
            one.send_signal(signal.SIGKILL if event == "kill" else getattr(signal, event))
        hangs = threading.Timer(300, one.kill)
        hangs.start()
        with one:  # a `communicate` that has a timeout loses what `readline` left in its buffer
            said.append(one.stdout.read())
        hangs.cancel()
        err = "".join(said)
        fine = {"kill": (-9, 0), "full": (0, 1)}.get(event, (0, 143))  # 143: asked to end
        assert one.returncode in fine, (event, one.returncode, err[-3000:])
        if event == "full" and one.returncode:
            assert "File too large" in err, err[-3000:]
    ends(start("trains", way, tmp_path, meshes[-1], steps, "all", devices=4))
    print(f"\n{way}, meshes {meshes}: {steps} steps, {len(events)} events: "
          f"{ {e: events.count(e) for e in sorted(set(events))} }")  # fmt: skip
    found = final(way, tmp_path, 1, steps)
    whole = fit(soak.loss, soak.TX, soak.params(), map(soak.batch, range(steps)))
    if meshes == (1,):
        same((found["params"], found["state"]), whole[:2])
        for column, x in whole.history.items():
            np.testing.assert_array_equal(found["history"][column], x)
    else:
        for x, y in zip(
            jax.tree.leaves(found["params"]), jax.tree.leaves(whole.params), strict=True
        ):
            np.testing.assert_allclose(x, y, atol=1e-6)


# ---- memory --------------------------------------------------------------------------------------


def resident():
    gc.collect()
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(count, one):
    """RSS in MiB and live arrays of the last fifth less those of the first, after a warm start."""
    for i in range(count // 10):
        one(i)
    points = []
    for i in range(20):
        for j in range(count // 20):
            one(count + i * (count // 20) + j)
        points.append((resident() / 2**20, len(jax.live_arrays())))
    first, last = np.mean(points[:4], 0), np.mean(points[-4:], 0)
    print(f"\n{count}: {first[0]:.1f} -> {last[0]:.1f} MiB, {first[1]:.0f} -> {last[1]:.0f} arrays")
    return last - first


def another(i):
    """A transformation of other numbers, by hand outside of jit."""
    tx = fx.chain(fx.clip(1.0 + i), fx.adamw(1e-3 + 1e-7 * i, weight_decay=1e-4 * (i % 97)))
    tx.update(P, tx.init(P), P)


def another_structure(i):
    """Of other exact numbers: another program each."""
    tx = fx.lookahead(fx.sgd(0.1), 2 + i, 0.5)
    tx.update(P, tx.init(P), P)


def another_fit(i):
    fit(batches=DATA[:5], tx=fx.adam(1e-3 + 1e-7 * i))


def another_loss(i):
    fit(lambda p, x: loss(p, x) * (1 + i), batches=DATA[:5])


pytestmark_linux = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc")


@pytestmark_linux
def test_a_hundred_others_keep_no_arrays():
    assert growth(100, another)[1] <= 0
    assert growth(20, another_fit)[1] <= 0


@pytestmark_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "count", "full", "most"),
    [(another, 1000, 10_000, 8), (another_fit, 200, 1000, 8), (another_loss, 40, 1000, 60)],
)
def test_memory_does_not_grow(one, count, full, most):
    """A new loss compiles anew; of what it leaves, 32 programs stay."""
    mib, arrays = growth(full if FULL else count, one)
    assert arrays <= 0
    assert mib < most * (1 if FULL else 2)  # few fits do not fill the room that programs have


@pytest.mark.slow
def test_programs_of_forms_that_come_no_more_are_let_go():
    """700 of them: 426 MiB after the first 100, 486 after all; without it 2 MiB more for each."""
    client = jax.devices()[0].client
    gc.collect()
    before = len(client.live_executables())
    for i in range(170):
        another_structure(i)
    gc.collect()
    assert len(client.live_executables()) - before < 150


# ---- processes and threads -----------------------------------------------------------------------


def forked(count, folder):
    ends(start("forks", count, cwd=folder), 600)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_instead_of_hanging(tmp_path):
    forked(3, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_many_forked_children_end(tmp_path):
    forked(500 if FULL else 50, tmp_path)


def threads(count):
    """Fits of four threads at once are those of one."""
    expected = straight(5)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = [pool.submit(lambda: fit(batches=DATA[:5])) for _ in range(count)]
        for one in done:
            same(one.result(timeout=300)[:2], expected[:2])


def test_threads_train_at_once():
    threads(12)


class Rows:
    """A data set that uses the library where a worker can: values, and NumPy."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        assert fx.read(repr(fx.clip(1.0 + i))) == fx.clip(1.0 + i)
        return DATA[i]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_workers_of_torch_load_what_fit_trains_on(how):
    torch = pytest.importorskip("torch")
    expected = straight(8)
    for _ in range({"fork": 50, "spawn": 3}[how] if FULL else {"fork": 5, "spawn": 1}[how]):
        loader = torch.utils.data.DataLoader(
            Rows(), batch_size=None, num_workers=2, multiprocessing_context=how
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns of the fork
            result = fit(batches=loader)
        same(result.params, expected.params)


@pytest.mark.slow
def test_a_pool_of_spawned_processes_and_threads_beside_it():
    expected = [soak.in_a_pool(n) for n in (3, 7)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        many = 100 if FULL else 10
        waiting = pool.map_async(soak.in_a_pool, [3, 7] * many, chunksize=1)
        threads(200 if FULL else 50)
        assert waiting.get(timeout=300) == expected * many
