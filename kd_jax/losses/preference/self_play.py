"""Preference losses of self-play: pairs are sampled from the policy's last iterate."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses.preference.links import squared
from kd_jax.losses.preference.margin import ipo
from kd_jax.losses.preference.pairs import Pairs, anchored, log_ratios


def inpo(
    pairs: Pairs,
    iterate_chosen: Float[Array, " P"],
    iterate_rejected: Float[Array, " P"],
    *,
    eta: ArrayLike,
    tau: ArrayLike,
) -> Float[Array, " P"]:
    """(h - 1 / (2 eta))**2, a step of mirror descent towards the KL-regularised Nash policy.

    h = (p_c - p_r) - (tau / eta)(ref_c - ref_r) - (1 - tau / eta)(it_c - it_r): `ipo` at eta under
    a reference between the fixed one and the last iterate, of which iterate_chosen and
    iterate_rejected are log-probabilities; sums over tokens -> f32 [P].
    eta > 0: a step's size is 1 / eta, 0.005 in the paper; tau in [0, eta], the weight of the KL to
    the reference, eta / 3; tau = 0 forgets the reference, tau = eta the iterate. Pairs must be
    sampled from the iterate. Source: Zhang et al. 2024, arXiv 2407.00617, section 4.
    """
    _checks.positive("eta", eta)
    _checks.share("tau / eta", tau / eta)
    return ipo(anchored(pairs, iterate_chosen, iterate_rejected, share=1 - tau / eta), tau=eta)


def sppo(
    pairs: Pairs,
    chosen_wins: ArrayLike,
    rejected_wins: ArrayLike,
    *,
    beta: ArrayLike,
) -> Float[Array, " P"]:
    """((c - (w_c - 1/2) / beta)**2 + (r - (w_r - 1/2) / beta)**2) / 2, f32 [P].

    chosen_wins w_c, rejected_wins w_r, [P] or one number: the probability that the completion beats
    one sampled from the last iterate, which is the pairs' reference. The policy is to be the
    iterate times exp(w / beta). beta 0.001 in the paper (its 1 / eta).
    Source: Wu et al. 2024, arXiv 2405.00675, equation 4.5 (number UNVERIFIED) and released code.
    """
    _checks.positive("beta", beta)
    c, r = log_ratios(pairs)
    chosen, rejected = (_target(wins, beta) for wins in (chosen_wins, rejected_wins))
    return 0.5 * (squared(c, target=chosen) + squared(r, target=rejected))


def sppo_hard(pairs: Pairs, *, beta: ArrayLike) -> Float[Array, " P"]:
    """(c - 1 / (2 beta))**2 + (r + 1 / (2 beta))**2: the chosen always wins; f32 [P].

    trl's form, twice `sppo` at win rates of 1 and 0. 1 / (2 beta**2) at the reference.
    """
    return 2.0 * sppo(pairs, 1.0, 0.0, beta=beta)


def _target(wins: ArrayLike, beta: ArrayLike) -> jax.Array:
    return (jnp.asarray(wins, jnp.float32) - 0.5) / beta
