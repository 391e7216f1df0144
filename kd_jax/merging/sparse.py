"""Merges of sparsified task vectors, and what random sparsifiers have in common.

Draws come from a key folded with the model's index and then with a hash of each leaf's path: they
depend neither on the order of leaves nor on the sharding (but on the layout: stacked layers are one
leaf, and draw otherwise than layers with paths of their own).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.merging import formulas
from kd_jax.merging._checks import check_floating, check_models
from kd_jax.merging.arithmetic import add_task_vectors, task_vector
from kd_jax.types import PyTree

# (a leaf, what is kept of it, the probability of keeping each entry) -> the rescaled leaf.
Rescale = Callable[[jax.Array, jax.Array, Any], jax.Array]


def by_probability(x: jax.Array, kept: jax.Array, probability: Any) -> jax.Array:
    """kept / probability: the expectation is the task vector (the papers' rule)."""
    return kept / probability


def by_realised_l1(x: jax.Array, kept: jax.Array, probability: Any) -> jax.Array:
    """kept * |x|_1 / |kept|_1: each leaf has the L1 norm it had (mergekit's rule).

    A leaf of which nothing is kept stays 0.
    """
    norms = jnp.sum(jnp.abs(x)), jnp.sum(jnp.abs(kept))
    return kept * formulas.realised_scale(*norms)


def unscaled(x: jax.Array, kept: jax.Array, probability: Any) -> jax.Array:
    """kept itself."""
    return kept


def merge_sparse(
    base: PyTree,
    models: Sequence[PyTree],
    sparsify: Callable[..., PyTree],
    *,
    key: jax.Array | None = None,
    scale: Any = 1.0,
    combine: Callable[..., PyTree] = add_task_vectors,
) -> PyTree:
    """combine(base, vectors, scale=scale), vectors_n = sparsify(theta_n - base).

    base, models: trees of the same paths and shapes, floating leaves; the result has the dtypes of
    the base. sparsify: a function vector -> vector, such as
    `functools.partial(breadcrumbs, keep=0.15, remove=0.006)`; with a key, (vector, key) -> vector
    for keys of each model's own, such as `functools.partial(dare, drop=0.9)`. combine:
    `add_task_vectors` sums them (mergekit's dare_linear, della_linear and breadcrumbs),
    `ties.merge_agreeing` elects signs first (dare_ties, della and breadcrumbs_ties).
    """
    check_models(models, base)
    vectors = [task_vector(base, model) for model in models]
    if key is None:
        sparse = [sparsify(vector) for vector in vectors]
    else:
        sparse = [sparsify(x, jax.random.fold_in(key, n)) for n, x in enumerate(vectors)]
    return combine(base, sparse, scale=scale)


def keep_at_random(
    vector: PyTree,
    key: jax.Array,
    probability: Callable[[jax.Array], Any],
    rescale: Rescale = by_probability,
) -> PyTree:
    """The task vector with each entry kept with a probability of its own, the rest 0, rescaled.

    probability(leaf in f32) -> a number for all entries or an array like the leaf. float32 leaves.
    A NaN stays one, dropped or not.
    """
    check_floating("vector", vector)

    def sparse(path: str, x: jax.Array) -> jax.Array:
        x = jnp.asarray(x, jnp.float32)
        keep = probability(x)
        own = jax.random.fold_in(key, formulas.name_seed(path))
        drawn = jax.random.bernoulli(own, keep, x.shape)
        return rescale(x, jnp.where(drawn | jnp.isnan(x), x, 0.0), keep)

    return trees.map_with_path(sparse, vector)
