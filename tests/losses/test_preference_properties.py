"""What holds between preference losses: limits, equalities, what moves them and what does not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.preference_goldens import BATCH, ITERATE, SMOOTHED, ZOO, random_pairs

from kd_jax.losses.preference import apart, free, links, margin, regularised, tokens, transport
from kd_jax.losses.preference.pairs import Pairs, log_ratios, per_token, without_reference
from kd_jax.losses.preference.self_play import inpo, sppo, sppo_hard

few = settings(max_examples=10, derandomize=True, deadline=None)
seeds = st.integers(0, 2**31 - 1)
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def lifted(pairs, by):
    """Both completions as much likelier under the policy."""
    return pairs._replace(
        policy_chosen=pairs.policy_chosen + by, policy_rejected=pairs.policy_rejected + by
    )


OF_THE_MARGIN = [
    *("dpo", "cdpo", "robust_dpo", "ipo_sum", "hinge_dpo", "exo_pair", "discopop", "rdpo_length"),
    *("aot_paired_sorted", "cpo_sigmoid", "inpo", "tdpo1", "tdpo2"),
]
OF_BOTH = [
    *("kto_chosen_plus_rejected", "nca_pair", "apo_zero", "apo_down", "sppo_hard", "sppo_soft"),
    *("bco_pair_nodelta", "dpop", "fdpo_js", "fdpo_forward_kl", "orpo_or_term", "rpo_sumSFT"),
]


def coefficients(loss, pairs):
    """(d_chosen, d_rejected) as the golden file has them."""

    def total(chosen, rejected):
        return loss(pairs._replace(policy_chosen=chosen, policy_rejected=rejected)).sum()

    d_chosen, d_rejected = jax.grad(total, argnums=(0, 1))(*pairs[:2])
    return -d_chosen, d_rejected


@pytest.mark.parametrize("name", OF_THE_MARGIN)
def test_lifting_both_completions_moves_no_loss_of_the_margin(name):
    shift = jnp.array([1.0, -2.0, 0.5, 3.0])
    np.testing.assert_allclose(ZOO[name](lifted(BATCH, shift)), ZOO[name](BATCH), rtol=1e-4)
    d_chosen, d_rejected = coefficients(ZOO[name], BATCH)
    np.testing.assert_allclose(d_chosen, d_rejected, rtol=1e-6)


@pytest.mark.parametrize("name", OF_BOTH)
def test_lifting_both_completions_moves_losses_of_each(name):
    moved = ZOO[name](lifted(BATCH, -5.0))
    assert (jnp.abs(moved - ZOO[name](BATCH)) > 1e-4).all()


@given(seeds)
@few
def test_without_noise_in_the_labels_losses_are_dpo(seed):
    pairs = random_pairs(seed)
    dpo = margin.dpo(pairs, beta=0.3)
    close(margin.cdpo(pairs, beta=0.3, smoothing=0.0), dpo)
    close(margin.robust_dpo(pairs, beta=0.3, flips=0.0), dpo)
    # Labels that are all wrong are those of the pairs the other way round.
    turned = Pairs(pairs[1], pairs[0], pairs[3], pairs[2])
    close(margin.cdpo(pairs, beta=0.3, smoothing=1.0), margin.dpo(turned, beta=0.3))
    # By the definitions, and robust: unbiased for the clean loss under flips.
    e = 0.2
    other = margin.dpo(turned, beta=0.3)
    close(margin.cdpo(pairs, beta=0.3, smoothing=e), (1 - e) * dpo + e * other)
    found, flipped = (margin.robust_dpo(x, beta=0.3, flips=e) for x in (pairs, turned))
    close((1 - e) * found + e * flipped, dpo)


@given(seeds)
@few
def test_special_cases_that_are_dpo(seed):
    pairs = random_pairs(seed)
    dpo = margin.dpo(pairs, beta=0.3)
    none = jnp.zeros(6)
    close(margin.r_dpo(pairs, beta=0.3, alpha=0.0), dpo)
    close(apart.dpop(pairs, beta=0.3, penalty=0.0), dpo)
    close(apart.f_dpo(pairs, apart.power(0.0), beta=0.3), dpo)
    close(tokens.tdpo1(pairs, none, none, beta=0.3), dpo)
    close(tokens.tdpo2(pairs, none, none + 5.0, beta=0.3, alpha=0.0), dpo)
    close(tokens.ld_dpo(pairs, pairs, beta=0.3, alpha=0.3), dpo)
    close(regularised.rpo(pairs, beta=0.3, eta=0.0), dpo)
    close(regularised.rpo_averaged(pairs, beta=0.3, coefficient=0.0), dpo)
    close(free.cpo(pairs, beta=0.3), margin.dpo(without_reference(pairs), beta=0.3))
    # A pair alone has nothing to be sorted with.
    one = jax.tree.map(lambda x: x[:1], pairs)
    for loss in (transport.aot, transport.aot_unpaired):
        close(loss(one, jnp.ones(1), beta=0.3), dpo[:1])


@given(seeds)
@few
def test_scores_of_other_divergences_tend_to_reverse_kl(seed):
    pairs = random_pairs(seed)
    pairs = pairs._replace(policy_chosen=pairs.reference_chosen + 0.3)
    pairs = pairs._replace(policy_rejected=pairs.reference_rejected - 0.2)
    exact = coefficients(partial(apart.f_dpo, score=apart.power(0.0), beta=0.3), pairs)
    for tiny in (1e-4, -1e-4):
        near = coefficients(partial(apart.f_dpo, score=apart.power(tiny), beta=0.3), pairs)
        np.testing.assert_allclose(near, exact, rtol=1e-3)
    alpha = partial(free.alphapo, beta=2.0, gamma=1.0)
    close(alpha(pairs, alpha=1e-4), free.simpo(pairs, beta=2.0, gamma=1.0), rtol=1e-2)


def test_alphapo_by_its_definition():
    p_c = jnp.exp(BATCH.policy_chosen / BATCH.chosen_lengths)
    p_r = jnp.exp(BATCH.policy_rejected / BATCH.rejected_lengths)
    for alpha in (0.5, -0.3):
        gap = ((1 - p_c**-alpha) - (1 - p_r**-alpha)) / alpha
        found = free.alphapo(BATCH, beta=2.0, gamma=0.4, alpha=alpha)
        close(found, -jax.nn.log_sigmoid(2.0 * gap - 0.4))


@given(seeds)
@few
def test_means_over_tokens_give_each_side_its_own_share(seed):
    pairs = random_pairs(seed)
    d_chosen, d_rejected = coefficients(partial(free.simpo, beta=2.0, gamma=1.0), pairs)
    np.testing.assert_allclose(
        d_chosen * pairs.chosen_lengths, d_rejected * pairs.rejected_lengths, rtol=1e-5
    )
    empty = per_token(pairs._replace(chosen_lengths=jnp.zeros(6)))
    np.testing.assert_array_equal(empty.policy_chosen, pairs.policy_chosen)


@given(seeds)
@few
def test_regularisers_add_to_the_gradient_of_the_chosen_alone(seed):
    pairs = random_pairs(seed)
    plain = coefficients(partial(margin.dpo, beta=0.3), pairs)
    more = coefficients(partial(regularised.rpo, beta=0.3, eta=0.5), pairs)
    close(more[0] - plain[0], 0.15)
    np.testing.assert_array_equal(more[1], plain[1])
    mean = coefficients(partial(regularised.rpo_averaged, beta=0.3, coefficient=0.5), pairs)
    close(mean[0] - plain[0], 0.5 / pairs.chosen_lengths)


@given(seeds)
@few
def test_inpo_between_its_two_references(seed):
    pairs, iterate = random_pairs(seed), random_pairs(seed + 1)[:2]
    loss = partial(inpo, pairs, eta=0.4)
    close(loss(*iterate, tau=0.4), margin.ipo(pairs, tau=0.4), rtol=1e-4)
    towards = pairs._replace(reference_chosen=iterate[0], reference_rejected=iterate[1])
    close(loss(*iterate, tau=0.0), margin.ipo(towards, tau=0.4), rtol=1e-4)


def test_sppo_is_least_at_the_iterate_times_its_wins():
    targets = [(0.8 - 0.5) / 0.1, (0.3 - 0.5) / 0.1]
    none = jnp.zeros(1)
    there = Pairs(jnp.array(targets[:1]), jnp.array(targets[1:]), none, none)
    close(sppo(there, 0.8, 0.3, beta=0.1), 0.0)
    close(sppo_hard(BATCH, beta=0.1), 2 * sppo(BATCH, 1.0, 0.0, beta=0.1))
    assert (inpo(BATCH, *ITERATE, eta=0.5, tau=0.1) > 0).all()


def test_links_are_least_where_their_documents_say():
    z = jnp.linspace(-6.0, 6.0, 1201)

    def least(values):
        return float(z[jnp.argmin(values)])

    assert abs(least(links.smoothed(z, smoothing=0.1)) - np.log(9)) < 0.01
    assert abs(least(links.reverse_kl(z, smoothing=0.1)) - np.log(9)) < 0.01
    close(links.reverse_kl(jnp.log(9.0)[None], smoothing=0.1), 0.0)
    assert least(links.squared(z, target=2.0)) == pytest.approx(2.0, abs=0.006)
    assert least(links.hinge(z)) == pytest.approx(1.0, abs=0.006)
    for temperature in (0.05, 1.0):
        m = jax.nn.sigmoid(z / temperature)
        slow = (1 - m) * links.logistic(z) + m * jnp.exp(-z)
        close(links.log_ratio_modulated(z, temperature=temperature), slow, rtol=1e-4)


@pytest.mark.parametrize("loss", [transport.aot, transport.aot_unpaired])
@given(seeds)
@few
def test_sorting_losses_see_no_padding_and_no_order(loss, seed):
    pairs = random_pairs(seed)
    found = loss(pairs, jnp.ones(6), beta=0.3, link=SMOOTHED)
    # Against sorting in NumPy.
    policy, reference = pairs[0] - pairs[1], pairs[2] - pairs[3]
    c, r = log_ratios(pairs)
    a, b = (policy, reference) if loss is transport.aot else (c, r)
    expected = SMOOTHED(0.3 * jnp.asarray(np.sort(a) - np.sort(b)))
    close(np.sort(found), np.sort(expected))
    close(found[np.argsort(a)], expected)
    # Padding pairs of any content, anywhere, change neither values nor gradients.
    rng = np.random.default_rng(seed)
    where = np.sort(rng.permutation(9)[:6])
    junk = [rng.choice([1e6, -1e6, np.nan], 9).astype(np.float32) for _ in pairs]
    wide = Pairs(*(jnp.asarray(x).at[where].set(y) for x, y in zip(junk, pairs, strict=True)))
    weights = jnp.zeros(9).at[where].set(1.0)
    padded, back = jax.vjp(lambda pairs: loss(pairs, weights, beta=0.3, link=SMOOTHED), wide)
    np.testing.assert_array_equal(padded[where], found)
    assert (jnp.delete(padded, where) == 0).all()
    wanted = jax.grad(lambda pairs: loss(pairs, jnp.ones(6), beta=0.3, link=SMOOTHED).sum())(pairs)
    (grads,) = back(jnp.ones(9))
    for name in ("policy_chosen", "policy_rejected"):
        grad = getattr(grads, name)
        close(grad[where], getattr(wanted, name))
        assert (jnp.delete(grad, where) == 0).all()
    # Any order of the pairs is the same batch.
    mix = rng.permutation(6)
    mixed = loss(jax.tree.map(lambda x: x[mix], pairs), jnp.ones(6), beta=0.3, link=SMOOTHED)
    close(mixed, found[mix])


def test_discopop_turns_preferences_round_at_the_reference():
    slope = jax.grad(lambda z: links.log_ratio_modulated(z, temperature=0.05))
    # By hand: m' = 5 takes the exponential's 1 for the logistic's log 2; m = 1/2 of their slopes.
    np.testing.assert_allclose(slope(0.0), 5 * (1 - np.log(2)) - 0.75, rtol=1e-5)
    assert slope(0.0) > 0 > slope(-0.3) and slope(0.5) < 0
