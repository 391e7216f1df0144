"""Preference losses without a reference.

p_c, p_r: policy log-probabilities of chosen and rejected, sums over tokens; L_c, L_r: lengths.
Reference fields of the pairs are not read. Each is -> f32 [P], one value a pair.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses._logs import log1mexp
from kd_jax.losses.preference.apart import power
from kd_jax.losses.preference.links import logistic
from kd_jax.losses.preference.margin import dpo
from kd_jax.losses.preference.pairs import (
    Pairs,
    margin,
    per_token,
    scored,
    without_reference,
)
from kd_jax.losses.preference.regularised import sft


def cpo(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """-log sigmoid(beta (p_c - p_r)): the pair's part of CPO, f32 [P].

    CPO adds 1.0 times the NLL of the chosen, averaged over the batch's completion tokens; without
    it nothing holds the policy. beta 0.1. Source: Xu et al. 2024, arXiv 2401.08417.
    """
    return dpo(without_reference(pairs), beta=beta)


def slic(
    pairs: Pairs, *, delta: ArrayLike = 1.0, regulariser: ArrayLike = 0.1
) -> Float[Array, " P"]:
    """max(0, delta - p_c + p_r) - regulariser p_c, all of sums over tokens.

    Source: Zhao et al. 2023 (SLiC-HF), arXiv 2305.10425; delta 1, regulariser 0.1 in HALOs, which
    adds the regulariser to each token.
    """
    _checks.not_negative("regulariser", regulariser)
    return jax.nn.relu(delta - margin(without_reference(pairs))) + regulariser * sft(pairs)


def simpo(pairs: Pairs, *, beta: ArrayLike, gamma: ArrayLike) -> Float[Array, " P"]:
    """-log sigmoid(beta (p_c / L_c - p_r / L_r) - gamma): needs lengths.

    beta 2 to 2.5 (10 in later runs) and gamma / beta 0.1 to 0.8 in released runs; gamma is
    subtracted as it is. Source: Meng et al. 2024, arXiv 2405.14734, equation 6 (number UNVERIFIED).
    """
    return alphapo(pairs, beta=beta, gamma=gamma, alpha=0.0)


def alphapo(pairs: Pairs, *, beta: ArrayLike, gamma: ArrayLike, alpha: float) -> Float[Array, " P"]:
    """-log sigmoid(beta (R_c - R_r) - gamma), R = (1 - p^-alpha) / alpha, p = exp(p_c / L_c).

    alpha shapes the reward: above 0 an unlikely completion loses more; 0 is `simpo`. Needs lengths.
    Source: Gupta et al. 2025, arXiv 2501.03884.
    """
    _checks.positive("beta", beta)
    means = per_token(without_reference(pairs))
    return logistic(margin(scored(means, power(-alpha))) * beta - gamma)


def orpo(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """-beta log sigmoid(log odds_c - log odds_r), odds = p / (1 - p), p = exp(mean log-prob).

    The pair's part; ORPO adds the NLL of the chosen, a mean over tokens (in trl over the prompt's
    too). Needs lengths. beta (lambda in the paper) 0.1. Source: Hong et al. 2024, arXiv 2403.07691.
    """
    means = per_token(without_reference(pairs))
    return dpo(scored(means, lambda x: x - log1mexp(x)), beta=1.0) * beta


def rrhf(pairs: Pairs, *, length_penalty: float = 1.0) -> Float[Array, " P"]:
    """max(0, s_r - s_c), s = log-prob / L**length_penalty: the ranking part of RRHF for two.

    RRHF adds the NLL of the best completion. Needs lengths. Source: see `rrhf_ranking`.
    """
    return jax.nn.relu(-margin(per_token(without_reference(pairs), power=length_penalty)))


def rrhf_ranking(scores: Float[Array, "P K"], rewards: Float[Array, "P K"]) -> Float[Array, " P"]:
    """Sum over pairs i, j of K candidates with reward_i < reward_j of max(0, score_i - score_j).

    scores: log-prob / L**length_penalty. A candidate whose reward is nan takes part in no pair.
    Not averaged over pairs. Source: Yuan et al. 2023, arXiv 2304.05302, equation 3 (number
    UNVERIFIED) and released code.
    """
    _checks.same_shape(scores=scores, rewards=rewards)
    scores = scores.astype(jnp.float32)
    worse = rewards[..., :, None] < rewards[..., None, :]
    above = scores[..., :, None] - scores[..., None, :]
    return jnp.where(worse, jax.nn.relu(above), 0.0).sum((-2, -1))
