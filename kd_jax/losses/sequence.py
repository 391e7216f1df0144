"""From token log-probabilities to sequence log-probabilities."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.losses import _checks


def sequence_log_probs(
    token_log_probs: Float[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, " B"]:
    """log pi(y | x) = sum over t with weight != 0 of log pi(y_t | x, y_<t): the SUM, not the mean.

    token_log_probs, weights [B, T] -> f32 [B]. The weights are only a mask here: 0 on prompt and
    padding, and any other value counts as 1. What stands in masked positions is replaced, so that
    a NaN or inf there reaches neither the value nor the gradient. A row without any weight is 0.
    """
    _checks.same_shape(token_log_probs=token_log_probs, weights=weights)
    return jnp.where(weights != 0, token_log_probs.astype(jnp.float32), 0.0).sum(-1)
