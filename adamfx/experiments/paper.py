"""The experiments of section 6 of the Adam paper (Kingma & Ba, 2015), and seven optimizers on digits."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adamfx as fx
from adamfx.experiments import data as datasets
from adamfx.experiments import figures
from adamfx.experiments.problems.autoencoder import autoencoder
from adamfx.experiments.problems.classification import Classifier
from adamfx.experiments.problems.convnet import convnet
from adamfx.experiments.problems.network import network
from adamfx.experiments.runner import Experiment, Options, Problem, Study

BATCH = 128
MEASURED = (
    5000  # of the train and of the test part at most: how many examples a measurement looks at
)


def minibatch(key: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """BATCH examples, drawn with replacement."""
    at = jax.random.randint(key, (BATCH,), 0, len(arrays[0]))
    return tuple(x[at] for x in arrays)


def classification(model: Classifier, data: datasets.Data) -> Problem:
    """Minibatches of the train part; measured are train and test loss without dropout, and accuracy."""
    (x, y), (test_x, test_y) = data.train, data.test
    # What is measured is a part chosen once; the files may hold the classes one after the other.
    chosen = np.random.default_rng(0).permutation(len(x))[:MEASURED]
    test = np.random.default_rng(0).permutation(len(test_x))[:MEASURED]
    arrays = [(x, y), (x[chosen], y[chosen]), (test_x[test], test_y[test])]

    def loss(params, arrays, t, key):
        k_batch, k_noise = jax.random.split(key)
        x, y = minibatch(k_batch, *arrays[0])
        return model.loss(params, x, y, k_noise)

    def measure(params, state, arrays):
        train, test = (model.metrics(params, *part) for part in arrays[1:])
        return {
            "train_loss": train["loss"],
            "test_loss": test["loss"],
            "accuracy": test["accuracy"],
        }

    return Problem(jax.tree.map(jnp.asarray, arrays), model.init, loss, measure)


def epoch(data: datasets.Data) -> int:
    """Steps in which as many examples are drawn as there are."""
    return max(1, len(data.train[0]) // BATCH)


def images(options: Options) -> datasets.Data:
    """MNIST from the folder, or scikit-learn's digits."""
    folder = options.data_dir
    return datasets.digits() if folder is None else datasets.mnist(folder)


# ---- 6.1 logistic regression ---------------------------------------------------------------------

RATES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]


def decaying(alpha: float = 1.0) -> Any:
    """alpha / sqrt(t), as in section 6.1."""
    return fx.inverse_sqrt_schedule(alpha)


def logistic(options: Options) -> tuple[str, list[Study]]:
    data = images(options)
    model = network((data.train[0][0].size, len(data.labels)), l2=1e-4)
    compositions = {
        "Adam": fx.adam(decaying()),
        "SGDNesterov": fx.momentum(decaying(), nesterov=True),
        "AdaGrad": fx.adagrad(1.0),
    }
    n = epoch(data)
    axes = {"learning_rate": RATES}
    steps = n * (30 if options.quick else 45)
    problem = classification(model, data)
    return data.name, [
        options.study(
            "logistic regression", problem, compositions, steps, every=n, axes=axes, seeds=5
        )
    ]


