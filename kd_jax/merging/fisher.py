"""Fisher merging: averages weighed by how much each weight matters (arXiv 2111.09832)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.merging._checks import check_models, coefficients
from kd_jax.merging.arithmetic import inner_product
from kd_jax.types import PyTree


def fisher_merge(
    models: Sequence[PyTree],
    fishers: Sequence[PyTree],
    weights: Any = None,
    *,
    floor: float = 1e-6,
    favour_target: bool = True,
    normalise: bool = True,
) -> PyTree:
    """sum_n w_n F_n theta_n / sum_n w_n F_n, entry by entry, in the dtypes of models[0].

    models: N trees of the same paths and shapes, floating leaves; models[0] is the target where
        there is one. fishers: the diagonal Fisher information of each, like the models
        (`attribution.fisher`). weights: the paper's lambda [N], uniform when None; may be traced.
    floor: the least Fisher information, max(F, floor). favour_target: the floor holds for the
        target alone, so that it keeps the entries that no model is certain of; if not, for every
        model, and such entries become the mean weighed by w.
    normalise: w_n is first divided by the L2 norm of F_n, over all leaves together and without the
        floor, as models may be more certain of everything than others.

    An entry where all w_n F_n are 0 is the target's. Classification heads stay out.

    Matena and Raffel 2022, equation 4; floor, target and norm are those of the released code.
    """
    check_models(models)
    check_models(fishers, models[0], "fishers")
    if len(fishers) != len(models):
        raise ValueError(f"fishers: got {len(fishers)}, takes one a model, {len(models)}")
    if not floor >= 0:
        raise ValueError(f"floor: got {floor}, takes at least 0")
    w = coefficients("weights", 1.0 if weights is None else weights, len(models))
    if normalise:
        norms = jnp.sqrt(jnp.stack([inner_product(f, f) for f in fishers]))
        w = w / jnp.where(norms == 0, 1.0, norms)

    def blend(*leaves: jax.Array) -> jax.Array:
        thetas = [jnp.asarray(x, jnp.float32) for x in leaves[: len(models)]]
        precisions = [jnp.asarray(x, jnp.float32) for x in leaves[len(models) :]]
        floored = 1 if favour_target else len(models)
        precisions[:floored] = [jnp.maximum(f, floor) for f in precisions[:floored]]
        precisions = [w[n] * f for n, f in enumerate(precisions)]
        # From the target on: what all models share comes out exact.
        moved = sum(f * (x - thetas[0]) for f, x in zip(precisions, thetas, strict=True))
        total = sum(precisions)
        empty = total == 0
        share = jnp.where(empty, 0.0, moved) / jnp.where(empty, 1.0, total)
        return (thetas[0] + share).astype(leaves[0].dtype)

    return jax.tree.map(blend, *models, *fishers)


def weights_to_try(key: jax.Array, models: int, count: int = 51) -> jax.Array:
    """f32 [count, N] weights on the simplex, of which the best on validation data is taken.

    For two models an even grid with both ends, from the second alone to the first; for more, draws
    from Dirichlet(1, ..., 1). Matena and Raffel 2022, section 4.
    """
    if models < 2 or count < 2:
        raise ValueError(f"models and count: got {models} and {count}, takes at least 2 of each")
    if models == 2:
        first = jnp.linspace(0.0, 1.0, count)
        return jnp.stack([first, 1.0 - first], axis=1)
    return jax.random.dirichlet(key, jnp.ones(models), (count,))
