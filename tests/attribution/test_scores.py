"""Scores of weights against the worked example of WAGLE, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.linear import assert_trees_close

from kd_jax.attribution import scores

# Worked out by hand from |(theta - g_r / gamma) g_f|; the orders are of the released code.
PARAMS = {"a": jnp.array([0.5, -0.2]), "b": {"c": jnp.array([[1.0, 0.05]])}}
FORGET = {"a": jnp.array([0.1, 0.4]), "b": {"c": jnp.array([[-0.02, 0.3]])}}
RETAIN = {"a": jnp.array([0.0, 0.1]), "b": {"c": jnp.array([[0.5, -0.2]])}}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize(
    ("gamma", "expected", "order"),
    [
        (1.0, [0.05, 0.12, 0.01, 0.075], [1, 3, 0, 2]),
        (0.1, [0.05, 0.48, 0.08, 0.615], [3, 1, 2, 0]),
    ],
)
def test_wagle_by_hand(gamma, expected, order):
    found = flat(scores.wagle(PARAMS, FORGET, RETAIN, gamma=gamma))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(np.argsort(-found), order)


def test_limits_of_wagle():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    snip = jax.tree.map(lambda x, g: jnp.abs(x * g), PARAMS, FORGET)
    assert_trees_close(scores.wagle(PARAMS, FORGET, zeros, gamma=1e-6), snip)
    assert_trees_close(scores.wagle(PARAMS, FORGET, RETAIN, gamma=1e12), snip)
    products = jax.tree.map(lambda r, f: jnp.abs(r * f) / 0.5, RETAIN, FORGET)
    assert_trees_close(scores.wagle(zeros, FORGET, RETAIN, gamma=0.5), products)


def test_wagle_refuses_other_trees_and_gamma_zero():
    with pytest.raises(ValueError, match="gamma: got 0, takes a number above 0"):
        scores.wagle(PARAMS, FORGET, RETAIN, gamma=0)
    with pytest.raises(ValueError, match="retain and params differ: b/c only in params"):
        scores.wagle(PARAMS, FORGET, {"a": RETAIN["a"]}, gamma=1.0)


def test_saliency_and_magnitude_are_absolute_values_in_float32():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    for found in (scores.saliency(half), scores.magnitude(half)):
        assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
        np.testing.assert_allclose(flat(found), [0.5, 0.2, 1.0, 0.05], rtol=1e-2)


def test_uniform_scores_are_another_draw_for_each_leaf_and_key():
    params = {"a": jnp.zeros((40, 50)), "b": jnp.zeros((40, 50))}
    first, second = (scores.uniform(jax.random.key(i), params) for i in range(2))
    draws = [*jax.tree.leaves(first), *jax.tree.leaves(second)]
    assert len({float(x[0, 0]) for x in draws}) == 4
    # Mean and variance of 2000 draws: 6 standard errors.
    for x in draws:
        assert abs(float(x.mean()) - 0.5) < 6 * np.sqrt(1 / 12 / 2000)
        assert abs(float(x.var()) - 1 / 12) < 6 * np.sqrt(1 / 180 / 2000)
