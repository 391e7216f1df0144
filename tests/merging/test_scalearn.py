"""Scales of frozen adapters: the card's identities, sharing by shape, dropout of the scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.merging.scalearn import init_scales, of_places, scalearn

L, N, D = 3, 4, 5
KEY = jax.random.key(0)
OUTPUTS = jax.random.normal(jax.random.key(1), (2, 6, N, D))
RESIDUAL = jax.random.normal(jax.random.key(2), (2, 6, D))
SHAPES = {
    "vector": (L, N, D),
    "uniform": (L, N, 1),
    "vector++": (1, N, D),
    "uniform++": (1, N, 1),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.mark.parametrize("width", [D, 1])
def test_a_one_hot_omega_picks_an_adapter(width):
    for n in range(N):
        omega = jnp.zeros((N, width)).at[n].set(1.0)
        found = scalearn(OUTPUTS, omega, RESIDUAL)
        np.testing.assert_allclose(found, OUTPUTS[..., n, :] + RESIDUAL, rtol=1e-6)


def test_worked_sum():
    outputs = jnp.array([[1.0, 2.0], [10.0, 20.0]])
    residual = jnp.array([0.5, -0.5])
    vector = jnp.array([[1.0, 2.0], [0.1, -0.1]])
    np.testing.assert_allclose(scalearn(outputs, vector, residual), [2.5, 1.5], rtol=1e-6)
    numbers = jnp.array([[3.0], [0.5]])
    np.testing.assert_allclose(scalearn(outputs, numbers, residual), [8.5, 15.5], rtol=1e-6)


@every_shape
def test_at_the_start_equal_adapters_count_twice(shape):
    one = OUTPUTS[..., :1, :]
    equal = jnp.broadcast_to(one, OUTPUTS.shape)
    omega = of_places(init_scales(KEY, shape, deviation=0.0), L)
    for own in omega:
        found = scalearn(equal, own, RESIDUAL)
        np.testing.assert_allclose(found, 2 * one[..., 0, :] + RESIDUAL, rtol=1e-5, atol=1e-6)


@every_shape
def test_numbers_learnt_and_their_start(shape):
    omega = init_scales(KEY, shape)
    assert omega.size == {60: 60, 12: 12, 20: 20, 4: 4}[int(np.prod(shape))]
    assert of_places(omega, L).shape == (L, N, shape[2])
    np.testing.assert_allclose(omega, 2 / N, atol=6e-3)
    assert omega.std() > 1e-4
    many = init_scales(KEY, (10, N, 200), scale=1.0, deviation=0.1)
    np.testing.assert_allclose(many.mean(), 1 / N, atol=5e-3)
    np.testing.assert_allclose(many.std(), 0.1, rtol=0.05)


def test_linear_in_omega():
    a, b = (jax.random.normal(jax.random.key(i), (N, D)) for i in (3, 4))
    added = [scalearn(OUTPUTS, x, jnp.zeros_like(RESIDUAL)) for x in (a, b, 2 * a - b)]
    np.testing.assert_allclose(added[2], 2 * added[0] - added[1], rtol=1e-4, atol=1e-5)


def test_the_gradient_of_shared_scales_is_the_sum_over_places():
    def loss(omega):
        own = of_places(omega, L)
        return sum(((i + 1) * scalearn(OUTPUTS, own[i], RESIDUAL) ** 2).sum() for i in range(L))

    shared = jnp.full((1, N, 1), 0.3)
    apart = jax.grad(loss)(jnp.broadcast_to(shared, (L, N, D)))
    found = jax.grad(loss)(shared)
    np.testing.assert_allclose(found, apart.sum((0, 2), keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("width", [D, 1])
def test_dropout_of_scales_keeps_their_mean(width):
    omega = jax.random.normal(jax.random.key(5), (N, width)) + 1.0
    ones, none = jnp.ones((N, D)), jnp.zeros(D)

    def scales(key):
        """What each adapter is multiplied by: the sum of one adapter's output at a time."""
        picked = jnp.eye(N)[:, :, None] * ones[None]
        return scalearn(picked, omega, jnp.zeros((N, D)), dropout=0.3, key=key)

    drawn = np.asarray(jax.jit(jax.vmap(scales))(jax.random.split(KEY, 4000)))
    whole = np.broadcast_to(np.asarray(omega), (N, D))
    np.testing.assert_allclose(drawn.mean(0), whole, atol=0.15)
    kept = drawn / whole
    np.testing.assert_allclose(kept[kept != 0], 1 / 0.7, rtol=1e-4)
    np.testing.assert_allclose((kept == 0).mean(), 0.3, atol=0.02)
    # One number an adapter is dropped as a whole.
    assert bool((kept.min(-1) == kept.max(-1)).all()) == (width == 1)
    quiet = scalearn(ones, omega, none, dropout=0.3)
    np.testing.assert_allclose(quiet, whole.sum(0), rtol=1e-5)


def test_the_residuals_dtype_is_kept():
    found = scalearn(OUTPUTS, jnp.ones((N, 1)), RESIDUAL.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="omega: got shape"):
        scalearn(OUTPUTS, jnp.ones((N, 2)), RESIDUAL)
    with pytest.raises(ValueError, match="dropout: got 1.0"):
        scalearn(OUTPUTS, jnp.ones((N, D)), RESIDUAL, dropout=1.0)
    with pytest.raises(ValueError, match="omega: got 2 places, takes 1 or 3"):
        of_places(jnp.ones((2, N, D)), 3)
    with pytest.raises(ValueError, match="shape: got"):
        init_scales(KEY, (0, N, D))
