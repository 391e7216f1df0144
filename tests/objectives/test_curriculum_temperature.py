"""The student descends at the temperature that there is, and the temperature climbs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bigram import text_batch
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case

from kd_jax.losses.curriculum import difficulty, temperature
from kd_jax.losses.divergences import forward_kl
from kd_jax.objectives.curriculum import curriculum_temperature
from kd_jax.steps import make_train_step
from kd_jax.types import Context, weighted_sum

STEPS = 8
OBJECTIVE = curriculum_temperature(MODEL, MODEL, steps=STEPS)
CASE = Case(lambda model: curriculum_temperature(model, model, steps=STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_laws(law):
    law(CASE)


def dense(model, theta, batch):
    tau = temperature(theta)
    s, t = (MODEL.apply(x, batch).head.logits() for x in (model, FROZEN["teacher"]))
    return weighted_sum(tau**2 * forward_kl(s, t, temperature=tau), batch["weights"]).value


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1, 6])
def test_gradients(step):
    """The student's is the loss's, the temperature's is reversed and grows with time."""
    batch, theta = text_batch(), jnp.float32(-1.0)

    def loss(params):
        return OBJECTIVE.loss(params, {}, FROZEN, batch, Context(KEY, jnp.int32(step))).loss

    value, grads = jax.value_and_grad(loss)({"model": PARAMS, "aux": {"theta": theta}})
    expected, (model, slope) = jax.value_and_grad(dense, (0, 1))(PARAMS, theta, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads["model"], model
    )
    share = difficulty(step / STEPS)
    np.testing.assert_allclose(grads["aux"]["theta"], -share * slope, rtol=1e-4, atol=1e-6)
    assert slope != 0


@pytest.mark.slow
def test_a_training_raises_the_loss_by_its_temperature():
    batch = text_batch()
    step = make_train_step(OBJECTIVE, optax.sgd(0.05))
    state = step.init(KEY, PARAMS, FROZEN, batch)
    for _ in range(5):
        before = state
        state, metrics = step(state, FROZEN, batch)
        theta = before.params["aux"]["theta"]
        np.testing.assert_allclose(metrics["temperature"], temperature(theta), rtol=1e-6)
    model, theta = before.params["model"], before.params["aux"]["theta"]
    moved = state.params["aux"]["theta"]
    assert moved != theta
    assert dense(model, moved, batch) > dense(model, theta, batch)
