import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.classification import (
    accuracy,
    cross_entropy,
    label_log_probs,
    prediction_entropy,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "distillation.json").read_text())
VISION = GOLDEN["vision"]


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_golden_value():
    loss = cross_entropy(jnp.array(VISION["student"]), jnp.array(VISION["labels"]))
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss.mean(), VISION["cross_entropy"], rtol=1e-5)


def test_uniform_is_log_classes_and_shift_changes_nothing():
    labels = jnp.array([[3, 0], [1, 2]])
    np.testing.assert_allclose(
        cross_entropy(jnp.full((2, 2, 5), 7.0), labels), np.log(5), rtol=1e-6
    )
    z = normal(2, 2, 5)
    np.testing.assert_allclose(
        cross_entropy(z + 100.0, labels), cross_entropy(z, labels), rtol=1e-4
    )


def test_gradient_is_softmax_minus_one_hot():
    z = normal(3, 7)
    labels = jnp.array([0, 6, 2])
    grad = jax.jit(jax.grad(lambda z: cross_entropy(z, labels).sum()))(z)
    np.testing.assert_allclose(grad, jax.nn.softmax(z) - jax.nn.one_hot(labels, 7), atol=1e-6)


def test_huge_and_masked_logits_stay_finite():
    z = jnp.array([[1e4, -1e4, -jnp.inf], [0.0, 1.0, -jnp.inf]])
    labels = jnp.array([0, 1])
    value, grad = jax.jit(jax.value_and_grad(lambda z: cross_entropy(z, labels).sum()))(z)
    np.testing.assert_allclose(value, np.log1p(np.exp(-1.0)), rtol=1e-5)
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[:, 2], 0.0)


@pytest.mark.slow
def test_ignored_label_picks_nothing():
    z = jnp.array([[1.0, 2.0, 3.0]])
    value = label_log_probs(z, jnp.array([-100]))
    np.testing.assert_allclose(value, -jax.nn.logsumexp(z, axis=-1), rtol=1e-6)


def test_half_precision_logits_are_computed_in_float32():
    z = normal(4, 1000).astype(jnp.bfloat16)
    labels = jnp.array([1, 2, 3, 4])
    loss = cross_entropy(z, labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, cross_entropy(z.astype(jnp.float32), labels))


def test_accuracy():
    z = jnp.array([[[0.0, 1.0, 0.5]], [[2.0, 2.0, 0.0]], [[0.0, 0.0, -1.0]]])
    np.testing.assert_array_equal(accuracy(z, jnp.array([[1], [0], [1]])), [[1.0], [1.0], [0.0]])


@pytest.mark.parametrize("loss", [cross_entropy, accuracy, label_log_probs])
def test_labels_of_another_shape_are_refused(loss):
    with pytest.raises(ValueError, match=r"labels: got shape \(3,\).*\(2,\)"):
        inspect.unwrap(loss)(jnp.zeros((2, 3)), jnp.zeros(3, jnp.int32))


def test_entropy_of_predictions():
    p = np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
    logits = jnp.asarray(np.log(np.maximum(p, 1e-30)), jnp.float32)
    expected = [1.5 * np.log(2), np.log(3), 0.0]
    np.testing.assert_allclose(prediction_entropy(logits), expected, rtol=1e-6, atol=1e-6)
    within = -(p * np.log(p + 0.1)).sum(-1)
    np.testing.assert_allclose(prediction_entropy(logits, eps=0.1), within, rtol=1e-5)
    with pytest.raises(ValueError, match="eps: got -1"):
        prediction_entropy(logits, eps=-1.0)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_the_gradient_of_the_entropy_is_finite_and_by_hand(eps):
    """d H / d z_k = -p_k (log p_k + H)."""
    z = jnp.array([[1.0, -2.0, 0.5, -jnp.inf], [0.0, 200.0, -200.0, -jnp.inf]])
    grad = jax.grad(lambda z: prediction_entropy(z, eps=eps).sum())(z)
    p = np.exp([1.0, -2.0, 0.5])
    p /= p.sum()
    entropy = -(p * np.log(p)).sum()
    np.testing.assert_allclose(grad[0, :3], -p * (np.log(p) + entropy), rtol=1e-4)
    np.testing.assert_allclose(grad[0, 3], 0.0, atol=1e-9)
    np.testing.assert_allclose(grad[1], np.zeros(4), atol=1e-6)
