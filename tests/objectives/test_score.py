"""Scoring passes against numpy, one answer after the other."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from support.bigram import bigram_model, padded, spoil, text_batch

from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.models import layout
from kd_jax.models.decoder import DecoderConfig, decoder
from kd_jax.objectives.score import answer_statistics, gradient_norms, sequence_scores
from kd_jax.steps import make_eval_step

MODEL = bigram_model()
PARAMS = {"model": jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(1))), "aux": {}}
# Its rows have 1 to 5 answer tokens, of which the last is not memorised.
BATCH = text_batch(rows=6, length=7, seed=3)
K = 0.5

CONFIG = DecoderConfig(vocab=16, width=8, depth=2, heads=2, kv_heads=1, head_dim=4, mlp=8)


def rows_of(objective, batch, params=PARAMS):
    return jax.jit(make_eval_step(objective))(params, {}, {}, batch).rows


def predictions(row):
    """log p of every token [T, V], of one row, in float64."""
    table, head = (np.asarray(PARAMS["model"][n], np.float64) for n in ("embedding", "unembedding"))
    logits = table[np.asarray(BATCH["inputs"][row])] @ head.T
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def answer_by_hand(row):
    log_p = predictions(row)
    p = np.exp(log_p)
    target = np.asarray(BATCH["targets"][row])
    places = np.flatnonzero(BATCH["weights"][row])
    inner = places[:-1]
    own = log_p[np.arange(len(target)), target]
    mean = (p * log_p).sum(-1)
    variance = np.maximum((p * log_p**2).sum(-1) - mean**2, 1e-6)
    z = (own - mean) / np.sqrt(variance)
    right = (log_p.argmax(-1) == target)[inner]
    run = next(i for i in range(len(right), -1, -1) if all(right[len(right) - i :]))
    n = max(1, int(K * len(inner)))

    def least(x):
        return -np.sort(x[inner])[:n].mean() if len(inner) else 0.0

    return {
        "log_prob": own[places].sum(),
        "tokens": len(places),
        "memorisation": right.mean() if len(inner) else np.nan,
        "extraction": run / max(len(inner), 1),
        "min_k": least(own),
        "min_k_pp": least(z),
    }


def test_answer_statistics_are_those_of_single_answers():
    found = rows_of(answer_statistics(MODEL, k=K), BATCH)
    expected = [answer_by_hand(row) for row in range(6)]
    assert found.keys() == expected[0].keys()
    for name, x in found.items():
        theirs = [row[name] for row in expected]
        np.testing.assert_allclose(x, theirs, rtol=1e-4, atol=1e-6, err_msg=name)
    assert 0 < np.nanmean(found["memorisation"]) < 1 and 0 < found["extraction"].mean() < 1
    plain = rows_of(sequence_scores(MODEL), BATCH)
    for name, x in plain.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-6)


def test_padding_moves_no_statistic():
    objective = answer_statistics(MODEL, k=K)
    expected = rows_of(objective, BATCH)
    spoiled, longer = (rows_of(objective, change(BATCH)) for change in (spoil, padded))
    for name, x in expected.items():
        np.testing.assert_allclose(spoiled[name], x, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(longer[name][:6], x, rtol=1e-6, err_msg=name)
        empty = np.nan if name == "memorisation" else 0.0
        np.testing.assert_array_equal(longer[name][6:], empty)


def norms_by_hand(row, order):
    """d loss / d logits = (p - target) / n at each token, of the bigram model's two tensors."""
    table, head = (np.asarray(PARAMS["model"][n], np.float64) for n in ("embedding", "unembedding"))
    inputs, target = (np.asarray(BATCH[name][row]) for name in ("inputs", "targets"))
    inner = np.flatnonzero(BATCH["weights"][row])[:-1]
    to_table, to_head = np.zeros_like(table), np.zeros_like(head)
    for t in inner:
        slope = np.exp(predictions(row)[t]) - np.eye(len(head))[target[t]]
        to_head += np.outer(slope, table[inputs[t]]) / len(inner)
        to_table[inputs[t]] += slope @ head / len(inner)
    return [np.linalg.norm(x.ravel(), order) for x in (to_table, to_head)]


@pytest.mark.parametrize("order", [1.0, 2.0, np.inf])
def test_gradient_norms_are_those_of_single_answers(order):
    found = rows_of(gradient_norms(MODEL, order=order), BATCH)["gradient_norms"]
    expected = [norms_by_hand(row, order) for row in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (found[1:5] > 0.1).all()
    np.testing.assert_array_equal(found[0], 0.0)  # nothing but the last token
    spoiled = rows_of(gradient_norms(MODEL, order=order), spoil(BATCH))["gradient_norms"]
    np.testing.assert_allclose(spoiled, found, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_stacked_tensor_counts_layer_by_layer():
    model, apart = decoder(CONFIG), decoder(dataclasses.replace(CONFIG, scan=False))
    weights = model.init(jax.random.key(0))
    stacked = rows_of(
        gradient_norms(model, tensors=layout.unstack), BATCH, {"model": weights, "aux": {}}
    )
    plain = rows_of(gradient_norms(apart), BATCH, {"model": layout.unstack(weights), "aux": {}})
    assert stacked["gradient_norms"].shape == (6, len(jax.tree.leaves(layout.unstack(weights))))
    np.testing.assert_allclose(
        stacked["gradient_norms"], plain["gradient_norms"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("score", [answer_statistics, gradient_norms])
def test_a_mesh_changes_nothing(score):
    """Rows over data and fsdp, heads over tensor, an uneven last batch."""
    model = decoder(CONFIG)
    params = {"model": model.init(jax.random.key(0)), "aux": {}}
    step = make_eval_step(score(model))
    data = {name: np.asarray(x) for name, x in text_batch(rows=11, length=7).items()}
    run = functools.partial(evaluate, step, params, {}, {}, data, batch_size=8)
    _, one = run(mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
    _, many = run(mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    for name, x in one.items():
        np.testing.assert_allclose(many[name], x, rtol=1e-4, atol=1e-5, err_msg=name)


def test_norms_of_order_below_one_are_refused():
    with pytest.raises(ValueError, match="order: got 0.5"):
        gradient_norms(MODEL, order=0.5)
