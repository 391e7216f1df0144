"""The card's worked example, and where each teacher counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.compatibility import masked_kl, muscle, own_errors
from kd_jax.losses.divergences import forward_kl

LABELS = jnp.array([0, 2])
STUDENT = jnp.array([[2.0, 1.0, 0.0], [1.0, 0.0, -1.0]])
OLD = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 2.0]])
NEW = jnp.array([[1.5, 0.0, 0.0], [0.5, 0.0, 0.0]])


def test_worked_example():
    np.testing.assert_array_equal(own_errors(STUDENT, LABELS), [False, True])
    always, never = jnp.array([True, True]), jnp.array([False, False])
    of_old, of_new = [0.995723, 1.422512], [0.038625, 0.161366]
    np.testing.assert_allclose(masked_kl(STUDENT, OLD, NEW, always), of_old, atol=1e-6)
    np.testing.assert_allclose(masked_kl(STUDENT, OLD, NEW, never), of_new, atol=1e-6)
    values = muscle(STUDENT, OLD, NEW, LABELS)
    np.testing.assert_allclose(values, [0.038625, 1.422512], atol=1e-6)
    np.testing.assert_allclose(values.mean(), 0.730569, atol=1e-6)


def test_a_student_like_the_new_model_that_is_right_loses_nothing():
    labels = jnp.argmax(NEW, -1)
    value, grad = jax.value_and_grad(lambda z: muscle(z, OLD, NEW, labels).sum())(NEW)
    np.testing.assert_allclose(value, 0.0, atol=1e-7)
    np.testing.assert_allclose(grad, 0.0, atol=1e-7)


def test_the_mask_has_no_gradient_and_each_row_follows_one_teacher():
    found = jax.grad(lambda z: muscle(z, OLD, NEW, LABELS, temperature=2.0).sum())(STUDENT)
    teacher = jnp.stack([NEW[0], OLD[1]])
    q, p = jax.nn.softmax(STUDENT / 2.0), jax.nn.softmax(teacher / 2.0)
    np.testing.assert_allclose(found, (q - p) / 2.0, atol=1e-6)


def test_the_other_teacher_is_not_looked_at():
    spoilt = OLD.at[0].set(jnp.nan), NEW.at[1].set(jnp.inf)
    value, grad = jax.value_and_grad(lambda z: muscle(z, *spoilt, LABELS).sum())(STUDENT)
    np.testing.assert_allclose(value, 2 * 0.730569, atol=1e-5)
    assert np.isfinite(grad).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 4.0))
@settings(max_examples=20, derandomize=True, deadline=None)
def test_equal_teachers_make_the_mask_idle(seed, temperature):
    z, t, y = draw(seed)
    found = muscle(z, t, t, y, temperature=temperature)
    np.testing.assert_allclose(found, forward_kl(z, t, temperature=temperature), rtol=1e-5)


def draw(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    z, t = (3.0 * jax.random.normal(key, (2, 5, 4)) for key in keys[:2])
    return z, t, jax.random.randint(keys[2], (2, 5), 0, 4)


def test_a_bad_temperature_is_refused():
    with pytest.raises(ValueError, match="temperature: got 0.0"):
        muscle(STUDENT, OLD, NEW, LABELS, temperature=0.0)
