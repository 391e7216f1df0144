"""ULD's combined logits: the card's example, what changes nothing, what is never drawn."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.logit_difference import plausible, uld_combine, uld_sampling
from kd_jax.losses.targets import uniform_kl

# Worked out apart from this code, by the released rule with k = 1.
BASE = jnp.array([5.0, 3.0, 1.0, -4.0])
ASSISTANT = jnp.array([4.0, 0.0, 1.0, 9.0])
RNG = np.random.default_rng(0)


def test_the_worked_example():
    np.testing.assert_array_equal(plausible(BASE, top=0.01), [True, True, True, False])
    combined = uld_combine(BASE, ASSISTANT, weight=-0.8, top=0.01)
    np.testing.assert_allclose(combined, [1.8, 3.0, 0.2, -4.0], rtol=1e-6)
    drawn = jax.nn.softmax(uld_sampling(BASE, ASSISTANT, weight=-0.8, top=0.01))
    np.testing.assert_allclose(drawn, [0.221140, 0.734212, 0.044647, 0.0], atol=1e-6)
    np.testing.assert_allclose(uniform_kl(jnp.array([2.0, 1.0, 0.0, -1.0])), 0.553895, rtol=1e-5)


@given(st.integers(0, 10_000), st.floats(-2, 2), st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_a_flat_assistant_and_a_weight_of_zero_leave_the_base(seed, weight, level):
    base = jnp.asarray(np.random.default_rng(seed).normal(0, 4, (2, 3, 11)), jnp.float32)
    flat = jnp.full(base.shape, level)
    whole = uld_combine(base, flat, weight=weight, top=1.0)
    np.testing.assert_allclose(jax.nn.softmax(whole), jax.nn.softmax(base), rtol=1e-4, atol=1e-7)
    # Filtered, the base's distribution over the tokens that are kept.
    kept = jax.nn.softmax(jnp.where(plausible(base, top=0.2), base, -jnp.inf))
    drawn = jax.nn.softmax(uld_sampling(base, flat, weight=weight, top=0.2))
    np.testing.assert_allclose(drawn, kept, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(uld_combine(base, base[::-1], weight=0.0, top=0.2), base)


@pytest.mark.parametrize("top", [0.05, 0.3, 1.0])
def test_which_tokens_are_plausible_as_the_paper_says_it(top):
    """In probabilities, in float64: not among the k likeliest and below top times the likeliest."""
    z = RNG.normal(0, 3, (50, 40)).astype(np.float32)
    p = np.exp(z.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    ranks = (-p).argsort(-1).argsort(-1)
    expected = (ranks < max(1, int(top * 40))) | (p >= top * p.max(-1, keepdims=True))
    found = np.asarray(plausible(jnp.asarray(z), top=top))
    np.testing.assert_array_equal(found, expected)
    assert found.all() == (top == 1.0)
    # A shift of a row's logits changes nothing.
    np.testing.assert_array_equal(found, plausible(jnp.asarray(z) + 8, top=top))


def test_small_vocabularies_keep_what_is_likely_enough():
    """k = 1 where top * V is below 1."""
    z = jnp.log(jnp.array([[0.5, 0.006, 0.494, 0.004]]))
    np.testing.assert_array_equal(plausible(z, top=0.01), [[True, True, True, False]])


def test_the_choice_of_tokens_has_no_gradient():
    def total(base):
        return (uld_combine(base, ASSISTANT, weight=-0.8, top=0.01) * jnp.arange(4.0)).sum()

    np.testing.assert_array_equal(jax.grad(total)(BASE), [0, 1, 2, 3])


def test_refusals():
    for top in (0.0, 1.5):
        with pytest.raises(ValueError, match="top: got"):
            plausible(BASE, top=top)
    with pytest.raises(ValueError, match="assistant_logits: got shape"):
        inspect.unwrap(uld_combine)(BASE, ASSISTANT[:3], weight=-0.8, top=0.01)
