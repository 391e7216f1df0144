"""Losses over a class axis: cross-entropy, accuracy, log-probability of a label, entropy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_jax.losses import _checks


def label_log_probs(
    logits: Float[Array, "*batch C"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-probability of each label: z_y - logsumexp(z), unreduced, float32.

    logits [..., C] of any float type; labels int [...]. Classes with a logit of -inf have
    probability 0 and gradient 0. The label is picked by a masked sum, not by a gather, so that
    the class axis may be sharded. A label outside [0, C), such as -100, therefore picks nothing:
    its value is -logsumexp(z), which is finite and meaningless, and belongs under a zero weight.
    """
    _checks.labels_of(logits, labels)
    z = logits.astype(jnp.float32)
    classes = jax.lax.broadcasted_iota(labels.dtype, z.shape, z.ndim - 1)
    picked = jnp.where(classes == labels[..., None], z, 0.0).sum(-1)
    return picked - jax.nn.logsumexp(z, axis=-1)


def cross_entropy(
    logits: Float[Array, "*batch C"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """-log softmax(z)_y in nats, unreduced: logits [..., C], labels int [...] -> f32 [...].

    Labels outside [0, C) give logsumexp(z): see `label_log_probs`.
    """
    _checks.labels_of(logits, labels)
    return -label_log_probs(logits, labels)


def accuracy(
    logits: Float[Array, "*batch C"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """1 where the largest logit is the label's, else 0; the first of tied classes counts.

    logits [..., C], labels int [...] -> f32 [...], unreduced. No gradient.
    """
    _checks.labels_of(logits, labels)
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def prediction_entropy(
    logits: Float[Array, "*batch C"], *, eps: float = 0.0
) -> Float[Array, "*batch"]:
    """-sum_c p_c log(p_c + eps) in nats with p = softmax(logits), unreduced: [..., C] -> f32 [...].

    0 for a prediction of one class (-eps with an eps), log C for a uniform one. At eps = 0 classes
    of probability 0 count nothing, also in the gradient. AdaMerging's code has eps 1e-8.
    """
    _checks.not_negative("eps", eps)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    p = jnp.exp(log_p)
    # A logit of -inf has log p = -inf, and 0 * -inf is NaN.
    log = jnp.log(p + eps) if eps else jnp.where(p == 0, 0.0, log_p)
    return -jnp.sum(p * log, axis=-1)
