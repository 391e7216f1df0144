"""DELLA: DARE that keeps large entries more often than small ones (arXiv 2406.11617)."""

import jax
import jax.numpy as jnp

from kd_jax.merging import formulas
from kd_jax.merging.sparse import Rescale, by_probability, keep_at_random
from kd_jax.types import PyTree


def keep_probabilities(x: jax.Array, *, density: float, epsilon: float) -> jax.Array:
    """f32 like x: density - epsilon + 2 epsilon (r - 1) / (n - 1), per row.

    r in 1..n is the rank of |x| in its row (the last axis), ascending, of equal ones the earlier
    first; the density where n is 1. Their mean over a row is the density. Ranks take two sorts of
    each row. ValueError unless density +- epsilon is in (0, 1).
    """
    rows = jnp.abs(jnp.asarray(x, jnp.float32)).reshape(jnp.shape(x) or (1,))
    ranks = 1.0 + jnp.argsort(jnp.argsort(rows, axis=-1), axis=-1).astype(jnp.float32)
    return formulas.keep_probability(ranks, rows.shape[-1], density, epsilon).reshape(jnp.shape(x))


def della(
    vector: PyTree,
    key: jax.Array,
    *,
    density: float,
    epsilon: float = 0.15,
    rescale: Rescale = by_probability,
) -> PyTree:
    """The task vector with entries dropped at random, by `keep_probabilities`, the rest rescaled.

    density, epsilon: Python numbers; epsilon 0 is DARE with drop = 1 - density, and density 1 keeps
    everything whatever the epsilon (as mergekit does). rescale: each entry is divided by its own
    probability, or as in `dare`: mergekit keeps the L1 norm of the leaf (`by_realised_l1`).
    float32 leaves. The probabilities have no gradient. A NaN stays one, dropped or not.

    arXiv 2406.11617 (dividing by each entry's own probability: UNVERIFIED).
    """
    if density == 1.0:
        return keep_at_random(vector, key, lambda x: 1.0, rescale)
    return keep_at_random(
        vector, key, lambda x: keep_probabilities(x, density=density, epsilon=epsilon), rescale
    )
