"""TRG: the card's numbers, symmetries of the graph, tokens that are not there."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.token_graph import adjacency, context, identity, local

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "goldens" / "distillation_vision.json").read_text()
)["token_graph"]
S, T = jnp.array(GOLDEN["student"]), jnp.array(GOLDEN["teacher"])
GRAPH = {"neighbours": GOLDEN["neighbours"], "sigma": GOLDEN["sigma"]}


def test_the_cards_numbers():
    np.testing.assert_allclose(local(S, T, **GRAPH).sum(), GOLDEN["teacher_first"], rtol=1e-5)
    np.testing.assert_allclose(local(T, S, **GRAPH).sum(), GOLDEN["student_first"], rtol=1e-5)
    np.testing.assert_allclose(local(T, T, **GRAPH), 0.0, atol=1e-7)
    turned = T @ jnp.array([[0.0, 1.0], [-1.0, 0.0]]) + 3.0
    np.testing.assert_allclose(adjacency(turned, **GRAPH), adjacency(T, **GRAPH), rtol=1e-5)


@pytest.mark.slow
def test_neighbours_are_others_and_present():
    a = np.asarray(adjacency(T, neighbours=1))
    # The nearest of 0 is 1, of 1 is 0, of 2 is 0, of 3 is 2.
    np.testing.assert_array_equal(np.argwhere(a > 0), [[0, 1], [0, 2], [1, 0], [2, 3]])
    np.testing.assert_allclose(a[0, 2], np.exp(-2.0), rtol=1e-6)
    there = jnp.array([True, True, False, True, True])
    wild_s, wild_t = (jnp.insert(x, 2, jnp.nan, axis=0) for x in (S, T))
    found = local(wild_s, wild_t, there, **GRAPH)
    np.testing.assert_allclose(found[there], local(S, T, **GRAPH), rtol=1e-5)
    found = identity(wild_s, wild_t, there, temperature=0.5)
    np.testing.assert_allclose(found[there], identity(S, T, temperature=0.5), rtol=1e-5)
    with pytest.raises(ValueError, match="neighbours: got 4, takes 1 to 3"):
        adjacency(T, neighbours=4)


def test_identity_and_context():
    x = T.at[0, 0].set(-1.0)
    unit = np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)
    near = np.exp(unit @ unit.T / 0.5)
    want = -np.log(np.diag(near) / near.sum(1))
    np.testing.assert_allclose(identity(x, x, temperature=0.5), want, rtol=1e-5)
    np.testing.assert_allclose(identity(x, x, temperature=1e-3), 0.0, atol=1e-5)
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 2))

    def relations(v):
        z = np.exp(np.einsum("bpd,bqd->bpq", v, v) / v.shape[2] ** 0.5)
        return z / z.sum(2, keepdims=True)

    want = ((relations(s) - relations(t)) ** 2).mean((1, 2))
    np.testing.assert_allclose(context(jnp.array(s), jnp.array(t)), want, rtol=1e-4)
    slope = jax.grad(lambda v: context(v, jnp.array(t)).sum())(jnp.zeros((2, 3, 4)))
    assert np.isfinite(slope).all()
