"""Divergences beside the two KL: values of the cards, limits, identities and gradients."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from kd_jax.losses import divergences as d
from kd_jax.losses import top_k

# Worked values of the cards, to 6 decimals: one token, student and teacher.
S, T = jnp.array([1.0, 0.0, -1.0, 0.5]), jnp.array([2.0, 1.0, 0.0, -1.0])
P = np.array([0.643914, 0.236883, 0.087144, 0.032059])
Q = np.array([0.473991, 0.174371, 0.064148, 0.287490])
LOSSES = {
    "forward_kl": d.forward_kl,
    "reverse_kl": d.reverse_kl,
    "jensen_shannon": lambda s, t: d.jensen_shannon(s, t, beta=0.3),
    "skew_forward_kl": lambda s, t: d.skew_forward_kl(s, t, alpha=0.1),
    "skew_reverse_kl": lambda s, t: d.skew_reverse_kl(s, t, alpha=0.1),
    "total_variation": d.total_variation,
    "adaptive_kl": d.adaptive_kl,
    "decoupled_kl": lambda s, t: d.decoupled_kl(s, t, labels(s), others=0.5),
    "top_k_split_kl, forward": lambda s, t: top_k.top_k_split_kl(s, t, k=s.shape[-1]),
}
ALL = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=10, derandomize=True, deadline=None)


def labels(s):
    return jnp.arange(s[..., 0].size).reshape(s.shape[:-1]) % s.shape[-1]


def logits(seed, scale=3.0, shape=(3, 11)):
    s, t = scale * np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    return jnp.asarray(s), jnp.asarray(t)


def test_worked_token():
    for beta, value in ((0.1, 0.021001), (0.5, 0.068438), (0.9, 0.032684)):
        np.testing.assert_allclose(d.jensen_shannon(S, T, beta=beta), value, atol=1e-6)
    np.testing.assert_allclose(d.skew_forward_kl(S, T, alpha=0.1), 0.195121, atol=1e-6)
    np.testing.assert_allclose(d.skew_reverse_kl(S, T, alpha=0.1), 0.262937, atol=1e-6)
    np.testing.assert_allclose(d.total_variation(S, T), 0.255431, atol=1e-6)


def test_limits_of_the_jensen_shannon_divergence():
    with jax.enable_x64():
        s, t = (jnp.asarray(x, jnp.float64) for x in (S, T))
        # In float32 the quotient has three digits: the value itself is of the size of 1e-5.
        np.testing.assert_allclose(d.jensen_shannon(s, t, beta=1e-2) / 1e-2, 0.22465, atol=1e-3)
    np.testing.assert_allclose(
        d.jensen_shannon(S, T, beta=1e-3) / 1e-3, d.forward_kl(S, T), rtol=2e-2
    )
    np.testing.assert_allclose(
        d.jensen_shannon(S, T, beta=1 - 1e-3) / 1e-3, d.reverse_kl(S, T), rtol=2e-2
    )


@given(seeds, st.floats(0.05, 0.95))
@few
def test_the_jensen_shannon_divergence_is_symmetric_and_bounded(seed, beta):
    s, t = logits(seed)
    value = d.jensen_shannon(s, t, beta=beta)
    np.testing.assert_allclose(value, d.jensen_shannon(t, s, beta=1 - beta), rtol=1e-4, atol=1e-6)
    far = d.jensen_shannon(100 * s, 100 * t, beta=0.5)
    assert (far <= np.log(2) + 1e-6).all()


@given(seeds, st.floats(0.01, 0.99))
@few
def test_skew_divergences(seed, alpha):
    s, t = logits(seed)
    assert (d.skew_forward_kl(9 * s, 9 * t, alpha=alpha) <= -np.log(alpha) + 1e-5).all()
    np.testing.assert_allclose(
        d.skew_forward_kl(s, t, alpha=alpha), d.skew_reverse_kl(t, s, alpha=alpha)
    )
    for skew, whole in ((d.skew_forward_kl, d.forward_kl), (d.skew_reverse_kl, d.reverse_kl)):
        np.testing.assert_allclose(skew(s, t, alpha=0.0), whole(s, t), rtol=1e-5)
        ours = jax.grad(lambda s, f=skew: f(s, t, alpha=0.0).sum())(s)
        theirs = jax.grad(lambda s, f=whole: f(s, t).sum())(s)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        value, grad = jax.value_and_grad(lambda s, skew=skew: skew(s, t, alpha=1.0).sum())(s)
        np.testing.assert_allclose(value, 0.0, atol=2e-6)
        np.testing.assert_allclose(grad, 0.0, atol=1e-6)


def test_adaptive_kl_takes_the_gaps_of_the_head_it_means():
    """Against the definition, token by token; the released code mixes two orders."""
    with_teacher = ([2.0, 1.0, 0.0, -1.0], [0.0, 3.0, -2.0, 1.0], [1.0, 0.9, 0.8, 0.7])
    for t in map(np.array, with_teacher):
        p = np.exp(t) / np.exp(t).sum()
        gaps = np.abs(p - Q)
        order = np.argsort(t)
        head = np.zeros(4, bool)
        head[order] = np.cumsum(p[order]) >= 0.5
        released = gaps[np.cumsum(p[order]) >= 0.5].sum() / gaps.sum()
        share = gaps[head].sum() / gaps.sum()
        forward, reverse = (p * np.log(p / Q)).sum(), (Q * np.log(Q / p)).sum()
        expected = share * forward + (1 - share) * reverse
        found = d.adaptive_kl(S, jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        # In the released code the gap of the last token counts as the head's.
        assert abs(released - share) > 0.05
    with pytest.raises(ValueError, match=r"head: got 1.5, takes numbers in \[0, 1\]"):
        d.adaptive_kl(S, T, head=1.5)


def test_decoupled_kl_is_kl_where_it_is_coupled():
    s, t = logits(3)
    y = labels(s)
    chance = jnp.take_along_axis(jax.nn.softmax(t), y[:, None], -1)[:, 0]
    np.testing.assert_allclose(
        d.decoupled_kl(s, t, y, others=1 - chance), d.forward_kl(s, t), rtol=1e-5
    )
    # Of the card: two rows of three classes at temperature 4, with the paper's factor tau^2.
    s, t = jnp.array([[1.0, 2.0, 0.0], [0.5, -1.0, 1.5]]), jnp.array([[3.0, 1.0, 0], [0, -2.0, 2]])
    y = jnp.array([0, 2])
    target, both = (
        16 * d.decoupled_kl(s, t, y, others=others, temperature=4.0).mean() for others in (0.0, 8.0)
    )
    np.testing.assert_allclose(target, 0.498260, atol=1e-5)
    np.testing.assert_allclose(both, 1.102877, atol=1e-5)
    two = d.decoupled_kl(s[:, :2], t[:, :2], jnp.array([0, 1]), others=1.0)
    np.testing.assert_allclose(two, d.forward_kl(s[:, :2], t[:, :2]), rtol=1e-5)


def test_a_label_that_is_none_is_finite():
    grad = jax.grad(lambda s: d.decoupled_kl(s, T, jnp.array(-100), others=0.5))(S)
    assert np.isfinite(grad).all()


@ALL
@given(seeds)
@few
def test_identities(loss, seed):
    s, t = logits(seed)
    value = loss(s, t)
    assert value.shape == (3,) and value.dtype == jnp.float32
    assert (value > 1e-3).all()
    np.testing.assert_allclose(loss(s, s - 5.0), 0.0, atol=3e-6)
    shift = jnp.array([[10.0], [-3.0], [0.5]])
    np.testing.assert_allclose(loss(s + shift, t - shift), value, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(loss(s[:1], t[:1]), value[:1], rtol=1e-5)
    half = loss(s.astype(jnp.bfloat16), t.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    whole = loss(*(x.astype(jnp.bfloat16).astype(jnp.float32) for x in (s, t)))
    np.testing.assert_allclose(half, whole, rtol=1e-6)


@pytest.mark.parametrize("name", [x for x in LOSSES if x not in ("total_variation",)])
def test_gradients(name):
    s, t = logits(5, scale=1.0)
    check_grads(
        lambda s: LOSSES[name](jnp.asarray(s), t), (s,), 1, modes=["rev"], atol=2e-2, rtol=2e-2
    )


@ALL
def test_gradient_is_zero_at_the_teacher(loss):
    t = logits(1)[1]
    grad = jax.grad(lambda s: loss(s, t).sum())(t)
    np.testing.assert_allclose(grad, 0.0, atol=2e-6)


def test_tokens_that_are_never_drawn():
    """A teacher's logit of -inf, the student's too or not."""
    t = T.at[3].set(-jnp.inf)
    for s in (S, S.at[3].set(-jnp.inf), S.at[0].set(-jnp.inf)):
        for loss in (
            lambda s, t: d.jensen_shannon(s, t, beta=0.5),
            lambda s, t: d.skew_forward_kl(s, t, alpha=0.1),
            lambda s, t: d.skew_reverse_kl(s, t, alpha=0.1),
            d.total_variation,
        ):
            value, grad = jax.value_and_grad(loss)(s, t)
            assert np.isfinite(value) and np.isfinite(grad).all()


def test_bad_numbers_are_named():
    for beta in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=r"beta: got .*, takes \(0, 1\)"):
            d.jensen_shannon(S, T, beta=beta)
    with pytest.raises(ValueError, match=r"alpha: got 2.0, takes numbers in \[0, 1\]"):
        d.skew_forward_kl(S, T, alpha=2.0)
    with pytest.raises(ValueError, match=r"teacher_logits: got shape \(3,\)"):
        inspect.unwrap(d.total_variation)(S, T[:3])
    with pytest.raises(ValueError, match="labels: got shape"):
        inspect.unwrap(d.decoupled_kl)(S, T, jnp.array([1]), others=1.0)
