"""Oracles: model soups' equation 1 and mergekit's slerp, numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax.merging.average import average, greedy_soup, slerp, slerp_rows

# Multiples of 1/8: no subnormal numbers, which XLA flushes to zero.
eighths = st.integers(-32, 32).map(lambda i: np.float32(i / 8))
stacks = hnp.arrays(np.float32, (3, 5), elements=eighths)


def tree(x):
    return {"a": jnp.asarray(x[:2]), "b": {"c": jnp.asarray(x[2:])}}


def close(actual, expected, **kwargs):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **kwargs), actual, expected)


def test_weighted_mean_by_hand():
    models = [{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, -2.0])}]
    close(average(models), {"w": [2.0, 0.0]})
    close(average(models, [3.0, 1.0]), {"w": [1.5, 1.0]})


@settings(max_examples=20, deadline=None)
@given(stacks)
def test_identities(x):
    models = [tree(row) for row in x]
    weights = np.array([0.5, 1.0, 2.5], np.float32)
    mixed = average(models, weights)
    close(average(models, 8 * weights), mixed, atol=1e-5)
    close(average([models[i] for i in (2, 0, 1)], weights[[2, 0, 1]]), mixed, atol=1e-5)
    close(average([models[0]] * 3, weights), models[0], atol=1e-5)
    close(average(models[:1]), models[0])
    close(average(models, [0.0, 1.0, 0.0]), models[1])


def test_bfloat16_is_averaged_in_float32():
    models = [{"w": jnp.full((2,), v, jnp.bfloat16)} for v in (256.0, 1.0, 1.0, 1.0, 1.0)]
    got = average(models)["w"]
    assert got.dtype == jnp.bfloat16
    # bf16 sums would lose every 1.0 and give 51.2.
    np.testing.assert_array_equal(got.astype(np.float32), np.full(2, 52.0, np.float32))


def test_gradient_in_the_weights():
    models = [{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([4.0, 0.0])}]
    grad = jax.jit(jax.grad(lambda w: average(models, w)["w"][0]))(jnp.array([1.0, 3.0]))
    # d/dw_n of sum w x / sum w = (x_n - mean) / sum w, mean = 13 / 4.
    np.testing.assert_allclose(grad, [(1 - 3.25) / 4, (4 - 3.25) / 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "models: got none"),
        ([{"w": jnp.ones(2)}, {"v": jnp.ones(2)}], "v only in models.1."),
        ([{"w": jnp.ones(2)}, {"w": jnp.ones(3)}], r"w is \(3,\) in models.1."),
        ([{"w": jnp.ones(2), "steps": jnp.ones(2, jnp.int32)}] * 2, "steps is int32"),
    ],
)
def test_errors_name_the_paths(models, message):
    with pytest.raises(ValueError, match=message):
        average(models)


def test_wrong_number_of_weights():
    with pytest.raises(ValueError, match=r"weights: got shape \(3,\)"):
        average([{"w": jnp.ones(2)}] * 2, [1.0, 2.0, 3.0])


def test_slerp_by_hand():
    a, b = {"w": jnp.array([1.0, 0, 0])}, {"w": jnp.array([0, 2.0, 0])}
    # theta = pi / 2: sin(3 pi / 8) a + sin(pi / 8) b.
    close(slerp(a, b, 0.25), {"w": [0.9238795, 0.7653669, 0.0]}, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(stacks, st.floats(0, 1, width=32))
def test_slerp_identities(x, t):
    a, b = tree(x[0]), tree(x[1])
    close(slerp(a, b, t), slerp(b, a, 1.0 - t), rtol=1e-4, atol=1e-4)
    close(slerp(a, b, 0.0), a, atol=1e-6)
    close(slerp(a, b, 1.0), b, atol=1e-6)
    same = slerp(a, a, t)
    close(same, a, atol=1e-5)


def test_slerp_keeps_the_norm_of_a_leaf_and_takes_the_whole_leaf():
    key_a, key_b = jax.random.split(jax.random.key(0))
    a, b = jax.random.normal(key_a, (4, 6)), jax.random.normal(key_b, (4, 6))
    a, b = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
    middle = slerp([a], [b], 0.3)[0]
    np.testing.assert_allclose(jnp.linalg.norm(middle), 1.0, rtol=1e-5)
    assert np.ptp(np.linalg.norm(middle, axis=1)) > 0.01  # rows are not on a sphere of their own


def test_slerp_is_straight_for_parallel_leaves_with_a_finite_gradient():
    a, b = {"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([3.0, 3.0])}
    value, grad = jax.value_and_grad(lambda a: slerp(a, b, 0.25)["w"].sum())(a)
    np.testing.assert_allclose(value, 3.0, rtol=1e-6)
    np.testing.assert_allclose(grad["w"], [0.75, 0.75], rtol=1e-6)
    zero = {"w": jnp.zeros(2)}
    close(slerp(zero, b, 1.0), b, rtol=1e-6)


def test_slerp_rows():
    a = {"w": jnp.array([[1.0, 0, 0], [3.0, 0, 0]]), "v": jnp.array([1.0, 0]), "s": jnp.array(1.0)}
    b = {"w": jnp.array([[0, 2.0, 0], [1.0, 0, 0]]), "v": jnp.array([0, 2.0]), "s": jnp.array(3.0)}
    arc = [0.9238795, 0.7653669]
    # The second row of w and the scalar are parallel.
    expected = {"w": [[*arc, 0.0], [2.5, 0, 0]], "v": arc, "s": 1.5}
    close(slerp_rows(a, b, 0.25), expected, rtol=1e-6)
    unit = jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), a)
    unit = [{"w": x / jnp.linalg.norm(x, axis=1, keepdims=True)} for x in (unit["w"], a["w"])]
    norms = jnp.linalg.norm(slerp_rows(*unit, 0.3)["w"], axis=1)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match=r"t: got shape \(2,\)"):
        slerp(a, b, [0.1, 0.2])


def soup(scores, of_means):
    """greedy_soup of one-hot models: `scores` of each, `of_means` of the sets that are tried."""
    known = {(i,): s for i, s in enumerate(scores)} | of_means
    asked = []

    def score(model):
        asked.append(tuple(int(i) for i in np.flatnonzero(model["w"])))
        np.testing.assert_allclose(model["w"].sum(), 1.0, rtol=1e-6)
        return known[asked[-1]]

    model, included = greedy_soup([{"w": row} for row in jnp.eye(len(scores))], score)
    return model["w"], included, asked


def test_greedy_soup_adds_the_best_first_while_the_score_does_not_fall():
    means = {(0, 1): 0.9, (0, 1, 3): 0.9, (0, 1, 2, 3): 0.89}
    model, included, asked = soup([0.7, 0.8, 0.1, 0.7], means)
    # 0 and 3 are equally good: the earlier first. An equal score is kept, a lower one is not.
    assert asked == [(0,), (1,), (2,), (3,), *means]
    assert included == (1, 0, 3)
    np.testing.assert_allclose(model, [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)


def test_greedy_soup_of_one_and_of_models_that_do_not_mix():
    model, included, asked = soup([0.5], {})
    assert (included, asked) == ((0,), [(0,)])
    model, included, _ = soup([0.5, 0.6, 0.4], {(0, 1): 0.1, (1, 2): 0.2})
    assert included == (1,)
    np.testing.assert_array_equal(model, [0, 1, 0])


def test_greedy_soup_refuses_a_nan():
    with pytest.raises(ValueError, match=r"score: is a NaN for models\[1\]"):
        soup([0.5, float("nan")], {})
