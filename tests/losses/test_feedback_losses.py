"""Losses of scored text against numbers worked out by hand, limits, gradients, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.feedback import (
    awr,
    convex_unlikelihood,
    reward_weights,
    rwr,
    unlikelihood,
    value_error,
)

# Three tokens. The means were worked out in float64 from the formulas, independently of this
# package, and rounded to six decimals.
P, SCORES = jnp.array([0.5, 0.1, 0.9]), jnp.array([0.0, 0.8, 0.2])
LOG_P, VALUES = jnp.log(P), jnp.array([-0.1, -0.3, -0.2])


def test_unlikelihood():
    found = unlikelihood(LOG_P, SCORES, threshold=0.5)
    np.testing.assert_allclose(found.mean(), 0.301289, rtol=1e-5)
    np.testing.assert_allclose(found, [np.log(2), -np.log(0.9), -np.log(0.9)], rtol=1e-5)
    # A score at the threshold is good; alpha is of the bad alone.
    at = unlikelihood(LOG_P, SCORES, threshold=jnp.float32(0.8), alpha=7.0)
    np.testing.assert_allclose(at, -LOG_P, rtol=1e-6)
    twice = unlikelihood(LOG_P, SCORES, threshold=0.5, alpha=2.0)
    np.testing.assert_allclose(twice, found * jnp.array([1, 2, 1]), rtol=1e-6)


def test_convex_unlikelihood():
    found = convex_unlikelihood(LOG_P, SCORES)
    np.testing.assert_allclose(found.mean(), 0.594253, rtol=1e-5)
    sure = jnp.array([0.0, 1.0, 0.0])
    expected = unlikelihood(LOG_P, sure, threshold=0.5, alpha=3.0)
    np.testing.assert_allclose(convex_unlikelihood(LOG_P, sure, alpha=3.0), expected, rtol=1e-5)


def test_advantage_weights():
    np.testing.assert_allclose(
        reward_weights(SCORES, VALUES, beta=0.1), [2.718282, 0.006738, 1.0], rtol=1e-4
    )
    clipped = reward_weights(jnp.array([-100.0, -0.5, 1e4]), beta=0.1, clip=20.0)
    np.testing.assert_allclose(clipped, [20.0, 20.0, 0.0], rtol=1e-5)


@pytest.mark.parametrize(("beta", "expected"), [(10.0, 0.542627), (0.1, 0.377507)])
def test_awr(beta, expected):
    found = awr(LOG_P, SCORES, VALUES, beta=beta, alpha=0.5)
    np.testing.assert_allclose(found.mean(), expected, rtol=1e-5)


def test_rwr_is_awr_that_expects_nothing():
    found = rwr(LOG_P, SCORES, beta=0.3)
    expected = awr(LOG_P, SCORES, jnp.zeros(3), beta=0.3, alpha=1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found, np.exp(-np.array(SCORES) / 0.3) * -LOG_P, rtol=1e-5)


def test_a_large_beta_weighs_all_alike():
    error = (SCORES + VALUES) ** 2
    found = awr(LOG_P, SCORES, VALUES, beta=1e9, alpha=0.3)
    np.testing.assert_allclose(found, -0.3 * LOG_P + 0.7 * error, rtol=1e-5)
    np.testing.assert_allclose(rwr(LOG_P, SCORES, beta=1e9), -LOG_P, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-40, 0, width=32), min_size=3, max_size=3))
def test_text_without_faults_is_learnt_by_likelihood(log_p):
    log_p, none = jnp.array(log_p, jnp.float32), jnp.zeros(3)
    for found in (
        unlikelihood(log_p, none, threshold=0.0),
        convex_unlikelihood(log_p, none),
        rwr(log_p, none, beta=1.0),
        awr(log_p, none, none, beta=1.0, alpha=1.0),
    ):
        np.testing.assert_allclose(found, -log_p, rtol=1e-6, atol=1e-30)


def test_gradients():
    def slopes(loss):
        return jax.grad(lambda *x: loss(*x).sum(), (0, 1))(LOG_P, SCORES)

    odds = P / (1 - P)
    of_p, of_scores = slopes(lambda lp, s: unlikelihood(lp, s, threshold=0.5))
    np.testing.assert_allclose(of_p, jnp.where(SCORES > 0.5, odds, -1.0), rtol=1e-5)
    np.testing.assert_array_equal(of_scores, np.zeros(3))
    of_p, of_scores = slopes(convex_unlikelihood)
    np.testing.assert_allclose(of_p, -(1 - SCORES) + SCORES * odds, rtol=1e-5)
    np.testing.assert_array_equal(of_scores, np.zeros(3))
    weights = reward_weights(SCORES, VALUES, beta=0.5)
    of_p, of_scores, of_values = jax.grad(lambda *x: awr(*x, beta=0.5, alpha=0.3).sum(), (0, 1, 2))(
        LOG_P, SCORES, VALUES
    )
    np.testing.assert_allclose(of_p, -0.3 * weights, rtol=1e-5)
    np.testing.assert_array_equal(of_scores, np.zeros(3))
    np.testing.assert_allclose(of_values, 0.7 * 2 * (VALUES + SCORES), rtol=1e-5)
    assert float(value_error(SCORES, VALUES)[1]) == pytest.approx(0.25)


def test_extremes_are_finite():
    log_p = jnp.array([0.0, 1e-6, -1e-8, -1e-3, -1e5])
    bad = jnp.ones(5)
    for loss in (
        lambda lp: unlikelihood(lp, bad, threshold=0.0),
        lambda lp: convex_unlikelihood(lp, bad),
        lambda lp: rwr(lp, -1e30 * bad, beta=1e-3),
    ):
        value, slope = jax.value_and_grad(lambda lp, f=loss: f(lp).sum())(log_p)
        assert np.isfinite(value) and np.isfinite(slope).all()


def test_refusals():
    for call, said in (
        (lambda: unlikelihood(LOG_P, SCORES, threshold=0.5, alpha=-1), "alpha: got -1"),
        (lambda: rwr(LOG_P, SCORES, beta=0), "beta: got 0"),
        (lambda: rwr(LOG_P, SCORES, beta=1, clip=0.0), "clip: got 0"),
        (lambda: awr(LOG_P, SCORES, VALUES, beta=1, alpha=1.5), "alpha: got 1.5"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
