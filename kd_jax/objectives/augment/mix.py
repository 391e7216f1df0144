"""Images mixed with others of their batch: mixup and CutMix.

The loss of a mixed image with the labels y_i and y_j is lam CE(y_i) + (1 - lam) CE(y_j).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_jax.objectives.augment.images import box, centre, check_images, row_keys


class Mixed(NamedTuple):
    """images: mixed. partners: a permutation, each row's j. lam: how much of the row's own image
    is left, in [0, 1]; 1 - lam is the partner's share."""

    images: Float[Array, "B H W C"]
    partners: Int[Array, " B"]
    lam: Float[Array, " B"]


# (key, images, rows=None, weights=None) -> Mixed
Mix = Callable[..., Mixed]


def mixup(
    key: jax.Array,
    images: Float[Array, "B H W C"],
    rows: Int[Array, " B"] | None = None,
    weights: Float[Array, " B"] | None = None,
    *,
    alpha: float = 1.0,
    share: float = 1.0,
) -> Mixed:
    """lam x_i + (1 - lam) x_j, lam ~ Beta(alpha, alpha) for each row (arXiv 1710.09412).

    Released code of the paper has one lam for a batch. j is a random permutation of the rows
    whose weight is not 0; the others are left as they are (lam 1), so that padding is never mixed
    into an image. share: of the rows that are mixed, each drawn by itself; the rest have lam 1.
    rows: numbers that a row's own draws depend on, as in `each`; the partner depends on the
    numbers of all rows that have a weight. ValueError for alpha not above 0, share outside [0, 1].
    """
    keys, partners, lam = _drawn(key, images, rows, weights, alpha, share)
    own = lam[:, None, None, None]
    return Mixed(own * images + (1.0 - own) * images[partners], partners, lam)


def cutmix(
    key: jax.Array,
    images: Float[Array, "B H W C"],
    rows: Int[Array, " B"] | None = None,
    weights: Float[Array, " B"] | None = None,
    *,
    alpha: float = 1.0,
    share: float = 1.0,
) -> Mixed:
    """x_i with a box of x_j in it, of the share 1 - l of the image (arXiv 1905.04899).

    l ~ Beta(alpha, alpha) for each row; the box has floor(sqrt(1 - l) H) x floor(sqrt(1 - l) W)
    pixels around a uniform pixel, cut off at the border, and lam is 1 minus the share of the
    pixels that it really covers. Released code of the paper has one box for a batch. Partners,
    share, rows, weights and errors as in `mixup`.
    """
    keys, partners, ratio = _drawn(key, images, rows, weights, alpha, share)
    height, width = images.shape[1:3]

    def inside(key: jax.Array, ratio: jax.Array) -> jax.Array:
        side = jnp.sqrt(1.0 - ratio)
        tall, wide = (jnp.floor(side * n).astype(jnp.int32) for n in (height, width))
        y, x = centre(key, height, width)
        return box(height, width, y - tall // 2, x - wide // 2, tall, wide)

    other = jax.vmap(inside)(keys, ratio)
    mixed = jnp.where(other[..., None], images[partners], images)
    return Mixed(mixed, partners, 1.0 - other.mean((1, 2)))


def _drawn(
    key: jax.Array,
    images: jax.Array,
    rows: jax.Array | None,
    weights: jax.Array | None,
    alpha: float,
    share: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys for what else is drawn [B], partners [B], lam [B]."""
    check_images(images)
    if not alpha > 0:
        raise ValueError(f"alpha: got {alpha}, takes a number above 0")
    if not 0 <= share <= 1:
        raise ValueError(f"share: got {share}, takes numbers in [0, 1]")
    count = len(images)
    here = jnp.ones(count, bool) if weights is None else weights != 0
    if here.shape != (count,):
        raise ValueError(f"weights: got shape {here.shape}, takes ({count},)")

    def draw(key: jax.Array) -> tuple[jax.Array, ...]:
        order, mixed, lam, rest = jax.random.split(key, 4)
        drawn = jax.random.beta(lam, alpha, alpha)
        drawn = jnp.where(jax.random.bernoulli(mixed, share), drawn, 1.0)
        return jax.random.uniform(order), drawn, rest

    place, lam, keys = jax.vmap(draw)(row_keys(key, images, rows))
    # The rows that count, in their order and in a random one; the others after them, in place.
    in_order = jnp.argsort(~here)
    shuffled = jnp.argsort(jnp.where(here, place, 2.0))
    partners = jnp.zeros(count, jnp.int32).at[in_order].set(shuffled.astype(jnp.int32))
    return keys, partners, jnp.where(here, lam, 1.0)
