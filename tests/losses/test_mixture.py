"""The mixture of teachers: values, what has no probability, and weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.losses.mixture import mixture_log_probs

LOGITS = [
    jnp.asarray(np.random.default_rng(i).standard_normal((3, 5)), jnp.float32) for i in range(3)
]


def softmax(z):
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(-1, keepdims=True)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1))
def test_is_the_weighted_mean_of_probabilities(given):
    weights = [w / sum(given) for w in given]
    want = sum(w * softmax(z) for w, z in zip(weights, LOGITS, strict=True))
    found = np.exp(mixture_log_probs(LOGITS, weights))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)


def test_a_token_has_no_probability_where_no_teacher_gives_it_any():
    never = [z.at[:, 2].set(-jnp.inf) for z in LOGITS]
    assert np.all(np.isneginf(mixture_log_probs(never, [0.2, 0.3, 0.5])[:, 2]))
    some = mixture_log_probs([*never[:2], LOGITS[2]], [0.2, 0.3, 0.5])
    np.testing.assert_allclose(np.exp(some[:, 2]), 0.5 * softmax(LOGITS[2])[:, 2], rtol=1e-5)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.1), (1.5, -0.5, 0.0)])
def test_weights_are_checked(weights):
    said = ", ".join(f"number {i} {w:g}" for i, w in enumerate(weights))
    with pytest.raises(ValueError, match=f"weights: got {said}, takes numbers from 0 that sum"):
        mixture_log_probs(LOGITS, weights)
