"""Formulas that merges in memory (JAX) and on disk (NumPy) share.

Elementwise functions of arrays, and of the scalars that reductions return, of either library: the
operations come from the argument's own `__array_namespace__()`. Neither library is imported here,
so that the merge of files starts without JAX. Sums over leaves, rows and devices are the callers'.
float32 in, float32 out; Python numbers take the arrays' dtype.
"""

import functools
import hashlib
import operator
from collections.abc import Sequence
from typing import Any

Array = Any  # of NumPy or of JAX


def name_seed(name: str) -> int:
    """A 32-bit seed that only the name (a leaf's path, a tensor's name) decides.

    Not Python's `hash`, which differs from process to process.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")


def kept(total: int, density: float) -> int:
    """How many of `total` entries a density keeps, int(density * total); ValueError for none."""
    count = int(density * total)
    if count == 0:
        raise ValueError(f"density: {density} of {total} entries keeps none of them")
    return count


def cosine(product: Array, first: Array, second: Array, *, floor: float = 1e-30) -> Array:
    """<a, b> / (|a| |b|) from product = <a, b>, first = <a, a>, second = <b, b>.

    0 where a or b is 0; |a| |b| counts as `floor` where it is smaller.
    """
    xp = product.__array_namespace__()
    # The roots stay away from 0, or their gradient would be a NaN; their product may underflow.
    norms = xp.sqrt(xp.where(first == 0, 1.0, first)) * xp.sqrt(xp.where(second == 0, 1.0, second))
    return product / xp.maximum(norms, floor)


def slerp(cosine: Array, t: Any, *, parallel: float = 0.9995) -> tuple[Array, Array]:
    """The coefficients of a and b in the spherical interpolation between them.

    With theta = arccos of their cosine: sin((1 - t) theta) / sin(theta), sin(t theta) / sin(theta);
    1 - t and t where |cosine| > parallel. Shoemake 1985; `parallel` is mergekit's.
    """
    xp = cosine.__array_namespace__()
    straight = xp.abs(cosine) > parallel
    # The branch not taken must stay finite, or its gradient poisons the other.
    angle = xp.acos(xp.where(straight, 0.0, cosine))
    arc = xp.sin(angle)
    first = xp.where(straight, 1.0 - t, xp.sin((1.0 - t) * angle) / arc)
    return first, xp.where(straight, t, xp.sin(t * angle) / arc)


def stock_ratio(cosine: Array, n: int) -> Array:
    """How far model stock goes from the base (0) to the mean of N models (1).

    t = N c / (1 + (N - 1) c), c the mean cosine between their task vectors: the foot of the
    perpendicular when all pairs have the same angle and all vectors the same length. The pole at
    c = -1 / (N - 1), where the task vectors cancel, is cut off: t is never under -1, which it
    reaches at c = -1 / (2 N - 1).

    arXiv 2403.19522, the rule for N fine-tuned models.
    """
    xp = cosine.__array_namespace__()
    cut = (2 * n - 1) * cosine <= -1.0
    return xp.where(cut, -1.0, n * cosine / xp.where(cut, 1.0, 1.0 + (n - 1) * cosine))


def keep_probability(rank: Array, n: int, density: float, epsilon: float) -> Array:
    """DELLA's probability of keeping an entry, from its rank by magnitude in its row.

    density - epsilon + 2 epsilon (rank - 1) / (n - 1), rank in 1..n ascending; the density for a
    row of one. The mean over a row is the density. arXiv 2406.11617.
    """
    if not 0.0 < density - epsilon <= density + epsilon < 1.0:
        raise ValueError(
            f"epsilon: got {epsilon}, takes a number >= 0 for which density +- epsilon, here "
            f"{density} +- {epsilon}, is in (0, 1)"
        )
    if n == 1:
        return 0.0 * rank + density
    return density - epsilon + 2.0 * epsilon * (rank - 1.0) / (n - 1)


def realised_scale(before: Array, after: Array, *, smallest: float = 1e-7) -> Array:
    """The factor that gives what was kept the norm of the whole: before / after.

    before, after: a norm (L1 in mergekit) of the task vector and of its kept entries. 1 where
    either is under `smallest`: there is nothing to scale.
    """
    xp = before.__array_namespace__()
    empty = (before < smallest) | (after < smallest)
    return xp.where(empty, 1.0, before / xp.where(empty, 1.0, after))


def elected(total: Array, majority: Any) -> Array:
    """The sign of the votes' sum, and `majority` (-1, 0 or 1) where that is 0; int8.

    arXiv 2306.01708, algorithm 1, step 2; mergekit's majority is 1.
    """
    xp = total.__array_namespace__()
    sign = xp.sign(total).astype(xp.int8)
    return xp.where(sign == 0, xp.asarray(majority, dtype=xp.int8), sign)


def agreeing(x: Array, sign: Array) -> Array:
    """x where it has the elected sign (-1 or 1), else 0; a NaN stays."""
    xp = x.__array_namespace__()
    return xp.where(xp.sign(x) * sign <= 0, 0.0, x)


def disjoint_sum(sign: Array, values: Sequence[Array]) -> Array:
    """The sum, at each entry, of the values that have the elected sign."""
    return functools.reduce(operator.add, [agreeing(x, sign) for x in values])


def disjoint_mean(sign: Array, values: Sequence[Array], weights: Any = None) -> Array:
    """The mean, at each entry, of the values that have the elected sign; 0 where none has.

    With weights [N], `values` are already weighted (w_n tau_n, as they voted) and their sum is
    divided by the weights of those that agree, or by 1 where these sum to 0 (mergekit's rule).

    arXiv 2306.01708, algorithm 1, step 3.
    """
    xp = sign.__array_namespace__()
    w = [1.0] * len(values) if weights is None else weights
    parts = [agreeing(x, sign) for x in values]
    divisor = functools.reduce(
        operator.add, [(x != 0).astype(x.dtype) * w[n] for n, x in enumerate(parts)]
    )
    return functools.reduce(operator.add, parts) / xp.where(divisor == 0, 1.0, divisor)


def disjoint_max(sign: Array, values: Sequence[Array]) -> Array:
    """The largest, at each entry, of the values that have the elected sign."""
    xp = sign.__array_namespace__()
    return functools.reduce(xp.maximum, [xp.abs(agreeing(x, sign)) for x in values]) * sign


def surviving_ranks(
    n: int, keep: float, remove: float, *, remove_first: bool = True
) -> tuple[int, int]:
    """Which entries of n, ranked by magnitude, breadcrumbs keeps: (skipped, last).

    Ranks skipped + 1 .. last survive, rank 1 the largest. With remove_first the int(n * remove)
    largest are removed and the int(n * keep) largest of the rest kept; without, the int(n * keep)
    largest are kept and of these the int(n * remove) largest removed.

    arXiv 2312.06795; the counts are the released code's (rezazzr/breadcrumbs, task_vectors.py).
    """
    for name, value in (("keep", keep), ("remove", remove)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: got {value}, takes a number in [0, 1]")
    skipped, count = int(n * remove), int(n * keep)
    if remove_first:
        return skipped, min(skipped + count, n)
    return min(skipped, count), count


def surviving_ranks_of_leaf(n: int, density: float, gamma: float) -> tuple[int, int]:
    """As `surviving_ranks`, by mergekit's rule for a whole leaf.

    int(density * n) entries survive whenever density < 1: if fewer than that are left below the
    int(gamma * n) largest, fewer of these are removed. With density 1 all survive. (mergekit
    itself zeroes the whole tensor where int(gamma * n) is 0; here nothing is removed then.)
    """
    for name, value in (("density", density), ("gamma", gamma)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: got {value}, takes a number in [0, 1]")
    if density == 1.0:
        return 0, n
    count = int(density * n)
    skipped = min(int(gamma * n), n - count)
    return skipped, skipped + count
