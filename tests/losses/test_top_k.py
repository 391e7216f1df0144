"""A teacher known by its k likeliest tokens: the cards' values, k = V, what each rule may do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses import top_k
from kd_jax.losses.divergences import forward_kl, reverse_kl

S, T = jnp.array([1.0, 0.5, -1.0, 0.2]), jnp.array([2.0, 1.0, 0.0, -1.0])
few = settings(max_examples=10, derandomize=True, deadline=None)


def logits(seed, shape=(3, 11)):
    s, t = 3 * np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    return jnp.asarray(s), jnp.asarray(t)


def known(t, k):
    """ids, log-probabilities and the logarithm of the rest of the k likeliest tokens."""
    log_p = jax.nn.log_softmax(t)
    chosen, ids = jax.lax.top_k(log_p, k)
    rest = np.sort(np.asarray(jnp.exp(log_p), np.float64), -1)[..., : t.shape[-1] - k].sum(-1)
    with np.errstate(divide="ignore"):
        return ids, chosen, jnp.asarray(np.log(rest), jnp.float32)


def three(s, t, k):
    ids, chosen, rest = known(t, k)
    return (
        top_k.top_k_kl_renormalised(s, ids, chosen),
        top_k.top_k_kl_with_tail(s, ids, chosen, rest),
        top_k.top_k_kl_partial(s, ids, chosen),
    )


def test_worked_token():
    np.testing.assert_allclose(three(S, T, 2), (0.026345, 0.088730, 0.184779), atol=1e-6)


@pytest.mark.slow
@given(st.integers(0, 2**31 - 1), st.integers(1, 10))
@few
def test_rules(seed, k):
    s, t = logits(seed)
    whole = forward_kl(s, t)
    for value in three(s, t, 11):
        np.testing.assert_allclose(value, whole, rtol=1e-4)
    _, tail, partial = three(s, t, k)
    assert (tail <= whole + 1e-5).all() and (tail >= -1e-6).all()
    # The rest as one token: what is lost is its own divergence.
    ids, chosen, _ = known(t, k)
    log_q = jnp.take_along_axis(jax.nn.log_softmax(s), ids, -1)
    np.testing.assert_allclose(
        partial, (jnp.exp(chosen) * (chosen - log_q)).sum(-1), rtol=1e-4, atol=1e-6
    )


@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 4, 11]))
@few
def test_the_likeliest(seed, k):
    _, t = logits(seed)
    found, (ids, chosen, rest) = top_k.likeliest(t, k=k), known(t, k)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.log_probs, chosen, rtol=1e-5)
    np.testing.assert_allclose(found.log_tail, rest, rtol=1e-4)
    assert (found.log_probs[:, :-1] >= found.log_probs[:, 1:]).all()


def test_the_tail_of_a_sure_teacher_has_digits():
    """From 1 - sum p nothing would be left of it."""
    found = top_k.likeliest(jnp.array([40.0, 0.0, 0.0]), k=1)
    np.testing.assert_allclose(found.log_tail, np.log(2) - 40, rtol=1e-6)
    equal = top_k.likeliest(jnp.zeros(5), k=3)
    np.testing.assert_array_equal(equal.ids, [0, 1, 2])
    banned = top_k.likeliest(jnp.array([1.0, -jnp.inf, -jnp.inf]), k=1)
    assert banned.log_tail == -jnp.inf and banned.log_probs[0] == 0


def test_one_token_renormalised_teaches_nothing():
    """Why the rest is needed."""
    s, t = logits(0)
    ids, chosen, _ = known(t, 1)
    value, grad = jax.value_and_grad(lambda s: top_k.top_k_kl_renormalised(s, ids, chosen).sum())(s)
    assert value == 0 and (grad == 0).all()
    assert (three(s, t, 1)[1] > 1e-3).all()


def test_the_partial_sum_can_be_below_0():
    assert three(jnp.array([9.0, 0, 0, 0]), T, 1)[2] < -0.2


@pytest.mark.parametrize("k", [1, 4, 11])
def test_gradients_of_the_tail(k):
    """q - p over k + 1 entries: in the rest, in proportion to the student's own."""
    s, t = logits(2)
    ids, chosen, rest = known(t, k)
    grad = jax.grad(lambda s: top_k.top_k_kl_with_tail(s, ids, chosen, rest).sum())(s)
    q = np.asarray(jax.nn.softmax(s), np.float64)
    p = np.zeros_like(q)
    np.put_along_axis(p, np.asarray(ids), np.exp(np.asarray(chosen, np.float64)), -1)
    outside = np.where(p == 0, q, 0.0)
    mass = outside.sum(-1, keepdims=True)
    p += np.exp(np.asarray(rest, np.float64))[:, None] * outside / np.where(mass > 0, mass, 1)
    np.testing.assert_allclose(grad, q - p, atol=1e-5)


def test_the_rest_of_stored_probabilities():
    ids, chosen, rest = known(logits(4)[1], 3)
    np.testing.assert_allclose(top_k.log_tail(chosen), rest, rtol=1e-3)
    full = top_k.log_tail(jnp.log(jnp.array([0.5, 0.5])))
    assert np.isfinite(full) and full < -15


@given(st.integers(0, 2**31 - 1))
@few
def test_the_inferred_split(seed):
    s, t = logits(seed)
    np.testing.assert_allclose(top_k.top_k_split_kl(s, t, k=11), forward_kl(s, t), rtol=1e-4)
    np.testing.assert_allclose(top_k.top_k_split_kl(s, t, k=0), reverse_kl(s, t), rtol=1e-4)
    np.testing.assert_allclose(top_k.top_k_split_kl(s, s, k=4), 0.0, atol=1e-6)
    log_p, log_q = (np.asarray(jax.nn.log_softmax(x), np.float64) for x in (t, s))
    order = np.argsort(-log_p, -1, kind="stable")
    forward, reverse = np.exp(log_p) * (log_p - log_q), np.exp(log_q) * (log_q - log_p)
    parts = (np.take_along_axis(x, order, -1) for x in (forward, reverse))
    first, last = (x[:, :4].sum(-1) if i == 0 else x[:, 4:].sum(-1) for i, x in enumerate(parts))
    np.testing.assert_allclose(top_k.top_k_split_kl(s, t, k=4), first + last, rtol=1e-3, atol=1e-5)


def test_the_split_can_be_below_0():
    """It is no divergence: a student surer than the teacher of the token that counts."""
    assert top_k.top_k_split_kl(jnp.array([3.0, 0, 0]), jnp.array([1.0, 0, 0]), k=1) < -0.1


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="k: got 5, takes 0 to the size of the vocabulary, 4"):
        top_k.top_k_split_kl(S, T, k=5)
    with pytest.raises(ValueError, match="k: got 0, takes 1 to the size of the vocabulary, 4"):
        top_k.likeliest(T, k=0)
