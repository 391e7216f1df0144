import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.losses.classification import cross_entropy, label_log_probs
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.preference.margin import dpo
from kd_jax.losses.preference.pairs import Pairs
from kd_jax.losses.unlearning import (
    answer_preservation,
    gradient_ascent,
    npo,
    npo_weight,
    refusal_preference,
    satimp,
    simnpo,
    simnpo_weight,
    weighted_gradient_ascent,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "unlearning.json").read_text())
NPO = GOLDEN["npo"]
POLICY, REFERENCE = jnp.array(NPO["policy"]), jnp.array(NPO["reference"])


def test_gradient_ascent_is_minus_cross_entropy():
    z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5)), jnp.float32)
    y = jnp.array([[0, 4, 1], [2, 2, 3]])

    def ascent(z):
        return gradient_ascent(label_log_probs(z, y)).sum()

    value, grad = jax.jit(jax.value_and_grad(ascent))(z)
    nll = jax.jit(jax.value_and_grad(lambda z: cross_entropy(z, y).sum()))
    expected, slope = nll(z)
    np.testing.assert_allclose(value, -expected, rtol=1e-6)
    np.testing.assert_allclose(grad, -slope, rtol=1e-6)
    # One small step of descent on it raises the forget NLL by the step times the squared norm.
    step = 1e-2
    raised = nll(z - step * grad)[0] - expected
    np.testing.assert_allclose(raised, step * jnp.square(grad).sum(), rtol=2e-2)


def test_kl_retain():
    case = GOLDEN["kl_retain"]
    kl = forward_kl(jnp.array(case["current"]), jnp.array(case["reference"]))
    np.testing.assert_allclose(kl.mean(), case["mean"], rtol=1e-5)


def test_dpo_towards_a_refusal():
    case = GOLDEN["dpo_refusal"]
    names = ["chosen", "rejected", "reference_chosen", "reference_rejected"]
    arrays = [jnp.array(case[name]) for name in names]
    loss = refusal_preference(*arrays, beta=case["beta"])
    np.testing.assert_allclose(loss, case["two_over_beta_times_dpo"], rtol=1e-5)
    np.testing.assert_allclose(loss.mean(), case["mean"], rtol=1e-5)
    same = refusal_preference(*arrays[:2], *arrays[:2], beta=case["beta"])
    np.testing.assert_allclose(same, case["at_the_reference"], rtol=1e-6)


def test_npo_values_and_weights():
    case = NPO["beta_0.1"]
    loss = npo(POLICY, REFERENCE, beta=0.1)
    assert loss.shape == (3,)
    np.testing.assert_allclose(loss, case["values"], rtol=1e-5)
    np.testing.assert_allclose(loss.mean(), case["mean"], rtol=1e-5)
    weights = npo_weight(POLICY, REFERENCE, beta=0.1)
    np.testing.assert_allclose(weights, case["weights"], atol=1e-6)
    case = NPO["beta_1"]
    np.testing.assert_allclose(npo(POLICY, REFERENCE, beta=1.0).mean(), case["mean"], rtol=1e-5)
    weights = npo_weight(POLICY, REFERENCE, beta=1.0)
    np.testing.assert_allclose(weights, case["weights"], atol=1e-6)


