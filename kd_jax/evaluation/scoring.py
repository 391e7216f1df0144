"""From log-probabilities of tokens to figures of sequences.

Three numbers are easily mixed up: the SUM over a sequence (NPO, DPO), the MEAN over a sequence
(TOFU's probability, truth ratio, membership scores) and the mean over all tokens of a batch (a
language model's training loss). `sequence_nll`, `mean_nll` and `perplexity` are their figures.

As everywhere in the losses, weights are only a mask: 0 on prompt and padding, and what stands there
does not count, NaN or infinity included.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kd_jax.losses.sequence import sequence_log_probs


def sequence_nll(token_log_probs: ArrayLike, weights: ArrayLike) -> jax.Array:
    """-sum of log p_t over t with weight != 0, f32 [B], in nats; 0 for a row of padding.

    token_log_probs [B, T]: log-probabilities of the targets. weights [B, T].
    """
    log_probs, mask = jnp.asarray(token_log_probs, jnp.float32), jnp.asarray(weights, jnp.float32)
    if log_probs.ndim != 2 or log_probs.shape != mask.shape:
        raise ValueError(
            f"weights: got shape {mask.shape}, takes [B, T] as token_log_probs, {log_probs.shape}"
        )
    return -sequence_log_probs(log_probs, mask)


def token_count(weights: ArrayLike) -> jax.Array:
    """The number of t with weight != 0, f32 [B]."""
    return (jnp.asarray(weights) != 0).sum(axis=1).astype(jnp.float32)


def mean_nll(token_log_probs: ArrayLike, weights: ArrayLike) -> jax.Array:
    """`sequence_nll` / `token_count`, f32 [B], in nats; NaN for a sequence without scored tokens.

    TOFU's loss of an answer; exp(-mean_nll) is its probability. Rows of padding (index -1) have no
    scored tokens: drop them, or the NaN shows that they were not.
    """
    total, count = sequence_nll(token_log_probs, weights), token_count(weights)
    return jnp.where(count == 0, jnp.nan, total / jnp.maximum(count, 1.0))


def perplexity(nll: ArrayLike, tokens: ArrayLike) -> jax.Array:
    """exp(sum of nll / sum of tokens), f32 scalar: of a whole set, not a mean over sequences.

    nll [N]: `sequence_nll`; tokens [N]: `token_count`.
    """
    return jnp.exp(jnp.asarray(nll, jnp.float32).sum() / jnp.asarray(tokens, jnp.float32).sum())
