"""What `rand_augment` is made of: changes of one image f32 [H, W, C] in [0, 1], by a magnitude.

Formulas of Pillow's ImageOps and ImageEnhance without its rounding to 8 bits, except where a
change is about levels (posterise, equalise).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kd_jax.objectives.augment.images import Image

# At the default precision accelerators would round places and levels to 8 or 11 bits.
_EXACT = jax.lax.Precision.HIGHEST


def affine(image: Image, matrix: jax.Array, shift: jax.Array, fill: ArrayLike = 0.0) -> Image:
    """out[p] = image[c + matrix (p - c) + shift], p = (row, column) and c the image's centre.

    Bilinear; pixels outside count as `fill`. matrix [2, 2], shift [2] in pixels.
    """
    height, width = image.shape[:2]
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2])[:, None]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    turned = jnp.matmul(matrix, grid.reshape(2, -1) - middle, precision=_EXACT)
    points = turned + middle + shift[:, None]
    places = list(points.reshape(2, height, width))

    def warp(channel: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(
            channel, places, order=1, mode="constant", cval=fill
        )

    return jax.vmap(warp, -1, -1)(image)


def brightness(image: Image, factor: ArrayLike) -> Image:
    """factor 0 is black, 1 the image; clipped to [0, 1], as all that follow."""
    return _blend(jnp.zeros_like(image), image, factor)


def colour(image: Image, factor: ArrayLike) -> Image:
    """factor 0 is `grey`, 1 the image."""
    return _blend(jnp.broadcast_to(grey(image)[..., None], image.shape), image, factor)


def contrast(image: Image, factor: ArrayLike) -> Image:
    """factor 0 is the mean of `grey` everywhere, 1 the image."""
    return _blend(jnp.full_like(image, grey(image).mean()), image, factor)


def sharpness(image: Image, factor: ArrayLike) -> Image:
    """factor 0 is smoothed by a 3 x 3 filter (5 in its middle, 1 around, over 13), 1 the image.

    Pixels at the border are not smoothed.
    """
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return image
    windows = sum(image[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3))
    inner = (windows + 4.0 * image[1:-1, 1:-1]) / 13.0
    return _blend(image.at[1:-1, 1:-1].set(inner), image, factor)


def posterise(image: Image, bits: ArrayLike) -> Image:
    """The highest `bits` (0 to 8) bits of each of 256 levels."""
    step = 2.0 ** (8 - jnp.asarray(bits))
    return jnp.floor(_levels(image) / step) * step / 255.0


def solarise(image: Image, threshold: ArrayLike) -> Image:
    """1 - x where x >= threshold."""
    return jnp.where(image >= threshold, 1.0 - image, image)


def auto_contrast(image: Image) -> Image:
    """Each channel stretched so that its least value is 0 and its largest 1; flat ones are left."""
    low = image.min((0, 1), keepdims=True)
    span = image.max((0, 1), keepdims=True) - low
    return jnp.where(span > 0, (image - low) / jnp.where(span > 0, span, 1.0), image)


def equalise(image: Image) -> Image:
    """Each channel's 256 levels spread so that they occur about equally often.

    Whole numbers as in Pillow: with h the counts and step = (sum h - last non-zero h) // 255, level
    i becomes (step // 2 + h_0 + ... + h_(i - 1)) // step; a channel with step 0, such as any of
    fewer than 256 pixels, is left.
    """

    def channel(x: jax.Array) -> jax.Array:
        level = _levels(x).astype(jnp.int32)
        counts = jnp.bincount(level.ravel(), length=256)
        step = (counts.sum() - counts[level.max()]) // 255
        before = jnp.cumsum(counts) - counts
        table = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255) / 255.0
        return jnp.where(step > 0, table[level], x)

    return jax.vmap(channel, -1, -1)(image)


def grey(image: Image) -> jax.Array:
    """[H, W]: 0.299 R + 0.587 G + 0.114 B of three channels, the mean of any other number."""
    if image.shape[-1] == 3:
        return jnp.matmul(image, jnp.array([0.299, 0.587, 0.114]), precision=_EXACT)
    return image.mean(-1)


def _levels(image: jax.Array) -> jax.Array:
    """0 to 255, whole."""
    return jnp.clip(jnp.round(image * 255.0), 0, 255)


def _blend(other: Image, image: Image, factor: ArrayLike) -> Image:
    return jnp.clip(other + factor * (image - other), 0.0, 1.0)
