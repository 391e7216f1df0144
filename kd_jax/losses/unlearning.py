"""Unlearning losses: each is minimised, and pushes the forget set's likelihood down."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses.preference.margin import dpo
from kd_jax.losses.preference.pairs import Pairs, without_reference


def gradient_ascent(token_log_probs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """log p(y_t): the negative of the token cross-entropy, so that descent on it ascends the NLL.

    token_log_probs [B, T] -> f32 [B, T], unreduced; unbounded below. Reduced over the forget
    set's answer tokens it is L_GA. Source: Maini et al. 2024 (TOFU), arXiv 2401.06121, section 3.
    """
    return token_log_probs.astype(jnp.float32)


def weighted_gradient_ascent(
    token_log_probs: Float[Array, "B T"], *, beta: ArrayLike
) -> Float[Array, "B T"]:
    """WGA: sg(p_t)**beta log p_t, p_t the probability of the target; [B, T] -> f32 [B, T].

    Gradient ascent that lets go of tokens already forgotten; beta = 0 is `gradient_ascent`. beta
    at least 0; 1 in the released configurations. The weight is stopped (sg), so that the gradient
    is p_t**beta that of log p_t. Unreduced. Source: Wang et al. 2025, arXiv 2502.19301 (WGA), as
    coded in open-unlearning; the paper's text UNVERIFIED.
    """
    _checks.not_negative("beta", beta)
    lp = token_log_probs.astype(jnp.float32)
    return jax.lax.stop_gradient(jnp.exp(beta * lp)) * lp


def satimp(
    token_log_probs: Float[Array, "B T"], *, beta_1: ArrayLike, beta_2: ArrayLike
) -> Float[Array, "B T"]:
    """SatImp: sg(p_t**beta_1 (1 - p_t)**beta_2) log p_t; [B, T] -> f32 [B, T].

    The first factor (saturation) lets go of tokens already forgotten, the second (importance) of
    those the model is sure of; beta_2 = 0 is `weighted_gradient_ascent`. Both at least 0; 5 and 1
    in the released configurations. Weights are stopped. Unreduced. Source: Yang et al. 2025, arXiv
    2505.11953, as coded in open-unlearning; the paper's text UNVERIFIED.
    """
    _checks.not_negative("beta_2", beta_2)
    _checks.not_negative("beta_1", beta_1)
    # Rounding may lift a log-probability above 0, where 1 - p has no root.
    lp = jnp.minimum(token_log_probs.astype(jnp.float32), 0.0)
    importance = jax.lax.stop_gradient((-jnp.expm1(lp)) ** beta_2)
    return importance * weighted_gradient_ascent(token_log_probs, beta=beta_1)


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


def simnpo(
    policy_logp: Float[Array, " B"],
    tokens: Float[Array, " B"],
    *,
    beta: ArrayLike,
    delta: ArrayLike = 0.0,
) -> Float[Array, " B"]:
    """SimNPO: -(2 / beta) log sigmoid(beta (NLL / n - delta)), one a sequence; no reference.

    NLL = -policy_logp, a SUM over the answer's n = `tokens` tokens; both [B] -> f32 [B]. It is
    `npo` of the mean log-probability of a token, with -delta for every reference. A row of 0 tokens
    counts as one of 1 token: finite, and for zero weights only. beta > 0; 2.5 (authors, TOFU
    forget05) and 4.5 (open-unlearning), both with delta = 0. The authors write
    gamma = beta delta. The gradient is `simnpo_weight` times that of policy_logp. Source: Fan et
    al. 2024, arXiv 2410.07163.
    """
    return npo(_per_token(policy_logp, tokens), _shift(policy_logp, delta), beta=beta)


def simnpo_weight(
    policy_logp: Float[Array, " B"],
    tokens: Float[Array, " B"],
    *,
    beta: ArrayLike,
    delta: ArrayLike = 0.0,
) -> Float[Array, " B"]:
    """W = 2 sigmoid(-beta (NLL / n - delta)) / n, in (0, 2 / n): [B] -> f32 [B].

    The factor by which SimNPO's gradient differs from gradient ascent's on the sum; a metric to
    log. Arguments as `simnpo`. Source: arXiv 2410.07163.
    """
    mean = _per_token(policy_logp, tokens)
    weight = npo_weight(mean, _shift(policy_logp, delta), beta=beta)
    return weight / jnp.maximum(tokens.astype(jnp.float32), 1.0)


def refusal_preference(
    policy_refusal: Float[Array, " P"],
    policy_answer: Float[Array, " P"],
    reference_refusal: Float[Array, " P"],
    reference_answer: Float[Array, " P"],
    *,
    beta: ArrayLike,
) -> Float[Array, " P"]:
    """(2 / beta) `dpo`, with a refusal chosen over the answer to forget: [P] -> f32 [P].

    Sequence log-probabilities, SUMS over tokens, of both under policy and reference; (2 / beta)
    log 2 at the reference. A refusal of a few tokens biases the margin by its length. beta > 0;
    0.1 in the paper. Nothing is stopped: the objective stops the reference. Source: Zhang et al.
    2024, arXiv 2404.05868 (IDK as DPO); TOFU's own version is without the factor 2 / beta.
    """
    pairs = Pairs(policy_refusal, policy_answer, reference_refusal, reference_answer)
    return dpo(pairs, beta=beta) * (2.0 / beta)


def answer_preservation(
    policy_answer: Float[Array, " P"], policy_refusal: Float[Array, " P"], *, beta: ArrayLike
) -> Float[Array, " P"]:
    """AP: -(1 / beta) log sigmoid(beta (log p(answer) - log p(refusal))), one a retain question.

    Keeps a model from refusing what it should answer; needs no reference. Sequence
    log-probabilities, SUMS over tokens: [P] -> f32 [P]; 0 where the answer is much likelier,
    (1 / beta) log 2 where both are equally likely. beta > 0. Source: Yuan et al. 2024, arXiv
    2410.08109 (IDK+AP), and its released code.
    """
    return dpo(without_reference(Pairs(policy_answer, policy_refusal)), beta=beta) / beta


def _per_token(logp: jax.Array, tokens: jax.Array) -> jax.Array:
    _checks.same_shape(policy_logp=logp, tokens=tokens)
    return logp.astype(jnp.float32) / jnp.maximum(tokens.astype(jnp.float32), 1.0)


def _shift(logp: jax.Array, delta: ArrayLike) -> jax.Array:
    """-delta for every sequence, in the place of a reference's log-probability."""
    return jnp.full(logp.shape, -jnp.asarray(delta, jnp.float32))


def _log_ratio(policy_logp: jax.Array, reference_logp: jax.Array) -> jax.Array:
    _checks.same_shape(policy_logp=policy_logp, reference_logp=reference_logp)
    return policy_logp.astype(jnp.float32) - reference_logp.astype(jnp.float32)
