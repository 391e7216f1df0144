"""DDK's weights: the card's numbers, identities, ratios that overflow; rows of a round."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kd_jax.data import sources
from kd_jax.data.domains import initial_weights, updated_weights

TEACHER = [10.0, 10.0, 8.0]
perplexities = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*[arrays(np.float64, n, elements=st.floats(1.0, 1e4)) for _ in range(3)])
)


def test_worked_numbers():
    # Worked out from arXiv 2407.16154, equations 1 to 3, to six digits.
    first = initial_weights([12.0, 20.0, 8.0], TEACHER)
    np.testing.assert_allclose(first, [0.247263, 0.550295, 0.202442], atol=1e-6)
    second = updated_weights(first, [11.0, 16.0, 8.0], TEACHER)
    np.testing.assert_allclose(second, [0.259086, 0.505781, 0.235133], atol=1e-6)


def test_against_the_formula_as_it_is_printed():
    rng = np.random.default_rng(0)
    before = rng.dirichlet(np.ones(5))
    student, teacher = rng.uniform(1, 30, 5), rng.uniform(5, 9, 5)
    psi = before * np.exp(student / teacher)
    expected = 0.3 * psi / psi.sum() + 0.7 / 5
    np.testing.assert_allclose(updated_weights(before, student, teacher, alpha=0.3), expected)


@given(perplexities, st.floats(0, 1))
def test_weights_sum_to_one_and_none_is_lost(drawn, alpha):
    student, teacher, before = drawn
    count = len(before)
    for found in (
        initial_weights(student, teacher),
        updated_weights(before / before.sum(), student, teacher, alpha=alpha),
    ):
        assert found.sum() == pytest.approx(1) and (found >= 0).all()
    assert (found >= (1 - alpha) / count - 1e-12).all()


@given(perplexities)
def test_limits(drawn):
    student, teacher, before = drawn
    uniform = np.full(len(before), 1 / len(before))
    # No history, and no difference between domains.
    np.testing.assert_allclose(updated_weights(uniform, 2.5 * teacher, teacher), uniform)
    np.testing.assert_allclose(initial_weights(teacher, teacher), uniform)
    # alpha = 0 is uniform whatever was measured.
    before = before / before.sum()
    np.testing.assert_array_equal(updated_weights(before, student, teacher, alpha=0), uniform)
    # The order of domains is nothing to it.
    turned = updated_weights(before[::-1], student[::-1], teacher[::-1])
    np.testing.assert_allclose(turned[::-1], updated_weights(before, student, teacher), atol=1e-12)


@pytest.mark.parametrize("ratio", [50.0, 100.0, 1e3, 1e6])
def test_ratios_whose_exponential_overflows(ratio):
    # exp(1000) is inf in float64, and exp(100) in float32: differences of ratios are what counts.
    student = np.array([ratio, ratio - 1.0, 1.0])
    near = np.array([1, np.exp(-1.0), 0]) / (1 + np.exp(-1.0))
    np.testing.assert_allclose(initial_weights(student, np.ones(3)), near, atol=1e-9)
    found = updated_weights([0.2, 0.6, 0.2], student, np.ones(3), alpha=0.5)
    psi = np.array([0.2, 0.6 * np.exp(-1.0), 0.0])
    np.testing.assert_allclose(found, 0.5 * psi / psi.sum() + 0.5 / 3, atol=1e-9)


def test_a_weight_of_zero_keeps_its_share_of_the_uniform():
    found = updated_weights([0.0, 1.0], [5.0, 1.0], [1.0, 1.0], alpha=0.5)
    np.testing.assert_allclose(found, [0.25, 0.75])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"student": [1.0, 2.0]}, "take one perplexity for each of N domains"),
        ({"student": [1.0, np.inf, 2.0]}, "student: got .* positive and finite"),
        ({"teacher": [1.0, 0.0, 2.0]}, "teacher: got .* positive and finite"),
        ({"weights": [0.5, 0.5]}, "weights: got shape"),
        ({"weights": [0.5, 0.6, -0.1]}, "weights: got .* with sum 1"),
        ({"weights": [0.5, 0.5, 0.5]}, "weights: got .* with sum 1"),
        ({"alpha": 1.5}, r"alpha: got 1.5, takes \[0, 1\]"),
    ],
)
def test_refuses(given, said):
    good = {"weights": [0.5, 0.3, 0.2], "student": [2.0, 2.0, 2.0], "teacher": TEACHER}
    with pytest.raises(ValueError, match=said):
        updated_weights(**(good | given))


def test_rows_of_a_round_are_a_function_of_seed_step_and_weights():
    """A domain that is drawn from more often than it has rows comes again, in another order."""

    def made():
        parts = [
            sources.array_batches(
                {"x": 100 * d + np.arange(5)}, seed=3, name=f"domain_{d}", batch_size=8
            )
            for d in range(3)
        ]
        return sources.mixture(parts, seed=3, batch_size=8)

    weights = updated_weights(np.full(3, 1 / 3), [9.0, 1.0, 1.0], np.ones(3))
    draws = functools.partial(made(), weights=weights)
    steps = range(20, 40)  # a round that is not the first
    found = [draws(step, slice(0, 8)) for step in steps]
    again = made()
    for step in reversed(steps):  # in any order, from a source that has seen nothing
        for name, x in again(step, slice(0, 8), weights).items():
            np.testing.assert_array_equal(x, found[step - 20][name])
    x = np.concatenate([batch["x"] for batch in found])
    share = np.bincount(x // 100, minlength=3) / len(x)
    np.testing.assert_allclose(share, weights, atol=0.1)
    ours = x[x < 100]
    assert len(ours) > 4 * 5 and set(ours) == set(range(5))
    orders = {tuple(ours[i : i + 5]) for i in range(0, 20, 5)}
    assert len(orders) > 1
