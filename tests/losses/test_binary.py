"""Class-wise logit losses by their card, and what a constant does to them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.binary import binary_kl, binary_kl_of_difference

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text()
)["logits"]
S, T = jnp.array(GOLDEN["student"]), jnp.array(GOLDEN["teacher"])
BOTH = {"kl": binary_kl, "of_difference": binary_kl_of_difference}


@pytest.mark.parametrize("name", BOTH)
def test_the_cards_numbers_and_zero_at_the_teacher(name):
    loss = BOTH[name]
    np.testing.assert_allclose(4 * loss(S, T).mean(), GOLDEN["binary_at_2"][name], rtol=1e-5)
    value, slope = jax.value_and_grad(lambda s: loss(s, T).sum())(T)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    value, slope = jax.value_and_grad(lambda s: loss(s, -1e4 + 0 * T).sum())(1e4 + 0 * S)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_only_a_common_constant_changes_nothing():
    want = binary_kl_of_difference(S, T)
    np.testing.assert_allclose(binary_kl_of_difference(S + 2, T + 2), want, rtol=1e-5)
    assert (jnp.abs(binary_kl_of_difference(S + 2, T) - want) > 0.1).all()
