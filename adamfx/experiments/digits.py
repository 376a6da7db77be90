"""Seven optimizers on handwritten digits, each at many learning rates and from several seeds.

    python -m adamfx.experiments.digits --out out/digits

An optimizer is a value, so a grid of learning rates is the same value with an array in it, and
training at all rates from all seeds is one program: `jax.vmap` over the optimizer and the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adamfx as fx
from adamfx.experiments import report

# The learning rate 1.0 keeps the place of the grid.
OPTIMIZERS = {
    "SGD": fx.sgd(1.0),
    "Momentum": fx.momentum(1.0),
    "Nesterov": fx.momentum(1.0, nesterov=True),
    "AdaGrad": fx.adagrad(1.0),
    "RMSProp": fx.rmsprop(1.0),
    "AdaMax": fx.adamax(1.0),
    "Adam": fx.adam(1.0),
}
RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
QUICK_RATES = [0.01, 0.1, 1.0]
SIZES = [64, 64, 10]
BATCH = 128
DATA = "scikit-learn digits, 1,797 images of 8x8"


def load_data() -> Any:
    """(train, test), each (pixels in [0, 1], one-hot labels); a fifth of each class is for test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels, one_hot = np.float32(images / 16), np.eye(10, dtype=np.float32)[labels]
    split = train_test_split(pixels, one_hot, test_size=0.2, stratify=labels, random_state=0)
    x, test_x, y, test_y = map(jnp.asarray, split)
    return (x, y), (test_x, test_y)


# ---- one run -------------------------------------------------------------------------------------


def start(tx: fx.GradientTransformation, key: jax.Array) -> tuple:
    """(params, state). Params are (weights, biases) by layer; variance 2 / inputs suits relu."""
    keys = jax.random.split(jax.random.fold_in(key, 0), len(SIZES) - 1)
    params = [
        (jax.random.normal(k, (n_out, n_in)) * (2 / n_in) ** 0.5, jnp.zeros(n_out))
        for k, n_in, n_out in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]
    return params, tx.init(params)


def logits(params: list[tuple], image: jax.Array) -> jax.Array:
    """The scores of the ten digits for one image."""
    *hidden, (w, b) = params
    for v, c in hidden:
        image = jax.nn.relu(v @ image + c)
    return w @ image + b


def loss_and_accuracy(params: list[tuple], images: jax.Array, labels: jax.Array) -> tuple:
    """The mean cross-entropy in nats, and the share of right answers."""
    scores = jax.vmap(logits, (None, 0))(params, images)
    loss = -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(scores), axis=1))
    return loss, jnp.mean(jnp.argmax(scores, axis=1) == jnp.argmax(labels, axis=1))


