"""Sums and means over sequences, by hand; what is masked must not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.evaluation import tofu
from kd_jax.evaluation.scoring import mean_nll, perplexity, sequence_nll, token_count

LOG_PROBS = np.array([[np.nan, -1.0, -3.0, -np.inf], [-0.5, -0.5, -0.5, -0.5]], np.float32)
WEIGHTS = np.array([[0, 1, 1, 0], [1, 1, 1, 1]], np.float32)


def test_by_hand():
    np.testing.assert_allclose(sequence_nll(LOG_PROBS, WEIGHTS), [4.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(token_count(WEIGHTS), [2.0, 4.0])
    np.testing.assert_allclose(jax.jit(mean_nll)(LOG_PROBS, WEIGHTS), [2.0, 0.5], rtol=1e-6)
    # Tokens weigh, not sequences: the mean of the two perplexities would be 4.52.
    np.testing.assert_allclose(perplexity([4.0, 2.0], [2.0, 4.0]), np.e, rtol=1e-6)


def test_probability_is_the_geometric_mean_and_blind_to_length():
    once = np.log(np.array([[0.5, 0.25, 0.9]], np.float32))
    twice = np.repeat(once, 2, axis=1)
    p = tofu.probability(mean_nll(once, np.ones_like(once)))
    np.testing.assert_allclose(p, [(0.5 * 0.25 * 0.9) ** (1 / 3)], rtol=1e-6)
    np.testing.assert_allclose(tofu.probability(mean_nll(twice, np.ones_like(twice))), p, rtol=1e-6)


def test_weights_are_a_mask():
    np.testing.assert_allclose(
        mean_nll(LOG_PROBS, 0.5 * WEIGHTS), mean_nll(LOG_PROBS, WEIGHTS), rtol=1e-6
    )


def test_a_row_of_padding_shows():
    got = mean_nll(jnp.zeros((2, 3)), jnp.array([[0.0, 0, 0], [1, 1, 1]]))
    assert np.isnan(got[0])
    assert got[1] == 0
    with pytest.raises(ValueError, match="NaN"):
        tofu.probability(got)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="weights"):
        sequence_nll(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
