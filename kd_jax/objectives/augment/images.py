"""Random changes of one image: flip, padded crop, cutout; chains of them, and whole batches.

augment = each(chain(flip, functools.partial(crop, pad=2)))
images = augment(key, images)

A change of one image is (key, image f32 [H, W, C]) -> image of the same shape. Any function of that
form can stand in a chain.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Image = Float[Array, "H W C"]
Augment = Callable[[jax.Array, Image], Image]


def chain(*augments: Augment) -> Augment:
    """One after the other, the first named first, each with a key of its own; none: no change."""

    def chained(key: jax.Array, image: Image) -> Image:
        for i, augment in enumerate(augments):
            image = augment(jax.random.fold_in(key, i), image)
        return image

    return chained


def each(augment: Augment) -> Callable[..., Float[Array, "B H W C"]]:
    """(key, images [B, H, W, C], rows=None) -> images: the change drawn anew for every image.

    An image's draws depend on the key and its number in rows, int [B], alone: not on how many
    images there are, nor on which device holds them. rows: the examples' numbers in their data
    set, or by default their places in the batch. Images of one number are changed alike.
    """

    def lifted(
        key: jax.Array, images: Float[Array, "B H W C"], rows: Int[Array, " B"] | None = None
    ) -> Float[Array, "B H W C"]:
        check_images(images)
        return jax.vmap(augment)(row_keys(key, images, rows), images)

    return lifted


def row_keys(
    key: jax.Array, images: Float[Array, "B H W C"], rows: Int[Array, " B"] | None
) -> jax.Array:
    """A key for each image, from `key` and the image's number; by default its place."""
    if rows is None:
        rows = jnp.arange(len(images), dtype=jnp.int32)
    if rows.shape != images.shape[:1]:
        raise ValueError(f"rows: got shape {rows.shape}, takes one number for each of the images")
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def check_images(images: jax.Array) -> None:
    """ValueError unless they are floating [B, H, W, C]."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images: got {images.dtype} of shape {images.shape}, takes floating [B, H, W, C]"
        )


def flip(key: jax.Array, image: Image, *, p: float = 0.5) -> Image:
    """The left-right mirror image with probability p, else the image."""
    if not 0 <= p <= 1:
        raise ValueError(f"p: got {p}, takes numbers in [0, 1]")
    return jnp.where(jax.random.bernoulli(key, p), image[:, ::-1], image)


def crop(key: jax.Array, image: Image, *, pad: int = 4, fill: float = 0.0) -> Image:
    """A window of the image's own size, uniformly from the image with `pad` pixels of fill around.

    pad 4 is the recipe of CIFAR (arXiv 1512.03385, section 4.2). Every one of the (2 pad + 1)^2
    windows is as likely.
    """
    if pad < 0:
        raise ValueError(f"pad: got {pad}, takes at least 0")
    wide = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    y, x = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(wide, (y, x, 0), image.shape)


def cutout(key: jax.Array, image: Image, *, side: int = 16, fill: float = 0.0) -> Image:
    """The image with one square of `side` pixels filled (arXiv 1708.04552).

    The square's centre is uniform over the pixels, so that part of it may lie outside. side: 16 for
    CIFAR-10, 8 for CIFAR-100 in the paper. An even square reaches one pixel further up and left.
    """
    if side < 1:
        raise ValueError(f"side: got {side}, takes at least 1")
    height, width = image.shape[:2]
    y, x = centre(key, height, width)
    inside = box(height, width, y - side // 2, x - side // 2, side, side)
    return jnp.where(inside[..., None], fill, image)


def centre(key: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """A pixel's row and column, uniform over the image."""
    y, x = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    return y, x


def box(
    height: int, width: int, top: jax.Array, left: jax.Array, rows: jax.Array | int, columns
) -> jax.Array:
    """bool [height, width]: the pixels of a box of rows x columns, where it is in the image."""
    y, x = jnp.arange(height), jnp.arange(width)
    down = (y >= top) & (y < top + rows)
    across = (x >= left) & (x < left + columns)
    return down[:, None] & across[None]
