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


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - e^x) for x <= 0, elementwise in float32; finite, as is its derivative.

    Near 0 through expm1, far below through log1p, each with the other's argument kept away from
    where it has no gradient. x above -1e-6 (a probability of 1, or rounding above it) counts as
    -1e-6: the value stays at -13.8 there and has no gradient.
    """
    x = jnp.minimum(x.astype(jnp.float32), -1e-6)
    near = x > -math.log(2.0)
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))),
        jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
    )
