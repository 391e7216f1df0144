"""Terms as weighted means, outputs as sums of terms, heads as logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.types import Factored, Logits, Output, Term, weighted_sum


def test_term_is_a_weighted_mean_and_zero_without_weight():
    term = weighted_sum(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([1.0, 0.0, 3.0]), 2.0)
    assert float(term.value) == 2.0 * 10.0 / 4.0
    gradient = jax.grad(lambda x: weighted_sum(x, jnp.zeros(2)).value)(jnp.ones(2))
    assert float(weighted_sum(jnp.ones(2), jnp.zeros(2)).value) == 0.0
    assert np.array_equal(gradient, np.zeros(2))
    with pytest.raises(ValueError, match="weights: got shape"):
        weighted_sum(jnp.ones(2), jnp.ones((2, 1)))


def test_an_empty_term_keeps_a_non_finite_total_out_of_value_and_gradient():
    term = lambda x: Term(x + jnp.inf, jnp.float32(0.0))  # noqa: E731 - one expression
    value, slope = jax.value_and_grad(lambda x: term(x).value)(jnp.float32(1.0))
    assert (float(value), float(slope)) == (0.0, 0.0)


def test_sums_are_taken_in_float32_and_without_weights_over_all_entries():
    ones = jnp.ones(1000, jnp.bfloat16)
    assert weighted_sum(ones).total.dtype == jnp.float32
    assert float(weighted_sum(ones).total) == float(weighted_sum(ones).weight) == 1000.0
    assert float(weighted_sum(ones, ones, 0.5).value) == 0.5


def test_the_loss_is_the_sum_of_the_terms_and_zero_without_any():
    terms = {"a": Term(jnp.float32(4), jnp.float32(2)), "b": Term(jnp.float32(3), jnp.float32(1))}
    assert float(Output(terms, {"c": Term(jnp.float32(9), jnp.float32(1))}).loss) == 5.0
    assert float(Output({}).loss) == 0.0


def test_heads_give_the_same_logits_dense_and_factored():
    keys = jax.random.split(jax.random.key(0))
    hidden, unembedding = jax.random.normal(keys[0], (2, 3, 4)), jax.random.normal(keys[1], (5, 4))
    z = 0.5 * np.asarray(hidden) @ np.asarray(unembedding).T
    np.testing.assert_allclose(Factored(hidden, unembedding, 0.5).logits(), z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        Factored(hidden, unembedding, 0.5, 2.0).logits(), 2 * np.tanh(z / 2), rtol=1e-5, atol=1e-6
    )
    half = Logits(jnp.asarray(z, jnp.bfloat16)).logits()
    assert half.dtype == jnp.float32
