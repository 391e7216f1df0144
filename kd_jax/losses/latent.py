"""Loss and projection of latent adversarial training (Sheshadri et al. 2024, arXiv 2407.15549)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kd_jax.losses import _checks
from kd_jax.losses.classification import label_log_probs


def away(
    logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"], *, threshold: float = -5.0
) -> Float[Array, "*batch"]:
    """-log(1 - p_y), p = softmax(logits): pushes the label's probability down, and stops there.

    logits [..., V], labels [...] -> f32 [...], at least 0, unreduced. = logsumexp of all logits -
    logsumexp of those of the other tokens, which does not cancel where p_y is near 1. Where
    log p_y < threshold the label is forgotten already: value and gradient are 0. Otherwise the
    gradient with respect to the label's logit is p_y: bounded, unlike gradient ascent's loss. A
    label outside [0, V) gives 0. Source: released code of arXiv 2407.15549 (`away_loss`, with
    threshold -5); the paper has no threshold.
    """
    z = logits.astype(jnp.float32)
    chosen = labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, z.shape, z.ndim - 1)
    others = jax.nn.logsumexp(jnp.where(chosen, -jnp.inf, z), axis=-1)
    loss = jax.nn.logsumexp(z, axis=-1) - others
    return jnp.where(label_log_probs(z, labels) < threshold, 0.0, loss)


def project_l2(delta: Float[Array, "*batch D"], *, eps: ArrayLike) -> Float[Array, "*batch D"]:
    """delta * min(1, eps / |delta|), the Euclidean norm of the last axis: each token's own ball.

    [..., D] -> f32 [..., D]. Norms up to eps stay as they are, to the bit; eps = 0 gives 0. Source:
    arXiv 2407.15549, section 3 (the L2 ball of each token's activation).
    """
    _checks.not_negative("eps", eps)
    delta = delta.astype(jnp.float32)
    norm = jnp.linalg.norm(delta, axis=-1, keepdims=True)
    inside = norm <= eps
    return delta * jnp.where(inside, 1.0, eps / jnp.where(inside, 1.0, norm))
