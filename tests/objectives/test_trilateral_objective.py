"""TGeo-KD: the fusion network's gradient is that of the outer loss after a step of the student."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.linear import CLASSES, assert_trees_close, batch_of, linear_model

from kd_jax.gradients import bilevel
from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.prototypes import class_means
from kd_jax.objectives.transfer.trilateral import trilateral
from kd_jax.steps import make_train_step
from kd_jax.types import Context

pytestmark = pytest.mark.slow  # all together

MODEL, KEY, RATE = linear_model(), jax.random.key(0), 0.3
PARAMS = MODEL.init(jax.random.key(1))
BATCH = {"train": batch_of(8), "other": batch_of(8, seed=1)}
TEACHER = MODEL.init(jax.random.key(2))
PROBABILITIES = jax.nn.softmax(MODEL.apply(TEACHER, BATCH["train"]).head.logits())
FROZEN = {
    "teacher": TEACHER,
    "class_means": class_means(PROBABILITIES, BATCH["train"]["targets"], CLASSES),
}
OBJECTIVE = trilateral(MODEL, MODEL)
AUX, CARRY = OBJECTIVE.init(KEY, PARAMS, FROZEN, BATCH)


@jax.jit
def terms(model, aux):
    output = OBJECTIVE.loss(
        {"model": model, "aux": aux}, CARRY, FROZEN, BATCH, Context(KEY, jnp.int32(0))
    )
    return {n: t.value for n, t in (output.terms | output.metrics).items()} | {
        "shares": output.rows["share"]
    }


@pytest.mark.parametrize(("bias", "share"), [(50.0, 1.0), (-50.0, 0.0)])
def test_all_of_the_teacher_and_all_of_the_label(bias, share):
    last = AUX["layer_2"] | {"bias": jnp.full(1, bias)}
    found = terms(PARAMS, AUX | {"layer_2": last})
    train, w = BATCH["train"], BATCH["train"]["weights"]
    s, t = (MODEL.apply(p, train).head.logits() for p in (PARAMS, TEACHER))
    soft = 2.25 * forward_kl(s, t, temperature=1.5)
    values = soft if share else cross_entropy(s, train["targets"])
    np.testing.assert_allclose(found["inner"], np.average(values, weights=w), rtol=1e-5)
    np.testing.assert_allclose(found["share"], share, atol=1e-6)
    np.testing.assert_allclose(found["shares"], np.full(len(values), share), atol=1e-6)


def test_the_network_follows_the_outer_loss_through_a_step():
    rule = bilevel(inner="inner", outer="outer", learning_rate=RATE)
    steps = [
        make_train_step(OBJECTIVE, optax.sgd(1.0), gradient=rule, microbatches=k) for k in (1, 2)
    ]
    state = steps[0].init(KEY, PARAMS, FROZEN, BATCH)._replace(params={"model": PARAMS, "aux": AUX})
    (new, metrics), cut = (jax.jit(step.apply)(state, FROZEN, BATCH) for step in steps)
    assert_trees_close((new, metrics), cut, rtol=1e-4, atol=1e-5)

    inner = jax.jit(jax.grad(lambda m, a: terms(m, a)["inner"]))
    slope = inner(PARAMS, AUX)
    want = jax.tree.map(jnp.subtract, PARAMS, slope)
    assert_trees_close(new.params["model"], want, rtol=1e-4, atol=1e-5)

    @jax.jit
    def after(aux):
        stepped = jax.tree.map(lambda p, g: p - RATE * g, PARAMS, inner(PARAMS, aux))
        return terms(stepped, aux)["outer"]

    direct = jax.grad(after)(AUX)
    moved = jax.tree.map(jnp.subtract, AUX, new.params["aux"])
    assert_trees_close(moved, direct, rtol=1e-3, atol=1e-6)
    # It is not 0, and as long as differences along it say; near, for the kinks of leaky ReLUs.
    length, near = float(optax.tree.norm(moved)), 0.005
    assert length > 1e-3

    def at(distance):
        return after(jax.tree.map(lambda a, g: a + distance * g / length, AUX, moved))

    np.testing.assert_allclose((at(near) - at(-near)) / (2 * near), length, rtol=0.05)


def test_terms_are_named():
    rule = bilevel(inner="inner", outer="inner", learning_rate=RATE)
    step = make_train_step(OBJECTIVE, optax.sgd(1.0), gradient=rule)
    with pytest.raises(ValueError, match="inner, outer: got"):
        step.apply(step.init(KEY, PARAMS, FROZEN, BATCH), FROZEN, BATCH)
