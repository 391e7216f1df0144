"""TOFU's metrics against numbers worked out in float64 apart from this code."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax.evaluation import tofu

RIGHT = np.array([0.5, 1.2, 2.0])
WRONG = np.array([[1, 2, 1.5], [0.3, 0.9, 0.6], [2, 2.5, 3]])
GEOMETRIC = [0.367879, 1.822119, 0.606531]
ARITHMETIC = [0.399180, 1.877194, 0.658137]

losses = st.floats(0, 20)
rights = hnp.arrays(np.float64, 6, elements=losses)
wrongs = hnp.arrays(np.float64, (6, 5), elements=losses)


def test_by_hand():
    close = np.testing.assert_allclose
    close(tofu.probability(RIGHT), np.exp([-0.5, -1.2, -2.0]), rtol=1e-12)
    close(tofu.truth_ratio(RIGHT, WRONG), GEOMETRIC, rtol=1e-5)
    close(tofu.truth_ratio_arithmetic(RIGHT, WRONG), ARITHMETIC, rtol=1e-5)
    close(tofu.truth_ratio_guarded(RIGHT, WRONG), GEOMETRIC, rtol=1e-5)
    close(tofu.choice_probability(RIGHT, WRONG), [0.455054, 0.150794, 0.336201], rtol=1e-5)
    close(tofu.right_share(RIGHT, WRONG).mean(), 0.569287, rtol=1e-5)
    for ratio, retain, forget in (
        (tofu.truth_ratio, 0.341863, 0.507741),
        (tofu.truth_ratio_arithmetic, 0.314228, 0.530009),
    ):
        close(tofu.retain_truth_ratio(ratio(RIGHT, WRONG)), retain, rtol=1e-5)
        close(tofu.forget_truth_ratio(ratio(RIGHT, WRONG)), forget, rtol=1e-5)


def test_equal_losses():
    ratio = tofu.truth_ratio([1.5, 3.0], np.array([[1.5] * 5, [3.0] * 5]))
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-12)
    assert tofu.forget_truth_ratio(ratio) == 1.0
    assert tofu.retain_truth_ratio(ratio) == 0.0


@given(rights, wrongs, losses)
def test_identities(right, wrong, shift):
    for ratio in (tofu.truth_ratio, tofu.truth_ratio_arithmetic, tofu.choice_probability):
        np.testing.assert_allclose(
            ratio(right + shift, wrong + shift), ratio(right, wrong), rtol=1e-9
        )
    geometric = tofu.truth_ratio(right, wrong)
    assert (geometric <= tofu.truth_ratio_arithmetic(right, wrong) * (1 + 1e-12)).all()
    np.testing.assert_allclose(tofu.right_share(right, wrong), 1 / (1 + geometric), rtol=1e-9)
    p = tofu.probability
    share = p(right) / (p(right) + np.exp(-wrong).sum(1))
    np.testing.assert_allclose(tofu.choice_probability(right, wrong), share, rtol=1e-9)
    assert tofu.forget_truth_ratio(geometric) == pytest.approx(
        tofu.forget_truth_ratio(1 / geometric)
    )


def test_a_collapsed_model_is_finite():
    right, wrong = np.array([900.0, 0.0]), np.array([[0.0, 0.0], [900.0, 900.0]])
    ratio = tofu.truth_ratio(right, wrong)
    np.testing.assert_array_equal(ratio, [np.inf, 0.0])
    assert tofu.forget_truth_ratio(ratio) == 0.0
    assert tofu.retain_truth_ratio(ratio[1:]) == 1.0
    np.testing.assert_array_equal(tofu.choice_probability(right, wrong), [0.0, 1.0])


def test_the_guard_matters_only_for_hopeless_answers():
    right, wrong = np.array([5.0, 30.0]), np.array([[5.0], [30.0]])
    np.testing.assert_allclose(tofu.truth_ratio(right, wrong), [1.0, 1.0])
    guarded = tofu.truth_ratio_guarded(right, wrong)
    np.testing.assert_allclose(guarded[0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(guarded[1], np.exp(-30) / (np.exp(-30) + 1e-10), rtol=1e-6)


def utility(values):
    return tofu.model_utility(dict(zip(tofu.UTILITY, values, strict=True)))


def test_model_utility():
    values = [0.9, 0.95, 0.47, 0.45, 0.93, 0.6, 0.42, 0.88, 0.54]
    np.testing.assert_allclose(utility(values), 0.615396, rtol=1e-5)
    np.testing.assert_allclose(utility([0.3] * 9), 0.3, rtol=1e-12)
    assert utility([0.9] * 8 + [0.0]) == 0.0
    assert utility(values) <= np.mean(values)
    assert len(tofu.UTILITY) == 9
    assert not any("forget" in name for name in tofu.UTILITY)


A, B = [0.2, 0.5, 0.7, 0.9, 1.1], [0.6, 0.8, 1, 1.3, 1.5, 1.7]
LONG = np.arange(300.0), np.arange(300.0) + 119.5


def test_forget_quality_by_hand():
    np.testing.assert_allclose(tofu.forget_quality(A, B), (0.5, 0.357143), rtol=1e-5)
    np.testing.assert_allclose(tofu.forget_quality(*LONG), (0.4, 7.903953e-22), rtol=1e-5)
    assert tofu.forget_quality(A, A) == (0.0, 1.0)
    assert tofu.forget_quality(A, B) == tofu.forget_quality(B, A)
    flipped = tofu.forget_quality(1 / np.array(A), 1 / np.array(B))
    np.testing.assert_allclose(flipped, tofu.forget_quality(A, B), rtol=1e-12)


def test_ks_statistic_is_jittable():
    ks = jax.jit(tofu.ks_statistic)
    np.testing.assert_allclose(ks(np.float32(A), np.float32(B)), 0.5, rtol=1e-6)
    np.testing.assert_allclose(ks(*map(np.float32, LONG)), 0.4, rtol=1e-6)
    assert ks(np.float32(A), np.float32(A)) == 0.0


@given(
    hnp.arrays(np.float32, 7, elements=st.integers(0, 6).map(np.float32)),
    hnp.arrays(np.float32, 5, elements=st.integers(0, 6).map(np.float32)),
)
def test_ks_statistic_with_ties_is_scipys(a, b):
    np.testing.assert_allclose(
        jax.jit(tofu.ks_statistic)(a, b), tofu.forget_quality(a, b).statistic, atol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tofu.probability([[1.0]]), r"answer_loss: got shape \(1, 1\)"),
        (lambda: tofu.truth_ratio([1.0, 2.0], [[1.0]]), "wrong_loss: got 1 rows"),
        (lambda: tofu.truth_ratio([1.0], [1.0]), r"wrong_loss: got shape \(1,\)"),
        (lambda: tofu.truth_ratio([np.nan], [[1.0]]), "right_loss: got 1 NaN"),
        (lambda: tofu.forget_quality([], A), r"unlearned: got shape \(0,\)"),
        (lambda: tofu.forget_truth_ratio([-1.0]), "ratios: got -1.0"),
        (lambda: tofu.model_utility({"retain/probability": 0.5}), "values: got"),
        (lambda: utility([1.5] * 9), r"takes numbers in \[0, 1\]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
