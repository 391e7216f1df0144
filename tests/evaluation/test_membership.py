"""Membership scores and what is read from them, against loops and numbers worked out elsewhere."""

import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax.evaluation import membership as m
from kd_jax.losses.streaming import token_statistics
from kd_jax.types import Logits

# From the metric card, computed in float64 there.
LOG_PROBS = np.array([[-0.1, -3, -0.5, -7, -0.05, -1, -2, -0.2]])
LOGITS = np.array([[[2, 1, 0, -1], [0, 0, 0, 3], [1, 1, 1, 1.01], [0, 4, 0, 0]]], np.float32)
LABELS = np.array([[0, 0, 3, 1]])

few = st.integers(0, 6).map(float)  # with many ties
samples = st.lists(few, min_size=1, max_size=9)


def test_min_k_by_hand():
    ones = np.ones_like(LOG_PROBS)
    for k, expected in ((0.2, 7.0), (0.4, 4.0), (1.0, -LOG_PROBS.mean())):
        np.testing.assert_allclose(m.min_k(LOG_PROBS, ones, k=k), [expected], rtol=1e-6)


@settings(max_examples=40)
@given(
    hnp.arrays(np.float32, (3, 10), elements=st.floats(-20, 0, width=32)),
    hnp.arrays(np.float32, (3, 10), elements=st.sampled_from([0.0, 1.0])),
    st.sampled_from([0.1, 0.2, 0.4, 0.7, 1.0]),
)
def test_min_k_is_a_loop_over_sorted_tokens(log_probs, weights, k):
    expected = []
    for row, mask in zip(log_probs.astype(np.float64), weights, strict=True):
        kept = np.sort(row[mask != 0])
        n = max(1, int(k * len(kept)))
        expected.append(-kept[:n].mean() if len(kept) else 0.0)
    # What stands in padding is never read.
    spoiled = np.where(weights == 0, np.nan, log_probs)
    np.testing.assert_allclose(m.min_k(spoiled, weights, k=k), expected, rtol=1e-5, atol=1e-6)


def test_how_many_tokens_is_pythons_truncation():
    """Of 100 at 0.29, 28.999999999999996: 28."""
    log_probs = -np.arange(100.0)[None]
    expected = np.arange(100.0)[-28:].mean()
    np.testing.assert_allclose(m.min_k(log_probs, np.ones((1, 100)), k=0.29), [expected], rtol=1e-6)


def test_min_k_pp_by_hand():
    log_probs, mean, variance, _ = token_statistics(
        Logits(jnp.asarray(LOGITS)), jnp.asarray(LABELS)
    )
    np.testing.assert_allclose(mean[0], [-0.947537, -0.529061, -1.386285, -0.261830], rtol=1e-5)
    np.testing.assert_allclose(variance[0], [0.616586, 1.017577, 0.000019, 0.789955], rtol=2e-2)
    found = m.min_k_pp(log_probs, mean, variance, np.ones((1, 4)), k=0.5)
    np.testing.assert_allclose(found, [1.176548], rtol=1e-5)


def test_min_k_pp_of_a_flat_prediction():
    """No variance: the floor stands in for it, and z is 0."""
    flat = token_statistics(Logits(jnp.zeros((1, 3, 5))), jnp.zeros((1, 3), jnp.int32))
    found = m.min_k_pp(flat.log_prob, flat.mean, flat.variance, np.ones((1, 3)))
    np.testing.assert_allclose(found, [0.0], atol=1e-3)  # a rounding error over 1e-3


def test_auc_by_hand():
    np.testing.assert_allclose(m.auc([1, 2, 3], [2.5, 4, 5, 0.5]), 0.666667, rtol=1e-5)
    assert m.auc([1.0, 2.0], [3.0]) == 1.0
    assert m.auc([3.0], [1.0, 2.0]) == 0.0


@given(samples, samples)
def test_auc_counts_pairs(members, others):
    pairs = [(b > a) + (b == a) / 2 for a in members for b in others]
    assert m.auc(members, others) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert m.auc(members, members) == 0.5
    assert m.auc(members, others) + m.auc(others, members) == pytest.approx(1.0, abs=1e-12)


@given(samples, samples, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_true_positive_rate_tries_every_threshold(members, others, at):
    a, b = np.array(members), np.array(others)
    rates = [0.0] + [
        (a <= t).mean() for t in np.concatenate([a, b]) if (b <= t).mean() <= at + 1e-12
    ]
    assert m.true_positive_rate(members, others, at=at) == pytest.approx(max(rates))


def test_true_positive_rate_allows_what_the_number_says():
    members, others = np.full(1, 28.5), np.arange(100.0)
    assert m.true_positive_rate(members, others, at=0.29) == 1.0  # 29 others are below
    assert m.true_positive_rate(members, others, at=0.28) == 0.0


def test_privacy_leakage_by_hand():
    np.testing.assert_allclose(m.privacy_leakage(2 / 3, 0.55), -25.925926, rtol=1e-6)
    assert m.privacy_leakage(0.6, 0.6) == 0.0
    np.testing.assert_allclose(m.privacy_leakage(1.0), -100.0, rtol=1e-8)
    # MUSE's table: its AUC is 1 - ours.
    np.testing.assert_allclose(m.privacy_leakage(1 - 0.0009, 1 - 0.4772), -99.8114, rtol=1e-5)
    np.testing.assert_allclose(m.relative_difference(0.75, 0.5), 50.0, rtol=1e-8)


def test_scores_of_samples():
    texts = ["a" * 100, "the answer of a question", ""]
    loss = np.array([1.0, 2.0, 3.0])
    sizes = [len(zlib.compress(t.encode("utf-8"))) for t in texts]
    np.testing.assert_allclose(m.zlib_score(loss, texts), loss / sizes, rtol=1e-12)
    np.testing.assert_allclose(m.reference_score(loss, [0.5, 2.0, 4.0]), [0.5, 0.0, -1.0])
    np.testing.assert_allclose(m.gradient_norm_score([[1.0, 3.0], [0.0, 0.5]]), [2.0, 0.25])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.min_k(LOG_PROBS, np.ones((1, 3))), r"weights: got shape \(1, 3\)"),
        (lambda: m.min_k(LOG_PROBS, np.ones((1, 8)), k=0.0), "k: got 0.0"),
        (lambda: m.auc([], [1.0]), r"members: got shape \(0,\)"),
        (lambda: m.auc([1.0], [np.nan]), "others: got 1 NaN"),
        (lambda: m.true_positive_rate([1.0], [1.0], at=2), "at: got 2"),
        (lambda: m.privacy_leakage(1.5), "model_auc: got 1.5"),
        (lambda: m.relative_difference(0.5, -1), "retrained_auc: got -1"),
        (lambda: m.zlib_score([1.0], ["a", "b"]), "texts: got 2"),
        (lambda: m.reference_score([1.0], [1.0, 2.0]), "reference_loss: got 2"),
        (lambda: m.gradient_norm_score([1.0]), r"norms: got shape \(1,\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
