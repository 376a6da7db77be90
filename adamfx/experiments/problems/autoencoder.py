"""The variational auto-encoder of the Adam paper, 6.4 (Kingma & Welling, 2014)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamfx.experiments.problems.network import dense

Params = Any


class Autoencoder(NamedTuple):
    """`init(key) -> params`; `loss(params, images, key)` draws one latent sample for each image."""

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, jax.Array, jax.Array], jax.Array]

    def metrics(self, params: Params, images: jax.Array) -> dict[str, jax.Array]:
        """The loss with one and the same sample whenever it is asked."""
        return {"loss": self.loss(params, images, jax.random.key(0))}


def autoencoder(inputs: int, hidden: int = 500, latent: int = 50) -> Autoencoder:
    """Softplus layers, a spherical Gaussian latent space, Bernoulli pixels.

    The loss is the negative lower bound in nats, the mean over the images:
    -log p(x | z) + KL(q(z | x) || N(0, 1)) at z = mu + sigma * noise.

    Args:
      inputs: pixels of an image, in [0, 1].
    """
    shapes = {
        "encode": (inputs, hidden),
        "posterior": (hidden, 2 * latent),  # mu and log sigma^2
        "decode": (latent, hidden),
        "pixels": (hidden, inputs),
    }

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: dense(k, *shape) for (name, shape), k in zip(shapes.items(), keys, strict=True)
        }

    def loss(params, images, key):
        def layer(name, x):
            return x @ params[name]["w"] + params[name]["b"]

        x = images.reshape(len(images), -1)
        mu, log_var = jnp.split(layer("posterior", jax.nn.softplus(layer("encode", x))), 2, axis=1)
        z = mu + jnp.exp(log_var / 2) * jax.random.normal(key, mu.shape)
        logits = layer("pixels", jax.nn.softplus(layer("decode", z)))
        # -log p of a pixel x with probability sigmoid(a): softplus(a) - x a
        reconstruction = jnp.sum(jax.nn.softplus(logits) - x * logits, axis=1)
        kl = jnp.sum(jnp.exp(log_var) + mu**2 - 1 - log_var, axis=1) / 2
        return jnp.mean(reconstruction + kl)

    return Autoencoder(init, loss)
