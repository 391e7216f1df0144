"""Preference games: values of the method's card, the closed forms against searches, symmetry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.evaluation import games

P = jnp.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
REFERENCE = jnp.array([0.5, 0.3, 0.2])


def iterates(update, steps):
    policy, found = REFERENCE, [REFERENCE]
    for _ in range(steps):
        policy = update(P, policy, REFERENCE)
        found.append(policy)
    return found


def test_the_first_iterate_and_the_fixed_point_of_mirror_descent():
    """Origin: the card of arXiv 2407.00617, made in NumPy."""
    found = iterates(jax.jit(functools.partial(games.omd_update, eta=1.0, tau=0.2)), 200)
    np.testing.assert_allclose(found[1], [0.528754, 0.259744, 0.211502], rtol=1e-5, atol=1e-5)
    nash = [0.480727, 0.196270, 0.323003]
    np.testing.assert_allclose(found[-1], nash, rtol=1e-5, atol=1e-5)
    response = games.best_response(P, found[-1], REFERENCE, tau=0.2)
    np.testing.assert_allclose(response, nash, rtol=1e-5, atol=1e-5)


def test_the_gap_falls_by_mirror_descent_and_grows_by_best_responses():
    """Origin: the card, which gives the gaps after 1, 5, 20 and 60 steps to so many digits."""
    gap = jax.jit(functools.partial(games.duality_gap, tau=0.1))
    mirror = iterates(jax.jit(functools.partial(games.omd_update, eta=0.3, tau=0.1)), 60)
    greedy = iterates(jax.jit(functools.partial(games.best_response, tau=0.1)), 60)
    for policies, expected in (
        (mirror, [0.0509, 0.0228, 0.0008, 0.0]),
        (greedy, [0.133, 0.358, 0.372, 0.620]),
    ):
        found = [float(gap(P, policies[step], REFERENCE)) for step in (1, 5, 20, 60)]
        assert found == pytest.approx(expected, abs=6e-4)


def game(seed, n=4):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(n, n))
    policies = rng.dirichlet(np.ones(n), 3).astype(np.float32)
    return jnp.asarray(np.triu(x, 1) + np.tril(1 - x.T, -1) + np.eye(n) / 2, jnp.float32), policies


@given(st.integers(0, 2**31))
def test_what_one_player_wins_the_other_loses(seed):
    preference, (p, q, reference) = game(seed)
    one = games.value(preference, p, q, reference, tau=0.3)
    other = games.value(preference, q, p, reference, tau=0.3)
    np.testing.assert_allclose(one + other, 1.0, atol=1e-5)
    kl = [(x * np.log(x / reference)).sum() for x in (p, q)]
    by_hand = p @ np.asarray(preference) @ q - 0.3 * kl[0] + 0.3 * kl[1]
    np.testing.assert_allclose(one, by_hand, atol=1e-5)


@given(st.integers(0, 2**31))
def test_nobody_answers_better_than_the_best_response_and_the_gap_says_so(seed):
    preference, (p, q, reference) = game(seed)
    tau, value = 0.3, games.value
    best = games.best_response(preference, p, reference, tau=tau)
    most = value(preference, best, p, reference, tau=tau)
    least = value(preference, p, best, reference, tau=tau)  # symmetric: the same answer to both
    assert value(preference, q, p, reference, tau=tau) <= most + 1e-5
    assert value(preference, p, q, reference, tau=tau) >= least - 1e-5
    gap = games.duality_gap(preference, p, reference, tau=tau)
    np.testing.assert_allclose(gap, most - least, atol=1e-5)
    assert gap > -1e-5


def test_the_weights_of_reference_and_policy_in_a_step():
    preference, (p, q, reference) = game(0)
    step = functools.partial(games.omd_update, preference)
    np.testing.assert_allclose(
        step(p, reference, eta=0.3, tau=0.3),
        games.best_response(preference, p, reference, tau=0.3),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(
        step(p, reference, eta=0.3, tau=0.0), step(p, q, eta=0.3, tau=0.0)
    )
    still = step(p, reference, eta=1e6, tau=0.0)
    np.testing.assert_allclose(still, p, rtol=1e-4)


def test_a_policy_that_never_plays_an_action_has_a_gap():
    sure = jnp.array([1.0, 0.0, 0.0])
    assert np.isfinite(games.duality_gap(P, sure, REFERENCE, tau=0.1))
