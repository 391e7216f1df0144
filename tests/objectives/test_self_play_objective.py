"""INPO: the laws of all objectives, the loss itself, and references read as they are stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, batch_for, one_step

from kd_jax.losses.preference.pairs import Pairs
from kd_jax.losses.preference.self_play import inpo as inpo_loss
from kd_jax.objectives.combinators import frozen_weights
from kd_jax.objectives.references import model_sequence_log_probs, online, precomputed
from kd_jax.objectives.self_play import between, inpo
from kd_jax.types import Context

SIDES = ("chosen", "rejected")
REFERENCE = online(MODEL)
ITERATE = online(MODEL, frozen_weights("teacher"))
CASES = {
    "online": Case(lambda m: inpo(m, online(m), ITERATE, eta=0.5, tau=0.2), SIDES),
    "stored": Case(
        lambda m: inpo(m, precomputed(), precomputed("iterate_log_probs"), eta=0.5, tau=0.2),
        SIDES,
        (("reference_log_probs", -3.0), ("iterate_log_probs", -4.0)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


@functools.cache
def pairs():
    """(batch, log-probabilities of chosen and rejected under policy, reference and iterate)."""
    batch = batch_for(CASES["online"])
    models = (PARAMS, FROZEN["reference"], FROZEN["teacher"])
    return batch, [
        [model_sequence_log_probs(MODEL, weights, batch[side]) for side in SIDES]
        for weights in models
    ]


def output(objective, batch):
    params = {"model": PARAMS, "aux": {}}
    return objective.loss(params, {}, FROZEN, batch, Context(KEY, jnp.int32(0)))


@pytest.mark.parametrize(("eta", "tau"), [(0.5, 1 / 6), (0.5, 0.5), (0.5, 0.0)])
def test_the_mean_of_the_loss_over_pairs_written_by_the_iterate(eta, tau):
    batch, (policy, reference, iterate) = pairs()
    h = (policy[0] - policy[1]) - tau / eta * (reference[0] - reference[1])
    h -= (eta - tau) / eta * (iterate[0] - iterate[1])
    found = output(inpo(MODEL, REFERENCE, ITERATE, eta=eta, tau=tau), batch)
    np.testing.assert_allclose(found.loss, ((h - 0.5 / eta) ** 2).mean(), rtol=1e-5)
    same = inpo_loss(Pairs(*policy, *reference), *iterate, eta=eta, tau=tau)
    np.testing.assert_allclose(found.loss, same.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.metrics["margin"].value, h.mean(), rtol=1e-4)


def test_stored_log_probabilities_are_as_good_as_models():
    batch, (_, reference, iterate) = pairs()
    stored = {
        side: batch[side] | {"reference_log_probs": reference[i], "iterate_log_probs": iterate[i]}
        for i, side in enumerate(SIDES)
    }
    expected = one_step(CASES["online"], batch)
    for found, wanted in zip(
        jax.tree.leaves(one_step(CASES["stored"], stored)[0].params),
        jax.tree.leaves(expected[0].params),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_has_no_share_is_not_read():
    def unread(params, frozen, batch):
        raise AssertionError

    batch = pairs()[0]["chosen"]
    for share, parts in ((1.0, (unread, ITERATE)), (0.0, (ITERATE, unread))):
        np.testing.assert_array_equal(
            between(*parts, share=share)({}, FROZEN, batch), ITERATE({}, FROZEN, batch)
        )


def test_what_is_no_step_is_refused():
    with pytest.raises(ValueError, match="tau: got 0.6, takes numbers from 0 to eta, 0.5"):
        inpo(MODEL, REFERENCE, ITERATE, eta=0.5, tau=0.6)
    with pytest.raises(ValueError, match="share: got 1.5"):
        between(REFERENCE, ITERATE, share=1.5)
