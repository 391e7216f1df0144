"""Flips between two models: worked by hand, and the identities that tie them to the accuracies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.evaluation.flips import (
    changed_error_rate,
    negative_flip_rate,
    positive_flip_rate,
    smooth_flips,
)

TARGETS = [0, 1, 2, 0, 1]
BEFORE = [0, 1, 1, 1, 0]  # right, right, wrong, wrong, wrong
AFTER = [0, 2, 2, 2, 0]  # right, flipped, gained, another error, the same error


def right(answers):
    return np.array(answers) == np.array(TARGETS)


def test_worked_answers():
    assert negative_flip_rate(right(BEFORE), right(AFTER)) == pytest.approx(1 / 5)
    assert positive_flip_rate(right(BEFORE), right(AFTER)) == pytest.approx(1 / 5)
    assert changed_error_rate(BEFORE, AFTER, TARGETS) == pytest.approx(2 / 5)


def test_worked_scores():
    found = smooth_flips([0.5, 0.2, 0.9, 0.4], [0.7, 0.1, 0.4, 0.4])
    assert found == pytest.approx((0.25, 0.5, 0.2, 0.3))
    assert smooth_flips([1.0, 2.0], [1.0, 2.0]) == (0.0, 0.0, 0.0, 0.0)
    assert smooth_flips([1, 2], [2, 2]) == (0.5, 0.0, 1.0, 0.0)


PAIRS = st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=12).map(np.array)


@given(PAIRS)
@settings(max_examples=50, derandomize=True, deadline=None)
def test_flips_and_accuracies(rows):
    before, after, targets = rows.T
    was, now = before == targets, after == targets
    rate = negative_flip_rate(was, now)
    assert max(0.0, was.mean() - now.mean()) - 1e-12 <= rate <= 1 - now.mean() + 1e-12
    assert now.mean() - was.mean() == pytest.approx(positive_flip_rate(was, now) - rate)
    assert rate <= changed_error_rate(before, after, targets) <= 1 - now.mean() + 1e-12
    if now.all():
        assert rate == 0
    # A score that is 0 or 1 flips as the answers do.
    smooth = smooth_flips(was.astype(float), now.astype(float))
    assert smooth.negative_rate == pytest.approx(rate)
    assert smooth.mean_regression in (0.0, 1.0)


@given(st.lists(st.tuples(*[st.floats(-5, 5)] * 2), min_size=1, max_size=12).map(np.array))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_gains_less_regressions_are_the_difference_of_the_means(rows):
    before, after = rows.T
    found = smooth_flips(before, after)
    gained = found.positive_rate * found.mean_gain
    lost = found.negative_rate * found.mean_regression
    assert gained - lost == pytest.approx(after.mean() - before.mean(), abs=1e-9)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="after: got shape"):
        negative_flip_rate([True], [True, False])
    with pytest.raises(ValueError, match="after: takes booleans"):
        negative_flip_rate([True, False], [3, 1])
    with pytest.raises(ValueError, match="before: got shape"):
        smooth_flips([], [])
    with pytest.raises(ValueError, match="got nan"):
        smooth_flips([np.nan], [1.0])
