"""The rest of torchdistill's set: the card's numbers, zeros at the teacher, finite gradients."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses import features, logits, maps
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.probabilistic import precision_weighted

ALL = json.loads((Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text())
GOLDEN = ALL["features"]
S, T = jnp.array(GOLDEN["student"]), jnp.array(GOLDEN["teacher"])
RNG = np.random.default_rng(0)
MAPS = RNG.standard_normal((2, 2, 4, 4, 3))
A, B = jnp.array(MAPS, jnp.float32)


def test_the_cards_numbers():
    close = np.testing.assert_allclose
    close(features.factor_distance(S, T).mean(), GOLDEN["factor_transfer"], rtol=1e-5)
    close(logits.direction_distance(S, T).mean(), GOLDEN["skd_direction"], rtol=1e-5)
    unit = precision_weighted(S, T, jnp.zeros_like(S))
    close(unit.mean(), GOLDEN["pad_at_unit_variance"], rtol=1e-6)
    srd = features.log_power_distance(S, T)
    close(srd, GOLDEN["srd_log"], rtol=1e-6)
    kl = forward_kl(*(jnp.array(ALL["logits"][k]) for k in ("student", "teacher"))).mean()
    close(2 * srd + kl, GOLDEN["srd_with_kl_at_1"], rtol=1e-6)
    want = ALL["activation_boundary"]
    s, t = jnp.array([want["student"]]), jnp.array([want["teacher"]])
    close(features.activation_boundary(s, t, margin=want["margin"]), [want["loss"]], rtol=1e-6)
    want = ALL["hierarchical_context"]
    f = jnp.arange(16.0).reshape(1, 4, 4, 1)
    g = f.swapaxes(1, 2)
    close(maps.hierarchical_context(f, g), [want["loss"]], rtol=1e-6)
    close(maps.hierarchical_context(f, g, sizes=()), [want["mean_squared_error"]], rtol=1e-6)


def test_maps_by_definition_in_float64():
    a, b = MAPS
    close = np.testing.assert_allclose
    x, y = (v.reshape(2, 16, 3) for v in (a, b))

    def gram(v):
        e = np.einsum("bnc,bnd->bcd", v, v)
        return e / np.linalg.norm(e, axis=2, keepdims=True)

    close(maps.channel_similarity(A, B), ((gram(x) - gram(y)) ** 2).sum((1, 2)) / 3, rtol=1e-4)

    def outer(v, i, c):
        unit = v[i, :, c] / np.linalg.norm(v[i, :, c])
        return np.outer(unit, unit)

    by_hand = [
        sum(np.linalg.norm(outer(x, i, c) - outer(y, i, c)) for c in range(3)) / 16
        for i in range(2)
    ]
    close(maps.affinity(A, B), by_hand, rtol=1e-5)
    small = a.reshape(2, 2, 2, 2, 2, 3).max((2, 4))
    ours = np.einsum("bhwc,bhwd->bcd", small, b[:, ::2, ::2]) / 4
    theirs = np.einsum("bhwc,bhwd->bcd", b, b) / 16
    found = maps.flow(A, B[:, ::2, ::2], B, B)
    close(found, np.linalg.norm(ours - theirs, axis=1).sum(1), rtol=1e-5)
    # Pooled sizes that do not divide: 4 places to 3 are 0-1, 1-2, 2-3.
    error = a - b
    pooled = np.stack([error[:, i : i + 2] for i in range(3)], 1).mean(2)
    pooled = np.stack([pooled[:, :, i : i + 2] for i in range(3)], 2).mean(3)
    by_hand = ((error**2).mean((1, 2, 3)) + (pooled**2).mean((1, 2, 3)) / 2) / 1.5
    close(maps.hierarchical_context(A, B, sizes=(3,)), by_hand, rtol=1e-5)


ZERO_AT_THE_TEACHER = {
    "squared": features.squared_distance,
    "factor": features.factor_distance,
    "factor_3": lambda s, t: features.factor_distance(s, t, power=3),
    "affinity": maps.affinity,
    "channels": maps.channel_similarity,
    "context": maps.hierarchical_context,
    "flow": lambda s, t: maps.flow(s, s, t, t),
    "directions": lambda s, t: logits.direction_distance(s.reshape(2, -1), t.reshape(2, -1)),
}


@pytest.mark.parametrize("name", ZERO_AT_THE_TEACHER)
def test_zero_at_the_teacher_with_finite_gradients(name):
    loss = ZERO_AT_THE_TEACHER[name]
    np.testing.assert_allclose(loss(B, B), 0.0, atol=1e-6)
    assert (loss(A, B) > 1e-4).all()
    zeros = jnp.zeros_like(B)
    both = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).sum()))
    for s, t in ((B, B), (zeros, B), (B, zeros), (zeros, zeros)):
        value, slope = both(s, t)
        assert np.isfinite(value) and np.isfinite(slope).all()


def test_channels_of_zeros_have_the_length_of_the_other():
    np.testing.assert_allclose(maps.affinity(jnp.zeros_like(B), B), 3 / 16, rtol=1e-6)
    np.testing.assert_allclose(maps.affinity(B, jnp.zeros_like(B)), 3 / 16, rtol=1e-6)


def test_what_is_not_zero_at_the_teacher():
    """AB asks for a margin, PAD has its log-variance, SRD has no floor but ours."""
    at = features.activation_boundary(T, T, margin=1.0)
    np.testing.assert_allclose(at, [1.0, 1.0, 1.0])  # each has one 0, on the boundary
    beyond = jnp.array([[5.0, -5.0]])
    np.testing.assert_array_equal(features.activation_boundary(beyond, beyond), 0.0)
    value = precision_weighted(T, T, jnp.full_like(T, -2.0))
    np.testing.assert_allclose(value, -2.0, rtol=1e-6)
    lowest, slope = jax.value_and_grad(features.log_power_distance)(T, T)
    np.testing.assert_allclose(lowest, 4 * np.log(1e-12), rtol=1e-5)
    np.testing.assert_array_equal(slope, 0.0)
    near = features.log_power_distance(1e-9 + jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    np.testing.assert_allclose(near, 4 * np.log(1e-9) + np.log(4), rtol=1e-4)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_norms_of_powers(power):
    s, t = (np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (S, T))
    want = np.linalg.norm(s - t, ord=power, axis=1) / (3 if power == 1 else 1)
    np.testing.assert_allclose(features.factor_distance(S, T, power=power), want, rtol=1e-5)
    there = jnp.array([True, True, False])
    whole = np.linalg.norm(np.asarray(S)[:2].ravel(), ord=power)
    broken = S.at[2].set(jnp.nan)
    np.testing.assert_allclose(features.output_norm(broken, there, power=power), whole, rtol=1e-6)


@pytest.mark.slow
def test_absent_examples_are_in_no_number():
    there = jnp.array([True, False, True, True])
    wild = [jnp.insert(x, 1, jnp.nan, axis=0) for x in (S, T)]
    found = logits.direction_distance(*wild, there)
    np.testing.assert_allclose(found[there], logits.direction_distance(S, T), rtol=1e-5)
    np.testing.assert_allclose(
        features.log_power_distance(*wild, there), features.log_power_distance(S, T), rtol=1e-6
    )
