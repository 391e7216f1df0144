"""Task arithmetic: sums and differences of task vectors (arXiv 2212.04089)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.merging._checks import check_floating, check_models, coefficients
from kd_jax.types import PyTree


def task_vector(base: PyTree, model: PyTree) -> PyTree:
    """tau = model - base in float32: a difference of bf16 weights does not fit bf16.

    base, model: trees of the same paths and shapes, floating leaves.
    """
    check_models([model], base, "model")
    return jax.tree.map(
        lambda theta, theta0: jnp.asarray(theta, jnp.float32) - jnp.asarray(theta0, jnp.float32),
        model,
        base,
    )


def add_task_vectors(base: PyTree, vectors: Sequence[PyTree], *, scale: Any) -> PyTree:
    """base + sum_n scale_n tau_n, leaf by leaf, in the dtypes of the base.

    vectors: N task vectors like `base`. scale: a number for all, or [N]; may be traced, and the
    result is differentiable in it: d loss / d scale_n = <d loss / d theta, tau_n>.
    """
    check_models(vectors, base, "vectors")
    scales = coefficients("scale", scale, len(vectors))

    def add(theta0: jax.Array, *taus: jax.Array) -> jax.Array:
        total = sum(scales[n] * jnp.asarray(x, jnp.float32) for n, x in enumerate(taus))
        return (jnp.asarray(theta0, jnp.float32) + total).astype(theta0.dtype)

    return jax.tree.map(add, base, *vectors)


def task_arithmetic(base: PyTree, models: Sequence[PyTree], *, scale: Any) -> PyTree:
    """base + sum_n scale_n (theta_n - base), leaf by leaf, in the dtypes of the base.

    models: N fine-tuned versions of `base`. scale: a number for all (the paper's lambda; 0.3 for
    eight vision tasks, 0.4 for T5), or [N]; may be traced. The sum is not divided
    by N: with a fixed scale its norm grows with the number of models. 0 gives the base, 1/N the
    average of the models.

    arXiv 2212.04089, section 2 ("learning via addition").
    """
    check_models(models, base)
    return add_task_vectors(base, [task_vector(base, model) for model in models], scale=scale)


def negate(base: PyTree, model: PyTree, *, scale: Any = 1.0) -> PyTree:
    """base - scale (model - base): forgets what `model` was fine-tuned on.

    arXiv 2212.04089, section 2 ("forgetting via negation").
    """
    check_models([model], base, "model")
    return add_task_vectors(base, [task_vector(base, model)], scale=-jnp.asarray(scale))


def inner_product(first: PyTree, second: PyTree) -> jax.Array:
    """<first, second> over all leaves together, f32 scalar."""
    trees.check_same("second", second, "first", first)
    check_floating("first", first)
    products = jax.tree.map(
        lambda a, b: jnp.sum(jnp.asarray(a, jnp.float32) * jnp.asarray(b, jnp.float32)),
        first,
        second,
    )
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))


def cosine(first: PyTree, second: PyTree) -> jax.Array:
    """The cosine between two task vectors over all leaves together, f32 scalar; 0 if either is 0.

    Near 0 for unrelated tasks, which is why their sum interferes little (arXiv 2212.04089,
    figure 5).
    """
    norms = inner_product(first, first) * inner_product(second, second)
    empty = norms == 0
    return jnp.where(empty, 0.0, inner_product(first, second)) / jnp.sqrt(
        jnp.where(empty, 1.0, norms)
    )
