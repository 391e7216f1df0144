"""Preference losses that need sums over tokens beyond those in Pairs, as further arrays [P]."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses._logs import log_softmax
from kd_jax.losses.preference.links import logistic
from kd_jax.losses.preference.pairs import Pairs, margin


def tdpo1(
    pairs: Pairs,
    chosen_kl: Float[Array, " P"],
    rejected_kl: Float[Array, " P"],
    *,
    beta: ArrayLike,
) -> Float[Array, " P"]:
    """-log sigmoid(beta (u - (K_r - K_c))), f32 [P].

    chosen_kl K_c, rejected_kl K_r: sums over completion positions of KL(reference || policy) over
    the whole vocabulary; gradients flow through both. beta 0.1.
    Source: Zeng et al. 2024, arXiv 2404.11999, equation 17 (number UNVERIFIED) and released code.
    """
    return _tdpo(pairs, chosen_kl, rejected_kl, beta, 1.0)


def tdpo2(
    pairs: Pairs,
    chosen_kl: Float[Array, " P"],
    rejected_kl: Float[Array, " P"],
    *,
    beta: ArrayLike,
    alpha: ArrayLike = 0.5,
) -> Float[Array, " P"]:
    """-log sigmoid(beta (u - alpha (K_r - sg(K_c)))), f32 [P]; the rest as `tdpo1`."""
    return _tdpo(pairs, jax.lax.stop_gradient(chosen_kl), rejected_kl, beta, alpha)


def ld_dpo(pairs: Pairs, shared: Pairs, *, beta: ArrayLike, alpha: ArrayLike) -> Float[Array, " P"]:
    """DPO whose log-probabilities count tokens past the shorter completion's length alpha times.

    shared: log-probabilities of the first min(L_c, L_r) tokens, of policy and reference. f32 [P].
    alpha in [0, 1]: 1 is `margin.dpo`, 0 forgets the longer one's tail.
    Source: Liu et al. 2024, arXiv 2409.06411.
    """
    _checks.share("alpha", alpha)
    _checks.positive("beta", beta)
    return logistic((margin(pairs) * alpha + margin(shared) * (1 - alpha)) * beta)


def log_collision(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """log sum_v p_v**2, p = softmax(logits): the expected probability of a sampled token; f32."""
    return jax.nn.logsumexp(2.0 * log_softmax(logits, 1.0), -1)


def wpo_weight(
    token_log_probs: Float[Array, "B T"],
    log_collisions: Float[Array, "B T"],
    weights: Float[Array, "B T"],
) -> Float[Array, " B"]:
    """exp(mean_t (log p_t - log sum_v p_v**2)), stopped: how much a completion is the policy's own.

    weights: a mask, 0 on prompt and padding; a row without any gives 1. -> f32 [B]; a pair's loss
    is multiplied by the product of its two completions' weights, which is not capped here.
    Source: Zhou et al. 2024 (WPO), arXiv 2406.11827, sampled alignment.
    """
    _checks.same_shape(
        token_log_probs=token_log_probs, log_collisions=log_collisions, weights=weights
    )
    mask = weights != 0
    typical = token_log_probs.astype(jnp.float32) - log_collisions.astype(jnp.float32)
    total = jnp.where(mask, typical, 0.0).sum(-1)
    return jax.lax.stop_gradient(jnp.exp(total / jnp.maximum(mask.sum(-1), 1)))


def _tdpo(
    pairs: Pairs, chosen_kl: jax.Array, rejected_kl: jax.Array, beta: ArrayLike, alpha: ArrayLike
) -> jax.Array:
    _checks.positive("beta", beta)
    _checks.not_negative("alpha", alpha)
    _checks.same_shape(
        policy_chosen=pairs.policy_chosen, chosen_kl=chosen_kl, rejected_kl=rejected_kl
    )
    drift = rejected_kl.astype(jnp.float32) - chosen_kl.astype(jnp.float32)
    return logistic((margin(pairs) - drift * alpha) * beta)
