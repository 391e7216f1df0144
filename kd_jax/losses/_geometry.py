"""Lengths, directions and pools of features, with gradients that stay finite where they are 0."""

from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.losses import _checks


def norm(x: jax.Array, axis: Any = -1, keepdims: bool = False) -> jax.Array:
    """The 2-norm over `axis`; its gradient at 0 is 0."""
    square = jnp.square(x).sum(axis, keepdims=keepdims)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def normalised(x: jax.Array, axis: int = -1) -> jax.Array:
    """x / ||x|| over `axis`; what is 0 stays 0, with gradient 0."""
    length = norm(x, axis, keepdims=True)
    positive = length > 0
    return jnp.where(positive, x / jnp.where(positive, length, 1.0), 0.0)


def rows(x: jax.Array) -> jax.Array:
    """f32 [B, -1]: an example's elements in a row."""
    return x.astype(jnp.float32).reshape(x.shape[0], -1)


def those(present: jax.Array | None, like: jax.Array) -> jax.Array:
    """bool [B]: which examples there are; all of them where `present` is None."""
    if present is None:
        return jnp.ones(like.shape[0], bool)
    if present.shape != like.shape[:1]:
        raise ValueError(
            f"present: got shape {present.shape}, takes one entry an example, {like.shape[:1]}"
        )
    return present != 0


def without_absent(x: jax.Array, present: jax.Array) -> jax.Array:
    """x [B, D] with 0 in rows that are not there: a NaN there stays out of sums and gradients."""
    return jnp.where(present[:, None], x, 0.0)


def pool(x: jax.Array, size: tuple[int, int], reduce: Any = jnp.mean) -> jax.Array:
    """[B, H, W, C] -> [B, *size, C]: bin i of k goes from floor(i H / k) to ceil((i + 1) H / k).

    Bins overlap where k does not divide H. reduce: jnp.mean or jnp.max.
    """
    for axis, k in zip((1, 2), size, strict=True):
        n = x.shape[axis]
        if k == n:
            continue
        if not 0 < k < n:
            raise ValueError(f"size: got {size}, takes at most the places of {x.shape[1:3]}")
        if n % k == 0:
            x = reduce(x.reshape(*x.shape[:axis], k, n // k, *x.shape[axis + 1 :]), axis + 1)
            continue
        bins = [
            reduce(jax.lax.slice_in_dim(x, i * n // k, -(-(i + 1) * n // k), axis=axis), axis)
            for i in range(k)
        ]
        x = jnp.stack(bins, axis)
    return x


def to_smaller(a: jax.Array, b: jax.Array, reduce: Any = jnp.mean) -> tuple[jax.Array, jax.Array]:
    """Both maps [B, H, W, C] pooled to the smaller height and width of the two."""
    size = (min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2]))
    return pool(a, size, reduce), pool(b, size, reduce)


def is_map(**arrays: jax.Array) -> None:
    """ValueError unless all are maps [B, H, W, C]."""
    for name, x in arrays.items():
        if x.ndim != 4:
            raise ValueError(f"{name}: got shape {x.shape}, takes a map [B, H, W, C]")


def same_examples(student: jax.Array, teacher: jax.Array) -> None:
    """ValueError unless both have the same number of rows."""
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"teacher: got {teacher.shape[0]} examples, takes the student's {student.shape[0]}"
        )


def smooth_l1(error: jax.Array) -> jax.Array:
    """e^2 / 2 where |e| < 1, else |e| - 1 / 2."""
    size = jnp.abs(error)
    return jnp.where(size < 1, 0.5 * jnp.square(error), size - 0.5)


def pearson(a: jax.Array, b: jax.Array, axis: int, present: jax.Array, eps: float) -> jax.Array:
    """<a', b'> / (||a'|| ||b'|| + eps) over `axis`, a' = a less its mean over what is present."""
    _checks.same_shape(a=a, b=b, present=present)
    count = jnp.maximum(present.sum(axis, keepdims=True), 1)

    def centred(x: jax.Array) -> jax.Array:
        x = jnp.where(present, x, 0.0)
        return jnp.where(present, x - x.sum(axis, keepdims=True) / count, 0.0)

    a, b = centred(a), centred(b)
    return (a * b).sum(axis) / (norm(a, axis) * norm(b, axis) + eps)
