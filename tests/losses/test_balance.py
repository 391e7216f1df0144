"""MTARD's loss and balances by its card."""

import jax.numpy as jnp
import numpy as np

from kd_jax.losses.balance import balanced_share, balanced_temperatures, mean_entropy, mean_kl
from kd_jax.losses.classification import prediction_entropy
from kd_jax.losses.divergences import forward_kl

S = jnp.array([[1.0, 2.0, 0.0], [0.5, -1.0, 1.5]])
T = jnp.array([[3.0, 1.0, 0.0], [0.0, -2.0, 2.0]])


def test_the_cards_numbers():
    np.testing.assert_allclose(mean_kl(S, T).mean(), 0.149783, atol=1e-6)
    np.testing.assert_allclose(mean_kl(S, T, eps=1e-12).mean(), forward_kl(S, T).mean() / 3, 1e-5)
    np.testing.assert_allclose(balanced_share(0.5, 0.8, 0.4), 0.495833, atol=1e-6)
    np.testing.assert_allclose(mean_entropy(T), prediction_entropy(T) / 3, rtol=1e-6)
    np.testing.assert_allclose(
        mean_entropy(T, temperature=2.0), prediction_entropy(T / 2) / 3, 1e-5
    )


def test_equal_teachers_move_nothing():
    np.testing.assert_allclose(balanced_share(0.5, 0.7, 0.7), 0.5)
    np.testing.assert_allclose(balanced_share(0.5, 0.0, 0.0), 0.5)
    np.testing.assert_array_equal(balanced_temperatures(2.0, 3.0, 0.4, 0.4), (2.0, 3.0))


def test_the_higher_entropy_cools_and_both_stay_in_bounds():
    np.testing.assert_allclose(balanced_temperatures(2.0, 3.0, 0.5, 0.4, rate=0.1), (1.9, 3.1))
    np.testing.assert_allclose(balanced_temperatures(2.0, 3.0, 0.3, 0.4, rate=0.1), (2.1, 2.9))
    np.testing.assert_array_equal(balanced_temperatures(1.0, 10.0, 0.5, 0.4, rate=0.1), (1, 10))
