"""ND by its card: length and direction, and means of classes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.prototypes import class_means, norm_and_direction

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text()
)["features"]
S, T, MEANS, Y = (jnp.array(GOLDEN[k]) for k in ("student", "teacher", "class_means", "labels"))


def test_the_cards_number_and_limits():
    value = norm_and_direction(S, T, MEANS, Y)
    np.testing.assert_allclose(value.mean(), GOLDEN["norm_and_direction"], rtol=1e-5)
    np.testing.assert_allclose(norm_and_direction(S, T, 7 * MEANS, Y), value, rtol=1e-5)
    along = (MEANS / jnp.linalg.norm(MEANS, axis=1, keepdims=True))[Y]
    np.testing.assert_allclose(norm_and_direction(9 * along, T, MEANS, Y), 0.0, atol=1e-6)
    np.testing.assert_allclose(norm_and_direction(-9 * along, T, MEANS, Y), 2.0, rtol=1e-6)
    np.testing.assert_array_equal(norm_and_direction(0 * S, T, MEANS, Y), 1.0)
    np.testing.assert_array_equal(norm_and_direction(0 * S, 0 * T, MEANS, Y), 1.0)


def test_a_shorter_student_is_pulled_along_and_a_longer_one_turned():
    along = (MEANS / jnp.linalg.norm(MEANS, axis=1, keepdims=True))[Y]
    slope = jax.jit(jax.grad(lambda s: norm_and_direction(s, T, MEANS, Y).sum()))
    for short in (0.1 * S, 0.0 * S):
        want = -along / jnp.linalg.norm(T, axis=1, keepdims=True)
        np.testing.assert_allclose(slope(short), want, rtol=1e-5)
    # A cosine's gradient has nothing along the student.
    np.testing.assert_allclose((slope(9 * S) * S).sum(1), 0.0, atol=1e-6)


def test_means_of_classes():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0], [jnp.nan, 1.0]])
    found = class_means(x, jnp.array([2, 2, 0, 0]), 4, jnp.array([True, True, True, False]))
    np.testing.assert_allclose(found, [[5, 5], [0, 0], [2, 3], [0, 0]])
