"""Exact memorisation and extraction strength against loops over single answers."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax.evaluation import memorisation as m

TARGETS = np.array([5, 3, 2, 9, 4, 7])
KNOWN = np.array([5, 1, 2, 9, 4, 7])

FUNCTIONS = (m.exact_memorisation, m.extraction_strength, m.extraction_strength_released)
bits = hnp.arrays(np.float32, (4, 7), elements=st.sampled_from([0.0, 1.0]))


def by_loop(correct, weights):
    """Memorisation, strength and open-unlearning's strength of one answer, as its code does it."""
    right = [bool(c) for c, w in zip(correct, weights, strict=True) if w]
    n = len(right)
    if n == 0:
        return np.nan, 0.0, 0.0
    plain = next(k for k in range(n + 1) if all(right[k:]))
    for k in range(n):
        if all(right[k:]):
            break
    return sum(right) / n, 1 - plain / n, 1 - k / n


def test_by_hand():
    """The reference-code card's example: one wrong token of six, the second."""
    correct, ones = (KNOWN == TARGETS)[None], np.ones((1, 6))
    found = [f(correct, ones)[0] for f in FUNCTIONS]
    np.testing.assert_allclose(found, [0.833333, 0.666667, 0.666667], rtol=1e-5)
    all_right = [f(np.ones((1, 6)), ones)[0] for f in FUNCTIONS]
    np.testing.assert_array_equal(all_right, [1.0, 1.0, 1.0])
    last_wrong = np.array([[1, 1, 1, 1, 1, 0]])
    found = [f(last_wrong, ones)[0] for f in FUNCTIONS]
    np.testing.assert_allclose(found, [5 / 6, 0.0, 1 / 6], rtol=1e-6)


@settings(max_examples=40)
@given(bits, bits)
def test_any_rows(correct, weights):
    found = np.stack([jax.jit(f)(correct, weights) for f in FUNCTIONS], 1)
    expected = [by_loop(*row) for row in zip(correct, weights, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@given(bits)
def test_without_last_drops_one_token_of_each_row(weights):
    kept = np.asarray(m.without_last(3 * weights))
    for before, after in zip(3 * weights, kept, strict=True):
        places = np.flatnonzero(before)
        np.testing.assert_array_equal(np.flatnonzero(after), places[:-1])
        np.testing.assert_array_equal(after[places[:-1]], 3.0)


def test_padding_does_not_count():
    weights = np.array([[0, 1, 1, 1, 0, 0]])
    for fill in (0.0, 1.0):
        correct = np.array([[fill, 0, 1, 1, fill, fill]])
        np.testing.assert_allclose(m.exact_memorisation(correct, weights), 2 / 3)
        np.testing.assert_allclose(m.extraction_strength(correct, weights), 2 / 3)


def test_shapes_are_checked():
    for f in FUNCTIONS:
        with pytest.raises(ValueError, match="weights: got shape"):
            f(np.ones((2, 3)), np.ones((3, 2)))
