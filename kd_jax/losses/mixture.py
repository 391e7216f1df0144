"""Several teachers as one: the mixture of their distributions."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax.losses import _checks
from kd_jax.losses._logs import log_softmax


def mixture_log_probs(logits: Sequence[jax.Array], weights: Sequence[float]) -> jax.Array:
    """log sum_i w_i softmax(z_i): arrays of logits [..., V] -> f32 [..., V], nats.

    Log-probabilities are logits: they stand wherever a teacher's do, and a loss's temperature then
    acts on the mixture. weights: Python numbers from 0 that sum to 1. -inf where no teacher with a
    weight has any probability. Source: Hinton et al. 2015, arXiv 1503.02531, section 1, the
    arithmetic mean of an ensemble's predictions.
    """
    check_weights({f"number {i}": w for i, w in enumerate(weights)})
    _checks.same_shape(**{f"logits[{i}]": z for i, z in enumerate(logits)})
    parts = [
        log_softmax(z, 1.0) + math.log(w) for z, w in zip(logits, weights, strict=True) if w > 0
    ]
    return jax.nn.logsumexp(jnp.stack(parts), axis=0)


def check_weights(weights: dict[str, float]) -> None:
    """ValueError unless weights by name are not negative and sum to 1."""
    if not weights or min(weights.values()) < 0 or abs(math.fsum(weights.values()) - 1) > 1e-6:
        said = ", ".join(f"{name} {w:g}" for name, w in weights.items()) or "none"
        raise ValueError(f"weights: got {said}, takes numbers from 0 that sum to 1")
