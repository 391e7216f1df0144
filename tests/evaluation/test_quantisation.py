"""Rounding to nearest against numpy, and what it must leave alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.evaluation.quantisation import round_to_nearest
from kd_jax.models import layout
from kd_jax.models.decoder import DecoderConfig, decoder
from kd_jax.trees import flatten

CONFIG = DecoderConfig(
    vocab=16, width=8, depth=2, heads=2, kv_heads=1, head_dim=4, mlp=12, qkv_bias=True
)


@functools.cache
def weights():
    draw = np.random.default_rng(0).standard_normal
    shapes = jax.eval_shape(decoder(CONFIG).init, jax.random.key(0))
    return jax.tree.map(lambda x: draw(x.shape).astype(np.float32), shapes)


def by_hand(w, bits, axis):
    w = w.astype(np.float64)
    scale = np.abs(w).max(axis, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(w / scale) * scale


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_matrices_are_rounded_by_output_channel(bits):
    found = flatten(jax.jit(functools.partial(round_to_nearest, bits=bits))(weights()))
    for path, w in flatten(weights()).items():
        x = np.asarray(found[path])
        if path.endswith(("scale", "bias")):
            np.testing.assert_array_equal(x, w)
            continue
        axis = -1 if path.endswith("embedding") else -2
        # An entry between two levels to the last digit may fall on either side.
        np.testing.assert_allclose(x, by_hand(w, bits, axis), rtol=1e-5, atol=1e-6, err_msg=path)
        channels = np.moveaxis(x, axis, -1).reshape(-1, w.shape[axis])
        assert max(len(np.unique(channel)) for channel in channels) <= 2**bits - 1
        step = np.abs(w).max(axis, keepdims=True) / (2 ** (bits - 1) - 1)
        assert (np.abs(x - w) <= 0.5 * step * (1 + 1e-5)).all()
        assert (x != w).any()


def test_three_by_two_by_hand():
    """Columns of maxima 7 and 14: steps 1 and 2."""
    kernel = jnp.array([[7.0, -14.0], [2.4, 2.9], [-0.6, 0.9]])
    found = round_to_nearest({"kernel": kernel, "bias": jnp.array([0.3, 0.4])}, bits=4)
    np.testing.assert_allclose(found["kernel"], [[7, -14], [2, 2], [-1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(found["bias"], jnp.array([0.3, 0.4]))
    rows = round_to_nearest({"embedding": kernel.T}, bits=4)
    np.testing.assert_allclose(rows["embedding"], found["kernel"].T, rtol=1e-6)


def test_twice_is_once():
    once = round_to_nearest(weights(), bits=4)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        once,
        round_to_nearest(once, bits=4),
    )


def test_both_layouts_are_rounded_alike():
    stacked, apart = (round_to_nearest(w, bits=4) for w in (weights(), layout.unstack(weights())))
    jax.tree.map(np.testing.assert_array_equal, layout.unstack(stacked), apart)


def test_dtypes_and_empty_channels_are_kept():
    kernel = jnp.array([[1.0, 0.0], [0.3, 0.0]], jnp.bfloat16)
    found = round_to_nearest({"kernel": kernel}, bits=8)["kernel"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[:, 1], 0.0)
    np.testing.assert_allclose(np.float32(found[:, 0]), [1.0, 0.3], rtol=1e-2)


def test_many_bits_change_little():
    wide = round_to_nearest(weights(), bits=16)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), wide, weights())


def test_errors():
    with pytest.raises(ValueError, match="bits: got 1, takes 2 to 16"):
        round_to_nearest(weights(), bits=1)
    with pytest.raises(ValueError, match="weights: got no path"):
        round_to_nearest({"scale": jnp.ones(3)}, bits=8)
