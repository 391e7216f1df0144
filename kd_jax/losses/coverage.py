"""Direct coverage optimisation: training for pass@n, not for the one most likely answer."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks

# A normal float32: where 1 - p is 0, log(1 - p) stays finite for the sake of 0 * log 0.
_LEAST = 1e-37
_SMALL = 0.7


def dco(log_probs: Float[Array, " B"], *, n: ArrayLike) -> Float[Array, " B"]:
    """-log(1 - (1 - p)**n): minus the log-probability that one of n samples is right.

    log_probs f32 [B]: log p of the right answer, the label's or a SUM over the answer's tokens ->
    f32 [B], at least 0, unreduced. n = 1 is the negative log-likelihood; where n p is small it is
    -log p - log n, for any log p, and near p = 1 it is (1 - p)**n. The gradient is `dco_factor`
    times that of -log p. n at least 1, not necessarily whole, without gradient; 1 to 4096 in the
    paper. The model should be in evaluation mode: dropout would make p another one. Source: arXiv
    2502.07154 (DCO), and its released code.
    """
    return _dco(*_float32(log_probs, n))


def dco_factor(log_probs: Float[Array, " B"], *, n: ArrayLike) -> Float[Array, " B"]:
    """F = n p (1 - p)**(n - 1) / (1 - (1 - p)**n), in [0, 1]: [B] -> f32 [B].

    The factor by which DCO's gradient differs from that of -log p: 1 where n p is small, 0 where
    the answer is likely enough for one of n samples to be right. n = 1 gives 1. Arguments as
    `dco`. Source: arXiv 2502.07154.
    """
    return _factor(*_float32(log_probs, n))


def estimated_dco(
    log_probs: Float[Array, " B"],
    success_rates: Float[Array, " B"],
    *,
    n: ArrayLike,
    threshold: ArrayLike = 0.0,
) -> Float[Array, " B"]:
    """-F(success_rates, n) log p, and 0 where F < threshold: [B] -> f32 [B].

    DCO for chains of thought, of which many lead to the right answer. log_probs: of the one chain
    that is learnt. success_rates, in [0, 1]: a Monte-Carlo estimate of the probability that a chain
    that the model samples ends in the right answer (64 samples a problem in the released
    command), without gradient. threshold: 0.1 there. The rule is UNVERIFIED: it was read off the
    command's arguments. Source: arXiv 2502.07154 (DCO^a).
    """
    _checks.same_shape(log_probs=log_probs, success_rates=success_rates)
    _checks.share("threshold", threshold)
    factor = dco_factor(jnp.log(jax.lax.stop_gradient(success_rates)), n=n)
    return jnp.where(factor < threshold, 0.0, factor) * -log_probs.astype(jnp.float32)


def _float32(log_probs: jax.Array, n: ArrayLike) -> tuple[jax.Array, jax.Array]:
    if isinstance(n, int | float) and not n >= 1:
        raise ValueError(f"n: got {n}, takes numbers from 1")
    # Rounding may lift a log-probability above 0.
    log_p = jnp.where(log_probs > 0, 0.0, log_probs.astype(jnp.float32))
    return log_p, jax.lax.stop_gradient(jnp.asarray(n, jnp.float32))


@jax.custom_jvp
def _dco(log_p: jax.Array, n: jax.Array) -> jax.Array:
    x, excess = _exponent(log_p, n)
    return -jnp.where(x < _SMALL, jnp.log(n) + log_p + excess, _log_any(x))


@_dco.defjvp
def _dco_jvp(primals, tangents):
    return _dco(*primals), -_factor(*primals) * tangents[0]


@jax.custom_jvp
def _factor(log_p: jax.Array, n: jax.Array) -> jax.Array:
    x, excess = _exponent(log_p, n)
    rest = jnp.where(x < _SMALL, -excess, jnp.log(n) + log_p - _log_any(x))
    return jnp.exp((n - 1.0) * _log_other(log_p) + rest)


@_factor.defjvp
def _factor_jvp(primals, tangents):
    log_p, n = primals
    factor = _factor(log_p, n)
    odds = jnp.exp(jnp.minimum(log_p - _log_other(log_p), 60.0))
    return factor, factor * (1.0 - factor - (n - 1.0) * odds) * tangents[0]


def _exponent(log_p: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x, e): (1 - p)^n = e^-x; where x < _SMALL, log(1 - e^-x) = log n + log p + e.

    e is found without log p, which may be anything, and without dividing by what underflows.
    """
    p, x = jnp.exp(log_p), -n * _log_other(log_p)
    return x, _log_ratio(-jnp.log1p(-jnp.minimum(p, 0.75)), p) + _log_ratio(-jnp.expm1(-x), x)


def _log_any(x: jax.Array) -> jax.Array:
    """log(1 - e^-x) for x >= _SMALL."""
    return jnp.log1p(-jnp.exp(-jnp.maximum(x, _SMALL)))


def _log_other(log_p: jax.Array) -> jax.Array:
    """log(1 - p), as exact for p near 0 as for p near 1."""
    near = jnp.log(jnp.maximum(-jnp.expm1(log_p), _LEAST))
    return jnp.where(log_p > -_SMALL, near, jnp.log1p(-jnp.exp(jnp.minimum(log_p, -_SMALL))))


def _log_ratio(y: jax.Array, x: jax.Array) -> jax.Array:
    """log(y / x), 0 where both underflow."""
    tiny = x < 1e-30
    return jnp.log(jnp.where(tiny, 1.0, y) / jnp.where(tiny, 1.0, x))