@pytest.mark.parametrize("beta", [1e-4, 0.1, 10.0])
def test_npo_at_the_reference(beta):
    np.testing.assert_allclose(npo(POLICY, POLICY, beta=beta), 2 / beta * np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(npo_weight(POLICY, POLICY, beta=beta), 1.0)


def test_npo_becomes_gradient_ascent_as_beta_falls():
    beta, case = 1e-4, NPO["beta_0.0001"]
    less = npo(POLICY, REFERENCE, beta=beta).mean() - 2 / beta * np.log(2)
    # The constant is 13863, of which float32 keeps 1e-3.
    np.testing.assert_allclose(less, case["mean_less_constant"], atol=2e-3)
    np.testing.assert_allclose(case["limit"], (POLICY - REFERENCE).mean(), rtol=1e-6)
    grad = jax.grad(lambda lp: npo(lp, REFERENCE, beta=beta).sum())(POLICY)
    np.testing.assert_allclose(grad, 1.0, atol=2e-3)


npo_and_gradient = jax.jit(
    jax.value_and_grad(lambda policy, reference, beta: npo(policy, reference, beta=beta).sum())
)


@given(st.floats(-4, 1), st.floats(-3e3, 3e3, width=32), st.floats(-3e3, 0, width=32))
@settings(max_examples=25, derandomize=True, deadline=None)
def test_npo_is_stable_and_its_gradient_is_the_weight(log_beta, ratio, reference):
    beta = 10.0**log_beta
    policy, reference = jnp.array([ratio + reference]), jnp.array([reference])
    value, grad = npo_and_gradient(policy, reference, beta)
    r = np.float64(policy[0]) - np.float64(reference[0])
    np.testing.assert_allclose(value, 2 / beta * np.logaddexp(0, beta * r), rtol=1e-4, atol=1e-30)
    assert value >= 0
    np.testing.assert_allclose(grad, npo_weight(policy, reference, beta=beta), rtol=1e-5)
    assert 0 <= grad[0] <= 2 * (1 + 1e-6)


def test_npo_is_dpo_without_the_winner():
    zeros = jnp.zeros(3)
    np.testing.assert_allclose(
        npo(POLICY, REFERENCE, beta=0.3),
        2 / 0.3 * dpo(Pairs(zeros, POLICY, zeros, REFERENCE), beta=0.3),
        rtol=1e-6,
    )


def test_npo_diverges_logarithmically_where_gradient_ascent_diverges_linearly():
    case = GOLDEN["trajectories"]
    start = jnp.array([jax.nn.log_sigmoid(0.0)])

    def path(loss):
        def descend(z, _):
            z = z - 0.1 * jax.grad(lambda z: loss(jax.nn.log_sigmoid(z)[None]).sum())(z)
            return z, z

        _, zs = jax.jit(lambda: jax.lax.scan(descend, jnp.float32(0), length=1000))()
        return zs[np.array(case["steps"]) - 1]

    ascent = path(lambda lp: gradient_ascent(lp[None]))
    np.testing.assert_allclose(ascent, case["gradient_ascent"], rtol=2e-4)
    for beta, name in ((1.0, "npo_beta_1"), (0.1, "npo_beta_0.1")):
        np.testing.assert_allclose(
            path(lambda lp, beta=beta: npo(lp, start, beta=beta)), case[name], rtol=2e-4
        )


def test_weighted_ascent_values():
    case = GOLDEN["weighted_ascent"]
    lp = -jnp.array([case["nll"]])
    found = weighted_gradient_ascent(lp, beta=1.0)
    np.testing.assert_allclose(found / lp, [case["wga_weights"]], rtol=1e-5)
    np.testing.assert_allclose(found.mean(), case["wga_mean"], rtol=1e-5)
    np.testing.assert_array_equal(weighted_gradient_ascent(lp, beta=0.0), gradient_ascent(lp))
    found = satimp(lp, beta_1=5.0, beta_2=1.0)
    np.testing.assert_allclose(found.mean(), case["satimp_mean"], rtol=1e-4)  # 4 digits given
    np.testing.assert_array_equal(
        satimp(lp, beta_1=0.7, beta_2=0.0), weighted_gradient_ascent(lp, beta=0.7)
    )


def test_weights_of_ascent_are_stopped_and_finite_at_the_ends():
    # Certain, beyond certain by rounding, usual, hopeless.
    lp = jnp.array([[0.0, 1e-7, -1.0, -200.0]])
    p = np.exp(np.minimum(np.float64(lp), 0.0))
    for loss, weight in (
        (lambda x: weighted_gradient_ascent(x, beta=0.5), p**0.5),
        (lambda x: satimp(x, beta_1=2.0, beta_2=0.5), p**2 * (1 - p) ** 0.5),
    ):
        grad = jax.grad(lambda x, loss=loss: loss(x).sum())(lp)
        np.testing.assert_allclose(grad, weight, rtol=1e-5, atol=1e-30)


def test_simnpo_values():
    nll, tokens = jnp.array([6.0, 40.0]), jnp.array([12.0, 10.0])
    for case in GOLDEN["simnpo"]:
        beta, delta = case["beta"], case["delta"]
        loss = simnpo(-nll, tokens, beta=beta, delta=delta)
        np.testing.assert_allclose(loss, case["values"], atol=1e-6)
        np.testing.assert_allclose(loss.mean(), case["mean"], atol=1e-6)
        # Worked out from the definition, in float64.
        margin = np.float64(nll) / np.float64(tokens) - delta
        expected = 2 / beta * np.log1p(np.exp(-beta * margin))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        weight = 2 / (1 + np.exp(beta * margin)) / np.float64(tokens)
        found = simnpo_weight(-nll, tokens, beta=beta, delta=delta)
        np.testing.assert_allclose(found, weight, rtol=1e-5)


def test_simnpo_is_npo_of_a_token_with_a_constant_reference():
    tokens = jnp.array([3.0, 5.0, 1.0])
    found = simnpo(POLICY, tokens, beta=0.7, delta=2.0)
    expected = npo(POLICY / tokens, jnp.full(3, -2.0), beta=0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_simnpo_gradient_is_its_weight_and_rows_without_tokens_are_finite():
    logp, tokens = jnp.array([-6.0, -40.0, 0.0]), jnp.array([12.0, 10.0, 0.0])

    def total(x):
        return simnpo(x, tokens, beta=2.5, delta=0.5).sum()

    value, grad = jax.value_and_grad(total)(logp)
    assert np.isfinite(value)
    np.testing.assert_allclose(grad, simnpo_weight(logp, tokens, beta=2.5, delta=0.5), rtol=1e-5)
    # Twice the tokens at twice the sum is the same sentence to SimNPO, and half the pull a token.
    doubled = simnpo_weight(2 * logp, 2 * tokens, beta=2.5, delta=0.5)
    np.testing.assert_allclose(doubled[:2], grad[:2] / 2, rtol=1e-5)


def test_answer_preservation():
    answer, refusal = jnp.array([-8.0, -30.0, -5.0]), jnp.array([-20.0, -10.0, -5.0])
    found = answer_preservation(answer, refusal, beta=0.1)
    # -(1 / beta) log sigmoid(beta (log p(answer) - log p(refusal))) in float64.
    margin = np.array([12.0, -20.0, 0.0])
    np.testing.assert_allclose(found, 10 * np.log1p(np.exp(-0.1 * margin)), rtol=1e-5)
    # It falls as the answer gains on the refusal; a refusal in front costs what it is in front by.
    assert found[0] < 10 * np.log(2) < found[1]
    far = answer_preservation(jnp.array([-900.0]), jnp.array([-100.0]), beta=0.1)
    np.testing.assert_allclose(far, 800.0, rtol=1e-6)


def test_bad_arguments_are_named():
    for loss in (npo, npo_weight):
        with pytest.raises(ValueError, match="beta: got -0.1"):
            loss(POLICY, REFERENCE, beta=-0.1)
        with pytest.raises(ValueError, match=r"reference_logp: got shape \(1,\)"):
            inspect.unwrap(loss)(POLICY, REFERENCE[:1], beta=0.1)
    for loss in (simnpo, simnpo_weight):
        with pytest.raises(ValueError, match="beta: got 0"):
            loss(POLICY, -POLICY, beta=0)
        with pytest.raises(ValueError, match=r"tokens: got shape \(1,\)"):
            inspect.unwrap(loss)(POLICY, -POLICY[:1], beta=1.0)
    with pytest.raises(ValueError, match="beta: got -1"):
        weighted_gradient_ascent(POLICY[None], beta=-1)
    with pytest.raises(ValueError, match="beta_1: got -1"):
        satimp(POLICY[None], beta_1=-1, beta_2=1)
    with pytest.raises(ValueError, match="beta_2: got -1"):
        satimp(POLICY[None], beta_1=1, beta_2=-1)
    with pytest.raises(ValueError, match="beta: got 0"):
        answer_preservation(POLICY, POLICY, beta=0)
    with pytest.raises(ValueError, match="beta: got 0"):
        refusal_preference(POLICY, POLICY, POLICY, POLICY, beta=0)
