"""Model Breadcrumbs: task vectors without their outliers and small entries (arXiv 2312.06795)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.merging import formulas
from kd_jax.merging._checks import check_floating
from kd_jax.merging._rows import largest_in_leaf, largest_in_rows
from kd_jax.types import PyTree


def breadcrumbs(vector: PyTree, *, keep: float, remove: float, remove_first: bool = True) -> PyTree:
    """The task vector with only the middle magnitudes of each row (the last axis of a leaf).

    Of a row of n entries the int(n * remove) largest become 0 and of the rest all but the
    int(n * keep) largest. Without remove_first, all but the int(n * keep) largest become 0 and then
    the int(n * remove) largest. Exact counts, of equal magnitudes the earlier ones count as larger.
    keep, remove: Python numbers in [0, 1]; the paper's 1 - gamma (percentile) is remove and its
    beta 1 - keep - remove. Scalars are left as they are, and rows shorter than 1 / remove keep
    their outliers. Not rescaled: the paper's alpha is the scale of the merge (0.01 to 1, with keep
    0.05 to 0.20 and remove 0.001 to 0.01). float32 leaves; a NaN stays.

    arXiv 2312.06795; the order and the rounding are the released code's (rezazzr/breadcrumbs).
    """

    def middle(x: jax.Array) -> jax.Array:
        if not x.ndim:
            return x
        ranks = formulas.surviving_ranks(x.shape[-1], keep, remove, remove_first=remove_first)
        return _between(x, largest_in_rows, ranks)

    return _map(middle, vector)


def breadcrumbs_of_leaves(vector: PyTree, *, density: float, gamma: float) -> PyTree:
    """As `breadcrumbs`, over each whole leaf and by mergekit's counts.

    The int(gamma * n) largest of the n entries of a leaf become 0 and of the rest all but the
    int(density * n) largest; fewer are removed at the top if fewer would be left, and none if the
    density is 1. density, gamma: Python numbers in [0, 1]; mergekit's gamma is 0.01. (Where
    int(gamma * n) is 0 mergekit zeroes the leaf; here nothing is removed at its top.)
    """

    def middle(x: jax.Array) -> jax.Array:
        ranks = formulas.surviving_ranks_of_leaf(x.size, density, gamma)
        return _between(x, largest_in_leaf, ranks)

    return _map(middle, vector)


def _map(f: Callable[[jax.Array], jax.Array], vector: PyTree) -> PyTree:
    check_floating("vector", vector)
    return jax.tree.map(lambda x: f(jnp.asarray(x, jnp.float32)), vector)


def _between(x: jax.Array, largest: Callable[..., jax.Array], ranks: tuple[int, int]) -> jax.Array:
    skipped, last = ranks
    magnitudes = jax.lax.stop_gradient(x)
    kept = largest(magnitudes, last) & ~largest(magnitudes, skipped)
    return jnp.where(kept | jnp.isnan(x), x, 0.0)
