"""Losses on class logits by their cards: DKD, standardised logits, DIST, MLKD."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.divergences import decoupled_kl, forward_kl
from kd_jax.losses.logits import (
    amplified_target,
    batch_correlation,
    class_correlation,
    inter_class,
    intra_class,
    soft_cross_entropy,
    standardised,
)

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text()
)["logits"]
S, T, Y = (jnp.array(GOLDEN[k]) for k in ("student", "teacher", "labels"))
THIRD = GOLDEN["dist_third_row"]
S3, T3 = (jnp.concatenate([x, jnp.array([THIRD[k]])]) for x, k in ((S, "student"), (T, "teacher")))


def test_decoupled():
    want = GOLDEN["dkd"]
    parts = {}
    for name, weights in (
        ("target", (1.0, 0.0)),
        ("others", (0.0, 1.0)),
        ("total_1_8", (1.0, 8.0)),
    ):
        loss = decoupled_kl(S, T, Y, target=weights[0], others=weights[1], temperature=4.0)
        parts[name] = 16 * loss.mean()
        np.testing.assert_allclose(parts[name], want[name], rtol=1e-5)
    # Coupled by the teacher's mass off the label it is KD.
    rest = 1 - jnp.take_along_axis(jax.nn.softmax(T / 4), Y[:, None], 1)[:, 0]
    coupled = decoupled_kl(S, T, Y, others=rest, temperature=4.0)
    np.testing.assert_allclose(coupled, forward_kl(S, T, temperature=4.0), rtol=1e-5)
    np.testing.assert_allclose(16 * coupled.mean(), want["kd"], rtol=1e-5)
    two = decoupled_kl(S[:, :2], T[:, :2], jnp.zeros(2, int), target=0.0, others=1.0)
    np.testing.assert_allclose(two, 0.0, atol=1e-7)


def test_standardised():
    np.testing.assert_allclose(standardised(S), GOLDEN["standardised"], atol=1e-6)
    loss = 4 * forward_kl(standardised(S), standardised(T), temperature=2.0).mean()
    np.testing.assert_allclose(loss, GOLDEN["standardised_kd_at_2"], rtol=1e-5)
    flat = jnp.full((1, 3), 2.0)
    value, slope = jax.value_and_grad(lambda z: standardised(z)[0, 0])(flat)
    assert value == 0 and np.isfinite(slope).all()
    with pytest.raises(ValueError, match="logits: got 1 class"):
        standardised(S[:, :1])


@given(seed=st.integers(0, 99), size=st.floats(0.2, 5.0), shift=st.floats(-3.0, 3.0))
def test_affine_maps_do_not_count(seed, size, shift):
    rng = np.random.default_rng(seed)
    z, t = jnp.array(rng.standard_normal((2, 3, 4)))
    np.testing.assert_allclose(standardised(size * z + shift), standardised(z), atol=1e-4)
    # DIST sees the teacher's probabilities up to a positive affine map; here of three classes.
    p = jax.nn.softmax(t)
    mixed = jnp.log(0.5 * p + 0.5 / 4)
    np.testing.assert_allclose(inter_class(z, mixed), inter_class(z, t), atol=1e-4)


def test_correlations_between_and_within_classes():
    np.testing.assert_allclose(intra_class(S, T).mean(), GOLDEN["dist_two_rows_intra"], atol=1e-5)
    inter, intra = inter_class(S3, T3).mean(), intra_class(S3, T3).mean()
    np.testing.assert_allclose(inter, THIRD["inter"], rtol=1e-5)
    np.testing.assert_allclose(intra, THIRD["intra"], rtol=1e-5)
    np.testing.assert_allclose(inter + intra, THIRD["sum"], rtol=1e-5)
    flat = jnp.zeros_like(S3)
    for loss in (inter_class, intra_class):
        np.testing.assert_allclose(loss(T3, T3), 0.0, atol=1e-6)
        value, slope = jax.value_and_grad(lambda s, f=loss: f(s, T3).sum())(flat)
        assert np.isfinite(value) and np.isfinite(slope).all()


def test_correlations_on_the_levels_of_batch_and_classes():
    want = GOLDEN["mlkd_at_4"]
    rows, classes = (f(S, T, temperature=4.0) for f in (batch_correlation, class_correlation))
    np.testing.assert_allclose(rows.mean(), want["batch"], rtol=1e-3)
    np.testing.assert_allclose(classes.mean(), want["class"], rtol=1e-4)
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 5, 4))
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(1, keepdims=True) for x in (s, t))
    found = batch_correlation(jnp.array(s), jnp.array(t), temperature=2.0).mean()
    np.testing.assert_allclose(found, ((p @ p.T - q @ q.T) ** 2).sum() / 5, rtol=1e-4)
    found = class_correlation(jnp.array(s), jnp.array(t), temperature=2.0).mean()
    np.testing.assert_allclose(found, ((p.T @ p - q.T @ q) ** 2).sum() / 4, rtol=1e-4)


@pytest.mark.parametrize("loss", [intra_class, batch_correlation, class_correlation])
def test_absent_examples_are_in_no_number(loss):
    there = jnp.array([True, True, False, True])
    wild = [jnp.insert(x, 2, jnp.nan, axis=0) for x in (S3, T3)]
    found = loss(*wild, there)
    kept = found[there] if loss is batch_correlation else found
    np.testing.assert_allclose(kept, loss(S3, T3), rtol=1e-5, atol=1e-7)


def test_amplified_targets():
    for power, want in GOLDEN["ofa"].items():
        value = amplified_target(S, T, Y, power=float(power)).mean()
        np.testing.assert_allclose(value, want, rtol=1e-5)
    soft = soft_cross_entropy(S, jax.nn.softmax(T))
    np.testing.assert_allclose(amplified_target(S, T, (Y + 1) % 3), soft, rtol=1e-5)
    slope = jax.grad(lambda s: amplified_target(s, T, Y).sum())(S)
    np.testing.assert_allclose(slope, jax.nn.softmax(S) - jax.nn.softmax(T), atol=1e-6)


def test_dividing_logits_by_their_own_deviation():
    loss = forward_kl(standardised(S), standardised(T)).mean()
    np.testing.assert_allclose(loss, GOLDEN["standardised_kd_at_1"], rtol=1e-5)
    hard = soft_cross_entropy(S, jax.nn.one_hot(Y, 3))
    np.testing.assert_allclose(hard, cross_entropy(S, Y), rtol=1e-6)
