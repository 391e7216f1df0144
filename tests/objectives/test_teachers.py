"""Several teachers with shares: identities between the two forms and the objective of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import text_batch
from support.linear import assert_trees_close
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case

from kd_jax.losses import divergences
from kd_jax.losses.classification import label_log_probs
from kd_jax.objectives.distil import distil, token_divergence
from kd_jax.objectives.teachers import Teacher, divergence_from_each, divergence_from_mixture
from kd_jax.types import Context

FORMS = {"each": divergence_from_each, "mixture": divergence_from_mixture}
BOTH = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def forward(s, t, y):
    return divergences.forward_kl(s, t)


def jsd(s, t, y):
    return divergences.jensen_shannon(s, t, beta=0.3)


def two(share=0.3):
    return {"teacher": Teacher(MODEL, share), "reference": Teacher(MODEL, 1 - share)}


CASES = {
    name: Case(lambda model, form=form: form(model, two(), jsd, 0.5, hard=0.5))
    for name, form in FORMS.items()
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def value_and_grad(objective, frozen=FROZEN, params=PARAMS):
    batch, ctx = text_batch(), Context(KEY, jnp.int32(0))
    aux, carry = objective.init(KEY, params, frozen, batch)

    def loss(model):
        return objective.loss({"model": model, "aux": aux}, carry, frozen, batch, ctx).loss

    return jax.jit(jax.value_and_grad(loss))(params)


@BOTH
def test_one_teacher_is_the_objective_of_one(form):
    found = value_and_grad(form(MODEL, {"teacher": Teacher(MODEL, 1.0)}, jsd, 0.7, hard=0.2))
    part = token_divergence(jsd, 0.7, hard=0.2)
    assert_trees_close(found, value_and_grad(distil(MODEL, MODEL, {"kd": part})))


@BOTH
def test_equal_teachers_are_one(form):
    frozen = {"teacher": FROZEN["teacher"], "reference": FROZEN["teacher"]}
    one = form(MODEL, {"teacher": Teacher(MODEL, 1.0)}, jsd)
    assert_trees_close(value_and_grad(form(MODEL, two(), jsd), frozen), value_and_grad(one, frozen))


@BOTH
def test_a_teacher_without_share_counts_nowhere(form):
    one = form(MODEL, {"reference": Teacher(MODEL, 1.0)}, jsd)
    assert_trees_close(value_and_grad(form(MODEL, two(0.0), jsd)), value_and_grad(one))


def logits(params, batch):
    hidden = np.asarray(params["embedding"], np.float64)[np.asarray(batch["inputs"])]
    return hidden @ np.asarray(params["unembedding"], np.float64).T


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_values_against_numpy():
    batch = text_batch()
    log_q, *log_p = (
        log_softmax(logits(x, batch)) for x in (PARAMS, FROZEN["teacher"], FROZEN["reference"])
    )
    shares, weights = (0.3, 0.7), np.asarray(batch["weights"], np.float64)
    log_mean = np.log(sum(w * np.exp(x) for w, x in zip(shares, log_p, strict=True)))
    nll = -np.take_along_axis(log_q, np.asarray(batch["targets"])[..., None], -1)[..., 0]

    def kl(log_p):
        return (np.exp(log_p) * (log_p - log_q)).sum(-1)

    each = sum(w * kl(x) for w, x in zip(shares, log_p, strict=True))
    for form, soft in ((divergence_from_each, each), (divergence_from_mixture, kl(log_mean))):
        want = (weights * (0.5 * soft + 0.2 * nll)).sum() / weights.sum()
        found = value_and_grad(form(MODEL, two(), forward, 0.5, hard=0.2))[0]
        np.testing.assert_allclose(found, want, rtol=1e-5)


def test_forward_kl_has_the_same_gradient_in_both_forms():
    """sum_i w_i KL(p_i || q) = KL(p || q) + sum_i w_i KL(p_i || p); other divergences do not."""
    each, mixture = (value_and_grad(form(MODEL, two(), forward)) for form in FORMS.values())
    assert_trees_close(each[1], mixture[1])
    assert each[0] > mixture[0] + 1e-2
    spread = [value_and_grad(form(MODEL, two(), forward))[0] for form in FORMS.values()]
    at_teacher = [
        value_and_grad(form(MODEL, two(), forward), params=FROZEN["teacher"])[0]
        for form in FORMS.values()
    ]
    np.testing.assert_allclose(
        spread[0] - spread[1], at_teacher[0] - at_teacher[1], rtol=1e-4
    )  # whatever the student
    each, mixture = (value_and_grad(form(MODEL, two(), jsd)) for form in FORMS.values())
    assert np.abs(each[1]["unembedding"] - mixture[1]["unembedding"]).max() > 1e-3


@BOTH
def test_heads_of_other_sizes(form):
    """The padded rows of one teacher and of the student count nowhere."""

    def grown(params, rows):
        extra = jnp.full((rows, params["unembedding"].shape[1]), 2.0)
        return params | {"unembedding": jnp.concatenate([params["unembedding"], extra])}

    frozen = FROZEN | {"reference": grown(FROZEN["reference"], 3)}
    with pytest.raises(ValueError) as error:
        form(MODEL, two(), jsd).init(KEY, grown(PARAMS, 1), frozen, text_batch())
    sizes = "(student 6, teacher teacher 5, teacher reference 8)"
    assert sizes in str(error.value) and "give vocabulary=" in str(error.value)
    padded = value_and_grad(
        form(MODEL, two(), jsd, hard=0.1, vocabulary=5), frozen, grown(PARAMS, 1)
    )
    value, grads = value_and_grad(form(MODEL, two(), jsd, hard=0.1))
    zeros = grads | {"unembedding": jnp.pad(grads["unembedding"], [(0, 1), (0, 0)])}
    assert_trees_close(padded, (value, zeros))


@BOTH
def test_errors_name_the_teachers(form):
    for teachers, said in (
        (two(0.3) | {"third": Teacher(MODEL, 0.5)}, "teacher 0.3, reference 0.7, third 0.5"),
        (two(-0.5), "teacher -0.5, reference 1.5"),
        ({}, "none"),
    ):
        with pytest.raises(ValueError, match=f"weights: got {said}, takes numbers from 0 that sum"):
            form(MODEL, teachers, jsd)
    objective = form(MODEL, {"big": Teacher(MODEL, 1.0)}, jsd)
    with pytest.raises(ValueError) as error:
        objective.init(KEY, PARAMS, FROZEN, text_batch())
    assert str(error.value) == "frozen: got reference, teacher, takes the teachers big"


def test_the_loss_is_given_the_targets():
    found = value_and_grad(
        divergence_from_each(MODEL, two(), lambda s, t, y: -label_log_probs(s, y))
    )
    only = divergence_from_each(MODEL, two(), lambda s, t, y: jnp.zeros(y.shape), hard=1.0)
    assert_trees_close(found, value_and_grad(only))
