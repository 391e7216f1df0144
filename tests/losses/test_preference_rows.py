"""Preference losses of rows, of tokens and of a sorted batch: what they read and what not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.preference_goldens import ALL, BATCH, random_pairs

from kd_jax.losses._logs import log1mexp
from kd_jax.losses.preference import apart, margin, tokens, transport
from kd_jax.losses.preference.pairs import log_ratios
from kd_jax.losses.preference.unpaired import bco, kto

few = settings(max_examples=10, derandomize=True, deadline=None)
seeds = st.integers(0, 2**31 - 1)
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def test_unpaired_dominance_reads_no_pairing():
    turned = jnp.array([2, 0, 3, 1])
    other = BATCH._replace(
        policy_rejected=BATCH.policy_rejected[turned],
        reference_rejected=BATCH.reference_rejected[turned],
    )
    found, again = (transport.aot_unpaired(x, ALL, beta=0.1) for x in (BATCH, other))
    close(found, again)
    assert (
        jnp.abs(transport.aot(BATCH, ALL, beta=0.1) - transport.aot(other, ALL, beta=0.1)).max()
        > 0.01
    )


@given(seeds)
@few
def test_rows_without_pairs(seed):
    c, r = log_ratios(random_pairs(seed))
    rows, desirable = jnp.concatenate([c, r]), jnp.arange(12) < 6
    found = bco(rows, desirable, 0.0, beta=0.3)
    close(found[:6] + found[6:], apart.bco_pair(random_pairs(seed), beta=0.3))
    # A shift of the rewards moves the point that divides them.
    close(bco(rows, desirable, 0.6, beta=0.3), bco(rows - 2.0, desirable, 0.0, beta=0.3))
    close(kto(rows, desirable, 2.0, beta=0.3), kto(rows - 2.0, desirable, 0.0, beta=0.3))
    zero = kto(rows, desirable, 0.0, beta=0.3)
    close(zero[:6] + zero[6:], apart.apo_zero(random_pairs(seed), beta=0.3))
    # 0 and 1 mark rows as well as booleans do.
    close(kto(rows, desirable.astype(jnp.int32), 0.0, beta=0.3), zero)


@given(seeds)
@few
def test_tails_count_in_part(seed):
    pairs, shared = random_pairs(seed), random_pairs(seed + 1)
    found = tokens.ld_dpo(pairs, shared, beta=0.3, alpha=0.25)
    mixed = jax.tree.map(lambda full, part: part + 0.25 * (full - part), pairs, shared)
    close(found, margin.dpo(mixed, beta=0.3), rtol=1e-4)
    close(tokens.ld_dpo(pairs, shared, beta=0.3, alpha=0.0), margin.dpo(shared, beta=0.3))


def test_tdpo_learns_through_the_kl_of_the_rejected_alone_in_its_second_form():
    kl = jnp.array([0.3, 0.5, 0.1, 1.0])

    def slopes(loss):
        return jax.grad(lambda c, r: loss(BATCH, c, r, beta=0.1).sum(), (0, 1))(kl, 2 * kl)

    first, second = slopes(tokens.tdpo1), slopes(tokens.tdpo2)
    assert (first[0] < 0).all() and (first[1] > 0).all()
    assert (second[0] == 0).all() and (second[1] > 0).all()


def test_weights_of_a_policys_own_completions():
    # A uniform policy over 4 tokens: log p_t = log sum p^2 = -log 4, so that every weight is 1.
    flat = jnp.zeros((2, 3, 4))
    collisions = tokens.log_collision(flat)
    np.testing.assert_allclose(collisions, -np.log(4), rtol=1e-6)
    log_probs = jnp.full((2, 3), -np.log(4.0))
    ones = jnp.ones((2, 3))
    np.testing.assert_allclose(tokens.wpo_weight(log_probs, collisions, ones), 1.0, rtol=1e-6)
    # By hand, with padding that is not a number: exp of the mean of (-1, 0.5) is exp(-0.25).
    log_probs = jnp.array([[-2.0, -0.5, jnp.nan], [jnp.nan] * 3])
    collisions = jnp.array([[-1.0, -1.0, jnp.nan], [jnp.nan] * 3])
    mask = jnp.array([[1.0, 2.0, 0.0], [0.0] * 3])
    found = tokens.wpo_weight(log_probs, collisions, mask)
    np.testing.assert_allclose(found, [np.exp(-0.25), 1.0], rtol=1e-6)
    assert (jax.grad(lambda x: tokens.wpo_weight(x, collisions, mask).sum())(log_probs) == 0).all()


def test_log1mexp_near_both_ends():
    x = np.array([-1e-5, -1e-3, -0.5, -0.69, -0.7, -3.0, -20.0, -90.0])
    np.testing.assert_allclose(log1mexp(jnp.array(x)), np.log(-np.expm1(x)), rtol=2e-5)
    edge = jnp.array([0.0, 1e-7, -1e-30, -1e9, -jnp.inf])
    value, slope = jax.vmap(jax.value_and_grad(log1mexp))(edge)
    assert np.isfinite(value).all() and np.isfinite(slope).all()
    np.testing.assert_allclose(value[3:], 0.0)
