"""TIES: trim, elect sign, merge what agrees (arXiv 2306.01708).

The operators are flat: a threshold and the majority sign are taken over all leaves together, so
that layers which moved more keep more. A single array is a tree too: mapping `trim` over the leaves
trims each for itself.

Two choices where the released code (prateeky2806/ties-merging, merge_utils.py) and the paper part:

- The paper keeps the top k per cent of the entries: `trim` keeps int(density * D). The code keeps
  every entry at least as large as the k-th smallest with k = D - int(density * D), which is one
  entry more: `trim_released`.
- Where the elected sign is 0 (the votes cancel at an entry, and over the whole model too) no entry
  has that sign, and the merge is 0 there. The code takes the negative entries, so that flipping
  every sign would not flip the result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.merging._checks import check_floating, check_models, check_share
from kd_jax.merging.arithmetic import add_task_vectors, task_vector
from kd_jax.types import PyTree

Trim = Callable[..., PyTree]
Merge = Callable[[Sequence[PyTree], PyTree], PyTree]


def trim(vector: PyTree, *, density: float) -> PyTree:
    """The task vector with all but its int(density * D) largest magnitudes set to 0.

    D is the number of entries of all leaves together; entries as large as the smallest kept one
    are kept as well. density: a Python number in (0, 1], 0.2 in the paper; ValueError if it keeps
    nothing. Exact, without sorting or concatenating leaves. The threshold has no gradient.

    arXiv 2306.01708, algorithm 1, step 1.
    """
    total, kept = _count(vector, density)
    return _cut(vector, total - kept + 1)


def trim_released(vector: PyTree, *, density: float) -> PyTree:
    """As `trim`, by the rule of the paper's released code: one entry more is kept.

    Keeps |x| >= the k-th smallest magnitude with k = D - int(density * D), and everything where
    that is 0 (density 1, an error in the code).
    """
    total, kept = _count(vector, density)
    return _cut(vector, max(total - kept, 1))


def _count(vector: PyTree, density: float) -> tuple[int, int]:
    check_share("density", density)
    check_floating("vector", vector)
    total = trees.size(vector)
    kept = int(density * total)
    if kept == 0:
        raise ValueError(f"density: {density} of {total} entries keeps none of them")
    return total, kept


def _cut(vector: PyTree, k: int) -> PyTree:
    vector = jax.tree.map(jnp.asarray, vector)
    threshold = jax.lax.stop_gradient(trees.kth_smallest_magnitude(vector, k))
    # Written so that a NaN stays in the result and is seen.
    return jax.tree.map(
        lambda x: jnp.where(jnp.abs(x.astype(jnp.float32)) < threshold, jnp.zeros_like(x), x),
        vector,
    )


def elect(vectors: Sequence[PyTree]) -> PyTree:
    """The sign with the larger total mass at each entry: sign(sum_n tau_n), int8 in {-1, 0, 1}.

    An entry whose votes cancel takes the sign of the majority of all entries of all leaves, which
    may be 0 (the released code's rule; the paper leaves it open). The majority is counted exactly,
    whatever the sharding, for leaves whose net count is under 2**31.

    arXiv 2306.01708, algorithm 1, step 2.
    """
    check_models(vectors, name="vectors")
    signs = jax.tree.map(
        lambda *taus: jnp.sign(sum(jnp.asarray(x, jnp.float32) for x in taus)).astype(jnp.int8),
        *vectors,
    )
    majority = _sign_of_sum(jax.tree.leaves(signs))
    return jax.tree.map(lambda s: jnp.where(s == 0, majority, s), signs)


def _sign_of_sum(leaves: Sequence[jax.Array]) -> jax.Array:
    """int8 sign of the sum over all leaves, exact: float32 would round, int32 could overflow."""
    counts = [jnp.sum(x, dtype=jnp.int32) for x in leaves]
    low = sum((c & 0xFFFF for c in counts), jnp.int32(0))
    high = sum((c >> 16 for c in counts), jnp.int32(0)) + (low >> 16)
    return jnp.where(high == 0, jnp.sign(low & 0xFFFF), jnp.sign(high)).astype(jnp.int8)


def disjoint_mean(vectors: Sequence[PyTree], signs: PyTree) -> PyTree:
    """The mean, at each entry, of the values that have the elected sign; 0 where none has.

    vectors: N trimmed task vectors; signs: `elect(vectors)`, or another tree of signs like them
    (of a multitask model, say). float32 leaves. arXiv 2306.01708, algorithm 1, step 3.
    """

    def mean(sign: jax.Array, *taus: jax.Array) -> jax.Array:
        kept = [_agreeing(x, sign) for x in taus]
        count = sum((x != 0).astype(jnp.float32) for x in kept)
        return sum(kept) / jnp.maximum(count, 1.0)

    return _merge(mean, vectors, signs)


def disjoint_sum(vectors: Sequence[PyTree], signs: PyTree) -> PyTree:
    """As `disjoint_mean`, with the sum of the values that have the elected sign."""
    return _merge(lambda s, *taus: sum(_agreeing(x, s) for x in taus), vectors, signs)


def disjoint_max(vectors: Sequence[PyTree], signs: PyTree) -> PyTree:
    """As `disjoint_mean`, with the largest of the values that have the elected sign."""

    def largest(sign: jax.Array, *taus: jax.Array) -> jax.Array:
        magnitudes = jnp.stack([jnp.abs(_agreeing(x, sign)) for x in taus])
        return magnitudes.max(axis=0) * sign.astype(jnp.float32)

    return _merge(largest, vectors, signs)


def _agreeing(x: jax.Array, sign: jax.Array) -> jax.Array:
    x = jnp.asarray(x, jnp.float32)
    return jnp.where(jnp.sign(x) * sign.astype(jnp.float32) <= 0, 0.0, x)


def _merge(f: Callable[..., Any], vectors: Sequence[PyTree], signs: PyTree) -> PyTree:
    check_models(vectors, name="vectors")
    trees.check_same("signs", signs, "vectors[0]", vectors[0])
    return jax.tree.map(f, signs, *vectors)


def ties(
    base: PyTree,
    models: Sequence[PyTree],
    *,
    density: float,
    scale: Any = 1.0,
    trim: Trim = trim,
    merge: Merge = disjoint_mean,
) -> PyTree:
    """base + scale * merge(trimmed, elect(trimmed)), trimmed_n = trim(theta_n - base).

    base, models: trees of the same paths and shapes, floating leaves; the result has the dtypes of
    the base. density: the share of entries kept of each task vector (0.2 in the paper). scale: the
    paper's lambda, a number that may be traced: 1 without validation data, else searched over
    0.8, 0.9, ..., 2.5 (T5). trim: `trim`, `trim_released` or another function
    (vector, *, density) -> vector. merge: `disjoint_mean`, `disjoint_sum`, `disjoint_max` or
    another function (vectors, signs) -> vector. For IA3 the base is a tree of ones; tied
    embeddings must be in the tree once.

    arXiv 2306.01708, algorithm 1.
    """
    check_models(models, base)
    scale = jnp.asarray(scale, jnp.float32)
    if scale.shape != ():
        raise ValueError(f"scale: got shape {scale.shape}, takes a number")
    trimmed = [trim(task_vector(base, model), density=density) for model in models]
    return add_task_vectors(base, [merge(trimmed, elect(trimmed))], scale=scale)
