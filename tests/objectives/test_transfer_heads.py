"""Heads beside the student's own, tokens as a graph, joint labels, mixup."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.images import (
    CLASSES,
    FROZEN,
    KEY,
    PARAMS,
    STUDENT,
    TEACHER,
    Laws,
    image_batch,
    with_padding,
)
from support.linear import assert_trees_close

from kd_jax.gradients import surgery, yield_to_first
from kd_jax.losses.binary import binary_kl_of_difference
from kd_jax.losses.joint_labels import aggregated, rotations
from kd_jax.losses.logits import amplified_target
from kd_jax.losses.prototypes import class_means
from kd_jax.objectives.distil import distil, labels, soft_labels
from kd_jax.objectives.transfer import heads, logits, mixing, tokens
from kd_jax.objectives.transfer.joint import rotation_labels
from kd_jax.steps import make_train_step
from kd_jax.types import Context

pytestmark = pytest.mark.slow  # all together

BATCH = image_batch() | {"aspects": jax.random.uniform(jax.random.key(9), (6, 4))}
POOLED = TEACHER.apply(FROZEN["teacher"], BATCH, taps=("pooled",)).taps["pooled"]
MEANS = class_means(POOLED, BATCH["targets"], CLASSES)
COOLING = tokens.cooling(1.0, 0.1, 10)
PARTS = {
    "linear": heads.auxiliary_head("pooled"),
    "deep": heads.auxiliary_head("pooled", 0.5, hidden=5),
    "exits": heads.exits(("map", "deep", "deep"), (2, 1, 0), width=8, power=1.5),
    "final": logits.soft(lambda s, t, y: amplified_target(s, t, y, power=1.5)),
    "wide": heads.norm_direction("pooled", "pooled", MEANS, project=True),
    "same": heads.norm_direction("logits", "logits", jnp.eye(CLASSES)),
    "aspects": heads.aspects("pooled"),
    "graph": tokens.token_graph(
        "map", "deep", temperature=COOLING, tokens=10, neighbours=3, width=5
    ),
}


def test_laws():
    # The auxiliary heads reach the body by their taps, the student's own head by nothing.
    Laws(PARTS, BATCH).check()


def gradients(parts):
    objective = distil(STUDENT, TEACHER, parts)
    aux, carry = objective.init(KEY, PARAMS, FROZEN, BATCH)

    def loss(params):
        return objective.loss(params, carry, FROZEN, BATCH, Context(KEY, jnp.int32(0))).loss

    return jax.jit(jax.grad(loss))({"model": PARAMS, "aux": aux}), aux


def test_a_second_head_leaves_the_first_alone():
    slope, aux = gradients({"aux": heads.auxiliary_head("pooled", 3.0)})
    assert not np.any(slope["model"]["head"]) and np.any(slope["model"]["two"])
    student = STUDENT.apply(PARAMS, BATCH, taps=("pooled",)).taps["pooled"]
    z = student @ aux["aux"]["head"]["kernel"]
    target = TEACHER.apply(FROZEN["teacher"], BATCH).head.logits()
    objective = distil(STUDENT, TEACHER, {"aux": heads.auxiliary_head("pooled", 3.0)})
    output = objective.loss(
        {"model": PARAMS, "aux": aux}, {}, FROZEN, BATCH, Context(KEY, jnp.int32(0))
    )
    values = 12 * binary_kl_of_difference(z, target)
    want = np.average(values, weights=BATCH["weights"])
    np.testing.assert_allclose(output.terms["aux"].value, want, rtol=1e-5)


def test_only_the_second_gradient_yields():
    g = {"x": jnp.array([1.0, 0.0]), "y": jnp.array([0.0])}
    against = {"x": jnp.array([-2.0, 1.0]), "y": jnp.array([3.0])}
    found = yield_to_first([g, against], KEY)
    assert_trees_close(found, {"x": jnp.array([1.0, 1.0]), "y": jnp.array([3.0])})
    along = {"x": jnp.array([2.0, 1.0]), "y": jnp.array([3.0])}
    assert_trees_close(yield_to_first([g, along], KEY), jax.tree.map(jnp.add, g, along))
    zero = jax.tree.map(jnp.zeros_like, g)
    assert_trees_close(yield_to_first([zero, against], KEY), against)
    # Three: the first stays, the sum of the others yields.
    found = yield_to_first([g, along, jax.tree.map(lambda x: 2 * x, against)], KEY)
    assert_trees_close(found, {"x": jnp.array([1.0, 3.0]), "y": jnp.array([9.0])})


def test_dual_heads_train_with_the_gradient_that_yields():
    parts = {"ce": labels(), "kd": heads.auxiliary_head("pooled")}
    rule = surgery(("ce", "kd"), yield_to_first)
    step = make_train_step(distil(STUDENT, TEACHER, parts), optax.adam(0.02), gradient=rule)
    state, apply = step.init(KEY, PARAMS, FROZEN, BATCH), jax.jit(step.apply)
    losses = []
    for _ in range(60):
        state, metrics = apply(state, FROZEN, BATCH)
        losses.append((float(metrics["ce"]), float(metrics["kd"])))
    assert losses[-1][0] < 0.8 * losses[0][0] and losses[-1][1] < 0.8 * losses[0][1]


def test_cooling():
    values = [float(COOLING(jnp.int32(s))) for s in (0, 5, 10, 20)]
    np.testing.assert_allclose(values, [1.0, 0.55, 0.1, 0.1], rtol=1e-5)
    with pytest.raises(ValueError, match="steps: got 0"):
        tokens.cooling(1.0, 0.1, 0)


def test_exits_take_a_number_of_blocks_a_tap():
    with pytest.raises(ValueError, match="blocks: got"):
        heads.exits(("map",), (1, 2), width=4)


def test_joint_labels_teach_a_head_of_one_view():
    objective = rotation_labels(STUDENT, "pooled", joint=4.0, temperature=2.0)
    aux, carry = objective.init(KEY, PARAMS, {}, BATCH)
    params, ctx = {"model": PARAMS, "aux": aux}, Context(KEY, jnp.int32(0))
    output = objective.loss(params, carry, {}, BATCH, ctx)
    turned = {"inputs": rotations(BATCH["inputs"])}
    found = STUDENT.apply(PARAMS, turned, taps=("pooled",))
    z = np.asarray(found.taps["pooled"] @ aux["joint"]["kernel"], np.float64)
    y = np.asarray(BATCH["targets"])

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    w = np.asarray(BATCH["weights"])
    both = -log_softmax(z)[np.arange(24), (4 * y[:, None] + np.arange(4)).ravel()]
    want = 4 * np.average(both, weights=np.repeat(w, 4))
    np.testing.assert_allclose(output.terms["joint"].value, want, rtol=1e-4)
    q = log_softmax(np.asarray(STUDENT.apply(PARAMS, BATCH).head.logits()) / 2)
    p = log_softmax(np.asarray(aggregated(jnp.array(z), 4)) / 2)
    want = 4 * np.average((np.exp(p) * (p - q)).sum(1), weights=w)
    np.testing.assert_allclose(output.terms["kd"].value, want, rtol=1e-4)

    def kd(aux):
        return objective.loss(params | {"aux": aux}, carry, {}, BATCH, ctx).terms["kd"].value

    assert not np.any(jax.grad(kd)(aux)["joint"]["kernel"])
    results = []
    for count in (1, 2):
        step = make_train_step(objective, optax.sgd(0.1), microbatches=count)
        state = step.init(KEY, PARAMS, {}, BATCH)
        apply = jax.jit(step.apply)
        results.append(apply(state, {}, BATCH))
    results.append(apply(state, {}, with_padding(BATCH)))
    for other in results[1:]:
        assert_trees_close(results[0], other, rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnames=("classes", "alpha", "unmixed"))
def partial_mixup(key, batch, classes=6, **settings):
    return mixing.partial_mixup(key, batch, classes, **settings)


def test_mixup_mixes_what_is_there():
    batch = BATCH | {"inputs": jax.nn.one_hot(jnp.arange(6), 6), "targets": jnp.arange(6)}
    mixed = partial_mixup(KEY, batch)
    x, y = mixed["inputs"], mixed["soft_targets"]
    np.testing.assert_allclose(x, y)
    np.testing.assert_allclose(x.sum(1), 1.0, rtol=1e-6)
    assert ((x > 0).sum(1) > 1).sum() >= 3
    padded = partial_mixup(KEY, with_padding(batch))
    np.testing.assert_array_equal(padded["inputs"][:6], x)
    np.testing.assert_array_equal(padded["inputs"][6:], 50.0)
    # A row whose two images are one is pure too.
    half = partial_mixup(jax.random.key(4), batch, unmixed=0.5)["inputs"]
    assert 3 <= (half.max(1) == 1).sum() < 6
    whole = partial_mixup(KEY, batch, unmixed=1.0)["inputs"]
    np.testing.assert_array_equal(whole.sum(0), 1.0)  # a permutation
    levels = partial_mixup(KEY, batch | {"inputs": jnp.uint8(255 * batch["inputs"])})["inputs"]
    np.testing.assert_allclose(levels, x, rtol=1e-6)  # models take bytes as parts of 255
    many = jnp.arange(400)
    large = {"inputs": many[:, None] * 1.0, "targets": many % 2, "weights": jnp.ones(400)}
    soft = partial_mixup(KEY, large | {"index": many}, 2, alpha=0.3)["soft_targets"][:, 0]
    # Half of the pairs are of one class; shares of Beta(a, a) have variance 1 / (4 (2 a + 1)).
    np.testing.assert_allclose(soft.mean(), 0.5, atol=0.05)
    inner = soft[(soft > 0) & (soft < 1)]
    np.testing.assert_allclose(inner.var(), 0.25 / 1.6, atol=0.03)


def test_a_mixed_batch_trains_a_student():
    parts = {"ce": mixing.mixed_labels(0.1), "kd": soft_labels(0.9, temperature=4.0)}
    objective = mixing.mixed(distil(STUDENT, TEACHER, parts), classes=CLASSES, unmixed=0.5)
    step = make_train_step(objective, optax.sgd(0.01))
    state, apply = step.init(KEY, PARAMS, FROZEN, BATCH), jax.jit(step.apply)
    one = apply(state, FROZEN, BATCH)
    assert_trees_close(one, apply(state, FROZEN, with_padding(BATCH)), rtol=1e-4, atol=1e-5)
    assert float(apply(one[0], FROZEN, BATCH)[1]["ce"]) != float(one[1]["ce"])
    with pytest.raises(ValueError, match="takes 1: this objective couples the examples"):
        make_train_step(objective, optax.sgd(0.01), microbatches=2)


def test_aspects_are_binary_and_mean_over_questions():
    part = heads.aspects("pooled", 4.0)
    objective = distil(STUDENT, TEACHER, {"aspects": part})
    aux, carry = objective.init(KEY, PARAMS, FROZEN, BATCH)
    params = {"model": PARAMS, "aux": aux}
    z = STUDENT.apply(PARAMS, BATCH, taps=("pooled",)).taps["pooled"] @ aux["aspects"]["kernel"]
    p, q = 1 / (1 + np.exp(-np.asarray(z, np.float64))), np.asarray(BATCH["aspects"])
    values = -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean(1)
    want = 4 * np.average(values, weights=np.asarray(BATCH["weights"]))

    def loss(params, batch):
        output = objective.loss(params, carry, FROZEN, batch, Context(KEY, jnp.int32(0)))
        return output.terms["aspects"].value

    np.testing.assert_allclose(loss(params, BATCH), want, rtol=1e-4)
    slope = jax.grad(loss)(params, BATCH | {"aspects": jax.nn.sigmoid(z)})
    for leaf in jax.tree.leaves(slope):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-5)
