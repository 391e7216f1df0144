"""DARE and DELLA: probabilities by hand, moments over draws, and what the draws depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import trees
from kd_jax.merging.dare import dare
from kd_jax.merging.della import della, keep_probabilities
from kd_jax.merging.sparse import by_realised_l1, merge_sparse, unscaled
from kd_jax.merging.ties import merge_agreeing, ties

KEY = jax.random.key(0)
TAU = np.array([0.5, -0.2, 1.0], np.float32)
DRAWS = 50_000


def vector():
    keys = jax.random.split(jax.random.key(3))
    return {"a": jax.random.normal(keys[0], (6, 50)), "b": {"c": jax.random.normal(keys[1], (40,))}}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, **kwargs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **kwargs), a, b)


def test_dare_keeps_the_mean_and_has_its_variance():
    many = jnp.broadcast_to(TAU[None], (DRAWS, 3))
    got = np.asarray(dare({"w": many}, KEY, drop=0.9)["w"])
    variance = TAU**2 * 0.9 / 0.1
    np.testing.assert_allclose(got.mean(0), TAU, atol=4 * np.sqrt(variance.max() / DRAWS))
    np.testing.assert_allclose(got.var(0), [2.25, 0.36, 9.0], rtol=0.05)
    assert set(np.unique(got[:, 0])) == {0, np.float32(0.5) / np.float32(1 - 0.9)}


@pytest.mark.slow
def test_dare_identities():
    tau = vector()
    same(dare(tau, KEY, drop=0.0), tau)
    traced = jax.jit(dare, static_argnames="rescale")(tau, KEY, drop=0.3)
    close(traced, dare(tau, KEY, drop=0.3), rtol=1e-6)
    kept = dare(tau, KEY, drop=0.6, rescale=unscaled)
    for x, whole in zip(jax.tree.leaves(kept), jax.tree.leaves(tau), strict=True):
        np.testing.assert_array_equal(x[x != 0], whole[x != 0])
    scaled = dare(tau, KEY, drop=0.6, rescale=by_realised_l1)
    for x, y, whole in zip(*map(jax.tree.leaves, (scaled, kept, tau)), strict=True):
        np.testing.assert_allclose(jnp.abs(x).sum(), jnp.abs(whole).sum(), rtol=1e-6)
        np.testing.assert_array_equal(x == 0, y == 0)


def test_a_leaf_of_which_nothing_is_kept_stays_zero():
    gone = dare({"w": jnp.ones(2)}, KEY, drop=1 - 1e-6, rescale=by_realised_l1)
    np.testing.assert_array_equal(gone["w"], [0, 0])


def test_draws_depend_on_path_key_and_model_and_on_nothing_else():
    tau = vector() | {"d": jnp.ones((6, 50))}
    kept = dare(tau, KEY, drop=0.5)
    # Alone, under the same path, a leaf gets the same draw.
    same(dare({"b/c": tau["b"]["c"]}, KEY, drop=0.5)["b/c"], kept["b"]["c"])
    for other in (kept["d"], dare(tau, jax.random.key(1), drop=0.5)["a"]):
        assert ((other != 0) != (kept["a"] != 0)).mean() > 0.3
    base = jax.tree.map(jnp.zeros_like, tau)
    half = functools.partial(dare, drop=0.5)
    twice = merge_sparse(base, [tau, tau], half, key=KEY)["a"] / (2 * tau["a"])
    assert set(np.unique(np.round(twice, 3))) == {0, 1, 2}  # two draws: both, one or none kept


def test_della_probabilities_by_hand():
    x = jnp.array([[0.5, -0.1, 0.3, -0.05], [3.0, -4.0, 2.0, 1.0]])
    got = keep_probabilities(x, density=0.5, epsilon=0.15)
    expected = [[0.65, 0.45, 0.55, 0.35], [0.55, 0.65, 0.45, 0.35]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(got.mean(1), 0.5, rtol=1e-6)
    np.testing.assert_allclose(
        keep_probabilities(x[0], density=0.5, epsilon=0.15), got[0], rtol=1e-6
    )
    for one in (jnp.ones((3, 1)), jnp.ones(())):  # 0 / 0 in the formula
        np.testing.assert_allclose(keep_probabilities(one, density=0.3, epsilon=0.1), 0.3)


def test_della_keeps_the_mean_and_the_large_more_often():
    many = jnp.broadcast_to(TAU[None], (DRAWS, 3))
    got = np.asarray(della({"w": many}, KEY, density=0.3, epsilon=0.2)["w"])
    keep = np.array([0.3, 0.1, 0.5])
    np.testing.assert_allclose((got != 0).mean(0), keep, atol=0.01)
    deviation = np.sqrt(TAU**2 * (1 - keep) / keep / DRAWS)
    np.testing.assert_array_less(np.abs(got.mean(0) - TAU), 4 * deviation)


def test_della_without_epsilon_is_dare():
    tau = vector()
    same(della(tau, KEY, density=0.5, epsilon=0.0), dare(tau, KEY, drop=0.5))
    same(della(tau, KEY, density=1.0), tau)
    l1 = della(tau, KEY, density=0.4, rescale=by_realised_l1)
    for x, whole in zip(jax.tree.leaves(l1), jax.tree.leaves(tau), strict=True):
        np.testing.assert_allclose(jnp.abs(x).sum(), jnp.abs(whole).sum(), rtol=1e-6)


def test_merges_from_the_parts():
    base, tau = jax.tree.map(jnp.ones_like, vector()), vector()
    models = [jax.tree.map(jnp.add, base, tau), jax.tree.map(jnp.subtract, base, tau)]
    everything = functools.partial(dare, drop=0.0)
    linear = merge_sparse(base, models, everything, key=KEY, scale=0.5)
    close(linear, base, atol=1e-6)
    elected = merge_sparse(base, models, everything, key=KEY, combine=merge_agreeing)
    same(elected, ties(base, models, density=1.0))
    first, second = (dare(tau, jax.random.fold_in(KEY, n), drop=0.5) for n in range(2))
    zero = jax.tree.map(jnp.zeros_like, tau)
    got = merge_sparse(zero, [tau, tau], functools.partial(dare, drop=0.5), key=KEY)
    same(got, jax.tree.map(jnp.add, first, second))


def test_gradients_and_nans():
    tau = {"w": jnp.array([1.0, jnp.nan, 3.0])}
    for sparse in (dare(tau, KEY, drop=0.99), della(tau, KEY, density=0.1, epsilon=0.05)):
        assert np.isnan(sparse["w"][1])
    x = vector()["a"]
    f = functools.partial(della, key=KEY, density=0.5)
    grad = jax.grad(lambda x: f({"w": x})["w"].sum())(x)
    np.testing.assert_allclose(grad * x, f({"w": x})["w"], rtol=1e-5)


def test_dtypes_and_errors():
    half = trees.map_with_path(lambda _, x: x.astype(jnp.bfloat16), vector())
    kept = dare(half, KEY, drop=0.5)
    assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype(jnp.float32)}
    merged = merge_sparse(half, [half], functools.partial(dare, drop=0.5), key=KEY)
    assert merged["a"].dtype == jnp.bfloat16
    for drop in (1.0, -0.1):
        with pytest.raises(ValueError, match="drop: got"):
            dare(half, KEY, drop=drop)
    with pytest.raises(ValueError, match=r"epsilon: got 0.15, .* 0.1 \+- 0.15"):
        della(half, KEY, density=0.1)
    with pytest.raises(ValueError, match="n is int32"):
        dare({"n": jnp.ones(2, jnp.int32)}, KEY, drop=0.5)
