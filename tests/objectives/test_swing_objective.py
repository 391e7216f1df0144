"""Swing distillation in a step: what is private is hidden, the rest is distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import VOCABULARY, text_batch
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, one_step

from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.swing import swing_kl, swing_targets
from kd_jax.objectives.distil import distil, token_divergence
from kd_jax.objectives.swing import swing
from kd_jax.types import Context, Model


def private_model(share=0.5):
    """The batch of the laws with every other token private: what a loader would put there."""

    def make(model: Model):
        objective = swing(model, model, high=4.0, sigma=0.1)

        def loss(params, carry, frozen, batch, ctx):
            return objective.loss(params, carry, frozen, with_private(batch, share), ctx)

        return objective._replace(loss=loss)

    return make


def with_private(batch, share=0.5):
    place = jnp.arange(batch["inputs"].shape[1])[None, :]
    return batch | {"private": jnp.where(place % 2 == 0, share, 0.0) + 0 * batch["weights"]}


CASE = Case(private_model())


@pytest.mark.parametrize("law", LAWS)
def test_laws(law):
    law(CASE)


def heads(batch):
    return (MODEL.apply(x, batch).head.logits() for x in (PARAMS, FROZEN["teacher"]))


def value_of(objective, batch, step=0):
    return objective.loss(
        {"model": PARAMS, "aux": {}}, {}, FROZEN, batch, Context(KEY, jnp.int32(step))
    ).loss


def masked_mean(values, weights):
    return (values * weights).sum() / weights.sum()


def test_nothing_private_is_forward_kl():
    batch = text_batch()
    plain = distil(MODEL, MODEL, {"kd": token_divergence(lambda s, t, y: forward_kl(s, t))})
    found = value_of(swing(MODEL, MODEL, high=9.0, sigma=0.3), with_private(batch, 0.0))
    expected = plain.loss(
        {"model": PARAMS, "aux": {"kd": {}}}, {}, FROZEN, batch, Context(KEY, jnp.int32(0))
    ).loss
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_values_without_noise():
    batch = with_private(text_batch())
    s, t = heads(batch)
    targets = swing_targets(t, batch["private"], KEY, high=4.0, sigma=0.0)
    found = value_of(swing(MODEL, MODEL, high=4.0, sigma=0.0), batch)
    expected = masked_mean(swing_kl(s, targets), batch["weights"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_labels_of_what_is_private_are_not_learnt():
    batch = with_private(text_batch(), 1.0)
    other = batch | {
        "targets": jnp.where(
            batch["private"] > 0, (batch["targets"] + 1) % VOCABULARY, batch["targets"]
        )
    }
    objective = swing(MODEL, MODEL, high=4.0, sigma=0.0, hard=0.7)
    np.testing.assert_allclose(value_of(objective, batch), value_of(objective, other), rtol=1e-6)
    moved = batch | {"targets": (batch["targets"] + 1) % VOCABULARY}
    assert abs(value_of(objective, batch) - value_of(objective, moved)) > 1e-3


def test_noise_is_fresh_each_step_and_belongs_to_the_row():
    batch = with_private(text_batch(), 1.0)
    objective = swing(MODEL, MODEL, high=4.0, sigma=0.3)
    values = [float(value_of(objective, batch, step)) for step in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    turned = jax.tree.map(lambda x: x[::-1], batch)
    np.testing.assert_allclose(value_of(objective, turned), values[0], rtol=1e-5)
    other = swing(MODEL, MODEL, high=4.0, sigma=0.3, seed=1)
    assert float(value_of(other, batch)) != values[0]


def test_the_case_of_the_laws_has_noise():
    quiet = Case(lambda model: private_model(0.0)(model))
    loss, calm = (float(one_step(c, text_batch())[1]["loss"]) for c in (CASE, quiet))
    assert abs(loss - calm) > 1e-3
