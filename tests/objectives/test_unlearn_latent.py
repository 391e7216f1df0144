"""Latent adversarial training: the attack, what it touches, and the loss under it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import padded, text_batch
from support.linear import assert_trees_close
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, batch_for, one_step

from kd_jax.losses.latent import project_l2
from kd_jax.losses.streaming import token_log_probs
from kd_jax.objectives.combinators import frozen_weights
from kd_jax.objectives.score import sequence_scores
from kd_jax.objectives.unlearn.latent import (
    PERTURBATION,
    attacked_scores,
    away,
    latent_adversarial,
    latent_attack,
    perturbed,
    prompt_mask,
)
from kd_jax.steps import make_eval_step
from kd_jax.types import Objective, TrainState

PARTS = ("forget", "refusal", "retain")
ATTACK = {"places": ("block_0",), "eps": 0.5, "rate": 0.2, "steps": 4}


def state_of(params):
    return TrainState(jnp.int32(0), {"model": params, "aux": {}}, (), (), KEY)


def attacked(model, **settings) -> Objective:
    """The defender's loss on the batch as `prepare` makes it, in one piece."""
    objective = latent_adversarial(model, toward=1, away_from=2, sft=1)
    attack = latent_attack(model, **ATTACK | settings)

    def loss(params, carry, frozen, batch, ctx):
        made = attack(state_of(jax.lax.stop_gradient(params["model"])), frozen, batch)
        return objective.loss(params, carry, frozen, made, ctx)

    def init(key, params, frozen, batch):
        return objective.init(key, params, frozen, attack(state_of(params), frozen, batch))

    return objective._replace(init=init, loss=loss)


CASES = {
    "away": Case(away),
    "defender": Case(functools.partial(attacked, away_from=1.0), PARTS),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def means(batch):
    """NLL and away of a text batch under PARAMS, means over its tokens, in float64."""
    hidden = np.asarray(PARAMS["embedding"], np.float64)[np.asarray(batch["inputs"])]
    z = hidden @ np.asarray(PARAMS["unembedding"], np.float64).T
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    losses = -np.log(chosen), np.where(np.log(chosen) < -5, 0, -np.log1p(-chosen))
    w = np.asarray(batch["weights"])
    return [(x * w).sum() / w.sum() for x in losses]


def test_without_a_radius_it_is_finetuning_and_away():
    case = Case(functools.partial(attacked, eps=0.0), PARTS)
    batch = batch_for(case)
    nll = means(batch["refusal"])[0] + means(batch["retain"])[0]
    metrics = one_step(case, batch)[1]
    expected = (nll + 2 * means(batch["forget"])[1]) / 4
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["forget/away"], means(batch["forget"])[1] / 2, rtol=1e-5)
    # With one, what is forgotten comes back, and the retained part's loss stays as it was.
    harder = one_step(Case(attacked, PARTS), batch)[1]
    assert harder["forget/away"] > 1.05 * metrics["forget/away"]
    assert harder["retain/nll"] == metrics["retain/nll"]


def prepared(batch, **settings):
    attack = jax.jit(latent_attack(MODEL, **ATTACK | settings))
    return attack(state_of(PARAMS), FROZEN, batch)


def test_what_an_attack_touches():
    batch = batch_for(Case(attacked, PARTS))
    made = prepared(batch)
    delta = made["forget"][PERTURBATION]["block_0"]
    assert delta.shape == (4, 6, 3) and delta.dtype == jnp.float32
    norms = np.linalg.norm(delta, axis=-1)
    assert norms.max() <= 0.5 * (1 + 1e-6)
    # A token sees itself alone: of the prompt's, only the last, which predicts the answer's first.
    assert np.all(norms[:, 1] > 0.4)
    assert not np.any(norms[:, [0, 2, 3, 4, 5]])
    np.testing.assert_array_equal(made["refusal"][PERTURBATION]["block_0"], delta)
    rest = {name: dict(part) for name, part in made.items()}
    for name in ("forget", "refusal"):
        del rest[name][PERTURBATION]
    jax.tree.map(np.testing.assert_array_equal, rest, batch)
    # It brings out what is to be forgotten.
    before, after = (
        token_log_probs(m.apply(PARAMS, made["forget"]).head, batch["forget"]["targets"])
        for m in (MODEL, perturbed(MODEL))
    )
    first = batch["forget"]["weights"].cumsum(1) == 1
    assert np.all((after > before)[first & (batch["forget"]["weights"] == 1)])
    # Without refusals the forget part alone is given one.
    alone = prepared({"forget": batch["forget"], "retain": batch["retain"]})
    np.testing.assert_array_equal(alone["forget"][PERTURBATION]["block_0"], delta)
    assert set(alone) == {"forget", "retain"} and PERTURBATION not in alone["retain"]


