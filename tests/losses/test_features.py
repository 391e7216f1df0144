import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.features import hint

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "distillation.json").read_text())
FEATURES = GOLDEN["features"]
STUDENT, TEACHER = jnp.array(FEATURES["student"]), jnp.array(FEATURES["teacher"])


def test_golden_values():
    np.testing.assert_allclose(hint(STUDENT, TEACHER), FEATURES["hint"], rtol=1e-6)


def test_mean_over_all_elements_of_an_example():
    s, t = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    loss = np.asarray(hint(jnp.asarray(s), jnp.asarray(t)))
    assert loss.shape == (3,)
    np.testing.assert_allclose(loss.mean(), np.square(s - t).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss[1], np.square(s[1] - t[1]).mean(), rtol=1e-5)
    # Half the sum of squares, the paper's form, is half the number of elements times this.
    np.testing.assert_allclose(
        4 * 5 * 6 / 2 * loss, 0.5 * np.square(s - t).sum((1, 2, 3)), rtol=1e-5
    )


def test_zero_at_the_teacher_and_float32_inside():
    np.testing.assert_array_equal(hint(TEACHER, TEACHER), 0.0)
    grad = jax.jit(jax.grad(lambda s: hint(s, TEACHER).sum()))(STUDENT)
    np.testing.assert_allclose(grad, 2 / 3 * (STUDENT - TEACHER), rtol=1e-6)
    # 256.5 does not exist in bfloat16: the difference is taken after the cast.
    s = jnp.full((1, 2), 256.0, jnp.bfloat16)
    t = jnp.full((1, 2), 0.5, jnp.bfloat16)
    np.testing.assert_array_equal(hint(s, t), [255.5**2])


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"teacher: got shape \(1, 3\)"):
        inspect.unwrap(hint)(STUDENT, TEACHER[:1])
