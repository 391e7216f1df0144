"""VID: the card's numbers, its minimum, and a variance that is trained."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.probabilistic import raw_variance_of, variational_information

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text()
)["vid"]


def test_the_cards_numbers():
    assert raw_variance_of(5.0) == pytest.approx(GOLDEN["raw_variance"], abs=1e-6)
    assert np.isfinite(raw_variance_of(500.0))
    mean, teacher = (jnp.array(GOLDEN[k])[None, :, None] for k in ("mean", "teacher"))
    value = variational_information(mean, teacher, jnp.array([raw_variance_of(5.0)]))
    np.testing.assert_allclose(value, [GOLDEN["loss"]], rtol=1e-5)


def test_smallest_where_the_variance_is_the_squared_error():
    mean, teacher = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 4.0]])
    at = jnp.array([raw_variance_of(0.25), raw_variance_of(4.0)])
    slope = jax.grad(lambda a: variational_information(mean, teacher, a).sum())
    np.testing.assert_allclose(slope(at), 0.0, atol=1e-6)
    assert (slope(at + 0.5) > 0).all() and (slope(at - 0.5) < 0).all()
    exact = variational_information(teacher, teacher, jnp.full(2, raw_variance_of(0.1)))
    assert exact < 0


def test_bad_shapes_are_named():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"raw_variance: got shape \(2,\)"):
        inspect.unwrap(variational_information)(x, x, jnp.ones(2))
    with pytest.raises(ValueError, match=r"variance - eps: got -"):
        raw_variance_of(1e-6)
