"""Objectives on scored text: laws of all objectives, values by hand, limits, the value head."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import text_batch
from support.linear import assert_trees_close
from support.objective_laws import KEY, LAWS, MODEL, PARAMS, Case, batch_for, one_step

from kd_jax.losses.feedback import awr, convex_unlikelihood, rwr, unlikelihood
from kd_jax.models.config import DecoderConfig
from kd_jax.models.decoder import decoder
from kd_jax.objectives.feedback import (
    advantage_weighted,
    token_convex_unlikelihood,
    token_rwr,
    token_unlikelihood,
)
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.types import Context


def scored(rows=4, seed=0):
    batch = text_batch(rows, seed=seed)
    scores = jax.random.uniform(jax.random.key(seed + 100), batch["targets"].shape)
    return batch | {"scores": scores}


def of(term):
    return Case(lambda m: supervise(m, {"term": term}), text=scored)


CASES = {
    "unlikelihood": of(token_unlikelihood(threshold=0.4, alpha=0.7)),
    "convex": of(token_convex_unlikelihood(alpha=0.7)),
    "rwr": of(token_rwr(beta=0.3)),
    "awr": Case(lambda m: advantage_weighted(m, beta=0.3, alpha=0.4, place="block_0"), text=scored),
}
MLE = of(next_token_nll)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def log_probs(batch):
    logits = PARAMS["embedding"][batch["inputs"]] @ PARAMS["unembedding"].T
    return jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]


def test_values():
    batch = scored()
    lp, s, w = log_probs(batch), batch["scores"], batch["weights"]
    expected = {
        "unlikelihood": unlikelihood(lp, s, threshold=0.4, alpha=0.7),
        "convex": convex_unlikelihood(lp, s, alpha=0.7),
        "rwr": rwr(lp, s, beta=0.3),
        "awr": awr(lp, s, jnp.zeros_like(s), beta=0.3, alpha=0.4),
    }
    for name, losses in expected.items():
        found = one_step(CASES[name], batch)[1]["loss"]
        np.testing.assert_allclose(found, (losses * w).sum() / w.sum(), rtol=1e-5)


def test_scores_of_prompts_and_padding_move_nothing_and_others_do():
    batch = scored()
    for name, case in CASES.items():
        expected = one_step(case, batch)
        hidden = jnp.where(batch["weights"] == 0, 1 - batch["scores"], batch["scores"])
        assert_trees_close(expected, one_step(case, batch | {"scores": hidden}))
        moved = one_step(case, batch | {"scores": 1 - batch["scores"]})[1]["loss"]
        assert abs(float(moved - expected[1]["loss"])) > 1e-4, name


@pytest.mark.parametrize("name", ["unlikelihood", "convex", "rwr"])
def test_text_without_faults_is_learnt_by_likelihood(name):
    batch = scored() | {"scores": jnp.zeros((4, 6))}
    found, expected = one_step(CASES[name], batch), one_step(MLE, batch)
    assert_trees_close(found[0].params, expected[0].params)


@pytest.mark.slow
def test_the_value_head_learns_and_only_the_policy_is_weighed_by_it():
    batch = scored()
    objective = advantage_weighted(MODEL, beta=0.3, alpha=0.4, place="block_0")
    head = {"kernel": jnp.array([0.1, -0.2, 0.3]), "bias": jnp.array(-0.4)}
    aux, carry = objective.init(KEY, PARAMS, {}, batch)
    assert jax.tree.map(jnp.shape, aux) == jax.tree.map(jnp.shape, head)

    def loss(model, head):
        params = {"model": model, "aux": head}
        return objective.loss(params, carry, {}, batch, Context(KEY, jnp.int32(0)))

    def expected(model, head):
        stream = model["embedding"][batch["inputs"]]
        values = (stream * head["kernel"][None, None]).sum(-1) + head["bias"]
        logits = stream @ model["unembedding"].T
        logs = jax.nn.log_softmax(logits)
        lp = jnp.take_along_axis(logs, batch["targets"][..., None], -1)[..., 0]
        losses = awr(lp, batch["scores"], values, beta=0.3, alpha=0.4)
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    found = jax.value_and_grad(lambda *x: loss(*x).loss, (0, 1))(PARAMS, head)
    assert_trees_close(found, jax.value_and_grad(expected, (0, 1))(PARAMS, head))


def test_a_large_beta_is_likelihood_and_regression():
    batch = scored()
    case = Case(lambda m: advantage_weighted(m, beta=1e9, alpha=0.3, place="block_0"), text=scored)
    metrics, likelihood = one_step(case, batch)[1], one_step(MLE, batch)[1]["loss"]
    squares = (batch["scores"] ** 2 * batch["weights"]).sum() / batch["weights"].sum()
    np.testing.assert_allclose(metrics["loss"], 0.3 * likelihood + 0.7 * squares, rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"], 1.0, rtol=1e-6)


@pytest.mark.slow
def test_a_decoder_is_tapped_where_its_head_reads():
    config = DecoderConfig(vocab=8, width=8, depth=1, heads=1, kv_heads=1, head_dim=8, mlp=8)
    model = decoder(dataclasses.replace(config, scan=False))
    batch = scored()
    objective = advantage_weighted(model, beta=1.0)
    params = model.init(KEY)
    aux, _ = objective.init(KEY, params, {}, batch)
    assert aux["kernel"].shape == (8,)
    context = Context(KEY, jnp.int32(0))
    loss = functools.partial(objective.loss, carry={}, frozen={}, batch=batch, ctx=context)
    slope = jax.grad(lambda aux: loss({"model": params, "aux": aux}).loss)(aux)
    assert np.any(slope["kernel"] != 0)


@pytest.mark.parametrize("name", CASES)
def test_scores_have_to_come_with_the_batch(name):
    objective, batch = CASES[name].make(MODEL), batch_for(CASES[name])
    aux, carry = objective.init(KEY, PARAMS, {}, batch)
    with pytest.raises(ValueError, match="takes 'scores' besides"):
        objective.loss(
            {"model": PARAMS, "aux": aux}, carry, {}, text_batch(), Context(KEY, jnp.int32(0))
        )
