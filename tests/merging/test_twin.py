"""Twin-Merging: the SVD by hand, models and means that come back, and weights for each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import assert_trees_close

from kd_jax.merging.arithmetic import task_arithmetic, task_vector
from kd_jax.merging.average import average
from kd_jax.merging.twin import Factors, attach, combine, compress, truncate, twins
from kd_jax.models.mlp import MLPConfig, mlp
from kd_jax.models.parts import LowRank

MODEL = mlp(MLPConfig(inputs=6, widths=(8,), classes=4))


def params(seed):
    made = MODEL.init(jax.random.key(seed))
    biases = jax.random.normal(jax.random.key(-seed), (8,))
    return made | {"layer_0": made["layer_0"] | {"bias": biases}}


BASE, *MODELS = (params(seed) for seed in range(4))


def test_rank_one_by_hand():
    u, v = truncate(jnp.array([[3.0, 1.0], [1.0, 3.0]]), 1)
    assert u.shape == (2, 1) and v.shape == (1, 2)
    np.testing.assert_allclose(u @ v, [[2.0, 2.0], [2.0, 2.0]], rtol=1e-5)


def test_the_nearest_matrix_of_a_rank_batched():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    s = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    for rank in range(4):
        u, v = truncate(x, rank)
        gap = np.square(np.asarray(u @ v - x)).sum((1, 2))
        np.testing.assert_allclose(gap, np.square(s[:, rank:]).sum(1), rtol=1e-4, atol=1e-9)
    with pytest.raises(ValueError, match="rank: got 4"):
        truncate(x, 4)


def test_one_model_and_the_mean_come_back_at_density_one():
    shared, exclusive = twins(BASE, MODELS, density=1.0)
    assert_trees_close(shared, task_arithmetic(BASE, MODELS, scale=0.29))
    for n, model in enumerate(MODELS):
        assert_trees_close(combine(shared, exclusive, jnp.eye(3)[n]), model)
    assert_trees_close(combine(shared, exclusive, 1 / 3), average(MODELS))
    assert_trees_close(combine(shared, exclusive, [0.0, 0.0, 0.0]), shared)


def test_matrices_are_compressed_and_vectors_kept():
    vector = task_vector(BASE, MODELS[0])
    found = compress(vector, density=0.5)
    kernel = found["layer_0"]["kernel"]
    assert isinstance(kernel, Factors) and kernel.u.shape == (6, 3)
    assert found["layer_1"]["kernel"].u.shape == (8, 2)  # int(0.5 * 4)
    np.testing.assert_array_equal(found["layer_0"]["bias"], vector["layer_0"]["bias"])
    u, s, v = np.linalg.svd(np.asarray(vector["layer_0"]["kernel"], np.float64))
    np.testing.assert_allclose(kernel.u @ kernel.v, u[:, :3] * s[:3] @ v[:3], rtol=1e-4, atol=1e-6)
    # A rank of 0 leaves nothing, the rest of the model stays.
    least = compress(vector, density=0.1)
    assert least["layer_0"]["kernel"].u.shape == (6, 0)
    merged = combine(BASE, [least], [1.0])
    assert_trees_close(merged["layer_0"]["kernel"], BASE["layer_0"]["kernel"])
    assert_trees_close(merged["layer_0"]["bias"], MODELS[0]["layer_0"]["bias"])
    assert jax.tree.map(jnp.shape, compress(vector, density=1.0)) == jax.tree.map(jnp.shape, vector)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
def test_weights_of_each_example_as_models_one_by_one(density):
    """Merged for each example, or attached with low rank: the logits of a model an example."""
    shared, exclusive = twins(BASE, MODELS, density=density)
    images = jax.random.normal(jax.random.key(5), (4, 2, 3, 1))
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(6), (4, 3)))

    def logits(whole, x):
        return MODEL.apply(whole, {"inputs": x[None]}).head.logits()[0]

    @jax.jit
    def mapped(weights, images):
        whole = jax.vmap(combine, (None, None, 0))(shared, exclusive, weights)
        return jax.vmap(logits)(whole, images)

    @jax.jit
    def attached(weights, images):
        def one(w, x):
            return logits(attach(shared, exclusive, w, low_rank=LowRank), x)

        return jax.vmap(one)(weights, images)

    def theta(w):
        parts = [task_vector(shared, m) for m in MODELS]
        cut = [compress(p, density=density)["layer_0"]["kernel"] for p in parts]
        dense = [c.u @ c.v if isinstance(c, Factors) else c for c in cut]
        return shared["layer_0"]["kernel"] + sum(a * d for a, d in zip(w, dense, strict=True))

    for i, w in enumerate(weights):
        merged = combine(shared, exclusive, w)
        np.testing.assert_allclose(merged["layer_0"]["kernel"], theta(w), rtol=1e-4, atol=1e-5)
        expected = logits(merged, images[i])
        np.testing.assert_allclose(mapped(weights, images)[i], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(attached(weights, images)[i], expected, rtol=1e-4, atol=1e-5)
    form = attach(shared, exclusive, weights[0], low_rank=LowRank)["layer_0"]["kernel"]
    assert isinstance(form, LowRank) == (density < 1)


def test_the_derivative_in_the_weights_is_the_exclusive_part():
    shared, exclusive = twins(BASE, MODELS, density=0.5)

    def bias(w):
        return combine(shared, exclusive, w)["layer_0"]["bias"]

    jacobian = jax.jacobian(bias)(jnp.full(3, 0.2))
    parts = jnp.stack([e["layer_0"]["bias"] for e in exclusive], axis=1)
    np.testing.assert_allclose(jacobian, parts, rtol=1e-5)


def test_sharded_trees_give_the_same():
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))

    def place(tree):
        def put(x):
            return jax.device_put(x, NamedSharding(mesh, P("data") if x.shape[0] == 8 else P()))

        return jax.tree.map(put, tree)

    @jax.jit
    def merged(base, models):
        return combine(*twins(base, models, density=0.5), jnp.array([0.7, 0.2, 0.1]))

    found = merged(place(BASE), [place(m) for m in MODELS])
    assert_trees_close(found, merged(BASE, MODELS), rtol=1e-4, atol=1e-5)


def test_dtypes_and_refusals():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), BASE)
    shared, exclusive = twins(half, [half, half], density=0.5)
    merged = combine(shared, exclusive, 0.5)
    attached = attach(shared, exclusive, 0.5, low_rank=LowRank)
    for leaf in jax.tree.leaves((merged, attached)):
        assert leaf.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="exclusive: got none"):
        combine(BASE, [], [])
    with pytest.raises(ValueError, match=r"exclusive\[0\] and shared differ: layer_1"):
        combine(BASE, [{"layer_0": BASE["layer_0"]}], 1.0)
    with pytest.raises(ValueError, match="weights: got shape"):
        combine(shared, exclusive, [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="density: got 0.0"):
        compress(BASE, density=0.0)
