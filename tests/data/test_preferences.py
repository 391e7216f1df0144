"""Pairs of completions: only real preferences, whatever the order; draws of seed and prompt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.data import preferences

REWARDS = st.integers(0, 2**31).map(
    lambda seed: np.random.default_rng(seed).integers(0, 3, (6, 4)).astype(float)
)


@given(REWARDS, st.permutations(range(4)))
def test_best_and_worst_of_each_prompt_in_any_order(rewards, places):
    found = preferences.best_and_worst(rewards)
    real = rewards.max(1) > rewards.min(1)
    np.testing.assert_array_equal(found.prompts, np.flatnonzero(real))
    assert (rewards[found.prompts, found.chosen] == rewards.max(1)[real]).all()
    assert (rewards[found.prompts, found.rejected] == rewards.min(1)[real]).all()
    other = preferences.best_and_worst(rewards[:, places])
    np.testing.assert_array_equal(
        rewards[found.prompts, found.chosen], rewards[:, places][other.prompts, other.chosen]
    )


def test_ties_make_no_pair():
    assert len(preferences.best_and_worst(np.ones((3, 4))).prompts) == 0
    for samples in (2, 8):
        even = preferences.tournament(
            lambda n, i, j: np.full(len(n), 0.5), prompts=3, samples=samples, seed=0
        )
        assert len(even.prompts) == 0
    correct = np.array([[True, True], [False, False], [False, True]])
    found = preferences.verified(correct, most=4, seed=0)
    assert [x.tolist() for x in found] == [[2], [1], [0]]


def ranked(rewards, asked=None):
    """The completion of the higher reward is preferred; `asked` counts the comparisons."""

    def preference(prompts, first, second):
        if asked is not None:
            asked.append(len(prompts))
        return np.heaviside(rewards[prompts, first] - rewards[prompts, second], 0.5)

    return preference


@pytest.mark.parametrize(("samples", "comparisons"), [(2, 1), (4, 5), (8, 11)])
def test_a_tournament_of_ranks_is_won_by_the_best_and_lost_by_the_worst(samples, comparisons):
    rewards = np.random.default_rng(0).permuted(np.tile(np.arange(samples), (20, 1)), axis=1)
    asked = []
    found = preferences.tournament(ranked(rewards, asked), prompts=20, samples=samples, seed=3)
    np.testing.assert_array_equal(found.prompts, np.arange(20))
    np.testing.assert_array_equal(found.chosen, rewards.argmax(1))
    np.testing.assert_array_equal(found.rejected, rewards.argmin(1))
    assert sum(asked) == 20 * comparisons


def test_a_winner_who_loses_to_the_loser_makes_no_pair():
    """0 > 1 > 2 > 3 > 0: where 0 and 3 do not meet first, 0 may win, 3 lose, and beat 0."""
    beats = {(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)}

    def preference(prompts, first, second):
        return np.array([(i, j) in beats for i, j in zip(first, second, strict=True)], float)

    found = preferences.tournament(preference, prompts=200, samples=4, seed=0)
    pairs = set(zip(found.chosen.tolist(), found.rejected.tolist(), strict=True))
    assert pairs <= beats and 0 < len(found.prompts) < 200


def test_draws_are_of_the_seed_and_the_prompt_alone():
    cycle = np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]])  # who wins depends on who meets whom

    def preference(prompts, first, second):
        return cycle[first % 3, second % 3]

    def found(prompts, seed):
        return np.stack(
            preferences.tournament(preference, prompts=prompts, samples=8, seed=seed), 1
        )

    many = found(40, 7)
    np.testing.assert_array_equal(found(25, 7), many[many[:, 0] < 25])
    assert not np.array_equal(found(40, 8), many)
    correct = np.random.default_rng(0).random((40, 8)) < 0.5
    whole = np.stack(preferences.verified(correct, most=2, seed=7), 1)
    part = np.stack(preferences.verified(correct[:25], most=2, seed=7), 1)
    np.testing.assert_array_equal(part, whole[whole[:, 0] < 25])
    assert not np.array_equal(np.stack(preferences.verified(correct, most=2, seed=8), 1), whole)


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_verified_pairs_are_right_against_wrong_and_each_completion_is_used_once(seed, most):
    correct = np.random.default_rng(seed).random((5, 6)) < 0.5
    prompts, chosen, rejected = preferences.verified(correct, most=most, seed=seed)
    assert correct[prompts, chosen].all() and not correct[prompts, rejected].any()
    used = [(n, i) for side in (chosen, rejected) for n, i in zip(prompts, side, strict=True)]
    assert len(set(used)) == len(used)
    least = np.minimum(correct.sum(1), (~correct).sum(1))
    np.testing.assert_array_equal(np.bincount(prompts, minlength=5), np.minimum(least, most))


def test_what_is_no_set_of_completions_is_refused():
    with pytest.raises(ValueError, match=r"rewards: got shape \(3,\), takes \[N, K\]"):
        preferences.best_and_worst(np.ones(3))
    with pytest.raises(ValueError, match="rewards: got nan or an infinity"):
        preferences.best_and_worst(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="correct: got float64, takes booleans"):
        preferences.verified(np.ones((2, 2)), most=1, seed=0)
    with pytest.raises(ValueError, match="most: got 0"):
        preferences.verified(np.ones((2, 2), bool), most=0, seed=0)
    for samples in (1, 6):
        with pytest.raises(ValueError, match=f"samples: got {samples}, takes a power of 2"):
            preferences.tournament(ranked(np.ones((1, 8))), prompts=1, samples=samples, seed=0)
    with pytest.raises(ValueError, match="preference: got shape .*, takes probabilities"):
        preferences.tournament(lambda n, i, j: 2.0 * n + 2, prompts=1, samples=2, seed=0)


def test_the_first_of_equals_is_kept():
    found = preferences.first_of_equals([(1, 2), (3,), (1, 2), (), (3,)])
    assert found.tolist() == [True, True, False, True, False]
