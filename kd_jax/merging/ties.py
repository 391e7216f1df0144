"""TIES: trim, elect sign, merge what agrees (arXiv 2306.01708).

The operators are flat: a threshold and the majority sign are taken over all leaves together, so
that layers which moved more keep more; `ties` takes groups of leaves that have a threshold each. A
single array is a tree too: mapping `trim` over the leaves trims each for itself.

Two choices where the released code (prateeky2806/ties-merging, merge_utils.py) and the paper part:

- The paper keeps the top k per cent of the entries: `trim` keeps int(density * D). The code keeps
  every entry at least as large as the k-th smallest with k = D - int(density * D), which is one
  entry more: `trim_released`.
- Where the elected sign is 0 (the votes cancel at an entry, and over the whole model too) no entry
  has that sign, and the merge is 0 there. The code takes the negative entries, so that flipping
  every sign would not flip the result.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.merging import formulas
from kd_jax.merging._checks import check_floating, check_models, check_share, coefficients
from kd_jax.merging.arithmetic import add_task_vectors, task_vector
from kd_jax.types import PyTree

Trim = Callable[..., PyTree]
Groups = Callable[[str], Hashable]
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
    return total, formulas.kept(total, density)


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
    whatever the sharding.

    arXiv 2306.01708, algorithm 1, step 2.
    """
    check_models(vectors, name="vectors")
    totals = jax.tree.map(lambda *taus: sum(_f32(taus)), *vectors)
    signs = [jnp.sign(total).astype(jnp.int8) for total in jax.tree.leaves(totals)]
    majority = _sign_of_sum(signs)
    return jax.tree.map(lambda total: formulas.elected(total, majority), totals)


def _sign_of_sum(leaves: Sequence[jax.Array]) -> jax.Array:
    """int8 sign of the sum over all leaves, exact: float32 would round, int32 could overflow."""
    high, low = trees.count(leaves, jnp.int32)
    return jnp.where(high == 0, jnp.sign(low), jnp.sign(high)).astype(jnp.int8)


def disjoint_mean(vectors: Sequence[PyTree], signs: PyTree, weights: Any = None) -> PyTree:
    """The mean, at each entry, of the values that have the elected sign; 0 where none has.

    vectors: N trimmed task vectors; signs: `elect(vectors)`, or another tree of signs like them
    (of a multitask model, say). weights: [N], for vectors that have been multiplied by them: the
    sum is divided by the weights of those that agree (by 1 where these sum to 0). float32 leaves.

    arXiv 2306.01708, algorithm 1, step 3; the weights are mergekit's.
    """
    w = None if weights is None else coefficients("weights", weights, len(vectors))
    return _merge(functools.partial(formulas.disjoint_mean, weights=w), vectors, signs)


def disjoint_sum(vectors: Sequence[PyTree], signs: PyTree) -> PyTree:
    """As `disjoint_mean`, with the sum of the values that have the elected sign."""
    return _merge(formulas.disjoint_sum, vectors, signs)


def disjoint_max(vectors: Sequence[PyTree], signs: PyTree) -> PyTree:
    """As `disjoint_mean`, with the largest of the values that have the elected sign."""
    return _merge(formulas.disjoint_max, vectors, signs)


def _f32(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    return [jnp.asarray(x, jnp.float32) for x in leaves]


def _merge(f: Callable[..., Any], vectors: Sequence[PyTree], signs: PyTree) -> PyTree:
    check_models(vectors, name="vectors")
    trees.check_same("signs", signs, "vectors[0]", vectors[0])
    return jax.tree.map(lambda sign, *taus: f(sign, _f32(taus)), signs, *vectors)


def merge_agreeing(
    base: PyTree, vectors: Sequence[PyTree], *, scale: Any = 1.0, merge: Merge = disjoint_mean
) -> PyTree:
    """base + scale * merge(vectors, elect(vectors)): TIES without its trimming.

    vectors: N task vectors like the base, trimmed, sparsified otherwise or weighted (with weights
    merge is `functools.partial(disjoint_mean, weights=w)`). scale: a number that may be traced.
    merge: `disjoint_mean`, `disjoint_sum`, `disjoint_max` or another (vectors, signs) -> vector.
    """
    check_models(vectors, base, "vectors")
    scale = jnp.asarray(scale, jnp.float32)
    if scale.shape != ():
        raise ValueError(f"scale: got shape {scale.shape}, takes a number")
    return add_task_vectors(base, [merge(vectors, elect(vectors))], scale=scale)


def ties(
    base: PyTree,
    models: Sequence[PyTree],
    *,
    density: float,
    scale: Any = 1.0,
    groups: Groups | None = None,
    trim: Trim = trim,
    merge: Merge = disjoint_mean,
) -> PyTree:
    """base + scale * merge(trimmed, elect(trimmed)), trimmed_n = trim(theta_n - base).

    base, models: trees of the same paths and shapes, floating leaves; the result has the dtypes of
    the base. density: the share of entries kept of each task vector (0.2 in the paper). scale: the
    paper's lambda, a number that may be traced: 1 without validation data, else searched over
    0.8, 0.9, ..., 2.5 (T5). groups: path -> any label; leaves of one label are trimmed together,
    and int(density * D) is counted for each label. By default all leaves are (the paper and its
    code), with `str`, for which every path is a label of its own, each leaf is (mergekit). The
    majority sign is over all leaves in any case. trim: `trim`, `trim_released` or another function
    (vector, *, density) -> vector. merge: `disjoint_mean`, `disjoint_sum`, `disjoint_max` or
    another function (vectors, signs) -> vector. For IA3 the base is a tree of ones; tied
    embeddings must be in the tree once.

    arXiv 2306.01708, algorithm 1.
    """
    check_models(models, base)
    cut = functools.partial(trim, density=density)
    trimmed = [in_groups(cut, task_vector(base, model), groups) for model in models]
    return merge_agreeing(base, trimmed, scale=scale, merge=merge)


def in_groups(f: Callable[[PyTree], PyTree], tree: PyTree, groups: Groups | None) -> PyTree:
    """f applied to the leaves of each group by themselves; to the whole tree where groups is None.

    f sees {path: leaf} of one group. An error from it names the group.
    """
    if groups is None:
        return f(tree)
    parts: dict[Hashable, dict[str, jax.Array]] = {}
    for path, leaf in trees.flatten(tree).items():
        parts.setdefault(groups(path), {})[path] = leaf
    done = {}
    for label, part in parts.items():
        try:
            done |= f(part)
        except ValueError as error:
            raise ValueError(f"group {label!r}: {error}") from error
    return trees.map_with_path(lambda path, _: done[path], tree)
