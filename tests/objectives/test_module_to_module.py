"""Module-to-module distillation: hybrids by their stages, the card's numbers, what is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.images import image_batch, with_padding
from support.linear import assert_trees_close

from kd_jax.models.modular import chained, dense, hybrid, linear_head, modular, routed, stitched
from kd_jax.objectives.distil import distil, soft_labels
from kd_jax.objectives.transfer.hybrids import (
    module_to_module,
    soft_per_class,
    teachers_choice,
)
from kd_jax.steps import make_train_step
from kd_jax.types import Context, Logits, Model, ModelOutput

KEY = jax.random.key(0)
BATCH = image_batch(8)
META = (dense(32, (5,)), dense(5, (5,)), linear_head(5, 3))
BIG = {  # of width 7, in the meta model's slots of width 5
    0: stitched(dense(32, (7,)), inputs=None, outputs=(7, 5)),
    1: stitched(dense(7, (7, 7)), inputs=(5, 7), outputs=(7, 5)),
    2: stitched(linear_head(7, 3), inputs=(5, 7), outputs=None),
}
SMALL = {
    0: stitched(chained(dense(32, (4,)), routed(4, 3)), inputs=None, outputs=(4, 5)),
    1: stitched(routed(4, 3), inputs=(5, 4), outputs=(4, 5)),
    2: stitched(chained(routed(4, 3), linear_head(4, 3)), inputs=(5, 4), outputs=None),
}
META_WEIGHTS = modular(META).init(jax.random.key(1))


def setup(slot):
    student, teacher = hybrid(META, SMALL[slot], slot), hybrid(META, BIG[slot], slot)
    frozen = {"meta": META_WEIGHTS, "teacher": BIG[slot].init(jax.random.key(2))}
    return student, teacher, frozen, SMALL[slot].init(jax.random.key(3))


@functools.cache
def compiled(slot, hard=False, microbatches=1):
    student, teacher, frozen, params = setup(slot)
    matching = teachers_choice() if hard else soft_per_class(temperature=2.0)
    objective = module_to_module(student, teacher, 0.3, matching=matching)
    step = make_train_step(objective, optax.sgd(0.1), microbatches=microbatches)
    return step.init(KEY, params, frozen, BATCH), jax.jit(step.apply), frozen


def one_step(batch, *args):
    state, apply, frozen = compiled(*args)
    return apply(state, frozen, batch)


@pytest.mark.slow
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_hybrid_is_its_stages_in_order(slot):
    student, _, frozen, params = setup(slot)
    assert jax.tree.structure(student.init(KEY)["module"]) == jax.tree.structure(params)
    weights = {"meta": frozen["meta"], "module": params}
    output = student.apply(weights, BATCH, taps=("stage_0", "stage_1"))
    x, seen = BATCH["inputs"], []
    for i, stage in enumerate(META):
        module = SMALL[slot] if i == slot else stage
        x = module.apply(params if i == slot else frozen["meta"][f"stage_{i}"], x)
        seen.append(x)
    np.testing.assert_allclose(output.head.logits(), x, rtol=1e-5)
    np.testing.assert_allclose(output.taps["stage_1"], seen[1], rtol=1e-5)
    # The slot's own weights of the meta model are not read.
    spoilt = {**frozen["meta"], f"stage_{slot}": None}
    np.testing.assert_array_equal(
        student.apply(weights | {"meta": spoilt}, BATCH).head.logits(), output.head.logits()
    )


def test_stages_by_hand():
    stage = stitched(dense(4, (3,)), inputs=(2, 4), outputs=(3, 5))
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.array(draw.standard_normal(x.shape), jnp.float32), stage.init(KEY)
    )
    x = draw.standard_normal((6, 2))
    tree = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    y = x @ tree["in"]["kernel"] + tree["in"]["bias"]
    layer = tree["module"]["layer_0"]
    y = np.maximum(y @ layer["kernel"] + layer["bias"], 0)
    y = y @ tree["out"]["kernel"] + tree["out"]["bias"]
    found = stage.apply(params, jnp.array(x, jnp.float32))
    np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_example_goes_through_its_best_expert():
    stage, draw = routed(4, 3, experts=2), np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.array(draw.standard_normal(x.shape), jnp.float32), stage.init(KEY)
    )
    x = draw.standard_normal((9, 4))
    tree = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    y = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    y = y * tree["norm"]["scale"] + tree["norm"]["bias"]
    scores = np.exp(y @ tree["router"]["kernel"])
    chosen, want = scores.argmax(1), []
    assert set(chosen) == {0, 1}
    for row, e, share in zip(y, chosen, scores.max(1) / scores.sum(1), strict=True):
        gate, up, down = (tree[n]["kernel"][e] for n in ("gate", "up", "down"))
        z = row @ gate
        want.append(share * (z / (1 + np.exp(-z)) * (row @ up)) @ down)
    found = stage.apply(params, jnp.array(x, jnp.float32))
    np.testing.assert_allclose(found, x + np.array(want), rtol=1e-4, atol=1e-5)


def fixed(z):
    return Model(
        lambda key: {}, lambda params, inputs, **given: ModelOutput(Logits(jnp.array(z))), dict
    )


S, T = [[1.0, 2, 0], [0.5, -1, 1.5]], [[3.0, 1, 0], [0, -2, 2]]
CARD = {"targets": jnp.array([0, 2]), "weights": jnp.ones(2)}


def value(objective):
    empty = {"model": {}, "aux": {"ce": {}, "kd": {}}}
    frozen = {"meta": {}, "teacher": {}}
    return objective.loss(empty, {}, frozen, CARD, Context(KEY, jnp.int32(0)))


def test_the_cards_numbers():
    soft = value(module_to_module(fixed(S), fixed(T), 1.0))
    np.testing.assert_allclose(soft.loss, 0.149773, rtol=1e-5)
    np.testing.assert_allclose(
        value(module_to_module(fixed(S), fixed(T), 0.0)).loss, 0.889572, rtol=1e-5
    )
    half = value(module_to_module(fixed(S), fixed(T)))
    np.testing.assert_allclose(half.loss, (0.149773 + 0.889572) / 2, rtol=1e-5)
    same = value(module_to_module(fixed(T), fixed(T)))
    np.testing.assert_allclose(same.terms["kd"].value, 0.0, atol=1e-7)
    # The teacher's choice is the label of both examples here.
    hard = value(module_to_module(fixed(S), fixed(T), 0.25, matching=teachers_choice()))
    np.testing.assert_allclose(hard.terms["kd"].value, 0.25 * 0.889572, rtol=1e-5)
    wrong = value(
        module_to_module(fixed(S), fixed([[0.0, 0, 1], [0, 1, 0]]), 1.0, matching=teachers_choice())
    )
    z = np.array(S)
    want = np.mean(np.log(np.exp(z).sum(1)) - z[[0, 1], [2, 1]])
    np.testing.assert_allclose(wrong.loss, want, rtol=1e-5)


def test_per_class_is_the_usual_loss_over_the_classes():
    parts = {"kd": soft_per_class(3.0, temperature=4.0), "all": soft_labels(1.0, temperature=4.0)}
    objective = distil(fixed(S), fixed(T), parts)
    params = {"model": {}, "aux": {"kd": {}, "all": {}}}
    output = objective.loss(params, {}, {"teacher": {}}, CARD, Context(KEY, jnp.int32(0)))
    np.testing.assert_allclose(output.terms["kd"].value, output.terms["all"].value, rtol=1e-5)


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_only_the_students_module_is_trained(slot):
    student, teacher, frozen, params = setup(slot)
    objective = module_to_module(student, teacher)

    def loss(model, frozen):
        state = {"model": model, "aux": {"ce": {}, "kd": {}}}
        return objective.loss(state, {}, frozen, BATCH, Context(KEY, jnp.int32(0))).loss

    of_module, of_frozen = jax.jit(jax.grad(loss, (0, 1)))(params, frozen)
    assert any(np.any(x) for x in jax.tree.leaves(of_module))
    assert not any(np.any(x) for x in jax.tree.leaves(of_frozen["teacher"]))
    state, _ = one_step(BATCH, slot)
    assert set(state.params["model"]) == set(params)


def test_the_teachers_module_leaves_nothing_to_match():
    _, teacher, frozen, _ = setup(1)
    objective = module_to_module(teacher, teacher)
    params = {"model": frozen["teacher"], "aux": {"ce": {}, "kd": {}}}
    output = objective.loss(params, {}, frozen, BATCH, Context(KEY, jnp.int32(0)))
    np.testing.assert_allclose(output.terms["kd"].value, 0.0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True])
def test_padding_and_microbatches_change_nothing(hard):
    expected = one_step(BATCH, 1, hard)
    assert_trees_close(expected, one_step(with_padding(BATCH), 1, hard), 1e-4, 1e-5)
    assert_trees_close(expected, one_step(BATCH, 1, hard, 2), 1e-4, 1e-5)
    moved = BATCH | {"inputs": BATCH["inputs"].at[:2].add(1.0)}
    assert abs(float(one_step(moved, 1, hard)[1]["kd"] - expected[1]["kd"])) > 1e-6


@pytest.mark.slow  # compiles for eight devices
def test_eight_devices():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
    assert_trees_close(one_step(BATCH, 1), one_step(sharded, 1), 1e-4, 1e-5)


def test_the_students_modules_make_a_model():
    """Trained on labels last, what was matched slot by slot is where it begins."""
    whole = modular([SMALL[i] for i in range(3)])
    weights = {f"stage_{i}": SMALL[i].init(jax.random.key(i)) for i in range(3)}
    assert whole.apply(weights, BATCH).head.logits().shape == (8, 3)
    images = BATCH | {"inputs": jnp.full((8, 4, 4, 2), 255, jnp.uint8)}
    ones = BATCH | {"inputs": jnp.ones((8, 4, 4, 2))}
    np.testing.assert_array_equal(
        whole.apply(weights, images).head.logits(), whole.apply(weights, ones).head.logits()
    )


def test_what_is_refused():
    with pytest.raises(ValueError, match="slot: got 3, takes 0 to 2"):
        hybrid(META, BIG[0], 3)
    with pytest.raises(ValueError, match="stages: got none"):
        modular([])
    with pytest.raises(ValueError, match="alpha: got 2"):
        module_to_module(fixed(S), fixed(T), 2)
