"""DCO against the paper's numbers, exact decimal arithmetic, and its own gradient."""

import decimal
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.coverage import dco, dco_factor, estimated_dco

# Worked out from the paper's formula in float64, independently of this package; six decimals.
FACTORS = {
    0.01: {4: 0.984975, 16: 0.926399, 256: 0.213644},
    0.1: {4: 0.847921, 16: 0.404353},
    0.5: {4: 0.266667, 16: 0.000244},
    0.9: {4: 0.003600},
}
LOSSES_AT_ONE_TENTH = {1: 2.302585, 4: 1.067404, 16: 0.204938}
COUNTS = (1, 1.5, 2, 16, 4096)


@jax.jit
def value_and_slope(log_p, n):
    return dco(log_p, n=n), jax.grad(lambda x: dco(x, n=n).sum())(log_p), dco_factor(log_p, n=n)


def exact(log_p, n):
    """(loss, factor) in 80 digits."""
    with decimal.localcontext() as context:
        context.prec = 80
        p, n = Decimal(log_p).exp(), Decimal(n)
        log_other = (1 - p).ln()
        some = 1 - (n * log_other).exp()
        return float(-some.ln()), float(n * p * ((n - 1) * log_other).exp() / some)


@pytest.mark.parametrize("p", FACTORS)
def test_factors(p):
    for n, expected in FACTORS[p].items():
        found = dco_factor(jnp.log(jnp.array([p])), n=n)
        np.testing.assert_allclose(found, [expected], rtol=1e-5, atol=1e-6)


def test_losses_at_one_tenth():
    for n, expected in LOSSES_AT_ONE_TENTH.items():
        found = dco(jnp.log(jnp.array([0.1])), n=n)
        np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize("n", COUNTS)
def test_loss_factor_and_gradient_are_exact_over_the_whole_range(n):
    log_p = -np.logspace(-6, 2.2, 150).astype(np.float32)
    loss, slope, factor = value_and_slope(log_p, float(n))
    expected = np.array([exact(float(x), n) for x in log_p])
    np.testing.assert_allclose(loss, expected[:, 0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(factor, expected[:, 1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slope, -expected[:, 1], rtol=1e-5, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e6, 0, width=32), st.integers(1, 4096))
def test_bounds(log_p, n):
    (loss,), (slope,), (factor,) = value_and_slope(jnp.array([log_p], jnp.float32), float(n))
    assert 0 <= factor <= 1 + 1e-5 and slope == -factor
    assert 0 <= loss <= -log_p + 1e-6
    assert loss >= -log_p - np.log(n) - 1e-3 * max(1.0, -1e-3 * log_p)


def test_one_sample_is_the_likelihood_and_many_a_shift():
    log_p = jnp.array([-1e-7, -0.1, -0.7, -3.0, -200.0])
    loss, slope, _ = value_and_slope(log_p, 1.0)
    np.testing.assert_allclose(loss, -log_p, rtol=1e-5)
    np.testing.assert_allclose(slope, -np.ones(5), rtol=1e-5)
    # A long answer's probability is 0 in float32, its loss and gradient are not.
    far = jnp.array([-90.0, -200.0, -1e4])
    loss, slope, _ = value_and_slope(far, 256.0)
    np.testing.assert_allclose(loss, -far - np.log(256), rtol=1e-6)
    np.testing.assert_allclose(slope, -np.ones(3), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n", COUNTS)
def test_extremes_are_finite_and_no_number_of_samples_moves_them(n):
    log_p = jnp.array([0.0, -0.0, 1e-6, -1e-30, -1e-8, -1e30, -jnp.inf])
    loss, slope, factor = value_and_slope(log_p, float(n))
    assert np.isfinite(loss[:-1]).all() and loss[-1] == jnp.inf
    assert np.isfinite(slope).all() and np.isfinite(factor).all()
    sure, never = (1.0, 1.0) if n == 1 else (0.0, 1.0)
    np.testing.assert_allclose(factor[0], sure, atol=1e-6)
    np.testing.assert_allclose(factor[-2:], never, rtol=1e-6)
    curve = jax.vmap(jax.grad(jax.grad(lambda x: dco(x[None], n=n)[0])))(log_p)
    assert np.isfinite(curve).all()


def test_the_factor_has_a_derivative_too():
    for log_p in (-0.1, -1.0, -5.0):
        apart = [exact(log_p + step, 16)[1] for step in (1e-6, -1e-6)]
        slope = jax.grad(lambda x: dco_factor(x[None], n=16)[0])(log_p)
        np.testing.assert_allclose(slope, (apart[0] - apart[1]) / 2e-6, rtol=1e-3, atol=1e-9)


def test_estimated_success():
    log_p = jnp.array([-20.0, -30.0, -40.0, -50.0])
    rates = jnp.array([0.0, 0.1, 0.5, 1.0])
    factors = [1.0, FACTORS[0.1][4], FACTORS[0.5][4], 0.0]
    found = estimated_dco(log_p, rates, n=4)
    np.testing.assert_allclose(found, -log_p * jnp.array(factors), rtol=1e-5)
    kept = estimated_dco(log_p, rates, n=4, threshold=0.3)
    np.testing.assert_allclose(kept, found * jnp.array([1, 1, 0, 0]), rtol=1e-5)
    slopes = jax.grad(lambda x, r: estimated_dco(x, r, n=4).sum(), (0, 1))(log_p, rates)
    np.testing.assert_allclose(slopes[0], -np.array(factors), rtol=1e-5)
    np.testing.assert_array_equal(slopes[1], np.zeros(4))


def test_refusals():
    log_p = jnp.array([-1.0])
    with pytest.raises(ValueError, match="n: got 0.5, takes numbers from 1"):
        dco(log_p, n=0.5)
    with pytest.raises(ValueError, match="threshold: got 2"):
        estimated_dco(log_p, log_p, n=2, threshold=2)
