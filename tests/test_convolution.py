"""Convolutions written out: the values and gradients of XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.convolution import as_product, depthwise, direct


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def grouped(x, kernel, stride):
    pad = [(kernel.shape[0] // 2, kernel.shape[0] // 2)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize(
    ("ours", "theirs", "inputs"),
    [(as_product, direct, 3), (depthwise, grouped, 1)],
    ids=["as_product", "depthwise"],
)
def test_values_and_gradients_under_vmap_are_those_of_xla(ours, theirs, inputs, side, stride):
    """Two networks; an image as high as wide and not, sides that the stride does not divide."""
    outputs = 4 if inputs == 3 else 3
    x, kernels = drawn(2, 2, 5, 6, 3), drawn(2, side, side, inputs, outputs)

    def both(convolve):
        def loss(x, kernel):
            y = convolve(x, kernel, stride)
            return jnp.sin(y).sum(), y

        gradient = jax.grad(loss, (0, 1), has_aux=True)
        return jax.jit(jax.vmap(gradient))(x, kernels)

    for a, b in zip(jax.tree.leaves(both(ours)), jax.tree.leaves(both(theirs)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
