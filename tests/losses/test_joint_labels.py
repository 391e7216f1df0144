"""SLA by its card: joint labels, rotations in order, and the aggregate of logits."""

import inspect
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.joint_labels import aggregated, joint_labels, rotations

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text()
)["sla"]
Z = jnp.sin(jnp.arange(96.0)).reshape(8, 12)


def test_the_cards_numbers():
    labels = jnp.array(GOLDEN["labels"])
    np.testing.assert_array_equal(joint_labels(labels, 4), GOLDEN["joint_labels"])
    np.testing.assert_allclose(aggregated(Z, 4), GOLDEN["aggregated"], atol=1e-5)
    np.testing.assert_array_equal(aggregated(Z, 1), Z)
    np.testing.assert_array_equal(joint_labels(labels, 1), labels)


def test_views_of_an_image_lie_one_after_the_other():
    x = np.arange(2 * 3 * 3 * 1.0).reshape(2, 3, 3, 1)
    turned = np.asarray(rotations(jnp.array(x)))
    for b in range(2):
        for k in range(4):
            np.testing.assert_array_equal(turned[4 * b + k, ..., 0], np.rot90(x[b, ..., 0], k))
    as_bytes = rotations(jnp.array(x.astype(np.uint8)))
    assert as_bytes.dtype == np.uint8
    np.testing.assert_array_equal(as_bytes, turned)
    with pytest.raises(ValueError, match="takes squares"):
        inspect.unwrap(rotations)(jnp.ones((1, 2, 3, 1)))
    with pytest.raises(ValueError, match="transformations: got 5"):
        aggregated(Z, 5)
