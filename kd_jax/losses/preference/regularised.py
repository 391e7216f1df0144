"""Preference losses with the likelihood of the chosen, and weighted sums of losses."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses.preference.margin import dpo
from kd_jax.losses.preference.pairs import (
    PairLoss,
    Pairs,
    log_ratios,
    per_token,
    without_reference,
)


def sft(pairs: Pairs) -> Float[Array, " P"]:
    """-p_c: the likelihood of the chosen, a sum over its tokens; a mean of `per_token` pairs.

    A mean over the tokens of a whole batch is a Term of other weights:
    `Term(-p_c.sum(), L_c.sum())`.
    """
    return -log_ratios(without_reference(pairs))[0]


def rpo(pairs: Pairs, *, beta: ArrayLike, eta: ArrayLike) -> Float[Array, " P"]:
    """DPO + eta beta (-p_c): DPO that also learns the chosen, a sum over tokens; needs a reference.

    The likelihood is the dual of a reward chosen by an adversary among those that fit the pairs;
    the responses of the paper's baseline policy are the chosen ones. beta 0.01 to 0.05, eta 0.005;
    eta = 0 is `dpo`. `rpo_averaged` is the other released form; the "rpo_alpha" of some
    libraries is another paper's, without beta. Source: Liu et al. 2024, arXiv 2405.16436,
    equation of the practical objective (number UNVERIFIED) and released code.
    """
    _checks.not_negative("eta", eta)
    return dpo(pairs, beta=beta) + eta * beta * sft(pairs)


def rpo_averaged(pairs: Pairs, *, beta: ArrayLike, coefficient: ArrayLike) -> Float[Array, " P"]:
    """DPO + coefficient (-p_c / L_c): `rpo` with the mean over each completion's own tokens.

    beta 0.5, coefficient 0.2 in the second released code of arXiv 2405.16436.
    """
    _checks.not_negative("coefficient", coefficient)
    return dpo(pairs, beta=beta) + coefficient * sft(per_token(pairs))


def mixture(*parts: tuple[float, PairLoss]) -> PairLoss:
    """Pairs -> the sum of weight times loss over parts (weight, loss), f32 [P].

    mixture((0.8, partial(dpo, beta=0.1)), (0.2, partial(bco_pair, beta=0.1)), (1.0, sft)), say, is
    MPO with sums over tokens. Source: Wang et al. 2024 (MPO), arXiv 2411.10442.
    """
    if not parts:
        raise ValueError("parts: got none, takes at least one (weight, loss)")
    return lambda pairs: jnp.stack([weight * loss(pairs) for weight, loss in parts]).sum(0)
