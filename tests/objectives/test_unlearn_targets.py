"""Unlearning towards other distributions, FLAT, and the primal-dual constraint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bigram import text_batch
from support.linear import assert_trees_close
from support.objective_laws import (
    FROZEN,
    KEY,
    LAWS,
    MODEL,
    PARAMS,
    Case,
    batch_for,
    microbatches_on_four_devices_change_nothing,
    one_step,
    padding_moves_no_number,
)

from kd_jax.losses import targets as losses
from kd_jax.losses.f_divergences import JENSEN_SHANNON, PEARSON, flat
from kd_jax.objectives.combinators import on
from kd_jax.objectives.constrained import primal_dual
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn import divergence, targets
from kd_jax.steps import make_eval_step, make_train_step


def pdu(model):
    return primal_dual(
        on("forget", targets.logit_margin(model)),
        on("retain", supervise(model, {"nll": next_token_nll})),
        limit=0.5,
    )


CASES = {
    "undial": Case(lambda model: targets.undial(model, beta=4.0)),
    "ce_u": Case(lambda model: targets.ce_u(model, skip=0)),
    "maximum_entropy": Case(targets.maximum_entropy),
    "pdu": Case(pdu, ("forget", "retain")),
    "flat_js": Case(
        lambda model: divergence.flat(model, divergence=JENSEN_SHANNON), ("refusal", "forget")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def test_skipping_the_first_token_of_ce_u_keeps_the_laws():
    """All but that of sensitivity, which changes a first token."""
    for law in (padding_moves_no_number, microbatches_on_four_devices_change_nothing):
        law(Case(targets.ce_u))


def logits_of(params, batch):
    return MODEL.apply(params, batch).head.logits()


def value(objective, batch, params=PARAMS):
    """The loss as an evaluation step sees it, compiled."""
    _, carry = objective.init(KEY, params, FROZEN, batch)
    step = jax.jit(make_eval_step(objective))
    return step({"model": params, "aux": {}}, carry, FROZEN, batch).loss


def masked_mean(x, weights):
    return (np.asarray(x, np.float64) * weights).sum() / weights.sum()


def test_values_are_the_masked_means_of_the_losses():
    batch = text_batch()
    z, weights = logits_of(PARAMS, batch), np.asarray(batch["weights"], np.float64)
    later = weights * (np.cumsum(weights, 1) > 1)  # rows of 1, 2, 3, 4 tokens: 0, 1, 2, 3 stay
    assert later.sum(1).tolist() == [0, 1, 2, 3]
    reference = logits_of(FROZEN["reference"], batch)
    for objective, rows, w in (
        (
            targets.undial(MODEL, beta=4.0),
            losses.undial(z, reference, batch["targets"], beta=4.0),
            weights,
        ),
        (targets.ce_u(MODEL), losses.ce_u(z, batch["targets"]), later),
        (targets.ce_u(MODEL, skip=0), losses.ce_u(z, batch["targets"]), weights),
        (targets.maximum_entropy(MODEL), losses.uniform_kl(z), weights),
        (targets.logit_margin(MODEL), losses.logit_margin(z), weights),
    ):
        np.testing.assert_allclose(value(objective, batch), masked_mean(rows, w), rtol=1e-5)


def test_undial_without_beta_stands_still_at_the_reference():
    batch, step = text_batch(), make_train_step(targets.undial(MODEL, beta=0.0), optax.sgd(0.5))
    start = FROZEN["reference"]
    state, metrics = jax.jit(step.apply)(step.init(KEY, start, FROZEN, batch), FROZEN, batch)
    assert metrics["grad_norm"] < 1e-6
    assert_trees_close(state.params["model"], start)


def test_without_first():
    weights = jnp.array([[0.0, 1, 1, 0, 1], [0, 0, 0.5, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(
        targets.without_first(weights, 1), [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(targets.without_first(weights, 0), weights)
    with pytest.raises(ValueError, match="count: got -1"):
        targets.without_first(weights, -1)


# FLAT: a nonlinear function of two batch means.


def flat_by_hand(params, batch, which):
    def p(part):
        log_p = jax.nn.log_softmax(logits_of(params, part))
        picked = jnp.take_along_axis(log_p, part["targets"][..., None], -1)[..., 0]
        return (jnp.exp(picked) * part["weights"]).sum() / part["weights"].sum()

    return flat(p(batch["refusal"]), p(batch["forget"]), divergence=which)


@pytest.mark.parametrize("which", [JENSEN_SHANNON, PEARSON])
def test_flat_is_the_divergence_of_the_whole_batch(which):
    """Value and gradient of the formula written out on the whole batch, by four microbatches of
    uneven weights: the mean of theirs is another number."""
    batch = {"refusal": text_batch(8), "forget": text_batch(8, seed=1)}
    by_hand = jax.jit(jax.value_and_grad(lambda p, b: flat_by_hand(p, b, which)))
    expected, grads = by_hand(PARAMS, batch)
    step = make_train_step(divergence.flat(MODEL, divergence=which), optax.sgd(1.0), microbatches=4)
    state, metrics = jax.jit(step.apply)(step.init(KEY, PARAMS, FROZEN, batch), FROZEN, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: a - b, PARAMS, state.params["model"])
    assert_trees_close(moved, grads)
    quarters = [jax.tree.map(lambda x, i=i: x[i::4], batch) for i in range(4)]
    mean_of_means = np.mean([by_hand(PARAMS, part)[0] for part in quarters])
    assert abs(mean_of_means - expected) > 1e-4


def test_flat_raises_the_template_and_lowers_the_answer():
    case = CASES["flat_js"]
    batch = batch_for(case)
    state, before = one_step(case, batch)
    objective = case.make(MODEL)
    _, carry = objective.init(KEY, PARAMS, FROZEN, batch)
    after = make_eval_step(objective)(state.params, carry, FROZEN, batch).metrics
    assert after["template/probability"].value > before["template/probability"]
    assert after["forget/probability"].value < before["forget/probability"]


# The primal-dual combinator.


def train(objective, batch, steps, rate=0.1):
    step = make_train_step(objective, optax.sgd(rate))
    state, seen = step.init(KEY, PARAMS, FROZEN, batch), []
    apply = jax.jit(step.apply)
    for _ in range(steps):
        state, metrics = apply(state, FROZEN, batch)
        seen.append({name: float(x) for name, x in metrics.items()})
    return state, seen


def test_the_dual_rises_while_the_limit_is_broken_and_falls_to_zero_when_it_holds():
    batch = {"forget": text_batch(), "retain": text_batch(seed=1)}
    for limit, toward in ((0.5, "up"), (10.0, "zero")):
        objective = primal_dual(
            on("forget", targets.logit_margin(MODEL)),
            on("retain", supervise(MODEL, {"nll": next_token_nll})),
            limit=limit,
            rate=0.5,
            warmup_steps=2,
        )
        state, seen = train(objective, batch, 5)
        duals = [m["dual"] for m in seen] + [float(state.carry["dual"])]
        assert duals[:3] == [1.0, 1.0, 1.0]  # two steps of warm-up
        for before, after, m in zip(duals[2:-1], duals[3:], seen[2:], strict=True):
            expected = max(0.0, before + 0.5 * (m["value/nll"] - limit))
            np.testing.assert_allclose(after, expected, rtol=1e-5)
        for m in seen:
            np.testing.assert_allclose(m["constraint/nll"], m["dual"] * m["value/nll"], rtol=1e-5)
            np.testing.assert_allclose(
                m["loss"], m["objective/margin"] + m["constraint/nll"], rtol=1e-5
            )
        assert duals[-1] > 1 if toward == "up" else duals[-1] == 0.0


def test_a_dual_of_zero_is_the_objective_alone():
    batch = {"forget": text_batch(), "retain": text_batch(seed=1)}
    parts = (
        on("forget", targets.logit_margin(MODEL)),
        on("retain", supervise(MODEL, {"nll": next_token_nll})),
    )
    state, _ = train(primal_dual(*parts, limit=1e9, start=0.0), batch, 3)
    alone, _ = train(parts[0], batch, 3)
    assert_trees_close(state.params["model"], alone.params["model"])


def test_primal_dual_refuses():
    part = targets.logit_margin(MODEL)
    with pytest.raises(ValueError, match="rate: got -1"):
        primal_dual(part, part, limit=0.0, rate=-1.0)
    with pytest.raises(ValueError, match="start: got -2"):
        primal_dual(part, part, limit=0.0, start=-2.0)
