"""From unreduced losses to Terms, and the features that parts read."""

import jax
import jax.numpy as jnp

from kd_jax.losses.maps import pooled_to_smaller
from kd_jax.types import Batch, Term, weighted_sum


def present(batch: Batch) -> jax.Array:
    """bool [B]: the examples that have a weight."""
    return batch["weights"] != 0


def pairs(values: jax.Array, batch: Batch, scale: float) -> Term:
    """The mean of values [B, B] or [B, B, B]; a tuple weighs the product of its weights."""
    w = batch["weights"].astype(jnp.float32)
    weights = w[:, None] * w[None]
    if values.ndim == 3:
        weights = weights[:, :, None] * w[None, None]
    return weighted_sum(values, weights, scale)


def whole(value: jax.Array, batch: Batch, scale: float) -> Term:
    """scale * value of a batch's scalar; 0 where no example of it has a weight."""
    any_weight = present(batch).any().astype(jnp.float32)
    return Term(jnp.where(any_weight > 0, value, 0.0), any_weight, scale)


def same_places(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps [B, H, W, C] of different sizes average-pooled to the smaller; others as they are."""
    if a.ndim == b.ndim == 4 and a.shape[1:3] != b.shape[1:3]:
        return pooled_to_smaller(a, b)
    return a, b


def as_many(ours: tuple, theirs: tuple) -> None:
    """ValueError unless the taps of student and teacher go together in pairs."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"teacher's taps: got {theirs}, takes as many as the student's, {ours}")
