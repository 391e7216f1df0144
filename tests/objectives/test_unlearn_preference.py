"""Weighted ascent, SimNPO and refusals: the laws of all objectives, and values against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bigram import padded, text_batch
from support.linear import assert_trees_close
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, batch_for, one_step

from kd_jax.losses.preference.margin import dpo
from kd_jax.objectives.combinators import scaled
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import online, precomputed
from kd_jax.objectives.unlearn.likelihood import satimp, weighted_gradient_ascent
from kd_jax.objectives.unlearn.preference import simple_negative_preference
from kd_jax.objectives.unlearn.refusal import (
    answer_preservation,
    idk,
    idk_difference,
    idk_preservation,
    refusal_preference,
)
from kd_jax.steps import make_train_step
from kd_jax.types import Context

PAIR, KEPT = ("refusal", "forget"), ("retain", "retain_refusal")
CASES = {
    "wga": Case(lambda m: weighted_gradient_ascent(m, beta=0.5)),
    "satimp": Case(lambda m: satimp(m, beta_1=1.5, beta_2=0.5)),
    "simnpo": Case(lambda m: simple_negative_preference(m, beta=2.5, delta=0.5)),
    "idk": Case(idk, ("refusal", "retain")),
    "idk+rt": Case(idk_difference, ("refusal", "retain")),
    "dpo": Case(lambda m: refusal_preference(m, online(m), beta=0.1), PAIR),
    "ap": Case(lambda m: answer_preservation(m, beta=0.1), KEPT),
    "idk+ap": Case(lambda m: idk_preservation(m, beta=0.1), ("refusal", *KEPT)),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def token_logs(batch, params=PARAMS):
    """log p of every target in float64, and the weights."""
    hidden = np.asarray(params["embedding"], np.float64)[np.asarray(batch["inputs"])]
    z = hidden @ np.asarray(params["unembedding"], np.float64).T
    logs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    picked = np.take_along_axis(logs, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    return picked, np.asarray(batch["weights"], np.float64)


def sums(batch, params=PARAMS):
    lp, w = token_logs(batch, params)
    return (lp * w).sum(1)


def value_of(name, batch):
    return one_step(CASES[name], batch)[1]


def test_values_of_weighted_ascent():
    batch = text_batch()
    lp, w = token_logs(batch)
    p = np.exp(lp)
    expected = {"wga": p**0.5, "satimp": p**1.5 * (1 - p) ** 0.5}
    for name, weight in expected.items():
        loss = (weight * lp * w).sum() / w.sum()
        np.testing.assert_allclose(value_of(name, batch)["loss"], loss, rtol=1e-5)


def test_values_of_simnpo():
    batch = text_batch()
    lp, w = token_logs(batch)
    mean = (lp * w).sum(1) / w.sum(1)
    found = value_of("simnpo", batch)
    loss = 2 / 2.5 * np.log1p(np.exp(2.5 * (mean + 0.5)))
    np.testing.assert_allclose(found["loss"], loss.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["log_prob"], mean.mean(), rtol=1e-5)
    weight = 2 / (1 + np.exp(-2.5 * (mean + 0.5))) / w.sum(1)
    np.testing.assert_allclose(found["weight"], weight.mean(), rtol=1e-5)


def test_idk_is_a_mean_over_all_tokens_and_idk_rt_a_sum_of_means():
    batch = batch_for(CASES["idk"])
    batch["refusal"]["weights"] = batch["refusal"]["weights"].at[2:].set(0.0)  # short refusals
    (refusal, a), (retain, b) = (token_logs(batch[part]) for part in ("refusal", "retain"))
    totals, counts = (-(refusal * a).sum(), -(retain * b).sum()), (a.sum(), b.sum())
    assert counts[0] < counts[1] / 2
    found = value_of("idk", batch)
    np.testing.assert_allclose(found["loss"], sum(totals) / sum(counts), rtol=1e-5)
    np.testing.assert_allclose(found["refusal"], totals[0] / counts[0], rtol=1e-5)
    np.testing.assert_allclose(found["retain"], totals[1] / counts[1], rtol=1e-5)
    added = totals[0] / counts[0] + totals[1] / counts[1]
    np.testing.assert_allclose(value_of("idk+rt", batch)["loss"], added, rtol=1e-5)


def test_values_of_refusal_preference():
    batch = batch_for(CASES["dpo"])
    chosen, rejected = (sums(batch[part]) - sums(batch[part], FROZEN["reference"]) for part in PAIR)
    found = value_of("dpo", batch)
    loss = 2 / 0.1 * np.log1p(np.exp(-0.1 * (chosen - rejected)))
    np.testing.assert_allclose(found["loss"], loss.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], (chosen > rejected).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["refusal"], chosen.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["answer"], rejected.mean(), rtol=1e-4)


def test_a_stored_reference_is_read_of_both_parts():
    stored = {"refusal": -4.0, "forget": -7.0}
    batch = {
        part: rows | {"reference_log_probs": jnp.full((4,), stored[part])}
        for part, rows in batch_for(CASES["dpo"]).items()
    }
    objective = refusal_preference(MODEL, precomputed(), beta=0.1)
    params = {"model": PARAMS, "aux": {}}
    output = objective.loss(params, {}, {}, batch, Context(KEY, jnp.int32(0)))
    margin = sums(batch["refusal"]) + 4 - (sums(batch["forget"]) + 7)
    loss = 2 / 0.1 * np.log1p(np.exp(-0.1 * margin))
    np.testing.assert_allclose(output.loss, loss.mean(), rtol=1e-5)


def test_refusal_preference_moves_as_scaled_dpo_does():
    batch = batch_for(CASES["dpo"])
    loss = functools.partial(dpo, beta=0.1)
    step = make_train_step(
        scaled(prefer(MODEL, {"dpo": loss}, online(MODEL)), 2 / 0.1), optax.sgd(0.5)
    )
    pairs = {"chosen": batch["refusal"], "rejected": batch["forget"]}
    state = step.init(KEY, PARAMS, FROZEN, pairs)
    expected = jax.jit(step.apply)(state, FROZEN, pairs)[0].params
    assert_trees_close(one_step(CASES["dpo"], batch)[0].params, expected)


def test_values_of_answer_preservation():
    batch = batch_for(CASES["idk+ap"])
    margin = sums(batch["retain"]) - sums(batch["retain_refusal"])
    kept = 1 / 0.1 * np.log1p(np.exp(-0.1 * margin))
    found = value_of("ap", batch_for(CASES["ap"]) | {part: batch[part] for part in KEPT})
    np.testing.assert_allclose(found["loss"], kept.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["margin"], margin.mean(), rtol=1e-4)
    lp, w = token_logs(batch["refusal"])
    both = -(lp * w).sum() / w.sum() + kept.mean()
    np.testing.assert_allclose(value_of("idk+ap", batch)["loss"], both, rtol=1e-5)


@pytest.mark.parametrize(("name", "parts"), [("dpo", PAIR), ("ap", KEPT)])
def test_half_a_pair_is_no_pair_and_lengths_may_differ(name, parts):
    batch = batch_for(CASES[name])

    def loss_without(*cut):
        left = {p: batch[p] | {"weights": batch[p]["weights"].at[1].set(0.0)} for p in cut}
        return float(value_of(name, batch | left)["loss"])

    whole, both = loss_without(), loss_without(*parts)
    assert whole != both == loss_without(parts[0]) == loss_without(parts[1])
    wider = {
        key: jnp.pad(x, [(0, 0), (0, 3)]) if x.ndim == 2 else x
        for key, x in batch[parts[0]].items()
    }
    np.testing.assert_allclose(value_of(name, batch | {parts[0]: wider})["loss"], whole, rtol=1e-6)


def test_rows_of_no_tokens_leave_simnpo_finite():
    state, metrics = one_step(CASES["simnpo"], padded(text_batch(), 2))
    assert np.isfinite(metrics["loss"])
    assert all(np.isfinite(x).all() for x in state.params["model"].values())
