"""Arithmetic on log-probabilities that the divergences share."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# Far below any logarithm of a float32, and finite: -inf - (-inf) is NaN, and so is its derivative.
FLOOR = -1e9


def log_softmax(logits: jax.Array, temperature: ArrayLike) -> jax.Array:
    """In float32, over the last axis."""
    return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)


def kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """sum p (log p - log q) over the last axis, with 0 log 0 = 0 in the value and the gradient."""
    p = jnp.exp(log_p)
    # The mask is on the logs, not on the product: 0 * (-inf - x) is NaN, and so is its gradient.
    return (p * jnp.where(p > 0, log_p - log_q, 0.0)).sum(-1)


def log_mixture(log_p: jax.Array, log_q: jax.Array, share: float) -> jax.Array:
    """log(share p + (1 - share) q), with gradients that are finite where a probability is 0."""
    log_a, log_b = (math.log(x) if x > 0 else FLOOR for x in (share, 1 - share))
    return jnp.logaddexp(jnp.maximum(log_p, FLOOR) + log_a, jnp.maximum(log_q, FLOOR) + log_b)
