"""ULD: by hand, against its definition in NumPy, and what it must not see."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import TABLE, on_mesh
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.losses.universal import universal_logit_distance as distance
from kd_jax.types import Factored

seeds = st.integers(0, 2**31 - 1)
sizes = st.sampled_from([(7, 7), (7, 11), (11, 7), (1, 7)])


def logits(seed, size, rows=3, scale=3.0):
    rng = np.random.default_rng([seed, size])
    return jnp.asarray(scale * rng.standard_normal((rows, size)), jnp.float32)


def reference(s, t, temperature=1.0):
    """Float64, with the zeros put at the end of the descending order."""

    def softmax(z):
        e = np.exp((np.asarray(z, np.float64) - np.max(z, -1, keepdims=True)) / temperature)
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(t), softmax(s)
    size = max(p.shape[-1], q.shape[-1])
    p, q = (
        np.concatenate([-np.sort(-x), np.zeros((len(x), size - x.shape[-1]))], -1) for x in (p, q)
    )
    return np.abs(p - q).sum(-1)


def test_by_hand():
    """q = (.3, .5, .2) against p = (.4, .6): .1 + .1 + .2; the tokens' places do not matter."""
    s, t = jnp.log(jnp.array([0.3, 0.5, 0.2])), jnp.log(jnp.array([0.4, 0.6]))
    np.testing.assert_allclose(distance(s, t), 0.4, rtol=1e-6)
    np.testing.assert_allclose(distance(t, s), 0.4, rtol=1e-6)


@given(seeds, sizes, st.sampled_from([0.5, 1.0, 4.0]))
def test_is_its_definition(seed, sizes, temperature):
    s, t = logits(seed, sizes[0]), logits(seed + 1, sizes[1])
    found = distance(s, t, temperature=temperature)
    np.testing.assert_allclose(found, reference(s, t, temperature), rtol=1e-5, atol=1e-6)


@given(seeds, sizes)
def test_neither_order_of_tokens_is_seen(seed, sizes):
    s, t = logits(seed, sizes[0]), logits(seed + 1, sizes[1])
    rng = np.random.default_rng(seed)
    mixed = s[:, rng.permutation(sizes[0])], t[:, rng.permutation(sizes[1])]
    np.testing.assert_allclose(distance(*mixed), distance(s, t), rtol=1e-5, atol=1e-6)


@given(seeds, st.floats(-5, 5))
def test_equal_distributions_are_at_no_distance(seed, shift):
    """In another order, with logits moved, and beside tokens that are never drawn."""
    s = logits(seed, 9)
    t = jnp.pad(s[:, ::-1] + shift, [(0, 0), (2, 0)], constant_values=-jnp.inf)
    np.testing.assert_allclose(distance(s, t), 0.0, atol=2e-6)


@given(seeds, sizes)
def test_from_zero_to_two(seed, sizes):
    found = distance(logits(seed, sizes[0], scale=30), logits(seed + 1, sizes[1], scale=0.1))
    assert np.all((found >= 0) & (found <= 2 + 1e-6))


def test_a_sure_teacher_against_a_uniform_student():
    """1 - 1/V for the first and 1/V for each other: 2 (1 - 1/V), and 2 is its limit."""
    s, t = jnp.zeros(400), jnp.zeros(300).at[7].set(1e3)
    np.testing.assert_allclose(distance(s, t), 2 * (1 - 1 / 400), rtol=1e-5)


def test_gradients():
    """q_k (e_k - sum_j q_j e_j), e the sign of q - p at the rank of k; and by differences."""
    s, t = logits(3, 7), logits(4, 5)
    found = jax.grad(lambda s: distance(s, t).sum())(s)
    p, q = (np.asarray(jax.nn.softmax(z), np.float64) for z in (t, s))
    rank = np.argsort(np.argsort(-q, -1), -1)
    at_rank = np.concatenate([-np.sort(-p), np.zeros((3, 2))], -1)
    sign = np.sign(q - np.take_along_axis(at_rank, rank, -1))
    want = q * (sign - (q * sign).sum(-1, keepdims=True))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)

    def total(s, t):
        return distance(jnp.asarray(s), jnp.asarray(t)).sum()

    check_grads(total, (s, t), 1, ["rev"], atol=1e-2, rtol=1e-2)


def test_sixteen_bits_are_widened():
    s, t = logits(0, 7).astype(jnp.bfloat16), logits(1, 9).astype(jnp.bfloat16)
    want = distance(s.astype(jnp.float32), t.astype(jnp.float32))
    np.testing.assert_array_equal(distance(s, t), want)


def test_a_sharded_vocabulary_is_sorted_whole():
    rng = np.random.default_rng(0)
    shapes = (8, 6, 4), (24, 4), (8, 6, 3), (16, 3)
    hidden, unembedding, *other = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes
    )
    weights = jnp.asarray(rng.random((8, 6)) < 0.7, jnp.float32)

    def row(z, others, rows, fixed):
        return distance(z, others[0])

    def summed(hidden, unembedding, states, rows):
        head, others = Factored(hidden, unembedding), (Factored(states, rows),)
        return weighted_sum_over_vocabulary(row, head, weights, others=others, chunk=2).total

    def dense(hidden, unembedding):
        z, t = Factored(hidden, unembedding).logits(), Factored(*other).logits()
        return (weights * distance(z, t)).sum()

    mesh = make_mesh(MeshConfig(tensor=4))
    batch, vocabulary = (NamedSharding(mesh, P(x)) for x in (TABLE["batch"], "tensor"))
    placed = [
        jax.device_put(x, batch if x.ndim == 3 else vocabulary)
        for x in (hidden, unembedding, *other)
    ]
    found = jax.jit(jax.value_and_grad(on_mesh(summed, mesh), (0, 1)))(*placed)
    want = jax.jit(jax.value_and_grad(dense, (0, 1)))(hidden, unembedding)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, want)


def test_refusals():
    plain = inspect.unwrap(distance)
    with pytest.raises(ValueError, match=r"teacher_logits: got shape \(2, 5\), takes \[..., W\]"):
        plain(jnp.zeros((3, 5)), jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="temperature: got 0, takes a number above 0"):
        plain(jnp.zeros((3, 5)), jnp.zeros((3, 5)), temperature=0)
