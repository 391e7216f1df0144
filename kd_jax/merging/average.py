"""Averages and interpolations of weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.merging import formulas
from kd_jax.merging._checks import check_models, coefficients
from kd_jax.merging._rows import row_sum
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


def greedy_soup(
    models: Sequence[PyTree], score: Callable[[PyTree], float]
) -> tuple[PyTree, tuple[int, ...]]:
    """(model, included): the mean of the models that, added best first, do not lower the score.

    score(model) -> a number, higher is better, from held-out data that is not the test data. Each
    model is scored, then added to the mean in order of its score (the earlier of equal ones first)
    and kept if the mean's score is at least what it was: 2 N - 1 calls. The result scores at least
    as the best model does. included: indices in the order in which they were added. Runs on the
    host. ValueError for a score that is a NaN. Returns the dtypes of the best model.

    Model soups, arXiv 2203.05482, recipe 1.
    """
    check_models(models)
    scores = [_scored(score, model, f"models[{i}]") for i, model in enumerate(models)]
    order = sorted(range(len(models)), key=lambda i: -scores[i])
    included = (order[0],)
    soup, best = models[order[0]], scores[order[0]]
    for i in order[1:]:
        wider = average([models[j] for j in (*included, i)])
        reached = _scored(score, wider, f"the mean of models {(*included, i)}")
        if reached >= best:
            soup, best, included = wider, reached, (*included, i)
    return soup, included


def _scored(score: Callable[[PyTree], float], model: PyTree, name: str) -> float:
    value = float(score(model))
    if math.isnan(value):
        raise ValueError(f"score: is a NaN for {name}")
    return value


def slerp(first: PyTree, second: PyTree, t: Any, *, parallel: float = 0.9995) -> PyTree:
    """Spherical interpolation of two models, each leaf taken as one flat vector.

    With d the cosine between the leaves a and b and theta = arccos d:
        sin((1 - t) theta) / sin(theta) * a + sin(t theta) / sin(theta) * b,
    applied to a and b themselves, not to their unit vectors; where |d| > parallel (antiparallel
    leaves too) the straight line (1 - t) a + t b. A leaf of zeros counts as orthogonal. t: scalar,
    0 gives the first and 1 the second; may be traced. Returns the dtypes of `first`.

    Shoemake 1985; the rule for leaves and the default of `parallel` are mergekit's.
    """
    return _slerp(first, second, t, parallel, jnp.sum)


def slerp_rows(first: PyTree, second: PyTree, t: Any, *, parallel: float = 0.9995) -> PyTree:
    """As `slerp`, with each row of a leaf (along its last axis) a vector of its own."""
    return _slerp(first, second, t, parallel, row_sum)


def _slerp(
    first: PyTree, second: PyTree, t: Any, parallel: float, total: Callable[[jax.Array], jax.Array]
) -> PyTree:
    check_models([first, second])
    t = jnp.asarray(t, jnp.float32)
    if t.shape != ():
        raise ValueError(f"t: got shape {t.shape}, takes a number")

    def blend(a: jax.Array, b: jax.Array) -> jax.Array:
        dtype = a.dtype
        a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
        cosine = formulas.cosine(total(a * b), total(a * a), total(b * b))
        from_a, from_b = formulas.slerp(cosine, t, parallel=parallel)
        return (from_a * a + from_b * b).astype(dtype)

    return jax.tree.map(blend, first, second)
