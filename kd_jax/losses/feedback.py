"""Language modelling on scored text: unlikelihood, regression weighted by reward or advantage.

A score says how bad a token's segment (its sentence or line) is; its reward is minus that. As
collation has shifted once, log_probs[t], scores[t] and values[t] all belong to the token that
position t predicts. All losses are elementwise, of any shape, and unreduced.

Source: Korbak et al. 2023, pretraining language models with human preferences (arXiv 2302.08582),
and its released code.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses._logs import log1mexp


def unlikelihood(
    log_probs: Float[Array, "*batch"],
    scores: Float[Array, "*batch"],
    *,
    threshold: ArrayLike,
    alpha: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """-log p where the score is at most the threshold, -alpha log(1 - p) elsewhere, f32.

    log_probs: log p of each token; scores: of the same shape, without gradient. alpha at least 0;
    1 in the paper. A p within 1e-6 of 1 counts as 1 - 1e-6: no gradient unlearns such a token (the
    released code stops at log 1e-20). Source: arXiv 2302.08582, section 2.
    """
    _check(log_probs, scores, alpha=alpha)
    log_p = log_probs.astype(jnp.float32)
    return jnp.where(scores <= threshold, -log_p, alpha * -log1mexp(log_p))


def convex_unlikelihood(
    log_probs: Float[Array, "*batch"],
    scores: Float[Array, "*batch"],
    *,
    alpha: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """-(1 - s) log p - alpha s log(1 - p), f32: unlikelihood by degrees, for scores s in [0, 1].

    Arguments as `unlikelihood`; the released code's form without a threshold.
    """
    _check(log_probs, scores, alpha=alpha)
    log_p, s = log_probs.astype(jnp.float32), _fixed(scores)
    return -(1.0 - s) * log_p - alpha * s * log1mexp(log_p)


def reward_weights(
    scores: Float[Array, "*batch"],
    values: Float[Array, "*batch"] | None = None,
    *,
    beta: ArrayLike,
    clip: float = 1000.0,
) -> Float[Array, "*batch"]:
    """min(exp((-scores - values) / beta), clip), f32: how much a token counts; no gradient.

    values: what reward was expected; None for 0. beta > 0; 10 in the paper, where all weights are
    close to 1. clip: 1000 in the released code.
    """
    _checks.positive("beta", beta)
    _checks.positive("clip", clip)
    expected = jnp.zeros(scores.shape) if values is None else _fixed(values)
    _checks.same_shape(scores=scores, values=expected)
    # The exponent is cut, not the power, which may be inf.
    return jnp.exp(jnp.minimum((-_fixed(scores) - expected) / beta, math.log(clip)))


def rwr(
    log_probs: Float[Array, "*batch"],
    scores: Float[Array, "*batch"],
    *,
    beta: ArrayLike,
    clip: float = 1000.0,
) -> Float[Array, "*batch"]:
    """Reward-weighted regression: -min(exp(-scores / beta), clip) log p, f32.

    The released code runs it as `awr` with alpha = 1, whose value head then learns nothing but
    still moves the weights; here there is none. Source: arXiv 2302.08582, section 2.
    """
    _check(log_probs, scores)
    return reward_weights(scores, beta=beta, clip=clip) * -log_probs.astype(jnp.float32)


def awr(
    log_probs: Float[Array, "*batch"],
    scores: Float[Array, "*batch"],
    values: Float[Array, "*batch"],
    *,
    beta: ArrayLike,
    alpha: float = 0.5,
    clip: float = 1000.0,
) -> Float[Array, "*batch"]:
    """-alpha w log p + (1 - alpha) (r - V)**2, f32; r = -scores, w = `reward_weights`.

    Advantage-weighted regression: V = values is a head that learns to expect the reward, and what
    is better than expected counts more. The gradient of values is that of the square alone. alpha
    in [0, 1]; 0.5 in the paper. For large beta w is 1, and the loss a mean of negative
    log-likelihood and squared error. Source: arXiv 2302.08582, section 2.
    """
    _check(log_probs, scores)
    _checks.share("alpha", alpha)
    w = reward_weights(scores, values, beta=beta, clip=clip)
    return -alpha * w * log_probs.astype(jnp.float32) + (1 - alpha) * value_error(scores, values)


def value_error(
    scores: Float[Array, "*batch"], values: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """(r - V)**2 of rewards r = -scores and V = values, f32; the gradient goes to values."""
    _checks.same_shape(scores=scores, values=values)
    return jnp.square(_fixed(scores) + values.astype(jnp.float32))


def _fixed(x: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(x.astype(jnp.float32))


def _check(log_probs: jax.Array, scores: jax.Array, alpha: ArrayLike = 0.0) -> None:
    _checks.same_shape(log_probs=log_probs, scores=scores)
    _checks.not_negative("alpha", alpha)
