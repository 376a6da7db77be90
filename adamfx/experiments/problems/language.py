"""A small language model: the next letter, by one layer of attention and one of hidden units."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from adamfx.experiments.runner import Problem

CONTEXT, BATCH, MEASURED = 32, 32, 512


def language_model(letters: np.ndarray, width: int = 32, heads: int = 2) -> Problem:
    """The model of Vaswani et al. 2017 as today's are built, one layer deep, RMS norms before each part.

    Args:
      letters: uint8, (n,), a text as numbers from 0; its last tenth is for test.
      width: of the embeddings, a multiple of heads.

    Measured are `train_loss` and `test_loss`, nats per letter, on chosen places.
    """
    kinds, split = int(letters.max()) + 1, len(letters) * 9 // 10
    train, test = (jnp.asarray(x, jnp.int32) for x in (letters[:split], letters[split:]))

    def at(text, places):
        return text[places[:, None] + jnp.arange(CONTEXT + 1)]

    chosen = np.random.default_rng(0)
    parts = [at(x, chosen.integers(len(x) - CONTEXT, size=MEASURED)) for x in (train, test)]

    def init(key):
        shapes = {
            "embed": (kinds, width),
            "place": (CONTEXT, width),
            "qkv": (width, 3 * width),
            "out": (width, width),
            "up": (width, 4 * width),
            "down": (4 * width, width),
            "head": (width, kinds),
        }
        keys = jax.random.split(key, len(shapes))
        params = {
            n: jax.random.normal(k, shape) * shape[0] ** -0.5
            for k, (n, shape) in zip(keys, shapes.items(), strict=True)
        }
        scales = {f"scale_{n}": jnp.ones(width) for n in ("attention", "hidden", "head")}
        return params | scales

    def normal(x, scale):
        return scale * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def mean_loss(p, text):
        x = p["embed"][text[:, :-1]] + p["place"]
        q, k, v = jnp.split(normal(x, p["scale_attention"]) @ p["qkv"], 3, axis=-1)
        q, k, v = (y.reshape(*y.shape[:2], heads, width // heads) for y in (q, k, v))
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ p["out"]
        x = x + jax.nn.gelu(normal(x, p["scale_hidden"]) @ p["up"]) @ p["down"]
        scores = jax.nn.log_softmax(normal(x, p["scale_head"]) @ p["head"])
        return -jnp.mean(jnp.take_along_axis(scores, text[:, 1:, None], -1))

    def loss(params, data, t, key):
        places = jax.random.randint(key, (BATCH,), 0, len(data[0]) - CONTEXT)
        return mean_loss(params, at(data[0], places))

    def measure(params, state, data):
        return {
            "train_loss": mean_loss(params, data[1][0]),
            "test_loss": mean_loss(params, data[1][1]),
        }

    return Problem((train, parts), init, loss, measure)
