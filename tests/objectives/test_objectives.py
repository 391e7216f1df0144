"""What every objective has to hold: values, microbatches, padding, frozen parts, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.bigram import bigram_model, padded, spoil, text_batch
from support.linear import assert_trees_close

from kd_jax.losses.preference.margin import dpo
from kd_jax.objectives.combinators import add, on, scaled
from kd_jax.objectives.distil import distil, soft_tokens, tokens
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import online, precomputed
from kd_jax.objectives.score import sequence_scores
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn.likelihood import gradient_ascent, gradient_difference
from kd_jax.objectives.unlearn.preference import negative_preference
from kd_jax.objectives.unlearn.retain import kl_retain
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Context, Model

MODEL = bigram_model()
KEY = jax.random.key(0)
PARAMS = MODEL.init(jax.random.key(1))
FROZEN = {name: MODEL.init(jax.random.key(i)) for i, name in enumerate(("reference", "teacher"), 7)}


def objectives_of(model):
    npo = negative_preference(model, online(model), beta=0.1)
    return {
        "supervise": supervise(model, {"nll": next_token_nll}),
        "distil": distil(
            model, model, {"ce": tokens(0.3), "kd": soft_tokens(0.7, temperature=2.0)}
        ),
        "ascent": gradient_ascent(model),
        "kl": kl_retain(model),
        "npo": npo,
        "difference": gradient_difference(model),
        "npo+rt": add({"f": on("forget", npo), "r": on("retain", scaled(kl_retain(model), 2))}),
        "dpo": prefer(model, {"dpo": functools.partial(dpo, beta=0.1)}, online(model)),
    }


OBJECTIVES = objectives_of(MODEL)
TWO_PARTS = {
    "difference": ("forget", "retain"),
    "npo+rt": ("forget", "retain"),
    "dpo": ("chosen", "rejected"),
}
each = pytest.mark.parametrize("name", OBJECTIVES)


def batch_for(name, change=lambda batch: batch, rows=4):
    parts = TWO_PARTS.get(name)
    if parts is None:
        return change(text_batch(rows))
    return {part: change(text_batch(rows, seed=i)) for i, part in enumerate(parts)}


@functools.cache  # one compilation for a shape, whichever tests ask
def compiled(name, microbatches=1):
    step = make_train_step(OBJECTIVES[name], optax.sgd(0.5), microbatches=microbatches)
    return step.init(KEY, PARAMS, FROZEN, batch_for(name)), jax.jit(step.apply)


def one_step(name, batch, microbatches=1):
    state, step = compiled(name, microbatches)
    return step(state, FROZEN, batch)


@each
def test_prompt_padding_and_padding_rows_move_no_number(name):
    expected = one_step(name, batch_for(name))
    assert_trees_close(expected, one_step(name, batch_for(name, spoil)))
    assert_trees_close(expected, one_step(name, batch_for(name, padded)))


@each
def test_weighed_tokens_do_move_numbers(name):
    """The test above can fail: a change under a weight is seen."""
    batch = batch_for(name)
    part = batch if "inputs" in batch else batch[TWO_PARTS[name][0]]
    changed = part["inputs"].at[1, 1].set((part["inputs"][1, 1] + 1) % 5)
    other = (
        batch | {"inputs": changed}
        if "inputs" in batch
        else batch | {TWO_PARTS[name][0]: part | {"inputs": changed}}
    )
    assert abs(float(one_step(name, batch)[1]["loss"] - one_step(name, other)[1]["loss"])) > 1e-4


@each
def test_microbatches_on_four_devices_give_the_same_step(name):
    batch = batch_for(name, rows=8)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    assert_trees_close(one_step(name, batch), one_step(name, sharded, microbatches=2))


@each
def test_no_gradient_reaches_what_is_frozen(name):
    """And one does reach the model: what is frozen moves the loss all the same."""
    # Streamed losses stop it as well, those of a dense head do not.
    objective, batch = objectives_of(bigram_model(factored=False))[name], batch_for(name)
    aux, carry = objective.init(KEY, PARAMS, FROZEN, batch)

    def loss(model, frozen):
        params = {"model": model, "aux": aux}
        return objective.loss(params, carry, frozen, batch, Context(KEY, jnp.int32(0))).loss

    of_model, of_frozen = jax.jit(jax.grad(loss, (0, 1)))(PARAMS, FROZEN)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(of_model))
    for leaf in jax.tree.leaves(of_frozen):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


@each
def test_one_forward_pass_of_each_model_and_only_the_trained_one_trains(name):
    calls = []

    def apply(params, inputs, **settings):
        calls.append((settings.get("train", False), settings.get("key") is not None))
        return MODEL.apply(params, inputs)

    objective, batch = objectives_of(Model(MODEL.init, apply))[name], batch_for(name)
    aux, carry = objective.init(KEY, PARAMS, FROZEN, batch)
    params = {"model": PARAMS, "aux": aux}
    learning = {"difference": 2, "npo+rt": 2}.get(name, 1)
    reading = {"distil": 1, "kl": 1, "npo": 1, "dpo": 1, "npo+rt": 2}.get(name, 0)
    for train in (True, False):
        calls.clear()
        ctx = Context(KEY, jnp.int32(0), train)
        loss = functools.partial(objective.loss, carry=carry, frozen=FROZEN, ctx=ctx)
        jax.eval_shape(lambda p, loss=loss: loss(p, batch=batch).loss, params)
        assert sorted(calls) == sorted([(train, True)] * learning + [(False, False)] * reading)


def test_values_against_numpy():
    """Log-probabilities by hand, then each objective's formula."""
    batch = text_batch()
    w = np.asarray(batch["weights"])

    def token_logs(params):
        hidden = np.asarray(params["embedding"], np.float64)[np.asarray(batch["inputs"])]
        z = hidden @ np.asarray(params["unembedding"], np.float64).T
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    logs, reference = token_logs(PARAMS), token_logs(FROZEN["reference"])
    taught = token_logs(FROZEN["teacher"])
    target = np.asarray(batch["targets"])[..., None]
    lp, lp_ref = (np.take_along_axis(x, target, -1)[..., 0] for x in (logs, reference))
    nll = -(lp * w).sum() / w.sum()
    ratio = (lp * w).sum(1) - (lp_ref * w).sum(1)
    kl = (np.exp(reference) * (reference - logs)).sum(-1)
    soft = [np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in (taught, logs)]
    soft_kl = (soft[0] * np.log(soft[0] / soft[1])).sum(-1)
    expected = {
        "supervise": nll,
        "distil": 0.3 * nll + 0.7 * 2**2 * (soft_kl * w).sum() / w.sum(),
        "ascent": -nll,
        "npo": (2 / 0.1 * np.log1p(np.exp(0.1 * ratio))).mean(),
        "kl": (kl * w).sum() / w.sum(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(one_step(name, batch)[1]["loss"], value, rtol=1e-5)
    metrics = one_step("npo", batch)[1]
    np.testing.assert_allclose(metrics["log_ratio"], ratio.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["weight"], (2 / (1 + np.exp(-0.1 * ratio))).mean(), rtol=1e-5
    )


def test_dpo_against_numpy_and_its_metrics():
    batch = batch_for("dpo")
    ratios, own = [], []
    for part in ("chosen", "rejected"):
        logs = []
        for params in (PARAMS, FROZEN["reference"]):
            out = MODEL.apply(params, batch[part]).head.logits()
            lp = jax.nn.log_softmax(out)
            picked = jnp.take_along_axis(lp, batch[part]["targets"][..., None], -1)[..., 0]
            logs.append((picked * batch[part]["weights"]).sum(1))
        own.append(np.asarray(logs[0]))
        ratios.append(np.asarray(logs[0] - logs[1]))
    margin = ratios[0] - ratios[1]
    metrics = one_step("dpo", batch)[1]
    np.testing.assert_allclose(metrics["loss"], np.log1p(np.exp(-0.1 * margin)).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["margin"], margin.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (margin > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["chosen"], own[0].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["rejected"], own[1].mean(), rtol=1e-4)


def test_half_a_pair_is_no_pair():
    """Whichever side of it has no tokens."""
    batch = batch_for("dpo")

    def loss_without(*parts):
        cut = {p: batch[p] | {"weights": batch[p]["weights"].at[1].set(0.0)} for p in parts}
        return one_step("dpo", batch | cut)[1]["loss"]

    whole, both = loss_without(), loss_without("chosen", "rejected")
    assert whole != both == loss_without("chosen") == loss_without("rejected")


def test_npo_tends_to_gradient_ascent_as_beta_falls():
    """Its update on sequences becomes that of ascent on their summed log-probabilities."""
    batch = text_batch()

    def moved(objective):
        step = make_train_step(objective, optax.sgd(1e-2))
        new, _ = jax.jit(step)(step.init(KEY, PARAMS, FROZEN, batch), FROZEN, batch)
        return jax.tree.map(jnp.subtract, new.params["model"], PARAMS)

    # Ascent is a mean over tokens; NPO is a mean over sequences of sums.
    factor = batch["weights"].sum() / batch["weights"].shape[0]
    assert_trees_close(
        moved(negative_preference(MODEL, online(MODEL), beta=1e-4)),
        moved(scaled(gradient_ascent(MODEL), factor)),
        rtol=2e-3,
        atol=1e-6,
    )


def test_a_student_equal_to_its_teacher_has_no_soft_loss_and_no_soft_gradient():
    objective = distil(MODEL, MODEL, {"kd": soft_tokens(temperature=3.0)})
    step = make_train_step(objective, optax.sgd(1.0))
    frozen, batch = {"teacher": PARAMS}, text_batch()
    state = step.init(KEY, PARAMS, frozen, batch)
    new, metrics = step(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], 0.0, atol=1e-6)
    assert_trees_close(new.params, state.params, atol=1e-6)


def test_scores_are_the_reference_that_a_precomputed_one_takes():
    """Summed log-probabilities and token counts of rows; 0 of a padding row."""
    params, batch = {"model": FROZEN["reference"], "aux": {}}, padded(text_batch(), 1)
    output = make_eval_step(sequence_scores(MODEL))(params, {}, {}, batch)
    np.testing.assert_array_equal(output.rows["tokens"], batch["weights"].sum(1))
    expected = online(MODEL)({}, FROZEN, batch)
    np.testing.assert_allclose(output.rows["log_prob"], expected, rtol=1e-6)
    assert output.terms == {}
    assert float(output.rows["log_prob"][-1]) == 0.0 > float(output.rows["log_prob"][0])
    with pytest.raises(ValueError, match="takes 'reference_log_probs' besides"):
        precomputed()({}, FROZEN, batch)
    np.testing.assert_array_equal(precomputed("index")({}, FROZEN, batch), batch["index"])
