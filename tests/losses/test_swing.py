"""Limits of the inferred formulas: nothing private, everything flat, noise."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.swing import swing_kl, swing_targets, swing_temperature

KEY = jax.random.key(0)
S, T = (jnp.asarray(x, jnp.float32) for x in 2 * np.random.default_rng(0).normal(size=(2, 5, 7)))
OPEN, SECRET = jnp.zeros(5), jnp.ones(5)


def loss(s, private, *, key=KEY, low=1.0, high=8.0, sigma=0.0):
    targets = swing_targets(T, private, key, low=low, high=high, sigma=sigma)
    return swing_kl(s, targets, temperature=low)


def test_nothing_private_is_distillation():
    for low in (1.0, 2.0):
        np.testing.assert_allclose(
            loss(S, OPEN, low=low, sigma=0.3), forward_kl(S, T, temperature=low), rtol=1e-4
        )


def test_temperatures_lie_between_the_two():
    found = swing_temperature(jnp.array([0.0, 0.25, 1.0]), low=1.0, high=5.0)
    np.testing.assert_allclose(found, [1.0, 2.0, 5.0])


def test_private_positions_are_pushed_to_the_uniform():
    targets = swing_targets(T, SECRET, KEY, high=1e4, sigma=0.0)
    np.testing.assert_allclose(targets, 1 / 7, atol=1e-3)
    grad = jax.grad(lambda s: loss(s, SECRET, high=1e4).sum())(S)
    np.testing.assert_allclose(grad, jax.nn.softmax(S) - 1 / 7, atol=1e-3)


def test_noise():
    half = jnp.array([0.0, 0.0, 1.0, 1.0, 1.0])
    one, other = (swing_targets(T, half, jax.random.key(i), high=2.0, sigma=0.1) for i in range(2))
    np.testing.assert_allclose(one.sum(-1), 1.0, rtol=1e-5)
    assert (one >= 0).all()
    np.testing.assert_array_equal(one[:2], other[:2])
    assert (jnp.abs(one - other)[2:].max(-1) > 0.01).all()
    # What is left of nothing is the teacher's own.
    flat = swing_targets(jnp.zeros((64, 2)), jnp.ones(64), KEY, high=2.0, sigma=50.0)
    np.testing.assert_allclose(flat.sum(-1), 1.0, rtol=1e-5)
    assert np.isfinite(jax.grad(lambda s: loss(s, SECRET, sigma=5.0).sum())(S)).all()
