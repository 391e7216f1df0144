"""Model stock: how far to trust the mean of fine-tuned models, from the angles between them."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kd_jax.merging import formulas
from kd_jax.merging._checks import check_models
from kd_jax.merging._rows import row_sum
from kd_jax.types import PyTree

# As mergekit: task vectors shorter than this (the product of their lengths) count as unrelated.
_FLOOR = 1e-6


def model_stock(base: PyTree, models: Sequence[PyTree]) -> PyTree:
    """base + t (mean of the models - base), each leaf taken as one flat vector.

    With tau_n = theta_n - base and c the mean of cos(tau_i, tau_j) over the pairs,
    t = N c / (1 + (N - 1) c): 1 where all models moved alike, 0 where they moved at right angles.
    base, models: at least two trees of the same paths and shapes as the base, floating leaves; the
    result has the dtypes of the base. A c far enough under 0 nears a pole, which is cut off: see
    `formulas.stock_ratio`. |tau_i| |tau_j| counts as 1e-6 where it is smaller.

    arXiv 2403.19522. Taking the mean over pairs for more than two models is mergekit's choice, the
    paper has one angle.
    """
    return _stock(base, models, jnp.sum)


def model_stock_rows(base: PyTree, models: Sequence[PyTree]) -> PyTree:
    """As `model_stock`, with a ratio for each row of a leaf (along its last axis)."""
    return _stock(base, models, row_sum)


def _stock(
    base: PyTree, models: Sequence[PyTree], total: Callable[[jax.Array], jax.Array]
) -> PyTree:
    check_models(models, base)
    n = len(models)
    if n < 2:
        raise ValueError(f"models: got {n}, takes at least two to have an angle between them")

    def move(theta0: jax.Array, *thetas: jax.Array) -> jax.Array:
        start = jnp.asarray(theta0, jnp.float32)
        taus = [jnp.asarray(theta, jnp.float32) - start for theta in thetas]
        squares = [total(tau * tau) for tau in taus]
        cosines = [
            formulas.cosine(total(taus[i] * taus[j]), squares[i], squares[j], floor=_FLOOR)
            for i, j in itertools.combinations(range(n), 2)
        ]
        mean = sum(jnp.clip(c, -1.0, 1.0) for c in cosines) / len(cosines)
        ratio = formulas.stock_ratio(mean, n)
        return (start + ratio * (sum(taus) / n)).astype(theta0.dtype)

    return jax.tree.map(move, base, *models)
