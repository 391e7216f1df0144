"""Distillation of classifiers: Hinton's total by its card, and the hint's trained regressor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.linear import assert_trees_close, batch_of, linear_model

from kd_jax.objectives.distil import distil, hint, labels, reverse_soft_labels, soft_labels
from kd_jax.objectives.terms import label_accuracy
from kd_jax.steps import make_train_step
from kd_jax.types import Context, Logits, Model, ModelOutput

MODEL = linear_model()
KEY = jax.random.key(0)


def fixed_logits(z):
    """A model whose logits are its parameters."""
    apply = lambda params, inputs, **_: ModelOutput(Logits(params["z"]))  # noqa: E731 - one expression
    return Model(lambda key: {"z": jnp.array(z)}, apply)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"ce": labels()}, 0.889572),
        ({"kd": soft_labels()}, 0.449318),
        ({"kd": soft_labels(temperature=2.0)}, 0.539018),
        ({"kd": soft_labels(temperature=4.0)}, 0.537105),
        ({"ce": labels(0.1), "kd": soft_labels(0.9, temperature=4.0)}, 0.572352),
    ],
)
def test_hinton_values(parts, expected):
    """The numbers of card B1: S = [[1, 2, 0], [.5, -1, 1.5]], T = [[3, 1, 0], [0, -2, 2]]."""
    student, teacher = (
        fixed_logits([[1.0, 2, 0], [0.5, -1, 1.5]]),
        fixed_logits([[3.0, 1, 0], [0, -2, 2]]),
    )
    batch = {"inputs": jnp.zeros((2, 1)), "targets": jnp.array([0, 2]), "weights": jnp.ones(2)}
    step = make_train_step(distil(student, teacher, parts), optax.sgd(0.0))
    frozen = {"teacher": teacher.init(KEY)}
    state = step.init(KEY, student.init(KEY), frozen, batch)
    _, metrics = jax.jit(step)(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=2e-6)


def test_reverse_is_forward_with_the_roles_changed():
    batch = batch_of(4)
    a, b = MODEL.init(jax.random.key(1)), MODEL.init(jax.random.key(2))

    def loss(part, student, teacher):
        step = make_train_step(distil(MODEL, MODEL, {"kd": part}), optax.sgd(0.0))
        frozen = {"teacher": teacher}
        return jax.jit(step)(step.init(KEY, student, frozen, batch), frozen, batch)[1]["loss"]

    forward = loss(soft_labels(temperature=2.0), a, b)
    np.testing.assert_allclose(loss(reverse_soft_labels(temperature=2.0), b, a), forward, rtol=1e-5)


def test_dense_parts_have_no_gradient_to_the_teacher_and_hints_their_own_regressors():
    parts = {
        "kd": soft_labels(temperature=2.0),
        "back": reverse_soft_labels(),
        "hint": hint("inputs", "logits"),
        "other": hint("inputs", "logits"),
    }
    objective, batch = distil(MODEL, MODEL, parts), batch_of(4)
    model, frozen = MODEL.init(jax.random.key(1)), {"teacher": MODEL.init(jax.random.key(2))}
    aux, carry = objective.init(KEY, model, frozen, batch)
    assert not np.array_equal(aux["hint"]["kernel"], aux["other"]["kernel"])

    def loss(frozen):
        ctx = Context(KEY, jnp.int32(0))
        return objective.loss({"model": model, "aux": aux}, carry, frozen, batch, ctx).loss

    slopes = jax.grad(loss)(frozen)
    assert_trees_close(slopes, jax.tree.map(jnp.zeros_like, frozen), rtol=0, atol=0)


def test_hint_trains_its_regressor_with_the_student():
    part = hint("inputs", "logits", 2.0)
    objective = distil(
        MODEL, MODEL, {"ce": labels(), "hint": part}, metrics={"hit": label_accuracy}
    )
    batch, frozen = batch_of(8), {"teacher": MODEL.init(jax.random.key(5))}
    results = []
    for k in (1, 2):
        step = make_train_step(objective, optax.sgd(0.1), microbatches=k)
        state = step.init(KEY, MODEL.init(jax.random.key(1)), frozen, batch)
        jitted = jax.jit(step)
        results.append(jitted(state, frozen, batch))
    assert_trees_close(*results)
    start = state.params["aux"]["hint"]
    assert start["kernel"].shape == (3, 4)
    assert set(state.params["aux"]) == {"ce", "hint"}
    assert state.params["aux"]["ce"] == {}
    guess = batch["inputs"] @ start["kernel"] + start["bias"][None]
    wanted = MODEL.apply(frozen["teacher"], batch).head.logits()
    by_hand = jnp.average(((guess - wanted) ** 2).mean(-1), weights=batch["weights"])
    metrics = results[0][1]
    np.testing.assert_allclose(metrics["hint"], 2.0 * by_hand, rtol=1e-5)
    for _ in range(200):
        state, metrics = jitted(state, frozen, batch)
    assert float(metrics["hint"]) < 0.05 * float(2.0 * by_hand)