def train_epoch(tx: Any, key: jax.Array, run: tuple, epoch: int, data: Any) -> tuple:
    """One pass over the images: ((params, state), train loss, test accuracy)."""
    images, labels = data[0]
    # The order follows from seed and epoch alone: all optimizers and rates see the same batches.
    order = jax.random.permutation(jax.random.fold_in(key, epoch), len(images))

    def step(run, batch):
        params, state = run
        grads, _ = jax.grad(loss_and_accuracy, has_aux=True)(params, images[batch], labels[batch])
        return tx.step(grads, state, params), None

    run, _ = jax.lax.scan(step, run, order[: len(order) // BATCH * BATCH].reshape(-1, BATCH))
    (loss, _), (_, accuracy) = (loss_and_accuracy(run[0], *part) for part in data)
    return run, loss, accuracy


# ---- all runs of an optimizer --------------------------------------------------------------------


def over_grid(function: Callable, *axes: int | None) -> Callable:
    """`function(tx, key, ...)` for every learning rate in tx and every key; axes (rate, seed).

    `axes` says of each further argument whether it has these axes, too: 0, or None.
    """
    over_seeds = jax.vmap(function, in_axes=(None, 0, *axes))
    return jax.vmap(over_seeds, in_axes=(0, None, *axes))


def train(name: str, args: argparse.Namespace, data: Any, bar: Any, stop: list) -> dict[str, Any]:
    """Trains at all rates from all seeds in one compiled program: the record of one optimizer.

    Raises KeyboardInterrupt between two epochs if there is something in `stop`.
    """
    tx = OPTIMIZERS[name]
    # vmap, not just replace(learning_rate=array): every hyperparameter gets the axis of the grid.
    txs = jax.vmap(lambda rate: tx.replace(learning_rate=rate))(jnp.asarray(args.rates))
    keys = jax.random.split(jax.random.key(0), args.seeds)
    runs = over_grid(start)(txs, keys)
    began = time.perf_counter()
    program = jax.jit(over_grid(train_epoch, 0, None, None))
    program = program.lower(txs, keys, runs, 0, data).compile()  # ahead, to time it apart
    compiled = time.perf_counter()

    history = []
    for epoch in range(1, args.epochs + 1):  # a dispatch for each, so that the bar can move
        if stop:
            raise KeyboardInterrupt
        runs, losses, accuracies = program(txs, keys, runs, epoch, data)
        history.append(np.array([losses, accuracies], float))
        means = history[-1][0].mean(axis=1)
        best = np.min(means, where=np.isfinite(means), initial=np.inf)
        bar.set_postfix_str(f"{name}, best train loss {best:.4f}", refresh=False)
        bar.update()
    times = {"compile": compiled - began, "run": time.perf_counter() - compiled}
    return {"name": name, **summarize(tx, args, *np.stack(history, axis=1)), "seconds": times}


def summarize(tx: Any, args: Any, losses: np.ndarray, accuracies: np.ndarray) -> dict[str, Any]:
    """The results at the rate of the lowest mean train loss; arrays have axes (epoch, rate, seed).

    None stands for inf and nan, which JSON does not have.
    """
    # A single epoch would be luck where the loss jumps, as it does with RMSProp.
    final, accuracy = (x[-args.last :].mean(axis=0) for x in (losses, accuracies))
    by_rate = final.mean(axis=1)
    diverged = ~np.isfinite(by_rate)
    best = int(np.argmin(np.where(diverged, np.inf, by_rate)))  # 0 where all diverged

    def finite(x):
        return np.where(np.isfinite(x), x, np.array(None)).tolist()

    def over_seeds(x):
        with np.errstate(invalid="ignore"):  # inf - inf, where a run diverged
            std = np.std(x, axis=-1, ddof=min(1, x.shape[-1] - 1))
        return {"mean": finite(x.mean(axis=-1)), "std": finite(std)}

    return {
        "sentence": repr(tx.replace(learning_rate=args.rates[best])),
        "best_rate": None if diverged.all() else args.rates[best],
        "train_loss": over_seeds(final[best]),
        "test_accuracy": over_seeds(accuracy[best]),
        "train_loss_curve": over_seeds(losses[:, best]),
        "rates": args.rates,
        "mean_train_loss_by_rate": finite(by_rate),
    }


# ---- the program ---------------------------------------------------------------------------------


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; ends the program with a message where they are bad."""
    parser = argparse.ArgumentParser(prog="python -m adamfx.experiments.digits")
    parser.add_argument("--out", type=Path, default=Path("out/digits"), metavar="DIR")
    parser.add_argument("--seeds", type=positive, metavar="N", help="5; 2 if quick")
    parser.add_argument("--epochs", type=positive, metavar="N", help="30; 3 if quick")
    parser.add_argument("--quick", action="store_true", help="few seeds, epochs and rates")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or (2 if args.quick else 5)
    args.epochs = args.epochs or (3 if args.quick else 30)
    args.last = max(1, args.epochs // 6)
    args.rates = QUICK_RATES if args.quick else RATES
    try:
        args.out.mkdir(parents=True, exist_ok=True)  # now, not after the training
    except OSError as error:
        parser.error(f"argument --out: {error}")
    return args


@contextlib.contextmanager
def interrupts() -> Iterator[list]:
    """A list that Ctrl-C puts something into. A second Ctrl-C does what it did before.

    An exception in the midst of JAX can get lost, or crash the program at its end.
    """
    stop, before = [], signal.getsignal(signal.SIGINT)

    def ask(*what):
        stop.append(what)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv: list[str] | None = None) -> int:
    """Trains, prints the table, writes the picture and the numbers; the exit code."""
    args, records, code = parse(argv), [], 0
    try:
        with interrupts() as stop:
            import matplotlib  # noqa: F401  # is it there? now, not after the training
            from tqdm import tqdm

            data = load_data()
            with tqdm(total=len(OPTIMIZERS) * args.epochs, unit="epoch", dynamic_ncols=True) as bar:
                for name in OPTIMIZERS:
                    records.append(train(name, args, data, bar, stop))
    except ImportError as error:
        print(f"{error}; run: pip install 'adamfx[experiments]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        code = 130  # what shells expect of a program stopped by Ctrl-C
        print(f"stopped with {len(records)} of {len(OPTIMIZERS)} optimizers done", file=sys.stderr)
    if records:
        print(f"{DATA}; network {'-'.join(map(str, SIZES))}, batches of {BATCH}.")
        print(
            f"The best of {len(args.rates)} learning rates by train loss; mean ± standard deviation"
        )
        print(f"over {args.seeds} seeds of the last {args.last} of {args.epochs} epochs.\n")
        report.print_table(records)
        numbers = {"seeds": args.seeds, "epochs": args.epochs, "averaged": args.last}
        text = json.dumps(numbers | {"optimizers": records}, indent=1, allow_nan=False) + "\n"
        picture, file = args.out / "learning_curves.png", args.out / "results.json"
        report.write(picture, lambda path: report.draw(records, DATA, path))
        report.write(file, lambda path: path.write_text(text))
    return code


if __name__ == "__main__":
    sys.exit(main())
