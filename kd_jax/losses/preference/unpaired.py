"""Preference losses of single completions, each marked desirable or not; no pairs are needed.

x = log policy / reference of a completion, a sum over tokens, [B]; desirable [B]: true or 1 for
completions to make likelier. Means over the batch come in as arguments, so that the values stay one
a row: objectives take them through `stats`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from kd_jax.losses import _checks
from kd_jax.losses.preference.links import logistic


def kto(
    log_ratios: Float[Array, " B"],
    desirable: Shaped[Array, " B"],
    baseline: ArrayLike,
    *,
    beta: ArrayLike,
    desirable_weight: ArrayLike = 1.0,
    undesirable_weight: ArrayLike = 1.0,
) -> Float[Array, " B"]:
    """Desirable: w_d sigmoid(beta (z - x)); undesirable: w_u sigmoid(beta (x - z)); f32 [B].

    z = sg(max(0, baseline)); baseline: the batch's mean of log policy / reference over completions
    of OTHER prompts (mismatched by rolling them by one), an estimate of KL(policy || reference).
    1/2 a row at x = z. beta 0.1; keep w_d n_desirable / (w_u n_undesirable) in [1, 4/3].
    Source: Ethayarajh et al. 2024, arXiv 2402.01306, equation 8 (number UNVERIFIED).
    """
    _checks.positive("beta", beta)
    z = jax.lax.stop_gradient(jnp.maximum(jnp.asarray(baseline, jnp.float32), 0.0))
    x, sign = _signed(log_ratios, desirable)
    weights = jnp.where(sign > 0, desirable_weight, undesirable_weight)
    return weights * jax.nn.sigmoid(sign * (z - x) * beta)


def bco(
    log_ratios: Float[Array, " B"],
    desirable: Shaped[Array, " B"],
    shift: ArrayLike,
    *,
    beta: ArrayLike,
) -> Float[Array, " B"]:
    """Desirable: -log sigmoid(beta x - d); undesirable: -log sigmoid(-(beta x - d)); f32 [B].

    d = sg(shift): the mean of the rewards beta x of all completions so far in the run, the current
    batch's among them (half the sum of desirable and undesirable means in the paper; count-weighted
    in trl). The paper's density-ratio weight on undesirable rows multiplies the values. beta 0.1.
    Source: Jung et al. 2024, arXiv 2404.04656.
    """
    _checks.positive("beta", beta)
    x, sign = _signed(log_ratios, desirable)
    return logistic(sign * (x * beta - jax.lax.stop_gradient(jnp.asarray(shift, jnp.float32))))


def _signed(log_ratios: jax.Array, desirable: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x in float32, +1 where desirable and -1 where not)."""
    _checks.same_shape(log_ratios=log_ratios, desirable=desirable)
    return log_ratios.astype(jnp.float32), jnp.where(desirable.astype(bool), 1.0, -1.0)
