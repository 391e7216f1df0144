"""The card's numbers, what leaves each relation as it is, and examples that are not there."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.losses.batch_relations import (
    angles,
    correlation_congruence,
    distances,
    gaussian_kernel,
    probabilities,
    similarities,
)
from kd_jax.losses.features import direction

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text()
)["features"]
S, T = jnp.array(GOLDEN["student"]), jnp.array(GOLDEN["teacher"])
LOSSES = {
    "distances": distances,
    "angles": angles,
    "similarities": similarities,
    "probabilities": probabilities,
    "congruence": correlation_congruence,
}


@pytest.mark.slow
def test_the_cards_numbers():
    d, a = distances(S, T).mean(), angles(S, T).mean()
    np.testing.assert_allclose(d, GOLDEN["rkd_distance"], atol=1e-6)
    np.testing.assert_allclose(a, GOLDEN["rkd_angle"], atol=1e-6)
    np.testing.assert_allclose(25 * d + 50 * a, GOLDEN["rkd_25_50"], rtol=1e-5)
    np.testing.assert_allclose(similarities(S, T).mean(), GOLDEN["sp"], rtol=2e-5)
    np.testing.assert_allclose(probabilities(S, T).mean(), GOLDEN["pkt"], rtol=1e-4)
    norm = correlation_congruence(direction(S), direction(T), kernel=gaussian_kernel(0.4, 2))
    np.testing.assert_allclose(norm / 9, GOLDEN["cc_gaussian_of_directions"], rtol=1e-5)


@pytest.mark.slow
def test_by_definition_in_float64():
    """Independently, one pair and one triple after the other."""
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((5, 2)), rng.standard_normal((5, 4))

    def smooth(e):
        return e * e / 2 if abs(e) < 1 else abs(e) - 0.5

    def far(x):
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        return d / d[d > 0].mean()

    want = [
        [smooth(a - b) for a, b in zip(*r, strict=True)] for r in zip(far(s), far(t), strict=True)
    ]
    np.testing.assert_allclose(distances(jnp.array(s), jnp.array(t)), want, rtol=1e-4, atol=1e-6)

    def cosine(x, i, j, k):
        a, b = x[j] - x[i], x[k] - x[i]
        size = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / size if size else 0.0

    found = angles(jnp.array(s), jnp.array(t))
    for i, j, k in np.ndindex(5, 5, 5):
        expected = smooth(cosine(s, i, j, k) - cosine(t, i, j, k))
        np.testing.assert_allclose(found[i, j, k], expected, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_at_the_teacher_with_finite_gradients_at_doubles_and_zeros(name):
    loss = LOSSES[name]
    np.testing.assert_allclose(loss(T, T), 0.0, atol=1e-6)
    same = T.at[1].set(T[0]).at[2].set(0.0)
    for s, t in ((T, T), (same, T), (T, same), (same, same)):
        value, slope = jax.value_and_grad(lambda s, t: loss(s, t).sum())(s, t)
        assert np.isfinite(value) and np.isfinite(slope).all()
        assert np.abs(slope).max() < 1e3


@pytest.mark.slow
@given(seed=st.integers(0, 99), size=st.floats(0.1, 10.0))
def test_what_leaves_relations_as_they_are(seed, size):
    rng = np.random.default_rng(seed)
    s, t = jnp.array(rng.standard_normal((4, 3))), jnp.array(rng.standard_normal((4, 2)))
    turn = jnp.array(np.linalg.qr(rng.standard_normal((3, 3)))[0])
    moved = size * (s @ turn) + jnp.array(rng.standard_normal(3))[None]
    scaled, each = size * (s @ turn), s * jnp.array(rng.uniform(0.5, 2, (4, 1)))
    close = {"rtol": 1e-3, "atol": 2e-5}
    np.testing.assert_allclose(distances(moved, t), distances(s, t), **close)
    np.testing.assert_allclose(angles(moved, t), angles(s, t), **close)
    np.testing.assert_allclose(similarities(scaled, t), similarities(s, t), **close)
    np.testing.assert_allclose(probabilities(each @ turn, t), probabilities(s, t), **close)


@pytest.mark.parametrize("name", LOSSES)
def test_absent_examples_are_in_no_number(name):
    loss, there = LOSSES[name], jnp.array([True, False, True, True, False])
    wild = [jnp.full((5, 3), jnp.nan).at[jnp.array([0, 2, 3])].set(x) for x in (S, T)]
    alone, found = loss(S, T), loss(*wild, there)
    kept = found[np.ix_(*[[0, 2, 3]] * alone.ndim)] if alone.ndim else found
    np.testing.assert_allclose(kept, alone, rtol=1e-5, atol=1e-7)
    assert np.isfinite(found).all()
    slope = jax.grad(lambda s: loss(s, wild[1], there).sum())(wild[0])
    assert np.isfinite(slope).all()


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="teacher: got 2 examples, takes the student's 3"):
        inspect.unwrap(distances)(S, T[:2])
    with pytest.raises(ValueError, match=r"present: got shape \(1,\)"):
        inspect.unwrap(similarities)(S, T, jnp.ones(1, bool))
