"""The cards' values, the target's limits, and a clock that never goes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.taid import advance, clock, taid

S, T = jnp.array([1.0, 0.0, -1.0, 0.5]), jnp.array([2.0, 1.0, 0.0, -1.0])


def test_worked_token():
    value, grad = jax.value_and_grad(taid)(S, T, share=0.4)
    np.testing.assert_allclose(value, 1.181078, atol=1e-6)
    np.testing.assert_allclose(grad, [-0.105268, -0.038726, -0.014246, 0.158240], atol=1e-6)
    value, grad = jax.value_and_grad(taid)(S, T, share=0.0)
    np.testing.assert_allclose(value, 1.192979, atol=1e-6)  # the student's entropy
    np.testing.assert_allclose(grad, 0.0, atol=1e-7)
    np.testing.assert_allclose(taid(S, T, share=1.0), 1.173768, atol=1e-6)


def test_all_of_the_teacher_is_forward_kl():
    grads = (jax.grad(f)(S) for f in (lambda s: taid(s, T, share=1.0), lambda s: forward_kl(s, T)))
    np.testing.assert_allclose(*grads, atol=1e-6)
    never = T.at[3].set(-jnp.inf)
    value, grad = jax.value_and_grad(taid)(S, never, share=1.0)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize(
    "alpha, shares",
    [
        (5e-4, (0.40000000, 0.40015019, 0.40030029, 0.40045053)),
        (0.5, (0.4, 0.55018750, 0.66274230, 0.74723759)),
    ],
)
def test_worked_clock(alpha, shares):
    now = clock(0.4)
    for step, (loss, share, momentum) in enumerate(
        zip((2.0, 1.5, 1.6, 1.2), shares, (0, 0.0025, 0.00180833, 0.00429025), strict=True)
    ):
        now = advance(now, loss, step / 10_000, start=0.4, alpha=alpha)
        np.testing.assert_allclose(now.share, share, atol=1e-7)
        np.testing.assert_allclose(now.momentum, momentum, atol=1e-7)


@given(st.lists(st.floats(0.1, 9.0), min_size=3, max_size=12), st.floats(0.0, 0.9))
@settings(max_examples=20, derandomize=True, deadline=None)
def test_it_never_goes_back_and_ends_at_the_end(losses, start):
    now, before = clock(start), start - 1e-6
    for i, loss in enumerate(losses):
        now = advance(now, loss, (i + 1) / len(losses), start=start, end=0.95)
        assert before <= now.share <= 0.95 + 1e-6
        before = float(now.share)
    np.testing.assert_allclose(now.share, 0.95, rtol=1e-6)


def test_without_adaptation_it_is_linear():
    now = advance(clock(0.2), 3.0, 0.0, start=0.2, alpha=0.0)
    for i in range(1, 5):
        now = advance(now, 3.0 - i, i / 4, start=0.2, alpha=0.0)
        np.testing.assert_allclose(now.share, 0.2 + 0.8 * i / 4, rtol=1e-6)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match=r"share: got 1.5, takes numbers in \[0, 1\]"):
        taid(S, T, share=1.5)
    with pytest.raises(ValueError, match=r"start: got -1.0, takes numbers in \[0, 1\]"):
        clock(-1.0)
