"""ULD: the assistant's training and the scores of the model it is subtracted from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import bigram_model, padded, text_batch
from support.objective_laws import FROZEN, LAWS, MODEL, PARAMS, Case, batch_for, one_step

from kd_jax.objectives.combinators import frozen_weights
from kd_jax.objectives.score import sequence_scores
from kd_jax.objectives.unlearn.assistant import assistant_training, logit_difference_scores
from kd_jax.steps import make_eval_step

ASSISTANT = Case(assistant_training, ("forget", "retain"))


@pytest.mark.parametrize("law", LAWS)
def test_laws(law):
    law(ASSISTANT)


def log_probs(params, batch):
    """f64 [B, T, V], worked out without this package."""
    hidden = np.asarray(params["embedding"], np.float64)[np.asarray(batch["inputs"])]
    z = hidden @ np.asarray(params["unembedding"], np.float64).T
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_the_assistant_remembers_one_part_and_is_uniform_on_the_other():
    batch = batch_for(ASSISTANT)
    forget, retain = batch["forget"], batch["retain"]
    target = np.asarray(forget["targets"])[..., None]
    nll = -np.take_along_axis(log_probs(PARAMS, forget), target, -1)[..., 0]
    kl = -np.log(5) - log_probs(PARAMS, retain).mean(-1)  # sum_v (1/V) (log(1/V) - log p_v)
    expected = [
        (x * np.asarray(part["weights"])).sum() / np.asarray(part["weights"]).sum()
        for x, part in ((nll, forget), (kl, retain))
    ]
    metrics = one_step(ASSISTANT, batch)[1]
    np.testing.assert_allclose(metrics["forget/nll"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["retain/uniform_kl"], 5 * expected[1], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected[0] + 5 * expected[1], rtol=1e-5)


def scores(weight, top, base=MODEL, assistant=MODEL, params=PARAMS):
    objective = logit_difference_scores(
        base, assistant, weight=weight, top=top, base_policy=frozen_weights("reference")
    )
    batch = padded(text_batch(), 1)
    output = make_eval_step(objective)({"model": params, "aux": {}}, {}, FROZEN, batch)
    assert output.terms == {}
    np.testing.assert_array_equal(output.rows["tokens"], batch["weights"].sum(1))
    return output.rows["log_prob"]


@pytest.mark.parametrize("factored", [True, False], ids=["factored", "logits"])
def test_scores_against_numpy(factored):
    """z = z_base - 0.8 z_assistant where p_base is at least 0.4 times its maximum or the second
    largest: k = int(0.4 * 5) = 2."""
    batch = padded(text_batch(), 1)
    base, assistant = (log_probs(p, batch) for p in (FROZEN["reference"], PARAMS))
    kept = (np.argsort(np.argsort(-base, -1), -1) < 2) | (
        base >= base.max(-1, keepdims=True) + np.log(0.4)
    )
    assert not kept.all() and kept.sum() > 2 * base[..., 0].size
    # Logits, not log-probabilities: the constants of a row would fall on the kept tokens alone.
    hidden = np.asarray(PARAMS["embedding"], np.float64)[np.asarray(batch["inputs"])]
    assistant = hidden @ np.asarray(PARAMS["unembedding"], np.float64).T
    z = base - 0.8 * np.where(kept, assistant, 0)
    combined = z - np.log(np.exp(z).sum(-1, keepdims=True))
    chosen = np.take_along_axis(combined, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    expected = (chosen * np.asarray(batch["weights"])).sum(1)
    model = bigram_model(factored)
    np.testing.assert_allclose(scores(-0.8, 0.4, model, model), expected, rtol=1e-5, atol=1e-6)


def test_weight_zero_and_a_flat_assistant_leave_the_base():
    params = {"model": FROZEN["reference"], "aux": {}}
    batch = padded(text_batch(), 1)
    expected = make_eval_step(sequence_scores(MODEL))(params, {}, {}, batch).rows["log_prob"]
    np.testing.assert_allclose(scores(0.0, 0.01), expected, rtol=1e-6)
    flat = jax.tree.map(jnp.zeros_like, PARAMS)
    np.testing.assert_allclose(scores(-0.8, 1.0, params=flat), expected, rtol=1e-6)
    assert not np.allclose(scores(-0.8, 1.0), expected, rtol=1e-2)
