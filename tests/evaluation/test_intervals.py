"""Intervals against tables, each other and their own coverage."""

import numpy as np
import pytest

from kd_jax.evaluation.intervals import bootstrap_interval, mean_interval, paired_difference


def test_t_interval_by_hand():
    # mean 2, s = 1, n = 3, t_{2, 0.975} = 4.302653 (any table).
    got = mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / np.sqrt(3)
    np.testing.assert_allclose(got, [2.0, 2 - half, 2 + half], rtol=1e-6)
    # t_{2, 0.95} = 2.919986.
    half = 2.919986 / np.sqrt(3)
    np.testing.assert_allclose(
        mean_interval([1.0, 2.0, 3.0], level=0.9), [2.0, 2 - half, 2 + half], rtol=1e-6
    )


def test_what_pairs_share_cancels():
    shared = np.array([0.1, 5.0, -3.0, 8.0])
    first, second = shared + [1.0, 1.2, 0.9, 1.1], shared
    got = paired_difference(first, second)
    np.testing.assert_allclose(got, mean_interval([1.0, 1.2, 0.9, 1.1]), rtol=1e-6)
    assert got.low > 0
    np.testing.assert_allclose(paired_difference(second, first).estimate, -got.estimate)
    assert mean_interval(first).low < mean_interval(second).high


def test_bootstrap_of_a_mean_is_near_its_normal_interval():
    x = np.random.default_rng(0).normal(3.0, 2.0, 400)
    got = bootstrap_interval(x, seed=1)
    half = 1.959964 * x.std() / 20
    np.testing.assert_allclose(got.estimate, x.mean(), rtol=1e-12)
    np.testing.assert_allclose([got.low, got.high], [x.mean() - half, x.mean() + half], atol=0.03)
    assert got == bootstrap_interval(x, seed=1)
    assert got != bootstrap_interval(x, seed=2)
    narrow = bootstrap_interval(x, seed=1, level=0.5)
    assert got.low < narrow.low < narrow.high < got.high


def test_bootstrap_keeps_rows_together():
    x = np.random.default_rng(0).normal(0.0, 10.0, 50)
    pairs = np.stack([x + 1.0, x], axis=1)
    got = bootstrap_interval(
        pairs, seed=0, statistic=lambda s: (s[:, 0] - s[:, 1]).mean(), resamples=50
    )
    np.testing.assert_allclose(got, [1.0, 1.0, 1.0], rtol=1e-9)


def test_t_interval_covers_as_often_as_it_says():
    x = np.random.default_rng(0).normal(0.0, 1.0, (1000, 4))
    covered = [mean_interval(row).low < 0 < mean_interval(row).high for row in x]
    assert 0.93 < np.mean(covered) < 0.97  # the normal quantile would cover 0.85


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0]), r"values: got shape \(1,\)"),
        (lambda: mean_interval([1.0, 2.0], level=95.0), "level: got 95.0"),
        (lambda: paired_difference([1.0, 2.0], [1.0, 2.0, 3.0]), "second: got 3 values"),
        (lambda: bootstrap_interval([1.0], seed=0), r"samples: got shape \(1,\)"),
        (lambda: bootstrap_interval([1.0, 2.0], seed=0, resamples=0), "resamples: got 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
