"""A model's own state (BatchNorm and its like): read from carry, written once a step; the
teacher's is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.linear import FEATURES, assert_trees_close, batch_of, linear_model

from kd_jax.objectives.distil import distil, labels, soft_labels
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.steps import guard_non_finite, make_eval_step, make_train_step
from kd_jax.types import Model

LINEAR = linear_model()
PARAMS = LINEAR.init(jax.random.key(0))
KEY = jax.random.key(1)


def centring_model() -> Model:
    """Subtracts the batch's mean in training and the running mean otherwise, which it keeps."""

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        mean = inputs["inputs"].mean(0) if train else state["mean"]
        output = LINEAR.apply(params, {"inputs": inputs["inputs"] - mean[None]})
        new = {"mean": 0.9 * state["mean"] + 0.1 * mean, "steps": state["steps"] + 1}
        return output._replace(state=new if train else state)

    def state():
        return {"mean": jnp.ones(FEATURES), "steps": jnp.int32(0)}

    return Model(LINEAR.init, apply, state)


MODEL = centring_model()
SUPERVISE = supervise(MODEL, {"ce": label_cross_entropy})


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [1, 2])
def test_running_statistics_move_once_a_step_by_the_mean_over_microbatches(microbatches):
    batch = batch_of(4)
    step = make_train_step(SUPERVISE, optax.sgd(0.1), microbatches=microbatches)
    state = step.init(KEY, PARAMS, {}, batch)
    assert_trees_close(state.carry, MODEL.state())
    state, _ = jax.jit(step)(state, {}, batch)
    assert_trees_close(
        state.carry, {"mean": 0.9 + 0.1 * batch["inputs"].mean(0), "steps": jnp.int32(1)}
    )
    assert state.carry["steps"].dtype == jnp.int32


def test_evaluation_uses_the_running_statistics_of_carry():
    batch, carry = batch_of(4), {"mean": jnp.array([0.5, -1.0, 2.0]), "steps": jnp.int32(3)}
    params = {"model": PARAMS, "aux": {}}
    output = make_eval_step(SUPERVISE)(params, carry, {}, batch)
    shifted = batch | {"inputs": batch["inputs"] - carry["mean"][None]}
    expected = label_cross_entropy(LINEAR.apply(PARAMS, shifted), batch).value
    np.testing.assert_allclose(output.terms["ce"].value, expected, rtol=1e-6)
    assert_trees_close(output.state, carry)


def test_a_teacher_runs_on_its_frozen_statistics_and_a_student_on_its_own():
    batch, teacher = batch_of(4), LINEAR.init(jax.random.key(5))
    statistics = {"mean": jnp.array([0.5, -1.0, 2.0]), "steps": jnp.int32(3)}
    frozen = {"teacher": teacher, "teacher_state": statistics}
    parts = {"ce": labels(0.5), "kd": soft_labels(0.5, temperature=2.0)}
    step = make_train_step(distil(MODEL, MODEL, parts), optax.sgd(0.1))
    state = step.init(KEY, PARAMS, frozen, batch)
    state, metrics = jax.jit(step)(state, frozen, batch)

    def log_probs(weights, mean):
        z = LINEAR.apply(weights, {"inputs": batch["inputs"] - mean[None]}).head.logits()
        return np.asarray(jax.nn.log_softmax(z / 2.0))

    p, q = log_probs(teacher, statistics["mean"]), log_probs(PARAMS, batch["inputs"].mean(0))
    kl = np.average((np.exp(p) * (p - q)).sum(-1), weights=batch["weights"])
    np.testing.assert_allclose(metrics["kd"], 0.5 * 4 * kl, rtol=1e-5)
    assert int(state.carry["steps"]) == 1


def test_the_guard_holds_the_statistics_too():
    batch = batch_of(4)
    step = guard_non_finite(make_train_step(SUPERVISE, optax.sgd(0.1)))
    good, _ = step(step.init(KEY, PARAMS, {}, batch), {}, batch)
    bad = batch | {"inputs": batch["inputs"].at[1, 0].set(jnp.inf)}
    held, _ = step(good, {}, bad)
    assert_trees_close(held.carry["inner"], good.carry["inner"], rtol=0, atol=0)
