"""TGeo-KD's geometry by its card."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.trilateral import geometry

S, T = (jax.nn.softmax(jnp.array([z])) for z in ([1.0, 0.0, 0.0], [3.0, 1.0, 0.0]))
MEANS = jnp.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
Y = jnp.array([0])


def test_the_cards_blocks():
    blocks = np.asarray(geometry(S, T, MEANS, Y)).reshape(9, 3)
    want = [
        [0.576117, 0.211942, 0.211942],
        [0.843795, 0.114195, 0.042010],
        [1, 0, 0],
        [0.8, 0.15, 0.05],
        [0.050124, 0.003837, 0.026225],
        [0.179677, 0.044919, 0.044919],
        [0.071651, 0.009554, 0.028877],
    ]
    np.testing.assert_allclose(blocks[:7], want, atol=1e-6)
    np.testing.assert_allclose(blocks[7], (blocks[1] - blocks[2]) ** 2, atol=1e-6)
    np.testing.assert_allclose(blocks[8], (blocks[3] - blocks[2]) ** 2, atol=1e-6)


def test_all_at_the_label_leaves_the_mean_alone_and_no_gradient():
    g = jnp.array([[1.0, 0.0, 0.0]])
    blocks = np.asarray(geometry(g, g, MEANS, Y)).reshape(9, 3)
    np.testing.assert_array_equal(blocks[5:8], 0.0)
    assert blocks[4].any() and blocks[8].any()
    slope = jax.grad(lambda s: geometry(s, T, MEANS, Y).sum())(S)
    np.testing.assert_array_equal(slope, 0.0)