def words(options: Options) -> tuple[str, list[Study]]:
    number = 2000 if options.quick else 10_000
    if options.data_dir is None:
        data = datasets.docstrings(number)
    else:
        data = datasets.imdb(options.data_dir, number)
    model = network((number, len(data.labels)), drop_inputs=0.5)
    compositions = {
        "Adam": fx.adam(decaying()),
        "AdaGrad": fx.adagrad(1.0),
        "RMSProp": fx.rmsprop(1.0),
        "SGDNesterov": fx.momentum(1.0, nesterov=True),
    }
    n = epoch(data)
    rates = [0.03, 0.3, 1.0] if options.quick else RATES
    steps = n * (5 if options.quick else 20)
    return data.name, [
        options.study(
            "bag of words, half of the features dropped",
            classification(model, data),
            compositions,
            steps,
            every=max(1, n // 4),
            axes={"learning_rate": rates},
            seeds=5,
            together=20,
        )
    ]


# ---- 6.2 and 6.3 networks ------------------------------------------------------------------------


def multilayer(options: Options) -> tuple[str, list[Study]]:
    data = images(options)
    hidden = 128 if options.quick else 1000
    sizes = (data.train[0][0].size, hidden, hidden, len(data.labels))
    compositions = {
        "Adam": fx.adam(1.0),
        "SGDNesterov": fx.momentum(1.0, nesterov=True),
        "AdaGrad": fx.adagrad(1.0),
        "RMSProp": fx.rmsprop(1.0),
        "AdaDelta": fx.adadelta(1.0),
    }
    axes = {"learning_rate": [0.001, 0.01, 0.1, 1.0] if options.quick else [0.001, *RATES[:-2]]}
    n, studies = epoch(data), []
    for part, model in {
        "without dropout": network(sizes, l2=1e-4),
        "with dropout": network(sizes, drop_inputs=0.2, drop_hidden=0.5, l2=1e-4),
    }.items():
        steps = n * (15 if options.quick else 40)
        more = {"every": n, "axes": axes, "seeds": 5, "together": 15}
        studies.append(
            options.study(part, classification(model, data), compositions, steps, **more)
        )
    return f"{data.name}; two layers of {hidden} units", studies


def convolutional(options: Options) -> tuple[str, list[Study]]:
    data = datasets.digits() if options.data_dir is None else datasets.cifar10(options.data_dir)
    whitened = datasets.whiten(data.train[0], data.test[0])
    data = data._replace(train=(whitened[0], data.train[1]), test=(whitened[1], data.test[1]))
    size = ((8, 8, 16), 64) if options.quick else ((64, 64, 128), 1000)
    compositions = {
        "Adam": fx.adam(1.0),
        "SGDNesterov": fx.momentum(1.0, nesterov=True),
        "AdaGrad": fx.adagrad(1.0),
    }
    axes = {"learning_rate": [0.003, 0.01, 0.03] if options.quick else [0.0003, 0.001, *RATES[:3]]}
    n, studies = epoch(data), []
    for part, drop in {"without dropout": (0.0, 0.0), "with dropout": (0.2, 0.5)}.items():
        model = convnet(
            data.train[0].shape[1:],
            len(data.labels),
            *size,
            drop_inputs=drop[0],
            drop_hidden=drop[1],
        )
        steps = n * (16 if options.quick else 45)
        every, together = (2 * n, 15) if options.quick else (n, 1)
        more = {"every": every, "axes": axes, "seeds": 5, "together": together}
        studies.append(
            options.study(part, classification(model, data), compositions, steps, **more)
        )
    name = "-".join(f"c{c}" for c in size[0]) + f"-{size[1]}"
    return f"{data.name}, whitened; network {name}", studies


# ---- 6.4 bias correction -------------------------------------------------------------------------


def bias_correction(options: Options) -> tuple[str, list[Study]]:
    data = images(options)
    hidden, latent = (100, 10) if options.quick else (500, 50)
    model = autoencoder(data.train[0][0].size, hidden, latent)

    def loss(params, arrays, t, key):
        k_batch, k_noise = jax.random.split(key)
        (x,) = minibatch(k_batch, arrays)
        return model.loss(params, x, k_noise)

    def measure(params, state, arrays):
        return {"train_loss": model.metrics(params, arrays[:MEASURED])["loss"]}

    compositions = {
        "corrected": fx.adam(1.0),
        "not corrected": fx.chain(fx.scale_by_moments(0.9, 0.999), fx.scale_by_lr(1.0)),
    }
    axes = {
        "b1": [0.0, 0.9],
        "b2": [0.99, 0.999, 0.9999],
        "learning_rate": [1e-4, 1e-3, 1e-2, 1e-1]
        if options.quick
        else [float(f"{x:.3g}") for x in np.logspace(-5, -1, 9)],
    }
    n = epoch(data)
    epochs = 40 if options.quick else 100
    problem = Problem(jnp.asarray(data.train[0]), model.init, loss, measure)
    more = {"every": 10 * n, "axes": axes, "seeds": 5 if options.quick else 3, "together": 30}
    name = f"{data.name}; {hidden} softplus units, {latent} latent dimensions"
    return name, [options.study("auto-encoder", problem, compositions, epochs * n, **more)]


# ---- digits: the demo ----------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": fx.sgd(1.0),
    "Momentum": fx.momentum(1.0),
    "Nesterov": fx.momentum(1.0, nesterov=True),
    "AdaGrad": fx.adagrad(1.0),
    "RMSProp": fx.rmsprop(1.0),
    "AdaMax": fx.adamax(1.0),
    "Adam": fx.adam(1.0),
}


def digits(options: Options) -> tuple[str, list[Study]]:
    data = datasets.digits()
    model = network((64, 64, 10))
    n = epoch(data)
    full = [float(f"{x:.0e}") for x in (10 ** (i / 3) for i in range(-12, 4))]
    axes = {"learning_rate": [0.01, 0.1, 1.0] if options.quick else full}
    steps = n * (5 if options.quick else 30)
    problem = classification(model, data)
    more = {"every": n, "axes": axes, "seeds": 5, "together": 80}
    return f"{data.name}; network 64-64-10", [
        options.study("digits", problem, OPTIMIZERS, steps, **more)
    ]


_curves = functools.partial(figures.learning_curves, column="train_loss")

EXPERIMENTS = {
    "digits": Experiment(
        "Seven optimizers on handwritten digits, each at its best learning rate and at all",
        digits,
        _curves,
        "train_loss",
    ),
    "logistic": Experiment(
        "Figure 1, left: logistic regression with steps alpha / sqrt(t)",
        logistic,
        _curves,
        "train_loss",
    ),
    "words": Experiment(
        "Figure 1, right: sparse features, logistic regression on bags of words",
        words,
        _curves,
        "train_loss",
    ),
    "network": Experiment(
        "Figure 2: a network of two hidden layers, with and without dropout",
        multilayer,
        _curves,
        "train_loss",
    ),
    "convnet": Experiment(
        "Figure 3: a convolutional network, with and without dropout",
        convolutional,
        _curves,
        "train_loss",
    ),
    "autoencoder": Experiment(
        "Figure 4: Adam with and without bias correction on a variational auto-encoder",
        bias_correction,
        figures.bias_correction,
        "train_loss",
    ),
}
