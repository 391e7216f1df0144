"""Coverage of labels, answers and chains of thought: laws of all objectives, values by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bigram import padded, text_batch
from support.linear import assert_trees_close, batch_of, linear_model
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, batch_for, one_step

from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.coverage import dco_factor
from kd_jax.objectives.coverage import estimated_coverage, label_coverage, sequence_coverage
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.steps import make_train_step
from kd_jax.types import Context

N = 16
CASES = {
    "answers": Case(
        lambda m: supervise(
            m,
            {"dco": sequence_coverage(N)},
            metrics={"factor": sequence_coverage(N, dco_factor)},
        )
    ),
    "chains": Case(
        lambda m: supervise(m, {"dco": estimated_coverage(N, threshold=0.1)}),
        row=(("success_rates", 0.1),),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def answer_logs(batch):
    """log p of every answer in float64."""
    hidden = np.asarray(PARAMS["embedding"], np.float64)[np.asarray(batch["inputs"])]
    z = hidden @ np.asarray(PARAMS["unembedding"], np.float64).T
    logs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    picked = np.take_along_axis(logs, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    return (picked * np.asarray(batch["weights"])).sum(1)


def test_values_of_answers():
    batch = text_batch()
    p = np.exp(answer_logs(batch))
    found = one_step(CASES["answers"], padded(batch))[1]
    some = 1 - (1 - p) ** N
    np.testing.assert_allclose(found["loss"], -np.log(some).mean(), rtol=1e-5)
    factor = N * p * (1 - p) ** (N - 1) / some
    np.testing.assert_allclose(found["factor"], factor.mean(), rtol=1e-5)


def test_only_chains_with_something_to_learn_are_counted():
    batch = batch_for(CASES["chains"])
    rates = np.array([0.1, 0.5, 0.01, 1.0])
    factor = N * rates * (1 - rates) ** (N - 1) / (1 - (1 - rates) ** N)
    assert ((factor > 0.1) == [True, False, True, False]).all()
    batch["success_rates"] = jnp.asarray(rates, jnp.float32)
    losses = -factor * answer_logs(batch)
    found = one_step(CASES["chains"], batch)[1]["loss"]
    np.testing.assert_allclose(found, losses[[0, 2]].mean(), rtol=1e-5)


def test_rates_have_to_come_with_the_batch():
    params = {"model": PARAMS, "aux": {}}
    objective = CASES["chains"].make(MODEL)
    with pytest.raises(ValueError, match="takes 'success_rates' besides"):
        objective.loss(params, {}, FROZEN, text_batch(), Context(KEY, jnp.int32(0)))


@functools.cache
def classifier_step(microbatches=1, n=N):
    objective = supervise(linear_model(), {"dco": label_coverage(n)})
    step = make_train_step(objective, optax.sgd(0.5), microbatches=microbatches)
    return step.init(KEY, linear_model().init(KEY), {}, batch_of(4)), jax.jit(step.apply)


def classifier(batch, **how):
    state, step = classifier_step(**how)
    return step(state, {}, batch)


@pytest.mark.slow
def test_labels():
    batch = batch_of(6)
    state, metrics = classifier(batch)
    kernel = linear_model().init(KEY)["kernel"]

    def losses(kernel):
        log_p = label_log_probs(batch["inputs"] @ kernel, batch["targets"])
        return -jnp.log(1 - (1 - jnp.exp(log_p)) ** N)

    def mean(kernel):
        return (losses(kernel) * batch["weights"]).sum() / batch["weights"].sum()

    value, slope = jax.value_and_grad(mean)(kernel)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(state.params["model"]["kernel"], kernel - 0.5 * slope, rtol=1e-5)
    assert_trees_close(classifier(batch), classifier(padded(batch, 2)))
    assert_trees_close(classifier(batch), classifier(batch, microbatches=2))


def test_one_sample_is_cross_entropy():
    batch = batch_of(6)
    step = make_train_step(supervise(linear_model(), {"dco": label_cross_entropy}), optax.sgd(0.5))
    state = step.init(KEY, linear_model().init(KEY), {}, batch)
    assert_trees_close(classifier(batch, n=1), jax.jit(step.apply)(state, {}, batch))
