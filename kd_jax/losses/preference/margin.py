"""Preference losses of the margin u = c - r: what lifts chosen and rejected together moves none.

Each is a link (`links`) of beta u. All take sums over tokens; under `pairs.per_token` they are of
means over tokens, which the field calls length-normalised: `ipo(per_token(pairs), tau=0.1)` is the
IPO of most code bases. beta > 0 throughout, 0.1 where nothing else is said.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses.preference import links
from kd_jax.losses.preference.pairs import Pairs, lengths, margin, per_token


def dpo(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """-log sigmoid(beta u), u = (policy_chosen - reference_chosen) - (the same, rejected).

    Sums over tokens -> f32 [P], one value a pair; log 2 where policy and reference agree. The
    gradient of a pair is -beta sigmoid(-beta u) with respect to policy_chosen and minus that to
    policy_rejected. beta > 0; 0.1 in the paper.
    DPO as an unlearning loss (refusal over forget answer) has a further factor 2 / beta: Zhang et
    al. 2024, arXiv 2404.05868. Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7.
    """
    return links.logistic(_scaled(pairs, beta))


def length_normalised_dpo(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """-log sigmoid(beta (c / L_c - r / L_r)): DPO of means over tokens, f32 [P]; needs lengths.

    Its margins are smaller by a length, so that beta is to be larger; 5 in Lambert et al. 2024
    (Tulu 3), arXiv 2411.15124 (value UNVERIFIED).
    """
    return dpo(per_token(pairs), beta=beta)


def cdpo(pairs: Pairs, *, beta: ArrayLike, smoothing: ArrayLike) -> Float[Array, " P"]:
    """-(1 - e) log sigmoid(beta u) - e log sigmoid(-beta u): DPO with labels wrong at rate e.

    f32 [P], least at beta u = log((1 - e) / e). e = `smoothing`, in [0, 1]; 0.1, 0.2 in HALOs; 0 is
    `dpo`. Source: conservative DPO, Mitchell 2023 (a note, https://ericmitchell.ai/cdpo.pdf).
    """
    return links.smoothed(_scaled(pairs, beta), smoothing=smoothing)


def robust_dpo(pairs: Pairs, *, beta: ArrayLike, flips: ArrayLike) -> Float[Array, " P"]:
    """(-(1 - e) log sigmoid(beta u) + e log sigmoid(-beta u)) / (1 - 2 e).

    f32 [P]; unbiased for `dpo` of clean labels when each is flipped with probability e = `flips`,
    in [0, 0.5), 0.1; may be negative. Source: Ray Chowdhury et al. 2024, arXiv 2403.00409.
    """
    return links.robust(_scaled(pairs, beta), flips=flips)


def ipo(pairs: Pairs, *, tau: ArrayLike) -> Float[Array, " P"]:
    """(u - 1 / (2 tau))**2: a margin that is enough, rather than one that always grows; f32 [P].

    The paper's form, of sums; its authors' advice is `per_token` pairs. tau > 0, 0.1.
    Source: Azar et al. 2023, arXiv 2310.12036, equation 17 (number UNVERIFIED).
    """
    _checks.positive("tau", tau)
    return links.squared(margin(pairs), target=1 / (2 * jnp.asarray(tau, jnp.float32)))


def hinge(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """max(0, 1 - beta u), f32 [P]: SLiC's loss with a reference.

    Source: Liu et al. 2023 (RSO), arXiv 2309.06657 (`hinge-norm`).
    """
    return links.hinge(_scaled(pairs, beta))


def exo(pairs: Pairs, *, beta: ArrayLike, smoothing: float = 1e-3) -> Float[Array, " P"]:
    """KL(q || p), q = (sigmoid(beta u), 1 - it), p = (1 - e, e): reverse KL of the label; f32 [P].

    e = `smoothing`, in (0, 1). Source: Ji et al. 2024, arXiv 2402.00856, for two completions.
    """
    return links.reverse_kl(_scaled(pairs, beta), smoothing=smoothing)


def discopop(pairs: Pairs, *, beta: ArrayLike, temperature: ArrayLike = 0.05) -> Float[Array, " P"]:
    """(1 - m) logistic(beta u) + m exp(-beta u), m = sigmoid(beta u / temperature); f32 [P].

    Found by a language model's search over losses. It is (log 2 + 1) / 2 at u = 0, and not convex:
    with temperature 0.05 it rises there, so that small steps from the reference turn the preference
    round, towards a local minimum. Source: Lu et al. 2024, arXiv 2406.08414 (log-ratio modulated
    loss).
    """
    return links.log_ratio_modulated(_scaled(pairs, beta), temperature=temperature)


def r_dpo(pairs: Pairs, *, beta: ArrayLike, alpha: ArrayLike) -> Float[Array, " P"]:
    """-log sigmoid(beta u + alpha (L_c - L_r)): DPO of a reward less alpha a token; f32 [P].

    A chosen completion that is longer is taken to be chosen for its length in part, and is pushed
    up less. alpha at least 0, 0 is `dpo`; 0.01 to 0.1 (UNVERIFIED). Needs lengths.
    Source: Park et al. 2024, arXiv 2403.19159; the formula from memory (sign derived).
    """
    _checks.not_negative("alpha", alpha)
    chosen, rejected = lengths(pairs)
    return links.logistic(_scaled(pairs, beta) + (chosen - rejected) * alpha)


def _scaled(pairs: Pairs, beta: ArrayLike) -> Array:
    _checks.positive("beta", beta)
    return margin(pairs) * beta
