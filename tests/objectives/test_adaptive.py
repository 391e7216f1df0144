"""Entropy of a merged model's predictions: its value, its gradient, batches cut and on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import assert_trees_close

from kd_jax.losses.classification import prediction_entropy
from kd_jax.merging.adaptive import add_layerwise, layerwise_scales
from kd_jax.merging.arithmetic import add_task_vectors, inner_product, task_arithmetic, task_vector
from kd_jax.models.mlp import MLPConfig, mlp
from kd_jax.objectives.adaptive import minimise_entropy
from kd_jax.steps import make_train_step
from kd_jax.types import Context

MODEL = mlp(MLPConfig(inputs=4, widths=(5, 5), classes=3))
TASKS = ("one", "two")
KEY = jax.random.key(0)


def split(params):
    return {n: x for n, x in params.items() if n != "layer_2"}, params["layer_2"]


BASE, *MODELS = (split(MODEL.init(jax.random.key(i)))[0] for i in range(3))
FROZEN = {
    "base": BASE,
    "vectors": [task_vector(BASE, model) for model in MODELS],
    "heads": {task: split(MODEL.init(jax.random.key(7 + i)))[1] for i, task in enumerate(TASKS)},
}
WHOLE = {task: lambda m, frozen, t=task: m | {"layer_2": frozen["heads"][t]} for task in TASKS}


def by_layer(params, frozen):
    return add_layerwise(frozen["base"], frozen["vectors"], params["model"])


def by_task(params, frozen):
    return add_task_vectors(frozen["base"], frozen["vectors"], scale=params["model"]["scale"])


def batch_of(rows):
    def part(seed):
        keys = jax.random.split(jax.random.key(seed))
        weights = jax.random.uniform(keys[1], (rows,)).at[0].set(0.0)
        inputs = jax.random.normal(keys[0], (rows, 2, 2, 1))
        return {"inputs": inputs, "weights": weights}

    return {task: part(i) for i, task in enumerate(TASKS)}


def loss_of(params, policy, batch, whole=WHOLE):
    objective = minimise_entropy(MODEL, whole, policy=policy)
    both = {"model": params, "aux": {}}
    return objective.loss(both, {}, FROZEN, batch, Context(KEY, jnp.int32(0))).loss


def entropies(trunk, batch):
    """By hand: the sum over tasks of the weighted mean, in the formula with eps."""
    total = 0.0
    for task in TASKS:
        logits = MODEL.apply(WHOLE[task](trunk, FROZEN), batch[task]).head.logits()
        w = batch[task]["weights"]
        total += (w * prediction_entropy(logits, eps=1e-8)).sum() / w.sum()
    return total


@pytest.mark.slow
def test_the_value_at_the_start_is_that_of_task_arithmetic():
    batch = batch_of(6)
    expected = entropies(task_arithmetic(BASE, MODELS, scale=0.3), batch)
    scales = layerwise_scales(BASE, 2)
    np.testing.assert_allclose(loss_of(scales, by_layer, batch), expected, rtol=1e-5)
    scale = {"scale": jnp.full(2, 0.3)}
    np.testing.assert_allclose(loss_of(scale, by_task, batch), expected, rtol=1e-5)
    spoilt = jax.tree.map(lambda x: x.at[0].set(jnp.nan) if x.ndim == 4 else x, batch)
    np.testing.assert_allclose(loss_of(scale, by_task, spoilt), expected, rtol=1e-5)
    # Heads are the tasks' own.
    swapped = dict(zip(TASKS, reversed(WHOLE.values()), strict=True))
    assert abs(loss_of(scales, by_layer, batch, swapped) - expected) > 1e-3


@pytest.mark.slow
def test_gradients_are_directional_derivatives_of_the_entropy():
    batch = batch_of(6)
    scales = jax.tree.map(lambda s: s + jnp.array([0.1, -0.2]), layerwise_scales(BASE, 2))
    trunk = add_layerwise(BASE, FROZEN["vectors"], scales)
    outer = jax.grad(entropies)(trunk, batch)
    found = jax.grad(loss_of)(scales, by_layer, batch)
    for layer, names in found.items():
        for name, gradient in names.items():
            expected = [
                inner_product({"x": outer[layer][name]}, {"x": v[layer][name]})
                for v in FROZEN["vectors"]
            ]
            np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    whole = jax.grad(loss_of)({"scale": jnp.array([0.4, 0.1])}, by_task, batch)["scale"]
    expected = [inner_product(outer, v) for v in FROZEN["vectors"]]
    np.testing.assert_allclose(whole, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "start"),
    [(by_layer, layerwise_scales(BASE, 2)), (by_task, {"scale": jnp.full(2, 0.3)})],
    ids=["layers", "tasks"],
)
def test_microbatches_on_eight_devices_change_nothing_and_the_loss_falls(policy, start):
    batch = batch_of(16)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))

    def steps(batch, microbatches, count=3):
        objective = minimise_entropy(MODEL, WHOLE, policy=policy)
        step = make_train_step(objective, optax.sgd(0.05), microbatches=microbatches)
        state = step.init(KEY, start, FROZEN, batch)
        losses = []
        for _ in range(count):
            state, metrics = jax.jit(step.apply)(state, FROZEN, batch)
            losses.append(float(metrics["loss"]))
        return state.params["model"], losses

    one, losses = steps(batch, 1)
    cut, again = steps(sharded, 2)
    assert_trees_close(one, cut)
    np.testing.assert_allclose(losses, again, rtol=1e-5)
    assert losses[0] > losses[1] > losses[2]


def test_refusals():
    with pytest.raises(ValueError, match="tasks: got none"):
        minimise_entropy(MODEL, {})
