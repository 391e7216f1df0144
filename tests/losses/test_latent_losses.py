"""Latent adversarial training's loss and projection: worked values, gradients, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.latent import away, project_l2

# Worked out apart from this code; the last label is below the threshold of -5.
LOGITS = jnp.array([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [-8.0, 0.0, 0.0]])
LABELS = jnp.array([0, 1, 0])


def test_away_of_the_worked_example():
    losses = away(LOGITS, LABELS)
    np.testing.assert_allclose(losses, [3.342829, 2.401776, 0.0], rtol=1e-5)
    np.testing.assert_allclose(losses.mean(), 1.914868, rtol=1e-5)
    # Without the threshold the last is -log(1 - exp(-8.693315)).
    whole = away(LOGITS, LABELS, threshold=-jnp.inf)
    np.testing.assert_allclose(whole[2], -np.log1p(-np.exp(-8.693315)), rtol=2e-3)


def test_away_against_numpy_and_its_gradient():
    rng = np.random.default_rng(0)
    z, y = rng.normal(0, 2, (4, 5, 7)).astype(np.float32), rng.integers(0, 7, (4, 5))
    p = np.exp(z.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, y[..., None], -1)[..., 0]
    kept = np.log(chosen) >= -3
    assert 0 < kept.sum() < kept.size
    losses = away(jnp.asarray(z), jnp.asarray(y), threshold=-3.0)
    np.testing.assert_allclose(losses, np.where(kept, -np.log1p(-chosen), 0), rtol=2e-5)
    grad = jax.grad(lambda z: away(z, jnp.asarray(y), threshold=-3.0).sum())(jnp.asarray(z))
    # d/dz_v = p_v - q_v, q the distribution over the other tokens: p_y at the label.
    others = np.where(np.arange(7) == y[..., None], 0, p)
    expected = np.where(kept[..., None], p - others / others.sum(-1, keepdims=True), 0)
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


def test_away_where_the_label_is_all_but_certain():
    """log(1 - p) would be log 0 in float32."""
    z = jnp.array([60.0, 0.0, 1.0])
    value, grad = jax.value_and_grad(away)(z, jnp.array(0))
    np.testing.assert_allclose(value, 60 - np.logaddexp(0, 1), rtol=1e-6)
    np.testing.assert_allclose(grad[0], 1.0, rtol=1e-6)
    assert float(away(z, jnp.array(-100))) == 0.0


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 1.5, 2.0, 10.0]))
@settings(max_examples=20, deadline=None)
def test_the_projection_is_onto_each_tokens_ball(seed, eps):
    delta = jnp.asarray(np.random.default_rng(seed).normal(0, 1, (2, 5, 4)), jnp.float32)
    delta = delta.at[0, 0].set(0.0)
    found = np.asarray(project_l2(delta, eps=eps))
    norms, before = (np.linalg.norm(np.asarray(x, np.float64), axis=-1) for x in (found, delta))
    np.testing.assert_allclose(norms, np.minimum(before, eps), rtol=1e-5)
    inside = before < eps * (1 - 1e-6)
    np.testing.assert_array_equal(found[inside], np.asarray(delta)[inside])
    # In the same direction.
    np.testing.assert_allclose(found * before[..., None], delta * norms[..., None], atol=1e-5)


def test_a_radius_below_zero_is_refused():
    with pytest.raises(ValueError, match="eps: got -1"):
        project_l2(LOGITS, eps=-1.0)
