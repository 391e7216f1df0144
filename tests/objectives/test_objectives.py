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

from kd_jax.objectives.combinators import add, on, scaled
from kd_jax.objectives.distil import distil, soft_tokens, tokens
from kd_jax.objectives.prefer import direct_preference
from kd_jax.objectives.references import online
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn import (
    gradient_ascent,
    gradient_difference,
    kl_retain,
    negative_preference,
)
from kd_jax.steps import make_train_step

MODEL = bigram_model()
KEY = jax.random.key(0)
PARAMS = MODEL.init(jax.random.key(1))
FROZEN = {name: MODEL.init(jax.random.key(i)) for i, name in enumerate(("reference", "teacher"), 7)}

NPO = functools.partial(negative_preference, MODEL, online(MODEL))
OBJECTIVES = {
    "supervise": supervise(MODEL, {"nll": next_token_nll}),
    "distil": distil(MODEL, MODEL, {"ce": tokens(0.3), "kd": soft_tokens(0.7, temperature=2.0)}),
    "ascent": gradient_ascent(MODEL),
    "kl": kl_retain(MODEL),
    "npo": NPO(beta=0.1),
    "difference": gradient_difference(MODEL),
    "npo+rt": add(
        {"f": on("forget", NPO(beta=0.1)), "r": on("retain", scaled(kl_retain(MODEL), 2))}
    ),
    "dpo": direct_preference(MODEL, online(MODEL), beta=0.1),
}
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


def one_step(name, batch, microbatches=1):
    step = make_train_step(OBJECTIVES[name], optax.sgd(0.5), microbatches=microbatches)
    return jax.jit(step.apply)(step.init(KEY, PARAMS, FROZEN, batch), FROZEN, batch)


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
def test_microbatches_give_the_same_step(name):
    assert_trees_close(one_step(name, batch_for(name)), one_step(name, batch_for(name), 2))


@each
def test_eight_devices_give_the_same_step(name):
    batch = batch_for(name, rows=8)
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    assert_trees_close(one_step(name, batch), one_step(name, sharded))


@each
def test_no_gradient_reaches_what_is_frozen(name):
    objective, batch = OBJECTIVES[name], batch_for(name)
    aux, carry = objective.init(KEY, PARAMS, FROZEN, batch)
    from kd_jax.types import Context

    def loss(frozen):
        params = {"model": PARAMS, "aux": aux}
        return objective.loss(params, carry, frozen, batch, Context(KEY, jnp.int32(0))).loss

    for leaf in jax.tree.leaves(jax.grad(loss)(FROZEN)):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_values_against_numpy():
    """Log-probabilities by hand, then each objective's formula."""
    batch = text_batch()
    w = np.asarray(batch["weights"])

    def token_logs(params):
        hidden = np.asarray(params["embedding"], np.float64)[np.asarray(batch["inputs"])]
        z = hidden @ np.asarray(params["unembedding"], np.float64).T
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    logs, reference = token_logs(PARAMS), token_logs(FROZEN["reference"])
    target = np.asarray(batch["targets"])[..., None]
    lp, lp_ref = (np.take_along_axis(x, target, -1)[..., 0] for x in (logs, reference))
    nll = -(lp * w).sum() / w.sum()
    ratio = (lp * w).sum(1) - (lp_ref * w).sum(1)
    kl = (np.exp(reference) * (reference - logs)).sum(-1)
    expected = {
        "supervise": nll,
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
    ratios = []
    for part in ("chosen", "rejected"):
        logs = []
        for params in (PARAMS, FROZEN["reference"]):
            out = MODEL.apply(params, batch[part]).head.logits()
            lp = jax.nn.log_softmax(out)
            picked = jnp.take_along_axis(lp, batch[part]["targets"][..., None], -1)[..., 0]
            logs.append((picked * batch[part]["weights"]).sum(1))
        ratios.append(np.asarray(logs[0] - logs[1]))
    margin = 0.1 * (ratios[0] - ratios[1])
    metrics = one_step("dpo", batch)[1]
    np.testing.assert_allclose(metrics["loss"], np.log1p(np.exp(-margin)).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["margin"], margin.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (margin > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["chosen"], ratios[0].mean(), rtol=1e-4)


def test_npo_tends_to_gradient_ascent_as_beta_falls():
    """Its update on sequences becomes that of ascent on their summed log-probabilities."""
    batch = text_batch()

    def moved(objective):
        step = make_train_step(objective, optax.sgd(1e-2))
        new, _ = step(step.init(KEY, PARAMS, FROZEN, batch), FROZEN, batch)
        return jax.tree.map(jnp.subtract, new.params["model"], PARAMS)

    # Ascent is a mean over tokens; NPO is a mean over sequences of sums.
    factor = batch["weights"].sum() / batch["weights"].shape[0]
    assert_trees_close(
        moved(NPO(beta=1e-4)), moved(scaled(gradient_ascent(MODEL), factor)), rtol=2e-3, atol=1e-6
    )


def test_a_student_equal_to_its_teacher_has_no_soft_loss_and_no_soft_gradient():
    objective = distil(MODEL, MODEL, {"kd": soft_tokens(temperature=3.0)})
    step = make_train_step(objective, optax.sgd(1.0))
    frozen, batch = {"teacher": PARAMS}, text_batch()
    state = step.init(KEY, PARAMS, frozen, batch)
    new, metrics = step(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], 0.0, atol=1e-6)
    assert_trees_close(new.params, state.params, atol=1e-6)
