"""How much of an answer a model reproduces when it is given what comes before each token.

Functions of what the model would have said, teacher-forced: correct [B, T] is 1 where the likeliest
token is the target (`losses.streaming.token_statistics`). Both figures leave out the answer's last
token, the end of sequence, as open-unlearning does: give them `without_last(weights)`.

Exact memorisation: arXiv 2205.10770 (UNVERIFIED); extraction strength: Carlini et al. 2021 (arXiv
2012.07805) as open-unlearning measures both (`memorization.py`).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def without_last(weights: ArrayLike) -> jax.Array:
    """The weights [B, T] with the last token of non-zero weight of each row set to 0.

    What is dropped is the end-of-sequence token, or the last token of a row that was cut: whatever
    is labelled last, as in open-unlearning.
    """
    weights = jnp.asarray(weights)
    scored = weights != 0
    after = jnp.cumsum(scored[:, ::-1], axis=1)[:, ::-1]  # scored tokens from t on
    return jnp.where(after == 1, 0, weights)


def exact_memorisation(correct: ArrayLike, weights: ArrayLike) -> jax.Array:
    """The share of tokens that are the likeliest, f32 [B]; NaN for a row without tokens.

    correct, weights [B, T]; the weights are only a mask.
    """
    correct, mask = _masked(correct, weights)
    count = mask.sum(1).astype(jnp.float32)
    found = jnp.where(mask, correct, 0.0).sum(1)
    return jnp.where(count == 0, jnp.nan, found / jnp.maximum(count, 1.0))


def extraction_strength(correct: ArrayLike, weights: ArrayLike) -> jax.Array:
    """1 - k / L, f32 [B]: k tokens must be given before the rest follows, L tokens in all.

    correct, weights [B, T]; the weights are only a mask. = (the run of correct tokens that ends
    the answer) / L: 1 where all are correct, 0 where the last one is not, and for a row without
    tokens. `extraction_strength_released` is the rule of the published numbers.
    """
    run, count = _last_run(correct, weights)
    return run / jnp.maximum(count, 1.0)


def extraction_strength_released(correct: ArrayLike, weights: ArrayLike) -> jax.Array:
    """As `extraction_strength`, but never below 1 / L, f32 [B].

    open-unlearning's loop ends at k = L - 1 whether or not the last token is correct, so that an
    answer without a correct token scores 1 / L. Use it to compare with published tables.
    """
    run, count = _last_run(correct, weights)
    return jnp.where(count == 0, 0.0, jnp.maximum(run, 1.0) / jnp.maximum(count, 1.0))


def _last_run(correct: ArrayLike, weights: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """(length of the run of correct tokens at the end, number of tokens), each f32 [B]."""
    correct, mask = _masked(correct, weights)
    so_far = jnp.where(mask, correct, 1.0)[:, ::-1]  # from the end; what is masked breaks no run
    unbroken = jnp.cumprod(so_far, axis=1)[:, ::-1]
    return jnp.where(mask, unbroken, 0.0).sum(1), mask.sum(1).astype(jnp.float32)


def _masked(correct: ArrayLike, weights: ArrayLike) -> tuple[jax.Array, jax.Array]:
    correct, weights = jnp.asarray(correct), jnp.asarray(weights)
    if correct.ndim != 2 or correct.shape != weights.shape:
        raise ValueError(
            f"weights: got shape {weights.shape}, takes [B, T] as correct, {correct.shape}"
        )
    return (correct != 0).astype(jnp.float32), weights != 0
