"""A convolution that models and objectives share because XLA's own cannot be used on a mesh."""

import jax
import jax.numpy as jnp


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Every channel convolved by itself: x [B, H, W, C], kernel [k, k, 1, C], padded by k // 2.

    A sum over the kernel's k k places. As a grouped convolution, XLA's partitioner multiplies the
    kernel's gradient by the size of those mesh axes that the batch does not lie on.
    """
    side = kernel.shape[0]
    before = side // 2
    height, width = ((n + 2 * before - side) // stride + 1 for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (before, before), (before, before), (0, 0)))

    def seen(row: int, column: int) -> jax.Array:
        """What this place of the kernel meets."""
        down = slice(row, row + stride * (height - 1) + 1, stride)
        across = slice(column, column + stride * (width - 1) + 1, stride)
        return x[:, down, across]

    places = [(row, column) for row in range(side) for column in range(side)]
    return sum(
        (seen(row, column) * kernel[row, column][None, None] for row, column in places),
        jnp.zeros((), x.dtype),
    )
