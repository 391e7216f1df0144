"""Attention maps: the card's numbers in both forms, and what they do not see."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.maps import attention, attention_distance, attention_map, pooled_to_smaller

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text()
)["attention"]
S, T = (jnp.moveaxis(jnp.array(GOLDEN[k]), 0, -1)[None] for k in ("student", "teacher"))


def test_the_cards_numbers():
    np.testing.assert_allclose(attention(S, T), [GOLDEN["code"]], rtol=1e-5)
    np.testing.assert_allclose(attention_distance(S, T), [GOLDEN["paper"]], rtol=1e-5)
    # The two differ by a square and the number of places.
    np.testing.assert_allclose(attention(S, T), attention_distance(S, T) ** 2 / 4, rtol=1e-5)


def test_signs_channels_and_scales_do_not_count():
    want = attention(S, T)
    for other in (-S, S[..., ::-1], 7.0 * S, jnp.concatenate([S, S], -1)):
        np.testing.assert_allclose(attention(other, T), want, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(attention_map(S)), 1.0, rtol=1e-6)


def test_gradients_are_finite_at_the_teacher_and_at_zero():
    for loss in (attention, attention_distance):
        for s in (T, jnp.zeros_like(T)):
            value, slope = jax.value_and_grad(lambda s, f=loss: f(s, T).sum())(s)
            assert np.isfinite(value) and np.isfinite(slope).all()
    np.testing.assert_array_equal(attention(T, T), 0.0)


def test_larger_maps_are_pooled_as_adaptive_pooling_does():
    """Bins of 5 places for 3: 0-1, 1-3, 3-4."""
    row = jnp.arange(5.0)[None, :, None, None]
    (pooled, _) = pooled_to_smaller(row, jnp.zeros((1, 3, 1, 1)))
    np.testing.assert_allclose(pooled[0, :, 0, 0], [0.5, 2.0, 3.5])
    big = jnp.repeat(jnp.repeat(S, 2, 1), 2, 2)
    np.testing.assert_allclose(attention(big, T), attention(S, T), rtol=1e-5)
    np.testing.assert_allclose(attention(S, jnp.repeat(T, 2, 1)), attention(S, T), rtol=1e-5)


def test_what_is_no_map_is_named():
    with pytest.raises(ValueError, match=r"features: got shape \(1, 2, 2\), takes a map"):
        inspect.unwrap(attention_map)(S[..., 0])
    with pytest.raises(ValueError, match="power: got 0"):
        attention_map(S, power=0)
