"""Golden values, gradients and special cases of every preference loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.preference_goldens import AT_REFERENCE, BASELINE, BATCH, GOLDEN, ITERATE, ZOO

from kd_jax.losses.preference import apart, free, links, margin, regularised
from kd_jax.losses.preference.margin import dpo
from kd_jax.losses.preference.pairs import Pairs
from kd_jax.losses.preference.self_play import inpo
from kd_jax.losses.preference.unpaired import kto


def test_every_golden_loss_is_here():
    logic = {name for name in GOLDEN["losses"] if name.startswith("logic_")}
    assert set(ZOO) == set(GOLDEN["losses"]) - logic


@pytest.mark.parametrize("name", ZOO)
def test_golden_batch(name):
    case = GOLDEN["losses"][name]

    def total(chosen, rejected):
        loss = ZOO[name](BATCH._replace(policy_chosen=chosen, policy_rejected=rejected))
        return loss.sum(), loss

    (_, loss), grads = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(*BATCH[:2])
    assert loss.shape == (4,) and loss.dtype == jnp.float32
    expected = case["per_pair"]
    if name.startswith("aot"):  # the golden values stand in sorted order, ours at their pairs
        loss, expected = jnp.sort(loss), sorted(expected)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss.mean(), case["mean"], rtol=1e-5, atol=1e-5)
    # A share of -44 rounds to 4e-6 in float32, and INPO's reference is a sum of shares.
    atol = 1e-5 if name == "inpo" else 2e-6
    np.testing.assert_allclose(-grads[0], case["d_chosen"], rtol=1e-5, atol=atol)
    np.testing.assert_allclose(grads[1], case["d_rejected"], rtol=1e-5, atol=atol)


def test_golden_means_of_the_batch():
    golden = GOLDEN["batch"]
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    nll = regularised.sft(BATCH).sum() / BATCH.chosen_lengths.sum()
    close(nll, golden["nll_token_mean_over_batch"])
    close(nll + ZOO["orpo_or_term"](BATCH).mean(), golden["orpo_total_completion_only"])
    close(nll + ZOO["cpo_sigmoid"](BATCH).mean(), golden["cpo_total_alpha1"])
    averaged = regularised.rpo_averaged(BATCH, beta=0.1, coefficient=0.2)
    close(averaged.mean(), golden["rpo_avgSFT_coef0.2"])
    close(ZOO["kto_chosen_plus_rejected"](BATCH).mean() / 2, golden["kto_trl_mean_over_8"])
    close(ZOO["bco_first_batch_delta"](BATCH).mean() / 2, golden["bco_trl_mean_over_8"])
    mixed = regularised.mixture((0.8, ZOO["dpo"]), (0.2, ZOO["bco_pair_nodelta"]))
    close(mixed(BATCH).mean() + nll, golden["mpo_0.8dpo_0.2bco_1.0sft"])


@pytest.mark.parametrize("name", AT_REFERENCE)
def test_at_the_reference(name):
    at = BATCH._replace(policy_chosen=BATCH.reference_chosen)
    at = at._replace(policy_rejected=BATCH.reference_rejected)
    np.testing.assert_allclose(ZOO[name](at), AT_REFERENCE[name], rtol=1e-5)


def test_kto_is_a_half_a_row_at_the_reference_and_a_baseline_below_zero_counts_as_zero():
    x = jnp.zeros(3)
    desirable = jnp.array([True, False, True])
    for baseline in (0.0, -4.0):
        np.testing.assert_allclose(kto(x, desirable, baseline, beta=0.1), 0.5)
    heavy = kto(x, desirable, 0.0, beta=0.1, desirable_weight=2.0, undesirable_weight=3.0)
    np.testing.assert_allclose(heavy, [1.0, 1.5, 1.0])
    # The baseline is a statistic: nothing is learnt through it.
    slope = jax.grad(lambda z: kto(x, desirable, z, beta=0.1).sum())(BASELINE)
    assert slope == 0


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("far", [-2000.0, 2000.0])
def test_extremes_have_finite_values_and_gradients(name, far):
    # A policy that finds one side certain (log-probability 0) and the other impossible.
    sides = (jnp.zeros(4), jnp.full(4, -abs(far)))
    chosen, rejected = sides if far > 0 else sides[::-1]
    reference = jnp.full(4, -30.0)
    pairs = BATCH._replace(reference_chosen=reference, reference_rejected=reference)

    def total(chosen, rejected):
        moved = pairs._replace(policy_chosen=chosen, policy_rejected=rejected)
        return ZOO[name](moved).sum()

    value, grads = jax.value_and_grad(total, argnums=(0, 1))(chosen, rejected)
    assert np.isfinite(value) and np.isfinite(grads).all()


def test_losses_far_from_the_reference():
    # A margin of -10000 at beta 1 is a loss of 10000, and its gradient is finite.
    far = jnp.full(4, -1e4)
    none = jnp.zeros(4)
    value, grad = jax.value_and_grad(lambda c: dpo(Pairs(c, none, none, none), beta=1.0).sum())(far)
    np.testing.assert_allclose(value, 4e4, rtol=1e-6)
    np.testing.assert_allclose(grad, -1.0, rtol=1e-6)
    # DiscoPOP is logistic there, though its exponential part alone overflows.
    disco = margin.discopop(Pairs(far, none, none, none), beta=1.0)
    np.testing.assert_allclose(disco, 1e4, rtol=1e-6)


def test_ranking_of_many_candidates():
    scores = jnp.array([[-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5]])
    rewards = jnp.array([[3.0, 1.0, 2.0], [3.0, jnp.nan, 2.0]])
    # By hand: only the third, which scores 0.5 above the first, stands above a better one.
    np.testing.assert_allclose(free.rrhf_ranking(scores, rewards), [0.5, 0.5])
    turned = free.rrhf_ranking(scores, -rewards)
    np.testing.assert_allclose(turned, [1.0 + 1.5, 0.0])
    # Two candidates are the pair's form.
    means = jnp.stack(
        [
            BATCH.policy_chosen / BATCH.chosen_lengths,
            BATCH.policy_rejected / BATCH.rejected_lengths,
        ],
        1,
    )
    ranked = free.rrhf_ranking(means, jnp.tile(jnp.array([1.0, 0.0]), (4, 1)))
    np.testing.assert_allclose(ranked, free.rrhf(BATCH), rtol=1e-6)


def test_a_length_penalty_is_a_power():
    by_root = free.rrhf(BATCH, length_penalty=0.5)
    c = BATCH.policy_chosen / BATCH.chosen_lengths**0.5
    r = BATCH.policy_rejected / BATCH.rejected_lengths**0.5
    np.testing.assert_allclose(by_root, jnp.maximum(r - c, 0.0), rtol=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="beta: got 0"):
        dpo(BATCH, beta=0)
    with pytest.raises(ValueError, match=r"reference_chosen: got shape \(2,\)"):
        dpo(BATCH._replace(reference_chosen=jnp.zeros(2)), beta=0.1)
    with pytest.raises(ValueError, match="pairs: got no reference_chosen, reference_rejected"):
        dpo(BATCH._replace(reference_chosen=None, reference_rejected=None), beta=0.1)
    with pytest.raises(ValueError, match="pairs: got no chosen_lengths"):
        free.simpo(BATCH._replace(chosen_lengths=None), beta=2.0, gamma=0.5)
    with pytest.raises(ValueError, match=r"flips: got 0.5, takes numbers in \[0, 0.5\)"):
        margin.robust_dpo(BATCH, beta=0.1, flips=0.5)
    with pytest.raises(ValueError, match=r"smoothing: got 0.0, takes numbers in \(0, 1\)"):
        links.reverse_kl(jnp.zeros(2), smoothing=0.0)
    with pytest.raises(ValueError, match="parts: got none"):
        regularised.mixture()
    with pytest.raises(ValueError, match="tau / eta: got 2"):
        inpo(BATCH, *ITERATE, eta=0.1, tau=0.2)
    with pytest.raises(ValueError, match="penalty: got -1"):
        apart.dpop(BATCH, beta=0.1, penalty=-1)
