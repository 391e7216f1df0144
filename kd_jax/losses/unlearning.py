"""Unlearning losses: each is minimised, and pushes the forget set's likelihood down."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks


def gradient_ascent(token_log_probs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """log p(y_t): the negative of the token cross-entropy, so that descent on it ascends the NLL.

    token_log_probs [B, T] -> f32 [B, T], unreduced; unbounded below. Reduced over the forget
    set's answer tokens it is L_GA. Source: Maini et al. 2024 (TOFU), arXiv 2401.06121, section 3.
    """
    return token_log_probs.astype(jnp.float32)


def npo(
    policy_logp: Float[Array, " B"], reference_logp: Float[Array, " B"], *, beta: ArrayLike
) -> Float[Array, " B"]:
    """Negative preference optimisation: (2 / beta) log(1 + (pi / pi_ref)**beta), one a sequence.

    = -(2 / beta) log sigmoid(-beta r), r = policy_logp - reference_logp, both SUMS over the
    answer's tokens (`sequence_log_probs`); [B] -> f32 [B], at least 0, (2 / beta) log 2 at the
    reference. beta > 0; 0.1 in the paper. A small beta is close to gradient ascent:
    npo - (2 / beta) log 2 -> r as beta -> 0; a large one stops sooner once a sequence is forgotten.
    The gradient is `npo_weight` times that of policy_logp. Nothing is stopped: the objective
    stops the reference. Source: Zhang et al. 2024, arXiv 2404.05868, section 3.
    """
    _checks.positive("beta", beta)
    return jax.nn.softplus(beta * _log_ratio(policy_logp, reference_logp)) * (2.0 / beta)


def npo_weight(
    policy_logp: Float[Array, " B"], reference_logp: Float[Array, " B"], *, beta: ArrayLike
) -> Float[Array, " B"]:
    """W = 2 pi**beta / (pi**beta + pi_ref**beta) = 2 sigmoid(beta r), in (0, 2): [B] -> f32 [B].

    The factor by which NPO's gradient differs from gradient ascent's, 1 at the reference; a
    metric to log. Arguments as `npo`. Source: arXiv 2404.05868, section 3.
    """
    _checks.positive("beta", beta)
    return 2.0 * jax.nn.sigmoid(beta * _log_ratio(policy_logp, reference_logp))


def _log_ratio(policy_logp: jax.Array, reference_logp: jax.Array) -> jax.Array:
    _checks.same_shape(policy_logp=policy_logp, reference_logp=reference_logp)
    return policy_logp.astype(jnp.float32) - reference_logp.astype(jnp.float32)
