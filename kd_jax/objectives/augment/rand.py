"""RandAugment: a few changes of each image, drawn from one list, all of one magnitude."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kd_jax.objectives.augment import operations
from kd_jax.objectives.augment.images import Image

# Those that move pixels, then those that change values, then those without a magnitude.
OPERATIONS = (
    ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
    + ("brightness", "colour", "contrast", "sharpness", "posterise", "solarise")
    + ("auto_contrast", "equalise", "identity")
)
_MOVING = 5


def rand_augment(
    key: jax.Array,
    image: Image,
    *,
    layers: int = 2,
    magnitude: ArrayLike = 0.3,
    fill: ArrayLike = 0.0,
) -> Image:
    """`layers` changes of an image in [0, 1], each uniform over `OPERATIONS` (arXiv 1909.13719).

    magnitude: m in [0, 1]; a level of 9 in 30 is 0.3. Shears by 0.3 m, moves by 150 / 331 m of the
    width or height, turns by 30 m degrees; brightness, colour, contrast and sharpness by the
    factor 1 + 0.9 m; these nine with a random sign. Posterise to 8 - round(4 m) bits, solarise
    above 1 - m. What comes in from outside is `fill`. The list is the paper's; the ranges are those
    of torchvision's RandAugment, the paper gives none (UNVERIFIED), and the warp is bilinear
    where torchvision's is to the nearest pixel. ValueError for layers below 0.

    Every operation is worked out for every image and one is kept, as a batch's draws differ.
    """
    if layers < 0:
        raise ValueError(f"layers: got {layers}, takes at least 0")
    for i in range(layers):
        which, sign = jax.random.split(jax.random.fold_in(key, i))
        number = jax.random.randint(which, (), 0, len(OPERATIONS))
        signed = jnp.where(jax.random.bernoulli(sign), magnitude, -jnp.asarray(magnitude))
        image = operation(number, image, signed, fill=fill)
    return image


def operation(
    number: ArrayLike, image: Image, magnitude: ArrayLike, *, fill: ArrayLike = 0.0
) -> Image:
    """OPERATIONS[number] of an image; magnitude in [-1, 1], of which some take the size only."""
    number, m = jnp.asarray(number), jnp.asarray(magnitude, jnp.float32)
    height, width = image.shape[:2]
    angle, shear, move = jnp.deg2rad(30.0 * m), 0.3 * m, 150.0 / 331.0 * m
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # One warp for all that move pixels: the most expensive part.
    matrices = jnp.tile(jnp.eye(2)[None], (_MOVING + 1, 1, 1))
    matrices = matrices.at[0, 1, 0].set(shear).at[1, 0, 1].set(shear)
    matrices = matrices.at[4].set(jnp.stack([cos, -sin, sin, cos]).reshape(2, 2))
    shifts = jnp.zeros((_MOVING + 1, 2)).at[2, 1].set(move * width).at[3, 0].set(move * height)
    moving = jnp.minimum(number, _MOVING)
    moved = operations.affine(image, matrices[moving], shifts[moving], fill)
    factor, size = 1.0 + 0.9 * m, jnp.abs(m)

    return jax.lax.switch(
        jnp.maximum(number - _MOVING + 1, 0),
        (
            lambda: moved,
            lambda: operations.brightness(image, factor),
            lambda: operations.colour(image, factor),
            lambda: operations.contrast(image, factor),
            lambda: operations.sharpness(image, factor),
            lambda: operations.posterise(image, 8 - jnp.round(4.0 * size)),
            lambda: operations.solarise(image, 1.0 - size),
            lambda: operations.auto_contrast(image),
            lambda: operations.equalise(image),
            lambda: image,
        ),
    )
