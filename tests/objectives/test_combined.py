"""Scores of a text under combined models: against NumPy, padding, pieces, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import bigram_model, padded, spoil, text_batch
from support.objective_laws import FROZEN, MODEL, PARAMS

from kd_jax.losses.fusion import alpha_lines, eft_log_probs, fused_log_probs, solve_alpha
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.objectives.combined import combined_scores
from kd_jax.steps import make_eval_step

NAMES = ("reference", "teacher")
LINES = alpha_lines(1, step=0.25)


def solved(big, small, tuned):
    experts = tuned[..., None, :]
    return fused_log_probs(big, small, experts, solve_alpha(big, small, experts, LINES))


COMBINE = {
    "eft": functools.partial(eft_log_probs, beta=1.5),
    "dynamic": solved,
    "first": lambda big, *_: big,
}


@functools.cache
def step(factored=True, chunk=512):
    model = bigram_model(factored)
    models = [(model, frozen_weights(name)) for name in NAMES] + [(model, own_weights)]
    return jax.jit(make_eval_step(combined_scores(models, COMBINE, chunk=chunk)))


def rows(batch, **settings):
    output = step(**settings)({"model": PARAMS, "aux": {}}, {}, FROZEN, batch)
    assert output.terms == {} and output.metrics == {}
    return output.rows


def logits(batch):
    params = [*(FROZEN[name] for name in NAMES), PARAMS]
    return [
        np.asarray(x["embedding"], np.float64)[np.asarray(batch["inputs"])]
        @ np.asarray(x["unembedding"], np.float64).T
        for x in params
    ]


def test_against_numpy():
    batch = text_batch()
    big, small, tuned = logits(batch)
    found = rows(batch)
    weights, targets = np.asarray(batch["weights"]), np.asarray(batch["targets"])[..., None]
    for name, z in (("eft", tuned + 1.5 * (big - small)), ("first", big)):
        log_probs = z - np.log(np.exp(z).sum(-1, keepdims=True))
        expected = (np.take_along_axis(log_probs, targets, -1)[..., 0] * weights).sum(1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["tokens"], weights.sum(1))
    whole = solved(*(jnp.asarray(z, jnp.float32) for z in (big, small, tuned)))
    expected = (np.take_along_axis(np.asarray(whole), targets, -1)[..., 0] * weights).sum(1)
    np.testing.assert_allclose(found["dynamic"], expected, rtol=1e-5)
    assert not np.allclose(found["dynamic"], found["eft"], rtol=1e-2)


@pytest.mark.parametrize("settings", [{"chunk": 2}, {"factored": False, "chunk": 4}])
def test_pieces_and_kinds_of_heads_change_nothing(settings):
    for name, x in rows(text_batch()).items():
        np.testing.assert_allclose(rows(text_batch(), **settings)[name], x, rtol=1e-5)


def test_padding_and_prompts_change_nothing():
    batch = text_batch()
    expected, count = rows(batch), len(batch["inputs"])
    for other in (spoil(batch), padded(batch)):
        found = rows(other)
        for name, x in expected.items():
            np.testing.assert_allclose(found[name][:count], x, rtol=1e-6)
            np.testing.assert_array_equal(found[name][count:], 0.0)


@pytest.mark.parametrize("combine", [{}, {"tokens": solved}])
def test_refusals(combine):
    with pytest.raises(ValueError, match="models, combine: got 1 and"):
        combined_scores([(MODEL, own_weights)], combine)
