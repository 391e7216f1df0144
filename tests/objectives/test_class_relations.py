"""The objective of discovery with class relations: by hand, and the laws of objectives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.images import image_model, with_padding
from support.linear import assert_trees_close

from kd_jax.losses.discovery import class_relation, sinkhorn
from kd_jax.models.cosine_heads import CosineHeadsConfig, cosine_heads
from kd_jax.objectives.augment.prepare import in_views
from kd_jax.objectives.transfer.discovery import class_relations
from kd_jax.steps import make_train_step
from kd_jax.types import Context

KEY = jax.random.key(0)
ENCODER = image_model(3)
SIZES = {"width": 6, "known": 2, "hidden": 5, "projection": 4}
OLD = cosine_heads(ENCODER, "pooled", CosineHeadsConfig(**SIZES))
NEW = cosine_heads(ENCODER, "pooled", CosineHeadsConfig(novel=3, heads=2, **SIZES))
FROZEN = {"teacher": OLD.init(jax.random.key(1))}
PARAMS = NEW.init(jax.random.key(2))
BATCH = {
    "views": jax.random.normal(KEY, (6, 3, 4, 4, 2)),
    "targets": jnp.array([0, 1, 1, 7, 7, 7]),
    "labelled": jnp.array([1, 1, 1, 0, 0, 0]),
    "weights": jnp.array([1.0, 0.5, 0.8, 1.2, 0.6, 0.9]),
    "index": jnp.arange(6),
}
OBJECTIVE = class_relations(NEW, OLD, 0.5)


@functools.cache
def compiled():
    step = make_train_step(OBJECTIVE, optax.sgd(0.1))
    return step.init(KEY, PARAMS, FROZEN, BATCH), jax.jit(step.apply)


def one_step(batch):
    state, apply = compiled()
    return apply(state, FROZEN, batch)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.slow
def test_by_hand():
    params, ctx = {"model": PARAMS, "aux": {}}, Context(KEY, jnp.int32(0))
    output = jax.jit(lambda b: OBJECTIVE.loss(params, {}, FROZEN, b, ctx))(BATCH)
    weights, rest = np.asarray(BATCH["weights"]), slice(3, 6)

    def taps(model, params, view):
        found = model.apply(params, {"inputs": BATCH["views"][:, view]}, taps=model_taps(model))
        return {n: np.asarray(x, np.float64) for n, x in found.taps.items()}

    def model_taps(model):
        return ("known", "novel") if model is NEW else ("known",)

    views = [taps(NEW, PARAMS, v) for v in range(3)]
    clusters = []
    for h in range(2):
        logits = [np.concatenate([v["known"], v["novel"][:, h]], 1) for v in views]
        total = np.zeros(6)
        for large in range(2):
            target = np.zeros((6, 5))
            target[[0, 1, 2], [0, 1, 1]] = 1
            target[rest, 2:] = sinkhorn(jnp.array(views[large]["novel"][rest, h]))
            for other in range(3):
                if other != large:
                    total -= (target * log_softmax(logits[other] / 0.1)).sum(1) / 4
        clusters.append(np.average(total, weights=weights))
        np.testing.assert_allclose(output.metrics[f"head_{h}"].value, clusters[h], rtol=1e-4)
    np.testing.assert_allclose(output.terms["cluster"].value, np.mean(clusters), rtol=1e-4)

    old = np.stack([taps(OLD, FROZEN["teacher"], v)["known"][rest] for v in range(2)])
    new = np.stack(
        [
            [np.concatenate([v["known"], v["novel"][:, h]], 1)[rest] for h in range(2)]
            for v in views[:2]
        ]
    )
    old = np.broadcast_to(old[:, None], (2, 2, 3, 2))
    values = class_relation(jnp.array(old), jnp.array(new), jnp.array(weights[rest]))
    want = 0.5 * np.average(values.mean((0, 1)), weights=weights[rest])
    np.testing.assert_allclose(output.terms["relation"].value, want, rtol=1e-4)


@pytest.mark.slow
def test_padding_and_labels_that_are_not_given_move_no_number():
    expected = one_step(BATCH)
    padded = with_padding(BATCH)
    padded["views"] = padded["views"].at[6:].set(50.0)
    for labelled in (0, 1):
        other = padded | {"labelled": padded["labelled"].at[6:].set(labelled)}
        assert_trees_close(expected, one_step(other), rtol=1e-4, atol=1e-5)
    hidden = BATCH | {"targets": BATCH["targets"].at[4:].set(0)}
    assert_trees_close(expected, one_step(hidden))
    told = BATCH | {"labelled": BATCH["labelled"].at[2].set(0)}
    assert abs(float(one_step(told)[1]["relation"] - expected[1]["relation"])) > 1e-4


def test_no_example_without_a_label():
    labelled = BATCH | {"labelled": jnp.ones(6, int), "targets": jnp.arange(6) % 2}
    state, metrics = one_step(labelled)
    assert float(metrics["relation"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.slow  # compiles for eight devices
def test_eight_devices_and_microbatches():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
    batch = with_padding(BATCH)
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    assert_trees_close(one_step(BATCH), one_step(sharded), rtol=1e-4, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="takes 1: this objective couples the examples"):
        make_train_step(OBJECTIVE, optax.sgd(0.1), microbatches=2)
    with pytest.raises(ValueError, match="views: got 1, takes two"):
        one_step(BATCH | {"views": BATCH["views"][:, :1]})


def test_the_old_model_has_no_gradient_and_all_new_weights_do():
    def loss(model, frozen):
        params, ctx = {"model": model, "aux": {}}, Context(KEY, jnp.int32(0))
        return OBJECTIVE.loss(params, {}, frozen, BATCH, ctx).loss

    of_model, of_frozen = jax.jit(jax.grad(loss, (0, 1)))(PARAMS, FROZEN)
    assert not any(np.any(x) for x in jax.tree.leaves(of_frozen))
    unused = of_model["encoder"].pop("head")
    assert not np.any(unused) and all(np.any(x) for x in jax.tree.leaves(of_model))


def test_views_are_drawn_one_by_one():
    def noise(key, image):
        return image + jax.random.uniform(key, image.shape)

    state, _ = compiled()
    images = jnp.zeros((4, 2, 2, 1), jnp.uint8)
    batch = {"inputs": images, "index": jnp.arange(4), "weights": jnp.ones(4)}
    prepare = in_views(noise, 2)
    views = prepare(state, {}, batch)["views"]
    assert views.shape == (4, 2, 2, 2, 1) and len(np.unique(views)) == views.size
    some = {n: x[2:] for n, x in batch.items()}
    np.testing.assert_array_equal(prepare(state, {}, some)["views"], views[2:])
    with pytest.raises(ValueError, match="count: got 0"):
        in_views(noise, 0)
