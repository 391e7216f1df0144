"""Gram matrices of a model's taps, weighed, over a pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import assert_trees_close

from kd_jax.attribution.grams import gram_matrices
from kd_jax.attribution.means import mean_of, mean_over_examples
from kd_jax.models.mlp import MLPConfig, mlp

MODEL = mlp(MLPConfig(inputs=6, widths=(5, 4), classes=3))
PARAMS = MODEL.init(jax.random.key(1))
KEY = jax.random.key(0)


def features(params, frozen, batch):
    taps = MODEL.apply(params["model"], batch, taps=("inputs", "hidden_0")).taps
    return {"layer_0/kernel": taps["inputs"], "layer_1/kernel": taps["hidden_0"]}


def batch_of(rows, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    weights = jax.random.uniform(keys[1], (rows,)).at[0].set(0.0)
    inputs = jax.random.normal(keys[0], (rows, 2, 3, 1))
    return {"inputs": inputs, "weights": weights}


def passed(batches, microbatches=1):
    step = mean_over_examples(gram_matrices(features), microbatches=microbatches)
    state = step.init(KEY, PARAMS, {}, batches[0])
    apply = jax.jit(step.apply)
    for batch in batches:
        state, _ = apply(state, {}, batch)
    return mean_of(state, {})


def test_a_pass_is_the_weighted_second_moment_of_each_layers_inputs():
    batches = [batch_of(4, seed) for seed in range(2)]
    x = np.concatenate([np.asarray(b["inputs"], np.float64).reshape(4, -1) for b in batches])
    w = np.concatenate([np.asarray(b["weights"], np.float64) for b in batches])
    first = {name: np.asarray(v, np.float64) for name, v in PARAMS["layer_0"].items()}
    hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
    expected = {
        f"layer_{i}/kernel": jnp.asarray((w[:, None] * v).T @ v / w.sum())
        for i, v in enumerate((x, hidden))
    }
    assert_trees_close(passed(batches), expected)
    spoilt = batches[0] | {"inputs": batches[0]["inputs"].at[0].set(jnp.nan)}
    assert_trees_close(passed([spoilt, batches[1]]), expected)


def test_microbatches_and_devices_change_nothing():
    batch = batch_of(8)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    assert_trees_close(passed([batch]), passed([sharded], 2))


def test_tokens_are_weighed_and_places_are_summed():
    x = jax.random.normal(KEY, (2, 3, 4))
    weights = jnp.array([[1.0, 1.0, 0.0], [0.5, 0.0, 0.0]])

    def gram(weights):
        statistic = gram_matrices(lambda *_: {"w": x})
        return statistic({"model": {}}, {}, {"weights": weights}, None)["w"]

    np.testing.assert_allclose(gram(weights), jnp.einsum("bt,bti,btj", weights, x, x), rtol=1e-5)
    rows = jnp.array([1.0, 0.5])
    np.testing.assert_allclose(gram(rows), jnp.einsum("b,bti,btj", rows, x, x), rtol=1e-5)
    with pytest.raises(ValueError, match=r"features: w has shape \(2, 3, 4\)"):
        gram(jnp.ones((2, 4)))
