"""Averages and interpolations of weights."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.merging._checks import check_models, coefficients
from kd_jax.types import PyTree


def average(models: Sequence[PyTree], weights: Any = None) -> PyTree:
    """The weighted mean of N models, leaf by leaf: sum_n w_n theta_n / sum_n w_n.

    models: N trees of the same paths and shapes, floating leaves. weights: [N] (a sequence or an
    array, which may be traced: the mean is differentiable in it), uniform when None; they are
    normalised here, so their sum must not be 0. Returns the dtypes of models[0].

    BatchNorm's running statistics are not the statistics of the averaged weights: measure them
    again on data rather than average them.

    Model soups, arXiv 2203.05482, equation 1 (uniform weights).
    """
    check_models(models)
    w = coefficients("weights", 1.0 if weights is None else weights, len(models))
    w = w / w.sum()

    def mean(*leaves: jax.Array) -> jax.Array:
        total = sum(w[n] * jnp.asarray(x, jnp.float32) for n, x in enumerate(leaves))
        return jnp.asarray(total, leaves[0].dtype)

    return jax.tree.map(mean, *models)


def slerp(first: PyTree, second: PyTree, t: Any, *, parallel: float = 0.9995) -> PyTree:
    """Spherical interpolation of two models, each leaf taken as one flat vector.

    With d the cosine between the leaves a and b and theta = arccos d:
        sin((1 - t) theta) / sin(theta) * a + sin(t theta) / sin(theta) * b,
    applied to a and b themselves, not to their unit vectors; where |d| > parallel (antiparallel
    leaves too) the straight line (1 - t) a + t b. A leaf of zeros counts as orthogonal. t: scalar,
    0 gives the first and 1 the second; may be traced. Returns the dtypes of `first`.

    Shoemake 1985; the rule for leaves and the default of `parallel` are mergekit's.
    """
    check_models([first, second])
    t = jnp.asarray(t, jnp.float32)

    def blend(a: jax.Array, b: jax.Array) -> jax.Array:
        dtype = a.dtype
        a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
        norms = jnp.sqrt(_positive(jnp.sum(a * a))) * jnp.sqrt(_positive(jnp.sum(b * b)))
        cosine = jnp.sum(a * b) / norms
        straight = jnp.abs(cosine) > parallel
        # The branch not taken must stay finite, or its gradient poisons the other.
        angle = jnp.arccos(jnp.where(straight, 0.0, cosine))
        arc = jnp.sin(angle)
        from_a = jnp.where(straight, 1.0 - t, jnp.sin((1.0 - t) * angle) / arc)
        from_b = jnp.where(straight, t, jnp.sin(t * angle) / arc)
        return (from_a * a + from_b * b).astype(dtype)

    return jax.tree.map(blend, first, second)


def _positive(x: jax.Array) -> jax.Array:
    """x, or 1 where it is 0."""
    return jnp.where(x == 0, 1.0, x)
