"""Identities of task arithmetic, and its gradient against the directional derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax.merging.arithmetic import (
    add_task_vectors,
    cosine,
    inner_product,
    negate,
    task_arithmetic,
    task_vector,
)
from kd_jax.merging.average import average

# Multiples of 1/8: no subnormal numbers, which XLA flushes to zero.
eighths = st.integers(-32, 32).map(lambda i: np.float32(i / 8))
stacks = hnp.arrays(np.float32, (4, 5), elements=eighths)


def tree(x):
    return {"a": jnp.asarray(x[:2]), "b": {"c": jnp.asarray(x[2:])}}


def close(actual, expected, **kwargs):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **kwargs), actual, expected)


@settings(max_examples=20, deadline=None)
@given(stacks)
def test_limits(x):
    base, *models = (tree(row) for row in x)
    close(task_arithmetic(base, models, scale=0.0), base)
    close(task_arithmetic(base, models[:1], scale=1.0), models[0], atol=1e-5)
    close(task_arithmetic(base, models, scale=1 / 3), average(models), atol=1e-5)
    close(
        task_arithmetic(base, models[::-1], scale=0.4),
        task_arithmetic(base, models, scale=0.4),
        atol=1e-5,
    )
    # Negation undoes addition.
    moved = negate(base, models[0], scale=0.5)
    close(average([moved, models[0]], [2.0, 1.0]), base, atol=1e-5)


def test_by_hand():
    base = {"w": jnp.array([1.0, 1.0])}
    models = [{"w": jnp.array([2.0, 1.0])}, {"w": jnp.array([1.0, 4.0])}]
    close(task_arithmetic(base, models, scale=0.5), {"w": [1.5, 2.5]})
    close(task_arithmetic(base, models, scale=[2.0, -1.0]), {"w": [3.0, -2.0]})
    close(negate(base, models[1]), {"w": [1.0, -2.0]})


def test_gradient_in_the_scale_is_the_directional_derivative():
    x = jax.random.normal(jax.random.key(0), (3, 5))
    base, *vectors = (tree(row) for row in x)
    target = tree(jnp.arange(5.0))

    def loss(theta):
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 3), theta, target)))

    scale = jnp.array([0.3, 0.7])
    theta = add_task_vectors(base, vectors, scale=scale)
    outer = jax.grad(loss)(theta)
    grad = jax.jit(jax.grad(lambda s: loss(add_task_vectors(base, vectors, scale=s))))(scale)
    np.testing.assert_allclose(grad, [inner_product(outer, v) for v in vectors], rtol=1e-5)


def test_bfloat16_weights_have_float32_task_vectors():
    base = {"w": jnp.array([256.0], jnp.bfloat16)}
    model = {"w": jnp.array([1.0078125], jnp.bfloat16)}
    tau = task_vector(base, model)["w"]
    assert tau.dtype == jnp.float32
    np.testing.assert_array_equal(tau, [-254.9921875])  # bf16 would round it to -255
    merged = task_arithmetic(base, [model], scale=1.0)["w"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged, model["w"])


def test_cosine():
    a, b = {"x": jnp.array([3.0, 0.0]), "y": jnp.array([4.0])}, None
    b = {"x": jnp.array([0.0, 2.0]), "y": jnp.array([2.0])}
    np.testing.assert_allclose(cosine(a, b), 8 / (5 * np.sqrt(8)), rtol=1e-6)
    np.testing.assert_allclose(cosine(a, a), 1.0, rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, a)
    value, grad = jax.value_and_grad(cosine)(zero, b)
    assert value == 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grad))


def test_errors():
    base = {"w": jnp.ones(2), "n": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"n only in base"):
        task_arithmetic(base, [base, {"w": jnp.ones(2)}], scale=1.0)
    with pytest.raises(ValueError, match=r"base: takes floating leaves, got n is int32"):
        task_vector({**base, "n": jnp.ones(3, jnp.int32)}, base)
    with pytest.raises(ValueError, match=r"scale: got shape \(3,\)"):
        task_arithmetic(base, [base, base], scale=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="models: got none"):
        task_arithmetic(base, [], scale=1.0)
