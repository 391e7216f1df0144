"""Preference losses over pairs of sequence log-probabilities."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks


def dpo(
    policy_chosen: Float[Array, " P"],
    policy_rejected: Float[Array, " P"],
    reference_chosen: Float[Array, " P"],
    reference_rejected: Float[Array, " P"],
    *,
    beta: ArrayLike,
) -> Float[Array, " P"]:
    """-log sigmoid(beta u), u = (policy_chosen - reference_chosen) - (the same, rejected).

    Sequence log-probabilities (sums over the completion, `sequence_log_probs`) [P] -> f32 [P],
    one value a pair; log 2 where policy and reference agree. The gradient of a pair is
    -beta sigmoid(-beta u) with respect to policy_chosen and minus that to policy_rejected.
    beta > 0; 0.1 in the paper. Nothing is stopped: the objective stops the reference.
    DPO as an unlearning loss (refusal over forget answer) has a further factor 2 / beta: Zhang et
    al. 2024, arXiv 2404.05868. Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7.
    """
    _checks.same_shape(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    _checks.positive("beta", beta)
    f32 = jnp.float32
    chosen = policy_chosen.astype(f32) - reference_chosen.astype(f32)
    rejected = policy_rejected.astype(f32) - reference_rejected.astype(f32)
    return -jax.nn.log_sigmoid(beta * (chosen - rejected))
