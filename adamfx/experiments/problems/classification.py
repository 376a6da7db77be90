"""What all classifiers share: cross-entropy with an L2 penalty, accuracy, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean of -log softmax(scores)[label] in nats; scores (n, classes), labels int (n,)."""
    log_p = jax.nn.log_softmax(scores)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each number with probability `rate` and scales the rest by 1 / (1 - rate).

    Without a key, as in a measurement, nothing happens (Srivastava et al. 2014, section 10).
    """
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


class Classifier(NamedTuple):
    """A model: `init(key) -> params` and `scores(params, inputs, key) -> (n, classes)`.

    `key` is for dropout; None switches it off. `l2` times half the squares of the weights (of
    leaves with two axes or more) is added to the loss.
    """

    init: Callable[[jax.Array], Params]
    scores: Callable[[Params, jax.Array, jax.Array | None], jax.Array]
    l2: float = 0.0

    def loss(
        self, params: Params, inputs: jax.Array, labels: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """What is minimised: the mean cross-entropy and the penalty, with dropout if a key comes."""
        weights = [x for x in jax.tree.leaves(params) if x.ndim >= 2]
        penalty = self.l2 / 2 * sum(jnp.sum(w**2) for w in weights)
        return cross_entropy(self.scores(params, inputs, key), labels) + penalty

    def metrics(self, params: Params, inputs: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """The mean cross-entropy and the share of right answers, without dropout and penalty."""
        scores = self.scores(params, inputs, None)
        right = jnp.argmax(scores, axis=1) == labels
        return {"loss": cross_entropy(scores, labels), "accuracy": jnp.mean(right)}
