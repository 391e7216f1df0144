"""Advantage-weighted NLL: the gradient of the expected reward, and nothing where nothing is won."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.preference.steps import advantage_weighted_nll

KEY = jax.random.key(0)


def test_values():
    log_probs = jnp.array([[-1.0, -2.0, -3.0], [-0.5, -jnp.inf, jnp.nan]])
    advantages = jnp.array([[0.5, -0.25, 0.0], [1.0, 0.0, 0.0]])
    found = advantage_weighted_nll(log_probs, advantages)
    np.testing.assert_array_equal(found, [[0.5, -0.5, 0.0], [0.5, 0.0, 0.0]])
    gradient = jax.grad(lambda x: advantage_weighted_nll(x, advantages).sum())(log_probs)
    np.testing.assert_array_equal(gradient, -advantages)


def chain(logits, reward):
    """Two steps of 3 tokens: (probability of each [3, 3], advantages of both steps [3, 3, 2])."""
    first, second = jax.nn.log_softmax(logits[0]), jax.nn.log_softmax(logits[1:])
    joint = jnp.exp(first[:, None] + second)
    middle = (jnp.exp(second) * reward).sum(1)
    start = jnp.exp(first) @ middle
    after = jnp.broadcast_to((middle - start)[:, None], reward.shape)
    return joint, jnp.stack([after, reward - middle[:, None]], -1)


def test_its_expected_gradient_is_that_of_the_reward():
    keys = jax.random.split(KEY)
    logits = jax.random.normal(keys[0], (4, 3))  # of the first step, and of the second after each
    reward = jax.random.bernoulli(keys[1], 0.5, (3, 3)).astype(jnp.float32)
    reward = reward.at[2].set(1.0)
    joint, advantages = jax.lax.stop_gradient(chain(logits, reward))

    def loss(logits):
        first, second = jax.nn.log_softmax(logits[0]), jax.nn.log_softmax(logits[1:])
        steps = jnp.stack([jnp.broadcast_to(first[:, None], (3, 3)), second], -1)
        return (joint[..., None] * advantage_weighted_nll(steps, advantages)).sum()

    expected = jax.grad(lambda x: -(chain(x, reward)[0] * reward).sum())(logits)
    found = jax.grad(loss)(logits)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # After the third token all is won: the second step changes nothing and learns nothing.
    np.testing.assert_allclose(found[3], 0, atol=1e-6)
    assert np.abs(found[:3]).max() > 0.01
