"""Breadcrumbs against numbers worked out by hand, a sort, and its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax.merging.arithmetic import task_arithmetic
from kd_jax.merging.breadcrumbs import breadcrumbs, breadcrumbs_of_leaves
from kd_jax.merging.sparse import merge_sparse

ROW = np.array([0.5, -0.1, 0.3, 0.05, -0.8, 0.02, 0.2, -0.4, 0.15, -0.6], np.float32)
MIDDLE = np.array([0.5, 0, 0.3, 0, 0, 0, 0.2, -0.4, 0, 0], np.float32)
ROW_TREE = {"w": jnp.asarray(ROW)}
# Few values, so that many magnitudes are equal.
eighths = st.integers(-4, 4).map(lambda i: np.float32(i / 8))


def test_by_hand():
    rows = jnp.stack([jnp.asarray(ROW), 10 * jnp.asarray(ROW)])
    got = breadcrumbs({"w": rows, "s": jnp.float32(7.0)}, keep=0.4, remove=0.2)
    np.testing.assert_array_equal(got["w"], [MIDDLE, 10 * MIDDLE])
    assert got["s"] == 7.0
    last = breadcrumbs(ROW_TREE, keep=0.4, remove=0.2, remove_first=False)["w"]
    np.testing.assert_array_equal(last, [0.5, 0, 0, 0, 0, 0, 0, np.float32(-0.4), 0, 0])


def test_leaves_by_hand():
    whole = breadcrumbs_of_leaves(ROW_TREE, density=0.4, gamma=0.2)["w"]
    np.testing.assert_array_equal(whole, MIDDLE)
    square = breadcrumbs_of_leaves({"w": ROW_TREE["w"].reshape(5, 2)}, density=0.4, gamma=0.2)
    np.testing.assert_array_equal(square["w"].ravel(), MIDDLE)
    # Fewer entries than 1 / gamma keep their largest; with density 1 all are kept.
    few = breadcrumbs_of_leaves(ROW_TREE, density=0.4, gamma=0.01)["w"]
    np.testing.assert_array_equal(few, np.where(np.abs(ROW) >= 0.4, ROW, 0))
    np.testing.assert_array_equal(breadcrumbs_of_leaves(ROW_TREE, density=1.0, gamma=0.2)["w"], ROW)


def middle(x, skipped, last):
    """Of one row, by a stable sort."""
    kept = np.zeros_like(x)
    chosen = np.argsort(-np.abs(x), kind="stable")[skipped:last]
    kept[chosen] = x[chosen]
    return kept


ROWS = jax.jit(breadcrumbs, static_argnames=("keep", "remove", "remove_first"))
LEAVES = jax.jit(breadcrumbs_of_leaves, static_argnames=("density", "gamma"))


@given(hnp.arrays(np.float32, (2, 3, 10), elements=eighths), st.sampled_from([0.0, 0.1, 0.35]))
def test_exact_counts_among_equal_magnitudes(x, remove):
    skipped = int(10 * remove)
    got = ROWS({"w": x}, keep=0.5, remove=remove)["w"]
    expected = np.stack([[middle(row, skipped, skipped + 5) for row in part] for part in x])
    np.testing.assert_array_equal(got, expected)
    whole = LEAVES({"w": x}, density=0.5, gamma=remove)["w"]
    skipped = int(60 * remove)
    np.testing.assert_array_equal(whole.ravel(), middle(x.ravel(), skipped, skipped + 30))


@pytest.mark.slow
def test_limits():
    x = jax.random.normal(jax.random.key(0), (4, 12))
    tree = {"w": x}
    np.testing.assert_array_equal(breadcrumbs(tree, keep=1.0, remove=0.0)["w"], x)
    np.testing.assert_array_equal(breadcrumbs(tree, keep=0.0, remove=0.0)["w"], 0 * x)
    np.testing.assert_array_equal(breadcrumbs(tree, keep=0.5, remove=1.0)["w"], 0 * x)
    base = jax.tree.map(jnp.ones_like, tree)
    models = [tree, jax.tree.map(lambda x: 2 * x, tree)]
    everything = functools.partial(breadcrumbs, keep=1.0, remove=0.0)
    np.testing.assert_allclose(
        merge_sparse(base, models, everything, scale=0.3)["w"],
        task_arithmetic(base, models, scale=0.3)["w"],
    )
    some = functools.partial(breadcrumbs, keep=0.5, remove=0.1)
    np.testing.assert_array_equal(
        merge_sparse(base, models, some)["w"], merge_sparse(base, models[::-1], some)["w"]
    )


def test_nans_gradients_and_dtypes():
    x = jnp.array([1.0, jnp.nan, 3.0, 2.0, 0.1], jnp.bfloat16)
    got = breadcrumbs({"w": x}, keep=0.4, remove=0.2)["w"]
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, [0, np.nan, 3, 2, 0])
    grad = jax.grad(lambda x: breadcrumbs({"w": x}, keep=0.4, remove=0.2)["w"].sum())(ROW_TREE["w"])
    np.testing.assert_array_equal(grad, MIDDLE != 0)


def test_errors():
    for arguments in ({"keep": 1.1, "remove": 0.0}, {"keep": 0.5, "remove": -0.1}):
        with pytest.raises(ValueError, match=r"takes a number in \[0, 1\]"):
            breadcrumbs(ROW_TREE, **arguments)
    with pytest.raises(ValueError, match="n is int32"):
        breadcrumbs({"n": jnp.ones(2, jnp.int32)}, keep=0.5, remove=0.1)
