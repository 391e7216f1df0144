"""Distillation by any loss between next-token distributions, and TAID's clock in a training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bigram import text_batch
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, one_step

from kd_jax.losses import divergences
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.taid import advance, clock
from kd_jax.losses.taid import taid as taid_loss
from kd_jax.losses.top_k import top_k_split_kl
from kd_jax.objectives.distil import distil, token_divergence, tokens
from kd_jax.objectives.taid import taid
from kd_jax.steps import make_eval_step, make_train_step

LOSSES = {
    "reverse": lambda s, t, y: divergences.reverse_kl(s, t),
    "jsd": lambda s, t, y: divergences.jensen_shannon(s, t, beta=0.3),
    "skew": lambda s, t, y: divergences.skew_forward_kl(s, t, alpha=0.1),
    "tvd": lambda s, t, y: divergences.total_variation(s, t),
    "adaptive": lambda s, t, y: divergences.adaptive_kl(s, t),
    "decoupled": lambda s, t, y: divergences.decoupled_kl(s, t, y, others=0.5),
    "split": lambda s, t, y: top_k_split_kl(s, t, k=2),
}


def by(loss, scale=1.0, hard=0.0):
    return lambda model: distil(model, model, {"kd": token_divergence(loss, scale, hard=hard)})


CASES = {name: Case(by(loss)) for name, loss in LOSSES.items()} | {
    "half hard": Case(by(LOSSES["jsd"], 0.5, 0.5)),
    "taid": Case(lambda model: taid(model, model, steps=10, alpha=0.1)),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def heads(params=PARAMS):
    batch = text_batch()
    return batch, *(MODEL.apply(x, batch).head.logits() for x in (params, FROZEN["teacher"]))


@pytest.mark.parametrize("name", LOSSES)
def test_values_are_the_masked_means_of_the_losses(name):
    batch, s, t = heads()
    values = np.asarray(LOSSES[name](s, t, batch["targets"]), np.float64)
    expected = (values * batch["weights"]).sum() / batch["weights"].sum()
    found = one_step(CASES[name], batch)[1]["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_hard_and_soft_on_one_pass_are_the_two_apart():
    together = CASES["half hard"]
    apart = Case(
        lambda model: distil(
            model, model, {"ce": tokens(0.5), "kd": token_divergence(LOSSES["jsd"], 0.5)}
        )
    )
    (one, ours), (two, theirs) = (one_step(case, text_batch()) for case in (together, apart))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        one.params["model"],
        two.params["model"],
    )


@pytest.mark.slow
def test_the_clock_of_taid_moves_once_a_step_by_the_loss():
    """Whatever the microbatches; an evaluation reads it and leaves it."""
    batch, s, t = heads()
    objective = taid(MODEL, MODEL, steps=10, start=0.2, alpha=0.3)
    ends = []
    for microbatches in (1, 2):
        step = make_train_step(objective, optax.sgd(0.5), microbatches=microbatches)
        state, now = step.init(KEY, PARAMS, FROZEN, batch), clock(0.2)
        for i in range(3):
            share = float(state.carry.share)
            state, metrics = step(state, FROZEN, batch)
            np.testing.assert_allclose(metrics["share"], share, rtol=1e-6)
            now = advance(now, metrics["loss"], i / 10, start=0.2, alpha=0.3)
            np.testing.assert_allclose(state.carry.share, now.share, rtol=1e-6)
            if i == 0:
                values = np.asarray(taid_loss(s, t, share=0.2), np.float64)
                expected = (values * batch["weights"]).sum() / batch["weights"].sum()
                np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
        assert state.carry.share > 0.3
        ends.append(state)
        output = make_eval_step(objective)(state.params, state.carry, FROZEN, batch)
        np.testing.assert_allclose(output.metrics["share"].value, state.carry.share, rtol=1e-6)
    np.testing.assert_allclose(ends[0].carry.share, ends[1].carry.share, rtol=1e-5)


def test_labels_without_weight_are_not_looked_at():
    batch, s, t = heads()
    value = divergences.decoupled_kl(s, t, jnp.full(s.shape[:-1], -100), others=0.5)
    assert np.isfinite(value).all()
    assert np.isfinite(label_log_probs(s, jnp.full(s.shape[:-1], -100))).all()
