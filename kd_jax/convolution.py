"""Convolutions that models and objectives share, for where XLA's own is slow or cannot be used."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (x [B, H, W, C], kernel [k, k, C, D], stride) -> [B, H', W', D], padded by k // 2
Convolve = Callable[[jax.Array, jax.Array, int], jax.Array]


def direct(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """XLA's own: x [B, H, W, C], kernel [k, k, C, D] -> [B, H', W', D], padded by k // 2."""
    # Alike on both sides, so that weights of other frameworks fit ("SAME" would not).
    pad = [(kernel.shape[0] // 2, kernel.shape[0] // 2)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def as_product(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`direct` as one product of matrices, of what each place of the image meets.

    For `vmap` over kernels on small maps: XLA makes a grouped convolution of that, for which its
    CPU backend has no fast code (at five networks on 4 x 4 places a step takes twice as long). What
    is met is held k k times.
    """
    places = jnp.concatenate(_met(x, kernel.shape[0], stride), -1)
    return jnp.einsum("bhwc,cd->bhwd", places, kernel.reshape(-1, kernel.shape[-1]))


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Every channel convolved by itself: x [B, H, W, C], kernel [k, k, 1, C], padded by k // 2.

    A sum over the kernel's k k places. As a grouped convolution, XLA's partitioner multiplies the
    kernel's gradient by the size of those mesh axes that the batch does not lie on.
    """
    places = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    met = _met(x, kernel.shape[0], stride)
    return sum((x * place for x, place in zip(met, places, strict=True)), jnp.zeros((), x.dtype))


def _met(x: jax.Array, side: int, stride: int) -> list[jax.Array]:
    """What each place of a square kernel meets, row by row: [B, H', W', C] each."""
    before = side // 2
    height, width = ((n + 2 * before - side) // stride + 1 for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (before, before), (before, before), (0, 0)))
    down = [slice(i, i + stride * (height - 1) + 1, stride) for i in range(side)]
    across = [slice(i, i + stride * (width - 1) + 1, stride) for i in range(side)]
    return [x[:, rows, columns] for rows in down for columns in across]
