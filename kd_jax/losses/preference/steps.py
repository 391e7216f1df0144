"""Losses of responses in steps."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.losses import _checks


def advantage_weighted_nll(
    step_log_probs: Float[Array, "*B S"], advantages: Float[Array, "*B S"]
) -> Float[Array, "*B S"]:
    """-A_i log pi(y_i | x, y_1, ..., y_{i-1}), one value a step: f32 [..., S].

    Its gradient at the policy that wrote y is minus that of the expected reward, where A_i are the
    advantages of the steps under that policy; a step without advantage, padding too, gives 0.
    step_log_probs: SUMS over each step's tokens. advantages: in [-1, 1], constants
    (`data.steps.step_advantages`).
    Source: Setlur et al. 2024, arXiv 2406.14532, section 6 (equation UNVERIFIED).
    """
    _checks.same_shape(step_log_probs=step_log_probs, advantages=advantages)
    kept = jnp.where(advantages != 0, step_log_probs.astype(jnp.float32), 0.0)
    return -advantages.astype(jnp.float32) * kept
