"""Masks: trees of booleans like the parameters, true where a weight is chosen."""

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.types import PyTree


def top_mask(scores: PyTree, *, ratio: float) -> PyTree:
    """True at the int(ratio * D) largest |score| of all leaves together, D entries in all.

    scores: floating leaves of any shapes, without NaN. ratio: a Python number in [0, 1]; 0 chooses
    nothing, 1 everything. The count is exact: among entries as large as the smallest chosen one,
    the first in the order of leaves (`jax.tree.leaves`) and, within a leaf, of its rows are chosen.
    That matters where many scores are 0 (words and experts that the data do not meet): a
    threshold alone would choose all of those once it reaches 0.

    Nothing is sorted or concatenated; leaves may be sharded. Ranks are those of SalUn's and
    WAGLE's released code (arXiv 2310.12508, 2410.17509), but for their order of ties, which is
    that of a sort. Fewer than 2**31 entries a leaf, and fewer than 2**32 ties.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio: got {ratio}, takes a number from 0 to 1")
    total = trees.size(scores)
    kept = int(ratio * total)
    if kept == 0:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, bool), scores)
    sizes = jax.tree.map(lambda x: jnp.abs(x.astype(jnp.float32)), scores)
    threshold = trees.kth_smallest_magnitude(sizes, total - kept + 1)
    above = [jnp.sum(x > threshold, dtype=jnp.uint32) for x in jax.tree.leaves(sizes)]
    # Differences of counts past 2**32 wrap around and come out right.
    left = jnp.uint32(kept % 2**32) - sum(above, jnp.uint32(0))
    chosen = []
    for x in jax.tree.leaves(sizes):
        ties = x == threshold
        place = jnp.cumsum(ties.reshape(-1), dtype=jnp.uint32).reshape(x.shape)  # from 1
        chosen.append((x > threshold) | (ties & (place <= left)))
        left -= jnp.minimum(left, jnp.sum(ties, dtype=jnp.uint32))
    return jax.tree.unflatten(jax.tree.structure(scores), chosen)
