"""Values and advantages of steps, and pairs at the first pit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.data import steps
from kd_jax.data.steps import Rollout

PROMPT = [9, 8]


@given(st.integers(0, 2**31))
def test_advantages_sum_to_the_reward_less_the_value_of_the_prompt(seed):
    right = np.random.default_rng(seed).random((3, 5, 4)) < 0.5  # responses, prefixes, rollouts
    right[:, -1] = right[:, -1, :1]  # after the last step nothing is left to chance
    values, start = steps.step_values(right), np.array([0.25, 0.5, 1.0])
    np.testing.assert_allclose(values, right.sum(-1) / 4)
    found = steps.step_advantages(values, start)
    np.testing.assert_allclose(found.sum(-1), right[:, -1, 0] - start, atol=1e-12)
    np.testing.assert_allclose(found[:, 2], values[:, 2] - values[:, 1])
    assert (steps.step_advantages(np.full(5, 0.3), 0.3) == 0).all()


def test_the_first_pit_and_not_the_deepest():
    assert steps.first_pit(np.array([0.1, -0.3, 0.2, -0.9]), least=0.2) == 1
    assert steps.first_pit(np.array([0.1, -0.3, 0.2, -0.9]), least=0.3) == 3
    assert steps.first_pit(np.array([0.1, -0.3]), least=0.5) is None


def rollouts(shares, begin):
    """Of each prefix ten, of which so many are right; they begin with their number, or `begin`."""
    return [
        [Rollout([[begin if begin else 20 + i], [j]], j < 10 * share) for j in range(10)]
        for i, share in enumerate(shares)
    ]


def test_a_pair_begins_where_the_response_went_wrong():
    response = [[1, 2], [3], [4, 5], [6]]
    found = steps.step_pair(PROMPT, response, rollouts([0.8, 0.9, 0.2, 0.1], 0), least=0.3)
    assert found == ([*PROMPT, 1, 2], [21, 0], [3, 4, 5, 6])
    # The last step is to blame where all before it were good.
    last = steps.step_pair(PROMPT, response, rollouts([0.8, 0.8, 0.8, 0.8], 0), least=0.3)
    assert last == ([*PROMPT, 1, 2, 3, 4, 5], [23, 0], [6])


def test_what_makes_no_pair():
    response = [[1], [2], [3]]
    for case, (shares, begin, right) in {
        "constant values": ([1.0, 1.0, 1.0], 0, True),
        "steps down that are too small": ([0.6, 0.4, 0.2], 0, False),
        "nothing right to compare with": ([0.0, 0.0, 0.0], 0, False),
        "right by the same step": ([0.9, 0.1, 0.1], 1, False),
    }.items():
        found = steps.step_pair(PROMPT, response, rollouts(shares, begin), right=right, least=0.3)
        assert found is None, case


@given(st.integers(0, 2**31), st.integers(1, 7))
def test_responses_of_one_step_make_the_pairs_of_a_verifier(seed, right):
    """A right response against the wrong one, on the prompt alone: then DPO is DPO."""
    wrong, *others = np.random.default_rng(seed).permutation(20)[:8].tolist()
    own = [Rollout([[token]], i < right) for i, token in enumerate(others)]
    found = steps.step_pair(PROMPT, [[wrong]], [own], least=0.1)
    assert found == (PROMPT, [others[0]], [wrong])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"right: got shape \(3,\), takes \[S, K\]"):
        steps.step_values(np.ones(3))
    with pytest.raises(ValueError, match=r"start: got shape \(2,\), takes one value a response"):
        steps.step_advantages(np.ones((3, 4)), np.ones(2))
    with pytest.raises(ValueError, match="least: got -0.1"):
        steps.first_pit(np.zeros(2), least=-0.1)
    with pytest.raises(ValueError, match="rollouts: got 1 sets, takes one for each of 2"):
        steps.step_pair(PROMPT, [[1], [2]], rollouts([0.5], 0), least=0.1)
