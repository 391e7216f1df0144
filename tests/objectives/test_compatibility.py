"""MUSCLE's training of a new version: on tokens and on classes, with two frozen teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import bigram_model, text_batch
from support.linear import assert_trees_close, batch_of, linear_model
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case

from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.compatibility import masked_kl, muscle
from kd_jax.objectives.compatibility import compatible
from kd_jax.types import Context

# The laws' frozen weights have other names: the old model is "teacher", the new one "reference".
NAMED = {"old": FROZEN["teacher"], "new": FROZEN["reference"]}


def renamed(objective):
    def loss(params, carry, frozen, batch, ctx):
        two = {"old": frozen["teacher"], "new": frozen["reference"]}
        return objective.loss(params, carry, two, batch, ctx)

    return objective._replace(init=lambda *_: ({}, {}), loss=loss)


CASES = {
    "muscle": Case(lambda m: renamed(compatible(m, m, m))),
    "with labels": Case(lambda m: renamed(compatible(m, m, m, scale=0.7, hard=0.3))),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def value_and_grad(objective, batch, params=PARAMS, frozen=NAMED):
    aux, carry = objective.init(KEY, params, frozen, batch)

    def loss(model):
        ctx = Context(KEY, jnp.int32(0))
        return objective.loss({"model": model, "aux": aux}, carry, frozen, batch, ctx).loss

    return jax.jit(jax.value_and_grad(loss))(params)


def expected(model, batch, params, frozen, scale, hard):
    """The weighed mean of the dense loss."""
    old, new = (model.apply(frozen[name], batch).head.logits() for name in ("old", "new"))

    def loss(params):
        z = model.apply(params, batch).head.logits()
        soft = muscle(z, old, new, batch["targets"])
        values = scale * soft + hard * cross_entropy(z, batch["targets"])
        return (values * batch["weights"]).sum() / batch["weights"].sum()

    return jax.value_and_grad(loss)(params)


@pytest.mark.slow
@pytest.mark.parametrize("factored", [True, False], ids=["factored", "dense"])
def test_tokens_are_the_mean_of_the_loss(factored):
    model, batch = bigram_model(factored), text_batch()
    found = value_and_grad(compatible(model, model, model, scale=0.7, hard=0.3), batch)
    assert_trees_close(found, expected(model, batch, PARAMS, NAMED, 0.7, 0.3))


@pytest.mark.slow
def test_classes_are_the_mean_of_the_loss():
    model, batch = linear_model(), batch_of(8)
    params, old, new = (
        # Biases of their own, so that the student is wrong on some and right on others.
        jax.tree.map(lambda x, i=i: x + 0.3 * jnp.sin(i + x), model.init(jax.random.key(i)))
        for i in range(3)
    )
    frozen = {"old": old, "new": new}
    wrong = model.apply(params, batch).head.logits().argmax(-1) != batch["targets"]
    assert 0 < wrong.sum() < 8
    objective = compatible(model, model, model, scale=0.7, hard=0.3)
    found = value_and_grad(objective, batch, params, frozen)
    assert_trees_close(found, expected(model, batch, params, frozen, 0.7, 0.3))

    def of_teachers(frozen):
        own = {"model": params, "aux": {}}
        return objective.loss(own, {}, frozen, batch, Context(KEY, jnp.int32(0))).loss

    for leaf in jax.tree.leaves(jax.grad(of_teachers)(frozen)):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_any_mask_may_stand_for_the_students_own_errors():
    batch = text_batch()

    def never(z, old, new, y):
        return masked_kl(z, old, new, jnp.zeros(y.shape, bool))

    value, grads = value_and_grad(compatible(MODEL, MODEL, MODEL, never), batch, NAMED["new"])
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    for leaf in jax.tree.leaves(grads):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-6)


def test_the_teachers_are_asked_for_by_name():
    with pytest.raises(ValueError, match="frozen: got reference, teacher, takes .* old, new"):
        compatible(MODEL, MODEL, MODEL).init(KEY, PARAMS, FROZEN, text_batch())
