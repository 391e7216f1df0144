"""The l1 penalty: its gradient is a sign, its schedule falls, microbatches change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.linear import assert_trees_close, batch_of, linear_model, squared_error
from support.objective_laws import LAWS, Case

from kd_jax.objectives.combinators import add, scaled, scheduled
from kd_jax.objectives.penalties import decreasing, l1
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_train_step

MODEL = linear_model()
PARAMS = {"kernel": MODEL.init(jax.random.key(0))["kernel"].at[1, 1].set(0.0), "bias": -jnp.ones(4)}


def sparse(model):
    return add({"fit": supervise(model, {"nll": next_token_nll}), "sparse": scaled(l1(), 0.01)})


@pytest.mark.parametrize("law", LAWS)
def test_laws(law):
    law(Case(sparse))


def moved(objective, microbatches=1):
    """Minus the update of one step of descent at rate 1: the gradient; and the metrics."""
    step = make_train_step(objective, optax.sgd(1.0), microbatches=microbatches)
    batch = batch_of(8)
    state = step.init(jax.random.key(0), PARAMS, {}, batch)
    new, metrics = jax.jit(step.apply)(state, {}, batch)
    return jax.tree.map(jnp.subtract, PARAMS, new.params["model"]), metrics


@pytest.mark.parametrize("microbatches", [1, 4])
def test_the_gradient_is_the_sign(microbatches):
    grads, metrics = moved(scaled(l1(), 0.25), microbatches)
    assert_trees_close(grads, jax.tree.map(lambda x: 0.25 * np.sign(x), PARAMS))
    assert float(grads["kernel"][1, 1]) == 0.0
    total = sum(np.abs(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(PARAMS))
    np.testing.assert_allclose(metrics["l1"], 0.25 * total, rtol=1e-5)


def test_coefficient_zero_is_training_without_it():
    fit = squared_error(MODEL)
    with_it, _ = moved(add({"fit": fit, "sparse": scaled(l1(), 0.0)}))
    without, _ = moved(fit)
    assert_trees_close(with_it, without)


def test_bfloat16_weights_are_summed_in_float32():
    params = {"model": {"w": jnp.ones(1000, jnp.bfloat16)}}
    output = l1().loss(params, {}, {}, {}, None)
    assert output.loss == 1000.0 and output.loss.dtype == jnp.float32


def test_decreasing_by_hand():
    # a (1 - e / E): 1e-3, 5e-4, 1e-4 at e = 0, 5, 9 of 10.
    schedule = decreasing(1e-3, epochs=10, steps_per_epoch=3)
    found = [float(schedule(jnp.int32(s))) for s in (0, 2, 3, 15, 17, 29, 30, 99)]
    expected = [1e-3, 1e-3, 9e-4, 5e-4, 5e-4, 1e-4, 0.0, 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)
    free = decreasing(1.0, epochs=6, steps_per_epoch=1, free_epochs=2)
    found = [float(free(jnp.int32(s))) for s in range(6)]
    np.testing.assert_allclose(found, [1, 0.75, 0.5, 0.25, 0, 0], rtol=1e-6)


def test_a_schedule_scales_the_penalty():
    grads, _ = moved(scheduled(l1(), decreasing(0.5, epochs=4, steps_per_epoch=1)))
    np.testing.assert_allclose(grads["bias"], -0.5 * np.ones(4), rtol=1e-6)


def test_refusals():
    for free in (-1, 3):
        with pytest.raises(ValueError, match=f"free_epochs: got {free}, takes 0 to less than 3"):
            decreasing(1.0, epochs=3, steps_per_epoch=1, free_epochs=free)
    with pytest.raises(ValueError, match="steps_per_epoch: got 0, takes at least 1"):
        decreasing(1.0, epochs=3, steps_per_epoch=0)
