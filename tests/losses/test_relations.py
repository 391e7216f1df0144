"""Relations between positions: the definition in float64, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.relations import relation_kl

B, T = 2, 7
RNG = np.random.default_rng(0)
S = jnp.asarray(RNG.standard_normal((B, T, 2, 6)), jnp.float32)
P = jnp.asarray(RNG.standard_normal((B, T, 4, 4)), jnp.float32)


def by_hand(s, t, heads):
    """Loops over everything."""
    s, t = (np.asarray(x, np.float64).reshape(B, T, heads, -1) for x in (s, t))
    found = np.zeros((B, T))
    for b in range(B):
        for i in range(T):
            for r in range(heads):
                rows = []
                for x in (s, t):
                    scores = x[b, : i + 1, r] @ x[b, i, r] / np.sqrt(x.shape[-1])
                    e = np.exp(scores - scores.max())
                    rows.append(e / e.sum())
                found[b, i] += (rows[1] * np.log(rows[1] / rows[0])).sum() / heads
    return found


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("heads", [1, 4])
def test_the_definition_whatever_the_pieces(heads, chunk):
    found = relation_kl(S, P, heads=heads, chunk=chunk)
    np.testing.assert_allclose(found, by_hand(S, P, heads), rtol=1e-4, atol=1e-6)


def test_the_same_relations_are_0_with_no_gradient():
    value, grad = jax.value_and_grad(lambda s: relation_kl(s, S, heads=2).sum())(S)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    np.testing.assert_allclose(grad, 0.0, atol=1e-6)
    turned = jnp.asarray(np.linalg.qr(RNG.standard_normal((12, 12)))[0], jnp.float32)
    other = (S.reshape(B, T, 12) @ turned).reshape(S.shape)
    np.testing.assert_allclose(relation_kl(other, S, heads=1), 0.0, atol=1e-5)


def test_nothing_later_and_no_other_segment_is_seen():
    found = relation_kl(S, P, heads=2)
    later = relation_kl(S.at[:, 4:].set(9.0), P, heads=2)
    np.testing.assert_allclose(later[:, :4], found[:, :4], rtol=1e-5, atol=1e-6)
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 0]] * B)
    packed = relation_kl(S, P, heads=2, segments=segments, chunk=4)
    alone = relation_kl(S[:, 3:6], P[:, 3:6], heads=2)
    np.testing.assert_allclose(packed[:, 3:6], alone, rtol=1e-4, atol=1e-6)
    assert np.isfinite(packed).all()


def test_gradient_against_differences():
    def loss(s):
        return relation_kl(s, P, heads=2, chunk=3).sum()

    direction = jnp.asarray(RNG.standard_normal(S.shape), jnp.float32)
    step = 1e-2
    expected = (loss(S + step * direction) - loss(S - step * direction)) / (2 * step)
    np.testing.assert_allclose((jax.grad(loss)(S) * direction).sum(), expected, rtol=2e-3)


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="heads: got 5, takes a number that divides the student's"):
        relation_kl(S, P, heads=5)
