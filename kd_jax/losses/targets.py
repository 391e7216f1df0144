"""Unlearning losses on whole next-token distributions: what a position is pushed to instead.

Each maps the logits of every position, [..., V], to a number, f32 [...], unreduced, and is 0 or
smallest where the position predicts what the method wants there.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kd_jax.losses import _checks


def uniform_kl(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """KL(U || p) = (1 / V) sum_v (log(1 / V) - log p_v), p = softmax(logits), U uniform.

    logits [..., V] -> f32 [...], nats; 0 where all logits are equal, inf where one is -inf.
    Minimised on the forget set's answers it is the untargeted loss ME (maximising entropy) of Yuan
    et al. 2024, arXiv 2410.08109; on retain data it keeps ULD's assistant flat (arXiv 2406.08607).
    The released code of the first has softmax + 1e-12 inside the logarithm, which bounds the loss
    and cuts its gradient where a probability is below; here log-softmax is exact.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # Summed less log V term by term: near the uniform the two are nearly equal.
    return -(log_p + jnp.log(logits.shape[-1])).mean(-1)


def undial(
    logits: Float[Array, "*batch V"],
    reference_logits: Float[Array, "*batch V"],
    labels: Int[Array, "*batch"],
    *,
    beta: ArrayLike,
) -> Float[Array, "*batch"]:
    """-sum_v q_v log p_v, q = softmax(z_ref - beta onehot(y)): self-distillation, y made unlikely.

    logits, reference_logits [..., V], labels int [...] -> f32 [...], nats; the cross-entropy, which
    is the entropy of q at its smallest and differs from KL(q || p) by that constant. beta is at
    least 0: 10 in the released defaults; 0 is plain self-distillation. A label outside [0, V)
    lowers no logit and belongs under a zero weight. Nothing is stopped: the objective stops the
    reference.
    Source: Dong et al. 2024 (UNDIAL), arXiv 2402.10052, section 3; formula read in released code,
    which averages over prompt and padding too, where a label of -100 lowers the logit V - 100.
    """
    _checks.same_shape(logits=logits, reference_logits=reference_logits)
    _checks.not_negative("beta", beta)
    lowered = jnp.where(_onehot(logits, labels), beta, 0.0)
    return _cross_entropy(logits, reference_logits.astype(jnp.float32) - lowered)


def ce_u(logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-sum_v q_v log p_v, q = stop_gradient(softmax(z with z_y = -inf)): all but the label.

    logits z [..., V], V at least 2, labels int [...] -> f32 [...], nats. The target is the model's
    own distribution over the other tokens, without gradient: that of the loss with respect to z is
    p - q, which is p_y at y and -p_v p_y / (1 - p_y) elsewhere, so that it fades as the label is
    forgotten and stays bounded where p_y is nearly 1. A label outside [0, V) masks nothing and
    belongs under a zero weight.
    Source: Yang 2025 (CE-U), arXiv 2503.01224; formula read in released code. Leaving out an
    answer's first token is the objective's part.
    """
    target = jnp.where(_onehot(logits, labels), -jnp.inf, logits.astype(jnp.float32))
    return _cross_entropy(logits, jax.lax.stop_gradient(target))


def logit_margin(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """(max_v z_v - mean_v z_v)^2: 0 where the logits are flat.

    logits z [..., V] -> f32 [...], unreduced; the gradient of the maximum is shared by tied logits.
    The forget loss of primal-dual unlearning (PDU), Entesari et al. 2025, arXiv 2506.05314; formula
    read in released code, which averages over prompt and padding too.
    """
    z = logits.astype(jnp.float32)
    return jnp.square(z.max(-1) - z.mean(-1))


def _cross_entropy(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    q = jax.nn.softmax(target_logits)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # 0 log 0 = 0, in the gradient too.
    return -(q * jnp.where(q > 0, log_p, 0.0)).sum(-1)


def _onehot(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """bool [..., V]; compared, not scattered, so that V may be sharded."""
    _checks.labels_of(logits, labels)
    tokens = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    return tokens == labels[..., None]
