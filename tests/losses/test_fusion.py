"""Fine-tuning added at decoding time: worked values, what changes nothing, the search by hand."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses import fusion
from kd_jax.losses.fusion import (
    alpha_lines,
    eft_log_probs,
    fused_log_probs,
    fusion_mismatch,
    nucleus,
    solve_alpha,
    within,
)

# Worked out apart from this code, in float64.
BIG = jnp.array([0.5, 1.5, 0.0, -0.5])
SMALL = jnp.array([0.2, 0.4, 0.1, 0.0])
TUNED = jnp.array([1.2, 0.1, 0.0, 0.0])
EXPERT = TUNED[None]
WHOLE = jnp.ones(1)
ONE = alpha_lines(1)


def drawn(seed, *shape, scale=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_the_worked_example_of_eft():
    expected = [0.481220, 0.356497, 0.097157, 0.065126]
    raw = eft_log_probs(BIG, SMALL, TUNED)
    np.testing.assert_allclose(jnp.exp(raw), expected, atol=1e-6)
    logs = eft_log_probs(*(jax.nn.log_softmax(x) for x in (BIG, SMALL, TUNED)))
    np.testing.assert_allclose(logs, raw, atol=1e-6)
    np.testing.assert_allclose(fused_log_probs(BIG, SMALL, EXPERT, WHOLE), raw, atol=1e-6)


@given(st.integers(0, 10_000), st.floats(0, 3))
@settings(max_examples=8)
def test_what_equal_models_and_constants_do(seed, beta):
    big, small, tuned = drawn(seed, 3, 2, 4, 7)
    like = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(
        eft_log_probs(small, small, tuned, beta=beta), log_softmax(tuned), **like
    )
    np.testing.assert_allclose(eft_log_probs(big, small, small), log_softmax(big), **like)
    np.testing.assert_allclose(
        eft_log_probs(big, small, tuned, beta=0.0), log_softmax(tuned), **like
    )
    moved = eft_log_probs(big + 3, small - 2, tuned + 1, beta=beta)
    np.testing.assert_allclose(moved, eft_log_probs(big, small, tuned, beta=beta), **like)
    np.testing.assert_allclose(jnp.exp(moved).sum(-1), 1.0, rtol=1e-5)


@given(st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=8)
def test_a_mix_of_rewards(seed, lam):
    """log p~ = log p + lam r_1 + (1 - lam) r_2 + const, and the order of experts means nothing."""
    big, small, first, second = drawn(seed, 4, 5, 6)
    rewards = [log_softmax(x) - log_softmax(small) for x in (first, second)]
    expected = log_softmax(log_softmax(big) + lam * rewards[0] + (1 - lam) * rewards[1])
    both = jnp.stack([first, second], -2)
    found = fused_log_probs(big, small, both, jnp.array([lam, 1 - lam]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    swapped = fused_log_probs(big, small, both[:, ::-1], jnp.array([1 - lam, lam]))
    np.testing.assert_allclose(swapped, found, rtol=1e-4, atol=1e-4)
    none = fused_log_probs(big, small, both, jnp.zeros(2))
    np.testing.assert_allclose(none, log_softmax(big), rtol=1e-4, atol=1e-4)
    one = fused_log_probs(big, small, both, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(one, eft_log_probs(big, small, second), rtol=1e-4, atol=1e-4)


def test_coefficients_of_each_row():
    big, small, *tuned = drawn(3, 4, 5, 6)
    alpha = jnp.abs(drawn(4, 5, 2))
    found = fused_log_probs(big, small, jnp.stack(tuned, -2), alpha)
    for row in range(5):
        shift = sum(float(alpha[row, n]) * (tuned[n][row] - small[row]) for n in range(2))
        np.testing.assert_allclose(found[row], log_softmax(big[row] + shift), rtol=1e-4, atol=1e-4)


def test_the_nucleus_by_hand():
    z = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]))
    kept = {0.39: [1], 0.41: [1, 3], 0.71: [1, 2, 3], 0.95: [0, 1, 2, 3], 1.0: [0, 1, 2, 3]}
    for top_p, expected in kept.items():
        found = nucleus(z + 7, top_p=top_p)
        np.testing.assert_array_equal(np.flatnonzero(found[0]), expected)
        assert found[1].all()  # equal to the one that crosses
    restricted = within(z, nucleus(z, top_p=0.5))
    np.testing.assert_allclose(jnp.exp(restricted[0]), [0, 4 / 7, 0, 3 / 7], rtol=1e-6)
    np.testing.assert_allclose(restricted[1], z[1], rtol=1e-6)


def test_amplified_where_the_small_model_has_hardly_anything():
    """The last token is one that the small base all but rules out; the big model's nucleus
    lacks it."""
    big, small = jnp.array([2.0, 1.0, -6.0]), jnp.array([2.0, 1.0, -30.0])
    tuned = jnp.array([2.0, 1.0, -28.0])
    free = eft_log_probs(big, small, tuned, beta=2.0)
    assert jnp.exp(free[2]) > 0.99
    kept = jnp.exp(within(free, nucleus(big, top_p=0.95)))
    np.testing.assert_allclose(kept, [*jax.nn.softmax(big[:2]), 0.0], rtol=1e-5)


def test_the_worked_mismatch():
    def same(alpha):
        return fusion_mismatch(SMALL, SMALL, EXPERT, jnp.array([alpha]))

    np.testing.assert_allclose(same(1.0), 0.0, atol=1e-12)
    np.testing.assert_allclose(same(0.5), 0.028444, atol=1e-6)
    np.testing.assert_allclose(same(0.0), 0.048707, atol=1e-6)
    np.testing.assert_allclose(fusion_mismatch(BIG, SMALL, EXPERT, WHOLE), 3.8086e-4, rtol=1e-3)
    np.testing.assert_allclose(solve_alpha(BIG, SMALL, EXPERT, ONE), [1.0], rtol=1e-6)
    # An expert that is the base moves nothing and asks for nothing: the first candidate.
    for alpha in (0.0, 1.3):
        np.testing.assert_allclose(
            fusion_mismatch(BIG, SMALL, SMALL[None], jnp.array([alpha])), 0.0, atol=1e-12
        )
    np.testing.assert_array_equal(solve_alpha(BIG, SMALL, SMALL[None], ONE), [0.0])


def mismatch(big, small, tuned, alpha):
    """As the paper writes it, of one row, in float64."""
    p, q = log_softmax(big), log_softmax(small)
    experts = [log_softmax(x) for x in tuned]
    fused = log_softmax(p + sum(a * (x - q) for a, x in zip(alpha, experts, strict=True)))

    def kl(a, b):
        return (np.exp(a) * (a - b)).sum()

    return sum((kl(fused, p) - kl(x, q)) ** 2 + (kl(p, fused) - kl(q, x)) ** 2 for x in experts)


@pytest.mark.parametrize("candidates", [alpha_lines(2, step=0.5), np.ones((1, 2), np.float32)])
def test_the_search_against_float64(candidates):
    big, small, *tuned = drawn(5, 4, 3, 4, 9, scale=1.0)
    experts = jnp.stack(tuned, -2)
    found = jax.jit(solve_alpha)(big, small, experts, candidates)
    assert found.shape == (3, 4, 2)
    for row in np.ndindex(3, 4):
        values = [mismatch(big[row], small[row], experts[row], alpha) for alpha in candidates]
        np.testing.assert_array_equal(found[row], candidates[int(np.argmin(values))])
        value = fusion_mismatch(big[row], small[row], experts[row], found[row])
        np.testing.assert_allclose(value, min(values), rtol=1e-3, atol=1e-6)
    if len(candidates) > 1:
        assert len(np.unique(np.asarray(found).reshape(-1, 2), axis=0)) > 2


def test_lines_are_one_expert_at_a_time():
    lines = alpha_lines(3, step=0.5, most=1.0)
    expected = [[0, 0, 0], [0.5, 0, 0], [1, 0, 0], [0, 0.5, 0], [0, 1, 0], [0, 0, 0.5], [0, 0, 1]]
    np.testing.assert_array_equal(lines, expected)
    np.testing.assert_allclose(ONE[:, 0], np.arange(21) / 10, rtol=1e-6)


def test_gradients():
    """d log p_y / d tuned = 1[y] - p; coefficients that were solved for have none."""
    found = jax.grad(lambda x: eft_log_probs(BIG, SMALL, x)[1])(TUNED)
    expected = jax.nn.one_hot(1, 4) - jnp.exp(eft_log_probs(BIG, SMALL, TUNED))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    zero = jax.grad(lambda x: solve_alpha(x, SMALL, EXPERT, ONE).sum())(BIG)
    np.testing.assert_array_equal(zero, 0.0)


def test_half_precision_is_worked_in_float32():
    halves = [x.astype(jnp.bfloat16) for x in (BIG, SMALL, TUNED)]
    found = eft_log_probs(*halves)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, eft_log_probs(BIG, SMALL, TUNED), atol=2e-2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda f: f("eft_log_probs")(BIG, SMALL, TUNED[:3]), "tuned_small: got shape"),
        (lambda f: f("fused_log_probs")(BIG, SMALL, TUNED, WHOLE), "tuned_small: got shape"),
        (lambda f: f("fused_log_probs")(BIG, SMALL, EXPERT[:, :3], WHOLE), "tuned_small: got"),
        (lambda f: f("fusion_mismatch")(BIG[:3], SMALL, EXPERT, WHOLE), "base_small: got shape"),
        (lambda f: f("solve_alpha")(BIG, SMALL, EXPERT, alpha_lines(2)), "candidates: got shape"),
        (lambda f: f("solve_alpha")(BIG, SMALL, EXPERT, ONE[:0]), "candidates: got shape"),
        (lambda f: f("nucleus")(BIG, top_p=0.0), "top_p: got 0.0"),
        (lambda f: f("within")(BIG, jnp.ones(3, bool)), "kept: got shape"),
        (lambda f: f("alpha_lines")(0), "experts: got 0"),
        (lambda f: f("alpha_lines")(1, step=3.0), "step: got 3.0"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call(lambda name: inspect.unwrap(getattr(fusion, name)))
