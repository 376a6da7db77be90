"""Fully connected ReLU networks (Adam paper, 6.2); without hidden layers, logistic regression (6.1)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from adamfx.experiments.problems.classification import Classifier, dropout


def dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """A layer: normal weights of variance 2 / inputs, which suits ReLU (He et al. 2015), zero biases."""
    w = jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5
    return {"w": w, "b": jnp.zeros(outputs)}


def network(
    sizes: Sequence[int], drop_inputs: float = 0.0, drop_hidden: float = 0.0, l2: float = 0.0
) -> Classifier:
    """Layers of these sizes, from the inputs (flattened) to the classes; logistic regression for two.

    Args:
      sizes: for 6.2 of the paper, (784, 1000, 1000, 10).
      drop_inputs, drop_hidden: shares of the inputs and of the hidden units left out in training.
      l2: of the penalty l2 / 2 * |w|^2.
    """

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        return [dense(*layer) for layer in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def scores(params, inputs, key=None):
        keys = [None] * len(params) if key is None else jax.random.split(key, len(params))
        x = dropout(inputs.reshape(len(inputs), -1).astype(jnp.float32), drop_inputs, keys[0])
        for layer, k in zip(params[:-1], keys[1:], strict=True):
            x = dropout(jax.nn.relu(x @ layer["w"] + layer["b"]), drop_hidden, k)
        return x @ params[-1]["w"] + params[-1]["b"]

    return Classifier(init, scores, l2)
