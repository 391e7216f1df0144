"""The table of FLAT: values worked out in float64 NumPy apart from this code, and what f* is."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.f_divergences import JENSEN_SHANNON, KL, PEARSON, TOTAL_VARIATION, flat

# name: (divergence, loss at (.3, .8), its two slopes, loss at (1, 0))
TABLE = {
    "kl": (KL, 0.518731, (-1.0, 0.818731), -0.632121),
    "pearson": (PEARSON, 0.660000, (-1.0, 1.4), -1.0),
    "jensen_shannon": (JENSEN_SHANNON, 0.339162, (-0.425557, 0.689974), -0.379885),
    "total_variation": (TOTAL_VARIATION, 0.186362, (-0.457568, 0.279528), -0.380797),
}
each = pytest.mark.parametrize("name", TABLE)

# The generator f of D_f(P || Q) = E_Q[f(dP / dQ)], whose conjugate the table lists.
GENERATORS = {
    "kl": lambda x: x * np.log(x),
    "pearson": lambda x: (x - 1) ** 2,
    "jensen_shannon": lambda x: x * np.log(x) - (x + 1) * np.log((x + 1) / 2),
    "total_variation": lambda x: np.abs(x - 1) / 2,
}


@each
def test_values_and_slopes(name):
    divergence, value, slopes, extreme = TABLE[name]

    def loss(p_e, p_f):
        return flat(p_e, p_f, divergence=divergence)

    got, grads = jax.value_and_grad(loss, (0, 1))(jnp.float32(0.3), jnp.float32(0.8))
    np.testing.assert_allclose(got, value, atol=1e-6)
    np.testing.assert_allclose(grads, slopes, atol=1e-6)
    np.testing.assert_allclose(loss(jnp.float32(1.0), jnp.float32(0.0)), extreme, atol=1e-6)


@each
def test_templates_get_likelier_and_answers_less_so_everywhere(name):
    p_e, p_f = (x.ravel() for x in jnp.meshgrid(jnp.linspace(0, 1, 11), jnp.linspace(0, 1, 11)))

    def total(p_e, p_f):
        return flat(p_e, p_f, divergence=TABLE[name][0]).sum()

    template, forget = jax.grad(total, (0, 1))(p_e, p_f)
    assert np.all(template < 0) and np.all(forget > 0)


@each
def test_composed_is_the_conjugate_of_g_star(name):
    divergence, v = TABLE[name][0], jnp.linspace(-2, 2, 21)
    np.testing.assert_allclose(
        divergence.composed(v), divergence.conjugate(divergence.g_star(v)), atol=1e-6
    )


@each
def test_conjugate_is_the_supremum_of_the_generator(name):
    """f*(u) = sup_x (u x - f(x)) over x > 0, on a fine grid in float64."""
    x = np.exp(np.linspace(-12, 6, 200_001))
    for u in (-0.4, 0.0, 0.3, 0.45):
        expected = (u * x - GENERATORS[name](x)).max()
        np.testing.assert_allclose(TABLE[name][0].conjugate(jnp.float32(u)), expected, atol=1e-4)


def test_total_variation_of_equal_means_is_zero():
    p = jnp.linspace(0, 1, 7)
    np.testing.assert_array_equal(flat(p, p, divergence=TOTAL_VARIATION), jnp.zeros(7))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="p_forget: got shape"):
        inspect.unwrap(flat)(jnp.zeros(3), jnp.zeros(2), divergence=KL)
