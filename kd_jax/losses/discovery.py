"""Discovery of new classes: equal assignments, swapped predictions, relations to known classes.

All logits are cosines of features and prototypes. V views, H heads, n examples, K known and U new
classes. Gu et al. 2023 (class-relation distillation), arXiv 2307.09158, by released code.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kd_jax.losses import _checks
from kd_jax.losses._logs import FLOOR, log_softmax
from kd_jax.types import weighted_sum


def sinkhorn(
    logits: Float[Array, "n U"],
    present: Bool[Array, " n"] | None = None,
    *,
    eps: float = 0.05,
    steps: int = 3,
) -> Float[Array, "n U"]:
    """Assignments whose rows sum to 1 and whose classes are nearly as large: f32 [n, U].

    exp(logits / eps), then `steps` times the classes scaled to one size and the examples to 1. The
    gradient is stopped: they are targets. present: the examples that there are, by default all;
    the others' rows are 0 and count for nothing.
    """
    _checks.positive("eps", eps)
    log_q = jax.lax.stop_gradient(logits.astype(jnp.float32)) / eps
    here = jnp.ones(len(logits), bool)[:, None] if present is None else present[:, None]
    for _ in range(steps):
        log_q = jnp.where(here, log_q, FLOOR)
        log_q = log_q - jax.nn.logsumexp(log_q, 0, keepdims=True)
        log_q = log_q - jax.nn.logsumexp(log_q, 1, keepdims=True)
    return jnp.where(here, jnp.exp(log_q), 0.0)


def swapped_cross_entropy(
    logits: Float[Array, "W H n C"],
    targets: Float[Array, "V H n C"],
    *,
    temperature: float = 0.1,
) -> Float[Array, "H n"]:
    """The mean over pairs of views u != v of the cross-entropy of u's logits with v's targets.

    targets are those of the first V of the W views (the large ones) -> f32 [H, n], nats.
    """
    _checks.positive("temperature", temperature)
    log_p = log_softmax(logits, temperature)
    values = -jnp.einsum("whnc,vhnc->wvhn", log_p, targets.astype(jnp.float32))
    other = jnp.arange(len(logits))[:, None] != jnp.arange(len(targets))[None]
    kept = jnp.where(other[:, :, None, None], values, 0.0)
    return kept.sum((0, 1)) / other.sum()


def class_relation(
    old_logits: Float[Array, "V H n K"],
    logits: Float[Array, "V H n C"],
    weights: Float[Array, " n"] | None = None,
    *,
    temperature: float = 0.1,
    softening: float = 4.0,
    weigh: bool = True,
) -> Float[Array, "V H n"]:
    """T^2 w CE(softmax(old / (tau T)), softmax(new known / (tau T))): f32 [V, H, n].

    Of examples of new classes. w is the mass of the known classes in softmax(logits / (tau T)),
    over its mean of all entries, and carries gradient: where relations are hard to keep it falls.
    The old model is stopped. The loss is the mean over views and examples, and then heads.
    weights: of the examples in that mean, by default 1 each. weigh: False for w = 1 everywhere.
    """
    _checks.positive("temperature", temperature)
    _checks.positive("softening", softening)
    known, tau = old_logits.shape[-1], temperature * softening
    if known >= logits.shape[-1]:
        raise ValueError(
            f"logits: got {logits.shape[-1]} classes, takes more than the {known} known ones"
        )
    q = jnp.exp(log_softmax(jax.lax.stop_gradient(old_logits), tau))
    values = softening**2 * -(q * log_softmax(logits[..., :known], tau)).sum(-1)
    if not weigh:
        return values
    weight = jnp.exp(log_softmax(logits, tau))[..., :known].sum(-1)
    if weights is None:
        weights = jnp.ones(logits.shape[2])
    mean = weighted_sum(weight.mean((0, 1)), weights).value
    return values * weight / jnp.where(mean > 0, mean, 1.0)
