"""Norms of extreme numbers."""

import jax.numpy as jnp
import numpy as np

import adamfx as fx


def test_norms_up_to_the_largest_number():
    for x in (1e37, 1e38, 3e38):
        g = jnp.array([x, 0.0])
        np.testing.assert_allclose(fx.global_norm(g), x, rtol=1e-5)
        u, _ = fx.clip_by_global_norm(1.0).update(g, {"count": jnp.int32(0)})
        # A factor below 1.2e-38 would be flushed to 0; the smallest there is leaves u up to 3.6.
        assert 0.99 < u[0] < 4
        assert u[1] == 0
