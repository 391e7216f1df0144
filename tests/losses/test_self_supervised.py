"""Views of images: whose cosine stands where, and which rows are kept."""

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.self_supervised import least_wrong, plain, view_similarities

FEATURES = np.random.default_rng(0).standard_normal((8, 3))


def test_each_augmented_view_meets_each_plain_one():
    near = view_similarities(jnp.array(FEATURES), views=4)
    unit = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    augmented, first = unit[[1, 2, 3, 5, 6, 7]], unit[[0, 4]]
    np.testing.assert_allclose(near, augmented @ first.T, rtol=1e-5)
    two = view_similarities(jnp.array(FEATURES), views=2)
    np.testing.assert_allclose(two, unit[1::2] @ unit[::2].T, rtol=1e-5)
    absent = view_similarities(jnp.array(FEATURES).at[4:].set(jnp.nan), jnp.arange(8) < 4, views=4)
    np.testing.assert_allclose(absent[:3, 0], near[:3, 0], rtol=1e-5)
    np.testing.assert_array_equal(absent[:, 1], -1e9)


def test_all_right_rows_and_the_least_wrong_are_kept():
    scores = jnp.array(
        [[5.0, 1, 0], [5, 4, 0], [5, 4, 3], [0, 1, 2], [9, 9, 0], [3, 2, 1]], jnp.float32
    )
    answers = jnp.array([0, 1, 2, 2, 1, 2])
    # Errors 0, 1, 2, 0, 1 (a tie goes to the lower column), 2: two right and four wrong.
    for ratio, kept in (
        (0.0, [0, 3]),
        (0.3, [0, 1, 3]),
        (0.5, [0, 1, 3, 4]),
        (0.8, [0, 1, 2, 3, 4]),
    ):
        found = least_wrong(scores, answers, ratio=ratio)
        np.testing.assert_array_equal(np.flatnonzero(found), kept)
    assert least_wrong(scores, answers, ratio=1.0).all()
    there = jnp.arange(6) != 0
    found = least_wrong(scores.at[0].set(jnp.nan), answers, there, ratio=0.5)
    np.testing.assert_array_equal(np.flatnonzero(found), [1, 3, 4])


def test_bad_numbers_of_views_are_named():
    for views in (1, 3):
        with pytest.raises(ValueError, match=f"views: got {views}, takes a divisor of the 8 rows"):
            plain(8, views)
