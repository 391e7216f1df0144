"""Values by hand and in float64 NumPy; limits; gradients against their formulas."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.features import sequence_mse
from kd_jax.losses.targets import ce_u, logit_margin, undial, uniform_kl

# One row of four tokens; the numbers that follow from it were worked out in float64 NumPy from the
# papers' formulas, apart from this code.
Z = jnp.array([2.0, 1.0, 0.0, -1.0])
LABEL = jnp.array(0)
STUDENT = jnp.array([1.0, 1.0, 0.0, 0.0])


def softmax64(z):
    z = np.asarray(z, np.float64)
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def random_rows(seed=0, rows=6, vocab=7):
    rng = np.random.default_rng(seed)
    z = jnp.asarray(3 * rng.standard_normal((2, rows, vocab)), jnp.float32)
    return z[0], z[1], jnp.asarray(rng.integers(0, vocab, rows), jnp.int32)


def test_values_of_one_row():
    np.testing.assert_allclose(uniform_kl(Z), 0.553895, atol=1e-6)
    np.testing.assert_allclose(undial(STUDENT, Z, LABEL, beta=10.0), 1.341140, rtol=1e-6)
    np.testing.assert_allclose(undial(STUDENT, Z, LABEL, beta=3.0), 1.313519, rtol=1e-6)
    value, grad = jax.value_and_grad(ce_u)(Z, LABEL)
    np.testing.assert_allclose(value, 1.864979, rtol=1e-6)
    np.testing.assert_allclose(grad, [0.643914, -0.428358, -0.157584, -0.057972], atol=1e-6)
    # max 2, mean 0.5
    value, grad = jax.value_and_grad(logit_margin)(Z)
    np.testing.assert_allclose(value, 2.25, rtol=1e-6)
    np.testing.assert_allclose(grad, 2 * 1.5 * (np.array([1, 0, 0, 0]) - 0.25), rtol=1e-6)


def test_the_distribution_undial_aims_at():
    """Its gradient with respect to the logits is p - q."""
    for beta, q in ((10.0, [0.000082, 0.665186, 0.244708, 0.090023]),
                    (3.0, [0.082595, 0.610296, 0.224515, 0.082595])):  # fmt: skip
        grad = jax.grad(undial)(STUDENT, Z, LABEL, beta=beta)
        np.testing.assert_allclose(softmax64(STUDENT) - grad, q, atol=1e-6)


def test_against_numpy_on_random_rows():
    z, reference, y = random_rows()
    log_p, eye = np.log(softmax64(z)), np.eye(7)[np.asarray(y)]
    np.testing.assert_allclose(uniform_kl(z), (-np.log(7) - log_p).mean(-1), rtol=1e-5)
    q = softmax64(np.asarray(reference, np.float64) - 4.0 * eye)
    np.testing.assert_allclose(undial(z, reference, y, beta=4.0), -(q * log_p).sum(-1), rtol=1e-5)
    rest = softmax64(z) * (1 - eye)
    q = rest / rest.sum(-1, keepdims=True)
    np.testing.assert_allclose(ce_u(z, y), -(q * log_p).sum(-1), rtol=1e-5)
    wide = np.asarray(z, np.float64)
    np.testing.assert_allclose(logit_margin(z), (wide.max(-1) - wide.mean(-1)) ** 2, rtol=1e-5)


def test_undial_of_beta_zero_is_self_distillation():
    z, reference, y = random_rows()
    q = softmax64(reference)
    entropy = -(q * np.log(q)).sum(-1)
    np.testing.assert_allclose(
        undial(z, reference, y, beta=0.0) - entropy, forward_kl(z, reference), atol=1e-5
    )
    still = jax.grad(lambda z: undial(z, reference, y, beta=0.0).sum())(reference)
    np.testing.assert_allclose(still, 0.0, atol=1e-6)


gradient = jax.jit(jax.grad(lambda z, y: ce_u(z, y).sum()))


@given(st.lists(st.floats(-30, 30, width=32), min_size=5, max_size=5), st.integers(0, 4))
@settings(max_examples=25, derandomize=True, deadline=None)
def test_the_gradient_of_ce_u_stops_where_the_label_is_forgotten(row, label):
    z, p = jnp.array(row), softmax64(np.array(row, np.float32))
    grad = gradient(z, jnp.array(label))
    rest = np.delete(np.asarray(row, np.float32), label)
    q = np.insert(softmax64(rest), label, 0.0)
    np.testing.assert_allclose(grad, p - q, atol=2e-6)
    np.testing.assert_allclose(grad.sum(), 0.0, atol=1e-6)


def test_a_certain_label_keeps_the_target_defined():
    """p_v / (1 - p_y) would be 0 / 0 in float32; the loss lies near 60, the gradient at 1."""
    z = jnp.array([60.0, 1.0, 0.0])
    value, grad = jax.value_and_grad(ce_u)(z, LABEL)
    q = softmax64([1.0, 0.0])
    np.testing.assert_allclose(value, 60 - q[0], rtol=1e-6)
    np.testing.assert_allclose(grad, [1.0, -q[0], -q[1]], rtol=1e-6)


@pytest.mark.parametrize("level", [-50.0, 0.0, 20.0])
def test_flat_logits_are_the_minimum(level):
    z = jnp.full((3, 11), level)
    for loss in (uniform_kl, logit_margin):
        np.testing.assert_allclose(loss(z), 0.0, atol=1e-6)
        grad = jax.grad(lambda z, loss=loss: loss(z).sum())(z)
        np.testing.assert_allclose(grad, 0.0, atol=1e-6)
    other = z.at[:, 3].add(0.5)
    assert np.all(uniform_kl(other) > 1e-3) and np.all(logit_margin(other) > 1e-3)


def test_impossible_tokens_leave_cross_entropies_finite():
    """A logit of -inf in model and reference: 0 log 0 = 0, no NaN in value or gradient."""
    z = jnp.array([[1.0, -jnp.inf, 0.5, 0.0]])
    for loss in (
        lambda z: undial(z, z, jnp.array([0]), beta=2.0),
        lambda z: ce_u(z, jnp.array([0])),
    ):
        value, grad = jax.value_and_grad(lambda z, loss=loss: loss(z).sum())(z)
        assert np.isfinite(value) and np.all(np.isfinite(grad)) and grad[0, 1] == 0


def test_float32_whatever_comes_in():
    z, reference, y = (x.astype(jnp.bfloat16) if x.ndim > 1 else x for x in random_rows())
    for value in (uniform_kl(z), undial(z, reference, y, beta=1.0), ce_u(z, y), logit_margin(z)):
        assert value.dtype == jnp.float32 and value.shape == y.shape


def test_bad_arguments_are_named():
    z, reference, y = random_rows()
    with pytest.raises(ValueError, match="beta: got -1"):
        undial(z, reference, y, beta=-1)
    with pytest.raises(ValueError, match="reference_logits: got shape"):
        inspect.unwrap(undial)(z, reference[:, :3], y, beta=1.0)
    with pytest.raises(ValueError, match="labels: got shape"):
        inspect.unwrap(ce_u)(z, y[:2])


def test_sequence_mse():
    """Rows of 12 and 10 positions whose squared distances sum to 6 and 40: 0.5 and 4, mean 2.25
    (a [B] sum over [B, 1] counts would give 2.108333)."""
    features = np.zeros((2, 12, 3), np.float32)
    features[0] = np.sqrt(6 / 12)
    features[1] = np.sqrt(40 / 10)
    weights = np.ones((2, 12), np.float32)
    features[1, 10:], weights[1, 10:] = np.nan, 0
    h, w, zeros = jnp.array(features), jnp.array(weights), jnp.zeros((2, 12, 3))
    loss = sequence_mse(h, zeros, w)
    np.testing.assert_allclose(loss, [0.5, 4.0], rtol=1e-6)
    np.testing.assert_allclose(loss.mean(), 2.25, rtol=1e-6)
    grad = jax.grad(lambda h: sequence_mse(h, zeros, w).sum())(h)
    assert np.all(np.isfinite(grad)) and np.all(grad[1, 10:] == 0)
    np.testing.assert_allclose(grad[0], 2 * features[0] / 12 / 3, rtol=1e-6)
    np.testing.assert_array_equal(sequence_mse(zeros, zeros, w), 0.0)
    np.testing.assert_array_equal(sequence_mse(h, zeros, jnp.zeros((2, 12))), 0.0)
    with pytest.raises(ValueError, match="weights: got shape"):
        inspect.unwrap(sequence_mse)(h, zeros, w[:, :3])
    with pytest.raises(ValueError, match="target: got shape"):
        inspect.unwrap(sequence_mse)(h, zeros[:, :, :1], w)
