"""The convolutional network c64-c64-c128-1000 of the Adam paper, 6.3."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adamfx.experiments.problems.classification import Classifier, dropout
from adamfx.experiments.problems.network import dense


def windows(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The size x size surroundings of every stride-th pixel: (n, h, w, c) to (n, h', w', size^2, c).

    Zeros beyond the edge; h' is h / stride, rounded up. A convolution is a product with these: XLA's own
    is several times slower on the CPU inside a scan, and slower still where its weights are batched.
    """
    before, after = (size - 1) // 2, size // 2
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    views = [x[:, i : i + h : stride, j : j + w : stride] for i in range(size) for j in range(size)]
    return jnp.stack(views, axis=3)


def convnet(
    shape: tuple[int, int, int],
    classes: int,
    channels: tuple[int, ...] = (64, 64, 128),
    hidden: int = 1000,
    drop_inputs: float = 0.0,
    drop_hidden: float = 0.0,
    l2: float = 0.0,
) -> Classifier:
    """Stages of 5x5 convolution, ReLU and 3x3 max pooling with stride 2; then one hidden layer.

    Args:
      shape: (height, width, channels) of an image.
      drop_inputs, drop_hidden: shares of the pixels and of the hidden units left out in training.
      l2: of the penalty l2 / 2 * |w|^2.
    """
    height, width, depth = shape
    for _ in channels:
        height, width = -(-height // 2), -(-width // 2)

    def init(key):
        *convolutions, first, second = jax.random.split(key, len(channels) + 2)
        stages = []
        for k, c_in, c_out in zip(convolutions, (depth, *channels), channels, strict=False):
            layer = dense(k, 25 * c_in, c_out)
            stages.append({**layer, "w": layer["w"].reshape(25, c_in, c_out)})
        flat = height * width * channels[-1]
        return {
            "stages": stages,
            "hidden": dense(first, flat, hidden),
            "scores": dense(second, hidden, classes),
        }

    def scores(params, inputs, key=None):
        k_in, k_hidden = (None, None) if key is None else jax.random.split(key)
        x = dropout(inputs, drop_inputs, k_in)
        for stage in params["stages"]:
            x = jnp.einsum("nhwkc,kcd->nhwd", windows(x, 5, 1), stage["w"])
            x = jnp.max(windows(jax.nn.relu(x + stage["b"]), 3, 2), axis=3)
        x = x.reshape(len(x), -1)
        x = dropout(
            jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"]), drop_hidden, k_hidden
        )
        return x @ params["scores"]["w"] + params["scores"]["b"]

    return Classifier(init, scores, l2)
