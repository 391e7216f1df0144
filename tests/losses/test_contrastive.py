"""CRD's numbers by its card, its bank, and negatives of other classes only."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.contrastive import log_scores, noise_contrastive, other_classes, updated_bank

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text()
)["crd"]
LOG = jnp.log(jnp.array(GOLDEN["scores"]))


@pytest.mark.slow
def test_the_cards_number_and_directions():
    value = noise_contrastive(LOG, examples=GOLDEN["examples"])
    np.testing.assert_allclose(value.mean(), GOLDEN["loss"], rtol=1e-5)
    slope = jax.grad(lambda z: noise_contrastive(z, examples=10).sum())(LOG)
    assert (slope[:, 0] < 0).all() and (slope[:, 1:] > 0).all()
    far = jnp.array([[-200.0, 200.0, 0.0]])
    value, slope = jax.value_and_grad(lambda z: noise_contrastive(z, examples=10).sum())(far)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_scores_are_of_the_banks_rows_without_gradient_to_it():
    rng = np.random.default_rng(0)
    v, bank = jnp.array(rng.standard_normal((2, 3))), jnp.array(rng.standard_normal((5, 3)))
    index = jnp.array([[4, 0, 0], [1, 3, 2]])
    scores, back = jax.vjp(lambda v, b: log_scores(v, b, index, temperature=0.5), v, bank)
    by_hand = [[v[b] @ bank[i] / 0.5 for i in row] for b, row in enumerate(index)]
    np.testing.assert_allclose(scores, by_hand, rtol=1e-5)
    of_v, of_bank = back(jnp.ones_like(scores))
    assert np.any(of_v != 0) and not np.any(of_bank != 0)


def test_the_bank_moves_half_way_and_keeps_length_one():
    bank = jnp.eye(3)
    v = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    new = updated_bank(bank, jnp.array([0, -1, 2]), v, jnp.array([True, True, False]))
    half = 0.5**0.5
    np.testing.assert_allclose(new, [[half, half, 0], [0, 1, 0], [0, 0, 1]], rtol=1e-6)
    kept = updated_bank(bank, jnp.array([0, 1, 7]), v, momentum=1.0)
    np.testing.assert_array_equal(kept, bank)
    np.testing.assert_allclose(
        updated_bank(bank, jnp.array([0, 1, 2]), v, momentum=0.0), v, rtol=1e-6
    )


def test_negatives_are_of_other_classes_each_as_likely():
    labels = np.array([2, 0, 1, 0, 2, 2, 0])
    draw = other_classes(labels, 4000)
    for label in range(3):
        drawn = np.asarray(draw(jax.random.key(label), jnp.int32(label)))
        others = np.flatnonzero(labels != label)
        counts = np.bincount(drawn, minlength=7)
        assert not counts[labels == label].any()
        np.testing.assert_allclose(counts[others] / 4000, 1 / len(others), atol=0.04)
    with pytest.raises(ValueError, match="labels: got one class"):
        other_classes(np.ones(3, int), 2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="got 1 column, takes a negative"):
        noise_contrastive(LOG[:, :1], examples=10)
    with pytest.raises(ValueError, match="temperature: got 0"):
        log_scores(jnp.ones((1, 2)), jnp.ones((3, 2)), jnp.zeros((1, 2), int), temperature=0.0)
