"""Oracles: the card of PortLLM (134): no drift gives the old model; linear in the scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.merging.patches import port, residual_ratio
from kd_jax.models import lora

RNG = np.random.default_rng(0)
ALPHA, RANK = 6.0, 2


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


BASE = {
    "layers": {"q": {"kernel": normal(3, 4, 5), "bias": normal(3, 5)}, "scale": normal(3, 4)},
    "head": normal(4, 6),
}
PATCH = {
    "layers": {"q": {"kernel": {"a": normal(3, 4, RANK), "b": normal(3, RANK, 5)}}},
    "head": {"a": normal(4, RANK), "b": normal(RANK, 6)},
}
UPDATED = jax.tree.map(lambda x: x + 0.1 * normal(*x.shape), BASE)


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_drift_it_is_the_old_model(dtype):
    base = jax.tree.map(lambda x: x.astype(dtype), BASE)
    old = lora.merge(lora.attach(base, PATCH, alpha=ALPHA))
    found = port(base, PATCH, scale=ALPHA / RANK)
    same(found, old)
    assert found["head"].dtype == dtype


def test_by_hand():
    base = {"w": jnp.array([[1.0, 2.0]]), "v": jnp.array([7.0])}
    patch = {"w": {"a": jnp.array([[2.0]]), "b": jnp.array([[3.0, -1.0]])}}
    same(port(base, patch, scale=0.5), {"w": jnp.array([[4.0, 1.0]]), "v": jnp.array([7.0])})


@settings(max_examples=15, deadline=None)
@given(st.floats(-2, 2, width=32))
def test_linear_in_the_scale_which_may_stand_at_either_factor(scale):
    at_one = port(UPDATED, PATCH, scale=1.0)
    found = port(UPDATED, PATCH, scale=scale)
    for path in ("a", "b"):
        scaled = {"head": PATCH["head"] | {path: scale * PATCH["head"][path]}}
        other = port(UPDATED, scaled, scale=1.0)["head"]
        np.testing.assert_allclose(other, found["head"], rtol=1e-4, atol=1e-4)
    expected = jax.tree.map(lambda x, y: x + scale * (y - x), UPDATED, at_one)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )


def test_a_scale_a_layer_and_its_gradient():
    scale = jnp.array([0.0, 1.0, 2.0])[:, None, None]
    patch = {"layers": PATCH["layers"]}
    found = port(UPDATED, patch, scale=scale)["layers"]["q"]["kernel"]
    same(found[0], UPDATED["layers"]["q"]["kernel"][0])
    whole = port(UPDATED, patch, scale=2.0)["layers"]["q"]["kernel"]
    np.testing.assert_allclose(found[2], whole[2], rtol=1e-6)
    grad = jax.jit(jax.grad(lambda s: port(UPDATED, PATCH, scale=s)["head"].sum()))(0.3)
    expected = (PATCH["head"]["a"] @ PATCH["head"]["b"]).sum()
    np.testing.assert_allclose(grad, expected, rtol=1e-5)


def test_residual_ratio_by_hand():
    updated = {"w": jnp.zeros(2), "v": jnp.ones(1)}
    fresh = {"w": jnp.array([3.0, 4.0]), "v": jnp.ones(1)}
    ported = {"w": jnp.array([3.0, 0.0]), "v": jnp.array([4.0])}
    # sqrt(0 + 16 + 9) over sqrt(9 + 16).
    np.testing.assert_allclose(residual_ratio(fresh, ported, updated), 1.0, rtol=1e-6)
    half = {"w": jnp.array([1.5, 2.0]), "v": jnp.ones(1)}
    np.testing.assert_allclose(residual_ratio(fresh, half, updated), 0.5, rtol=1e-6)
    assert residual_ratio(fresh, fresh, updated) == 0
    np.testing.assert_allclose(residual_ratio(fresh, updated, updated), 1.0, rtol=1e-6)


A, B = jnp.ones((4, 1)), jnp.ones((1, 6))


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"tail": {"a": A, "b": B}}, "tail is not in base"),
        ({"head": {"a": A, "b": B[:, :5]}}, r"head is \(4, 1\) @ \(1, 5\), base has \(4, 6\)"),
        ({"head": {"a": A, "b": jnp.ones((2, 6))}}, r"head is \(4, 1\) @ \(2, 6\)"),
        ({"head": {"a": A}}, r"head is \(4, 1\) @ \(\)"),
        ({"head": {"a": A.astype(int), "b": B}}, "head/a is int32"),
        ({}, "it is empty"),
    ],
)
def test_patches_that_do_not_fit(patch, said):
    with pytest.raises(ValueError, match=said):
        port(BASE, patch, scale=1.0)
