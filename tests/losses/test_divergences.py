import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.divergences import forward_kl, reverse_kl

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "distillation.json").read_text())
TOKEN, VISION = GOLDEN["token"], GOLDEN["vision"]
S, T = jnp.array(TOKEN["student"]), jnp.array(TOKEN["teacher"])
BOTH = pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])

seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=15, derandomize=True, deadline=None)


def logits(seed, scale=3.0, shape=(3, 11)):
    s, t = scale * np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    return jnp.asarray(s), jnp.asarray(t)


def test_worked_token():
    np.testing.assert_allclose(forward_kl(S, T), TOKEN["forward_kl"], rtol=1e-5)
    np.testing.assert_allclose(reverse_kl(S, T), TOKEN["reverse_kl"], rtol=1e-5)
    # The cross-entropy form that some codes log as "KL" is larger by the teacher's entropy.
    np.testing.assert_allclose(
        forward_kl(S, T) + TOKEN["teacher_entropy"], TOKEN["cross_entropy_form"], rtol=1e-5
    )
    second = GOLDEN["second_token"]
    np.testing.assert_allclose(
        forward_kl(jnp.array(second["student"]), jnp.array(second["teacher"])),
        second["forward_kl"],
        rtol=1e-5,
    )


@pytest.mark.parametrize("tau", [1, 2, 4])
def test_knowledge_distillation_with_the_factor_of_the_paper(tau):
    s, t = jnp.array(VISION["student"]), jnp.array(VISION["teacher"])
    term = tau**2 * forward_kl(s, t, temperature=float(tau)).mean()
    np.testing.assert_allclose(term, VISION["squared_temperature_times_kl"][str(tau)], rtol=1e-5)
    if tau == 4:
        ce = cross_entropy(s, jnp.array(VISION["labels"])).mean()
        total = VISION["tenth_cross_entropy_and_nine_tenths_kd_at_4"]
        np.testing.assert_allclose(0.1 * ce + 0.9 * term, total, rtol=1e-5)


def test_large_temperature_limit():
    s, t = jnp.array(VISION["student"]), jnp.array(VISION["teacher"])
    centred = (s - s.mean(-1, keepdims=True)) - (t - t.mean(-1, keepdims=True))
    limit = jnp.square(centred).sum(-1).mean() / (2 * s.shape[-1])
    np.testing.assert_allclose(limit, VISION["large_temperature_limit"], rtol=1e-5)
    near = 100.0**2 * forward_kl(s, t, temperature=100.0).mean()
    np.testing.assert_allclose(near, limit, rtol=1e-2)
    assert abs(forward_kl(s, t).mean() - limit) > 0.03


@BOTH
@given(seeds)
@few
def test_at_least_zero_and_zero_where_logits_differ_by_a_constant(divergence, seed):
    s, t = logits(seed)
    assert (divergence(s, t) > 1e-3).all()
    np.testing.assert_allclose(divergence(s, s - 5.0), 0.0, atol=2e-6)


@BOTH
@given(seeds)
@few
def test_shifts_change_nothing(divergence, seed):
    s, t = logits(seed)
    shift = jnp.array([[10.0], [-3.0], [0.5]])
    np.testing.assert_allclose(divergence(s + shift, t - shift), divergence(s, t), rtol=1e-4)


@given(seeds)
@few
def test_reverse_is_forward_with_the_arguments_exchanged(seed):
    s, t = logits(seed)
    np.testing.assert_array_equal(
        reverse_kl(s, t, temperature=2.0), forward_kl(t, s, temperature=2.0)
    )


@jax.jit
def gradients(s, t, tau):
    return (
        jax.grad(lambda s: forward_kl(s, t, temperature=tau).sum())(s),
        jax.grad(lambda s: reverse_kl(s, t, temperature=tau).sum())(s),
        reverse_kl(s, t, temperature=tau),
        jax.nn.log_softmax(t / tau),
        jax.nn.log_softmax(s / tau),
    )


@given(seeds, st.sampled_from([0.5, 1.0, 4.0]))
@few
def test_closed_form_gradients(seed, tau):
    s, t = logits(seed)
    forward, reverse, value, log_p, log_q = gradients(s, t, tau)
    np.testing.assert_allclose(forward, (np.exp(log_q) - np.exp(log_p)) / tau, atol=1e-6)
    expected = np.exp(log_q) * (log_q - log_p - value[:, None]) / tau
    np.testing.assert_allclose(reverse, expected, rtol=1e-4, atol=1e-5)


def test_reverse_gradient_of_the_worked_token():
    grad = jax.grad(lambda s: reverse_kl(s, T))(S)
    np.testing.assert_allclose(grad, TOKEN["reverse_kl_gradient"], atol=1e-6)


def test_classes_the_teacher_excludes_add_nothing():
    # -inf in the teacher alone (forward), and in both: values as if the class did not exist.
    inf = jnp.array([-jnp.inf])
    s5, t5 = jnp.concatenate([S, jnp.array([0.3])]), jnp.concatenate([T, inf])
    value, grads = jax.jit(jax.value_and_grad(forward_kl, (0, 1)))(s5, t5)
    p = jax.nn.softmax(T)
    expected = (p * (jnp.log(p) - jax.nn.log_softmax(s5)[:4])).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_allclose(grads[0], jax.nn.softmax(s5) - jax.nn.softmax(t5), atol=1e-6)
    for divergence in (forward_kl, reverse_kl):
        both = (jnp.concatenate([S, inf]), t5)
        value, grads = jax.jit(jax.value_and_grad(divergence, (0, 1)))(*both)
        np.testing.assert_allclose(value, divergence(S, T), rtol=1e-6)
        assert all(np.isfinite(g).all() for g in grads)


def test_mass_the_student_cannot_reach_is_infinitely_far():
    student = S.at[0].set(-jnp.inf)
    assert forward_kl(student, T) == jnp.inf


@BOTH
def test_half_precision_is_as_good_as_its_rounding(divergence):
    s, t = logits(0, scale=1.0, shape=(4, 64))
    half = divergence(s.astype(jnp.bfloat16), t.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    rounded = divergence(*(x.astype(jnp.bfloat16).astype(jnp.float32) for x in (s, t)))
    np.testing.assert_array_equal(half, rounded)
    np.testing.assert_allclose(
        divergence(S.astype(jnp.bfloat16), T.astype(jnp.bfloat16)), divergence(S, T), atol=1e-3
    )


@BOTH
def test_bad_arguments_are_named(divergence):
    plain = inspect.unwrap(divergence)
    with pytest.raises(ValueError, match=r"teacher_logits: got shape \(3,\)"):
        plain(jnp.zeros((2, 3)), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"temperature: got 0.0"):
        plain(S, T, temperature=0.0)
