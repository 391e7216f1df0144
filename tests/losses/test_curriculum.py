"""The temperature's range, the share's course, and the slope of the tempered divergence."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.curriculum import difficulty, temperature, tempered
from kd_jax.losses.divergences import forward_kl

S, T = jnp.array([1.0, 0.0, -1.0, 0.5]), jnp.array([2.0, 1.0, 0.0, -1.0])


def test_the_temperature_starts_in_the_middle_and_stays_in_its_range():
    np.testing.assert_allclose(temperature(0.0), 11.0)
    np.testing.assert_allclose([temperature(x) for x in (-200.0, 200.0)], [1.0, 21.0])


def test_the_share_goes_from_0_to_1_and_stays():
    np.testing.assert_allclose(
        [difficulty(x, until=0.4) for x in (0.0, 0.2, 0.4, 0.9)], [0.0, 0.5, 1.0, 1.0], atol=1e-6
    )


def test_worked_token():
    value, _ = tempered(S, T, 1.0)
    np.testing.assert_allclose(value, 0.226231, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.6, 15.0))
def test_the_slope_is_that_of_the_value(tau):
    def value(t):
        s, p = (np.asarray(x, np.float64) / t for x in (S, T))
        log_q, log_p = (x - np.log(np.exp(x).sum()) for x in (s, p))
        return t**2 * (np.exp(log_p) * (log_p - log_q)).sum()

    found, slope = tempered(S, T, tau)
    np.testing.assert_allclose(found, value(tau), rtol=1e-4, atol=1e-5)
    step = 1e-4 * tau
    expected = (value(tau + step) - value(tau - step)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-4)


def test_it_is_forward_kl_at_that_temperature_times_its_square():
    np.testing.assert_allclose(
        tempered(S, T, 3.0)[0], 9 * forward_kl(S, T, temperature=3.0), rtol=1e-6
    )
    grads = (
        jax.grad(lambda s: tempered(s, T, 3.0)[0])(S),
        3 * (jax.nn.softmax(S / 3) - jax.nn.softmax(T / 3)),
    )
    np.testing.assert_allclose(*grads, atol=1e-6)