def test_the_steps_of_an_attack_written_out():
    """AdamW and projection in NumPy float64, on the gradient of this model by hand."""
    batch = text_batch()
    found = prepared({"forget": batch}, steps=3, eps=0.35)["forget"][PERTURBATION]["block_0"]
    embedding, unembedding = (
        np.asarray(PARAMS[name], np.float64) for name in ("embedding", "unembedding")
    )
    w, y = np.asarray(batch["weights"], np.float64), np.asarray(batch["targets"])
    mask = np.asarray(prompt_mask(batch["weights"]))[..., None]
    delta, m, v = np.zeros((3, 4, 6, 3))
    for step in range(1, 4):
        z = (embedding[np.asarray(batch["inputs"])] + delta) @ unembedding.T
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        grad = (w / w.sum())[..., None] * ((p - np.eye(5)[y]) @ unembedding)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        update = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        delta = delta - 0.2 * (update + 0.01 * delta)
        norm = np.linalg.norm(delta, axis=-1, keepdims=True)
        delta = np.where(mask, delta * np.minimum(1, 0.35 / np.maximum(norm, 1e-30)), 0)
    assert np.abs(delta).max() > 0.1
    np.testing.assert_allclose(found, delta, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found, project_l2(found, eps=0.35), rtol=1e-6)


def test_an_adversary_that_avoids_the_good_answer_too():
    batch = batch_for(Case(attacked, PARTS))
    one, both = (prepared(batch, away_from=x)["forget"][PERTURBATION] for x in (0.0, 1.0))
    assert not np.allclose(one["block_0"], both["block_0"], atol=1e-2)


def test_a_perturbation_gets_no_gradient_and_adds_to_what_is_added():
    batch = text_batch()
    delta = jnp.asarray(np.random.default_rng(0).normal(0, 1, (4, 6, 3)), jnp.float32)

    def total(delta, model=MODEL, **settings):
        inputs = batch | {PERTURBATION: {"block_0": delta}}
        return (model.apply(PARAMS, inputs, **settings).head.logits() ** 2).sum()

    value, grad = jax.value_and_grad(functools.partial(total, model=perturbed(MODEL)))(delta)
    assert not np.any(grad)
    np.testing.assert_allclose(value, total(delta, add={"block_0": delta}), rtol=1e-6)
    with pytest.raises(ValueError, match="takes 'perturbation' besides"):
        perturbed(MODEL).apply(PARAMS, batch)
    with pytest.raises(ValueError, match="block_0: added by the caller and by the perturbation"):
        total(delta, perturbed(MODEL), add={"block_0": delta})


@pytest.mark.slow
def test_scores_under_attack():
    batch = padded(text_batch(), 1)
    params = {"model": FROZEN["reference"], "aux": {}}

    def rows(**settings):
        objective = attacked_scores(MODEL, **ATTACK | settings)
        return make_eval_step(objective)(params, {}, {}, batch).rows

    plain = make_eval_step(sequence_scores(MODEL))(params, {}, {}, batch).rows
    assert_trees_close(rows(eps=0.0), plain)
    small, large = rows(eps=0.1)["log_prob"], rows(eps=0.5)["log_prob"]
    assert np.all(plain["log_prob"][:-1] < small[:-1]) and np.all(small[:-1] < large[:-1])
    # A row's attack is its own: the others of the batch change nothing.
    policy = frozen_weights("reference")
    objective = attacked_scores(MODEL, **ATTACK, policy=policy)
    alone = make_eval_step(objective)({}, {}, FROZEN, {n: x[2:3] for n, x in batch.items()})
    np.testing.assert_allclose(alone.rows["log_prob"], large[2:3], rtol=1e-5)


def test_the_prompt_ends_where_the_answer_begins():
    weights = jnp.array([[0, 0, 1, 1, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], jnp.float32)
    expected = [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(prompt_mask(weights), np.array(expected, bool))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"places": ()}, "places: got none"),
        ({"places": "block_0"}, r"takes names, as \('block_0',\)"),
        ({"eps": -1.0}, "eps: got -1.0"),
        ({"steps": 0}, "steps: got 0"),
    ],
)
def test_refused_attacks(settings, said):
    for make in (latent_attack, attacked_scores):
        with pytest.raises(ValueError, match=said):
            make(MODEL, **ATTACK | settings)


def test_refused_coefficients():
    for given in ({"sft": -1}, {"toward": 0, "away_from": 0, "sft": 0}):
        with pytest.raises(ValueError, match="take numbers from 0"):
            latent_adversarial(MODEL, **given)
