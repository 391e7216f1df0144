"""Coefficients by layer: task arithmetic where they are equal, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax import trees
from kd_jax.merging.adaptive import add_layerwise, layerwise_scales
from kd_jax.merging.arithmetic import add_task_vectors, inner_product

eighths = st.integers(-32, 32).map(lambda i: np.float32(i / 8))
stacks = hnp.arrays(np.float32, (3, 8), elements=eighths)


def tree(x):
    return {"a": jnp.asarray(x[:2]), "b": {"c": jnp.asarray(x[2:]).reshape(3, 2)}}


def close(actual, expected, **kwargs):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **kwargs), actual, expected)


@given(stacks)
def test_equal_scales_are_task_arithmetic(x):
    base, *vectors = (tree(row) for row in x)
    scales = layerwise_scales(base, 2)
    close(add_layerwise(base, vectors, scales), add_task_vectors(base, vectors, scale=0.3))
    scales = jax.tree.map(lambda _: jnp.array([2.0, -1.0]), base)
    expected = add_task_vectors(base, vectors, scale=[2.0, -1.0])
    close(add_layerwise(base, vectors, scales), expected)


def test_each_leaf_and_each_stacked_layer_has_its_own():
    base, *vectors = (tree(row) for row in np.arange(24.0, dtype=np.float32).reshape(3, 8))
    scales = {"a": jnp.array([1.0, 0.0]), "b": {"c": jnp.array([[0.0, 1.0, 2.0], [0.5, 0.0, 0.0]])}}
    merged = add_layerwise(base, vectors, scales)
    close(merged["a"], base["a"] + vectors[0]["a"])
    c, (first, second) = base["b"]["c"], (v["b"]["c"] for v in vectors)
    rows = [c[0] + 0.5 * second[0], c[1] + first[1], c[2] + 2.0 * first[2]]
    close(merged["b"]["c"], jnp.stack(rows), rtol=1e-6)


def test_gradients_are_directional_derivatives():
    x = jax.random.normal(jax.random.key(0), (3, 8))
    base, *vectors = (tree(row) for row in x)
    scales = layerwise_scales(base, 2)

    def loss(theta):
        return sum(jnp.sum(jnp.sin(leaf) ** 2) for leaf in jax.tree.leaves(theta))

    outer = jax.grad(loss)(add_layerwise(base, vectors, scales))
    found = jax.jit(jax.grad(lambda s: loss(add_layerwise(base, vectors, s))))(scales)
    for path, gradient in trees.flatten(found).items():
        of_leaf = {path: trees.flatten(outer)[path]}
        expected = [inner_product(of_leaf, {path: trees.flatten(v)[path]}) for v in vectors]
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_dtypes_of_the_base_and_refusals():
    base, *vectors = (tree(row) for row in np.ones((3, 8), np.float32))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    scales = layerwise_scales(half, 2)
    assert {x.dtype for x in jax.tree.leaves(scales)} == {jnp.dtype("float32")}
    merged = add_layerwise(half, vectors, scales)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
    with pytest.raises(ValueError, match="scales: .* they differ in b/c"):
        add_layerwise(base, vectors, {"a": scales["a"]})
    with pytest.raises(ValueError, match=r"scales: b/c is \(3,\), takes \(2,\) and leading axes"):
        add_layerwise(base, vectors, scales | {"b": {"c": jnp.ones(3)}})
    with pytest.raises(ValueError, match=r"scales: b/c is \(2, 2\)"):
        add_layerwise(base, vectors, scales | {"b": {"c": jnp.ones((2, 2))}})
