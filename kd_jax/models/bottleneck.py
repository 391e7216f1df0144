"""Bottleneck adapters: a few weights behind a frozen block (arXiv 1902.00751)."""

import jax
import jax.numpy as jnp

from kd_jax.models.common import linear, normals
from kd_jax.types import PyTree


def init(key: jax.Array, *, width: int, size: int) -> PyTree:
    """{"down": {"kernel" [D, size], "bias"}, "up": {"kernel" [size, D], "bias"}}.

    down is normal of variance 1 / D, up and the biases are 0: the adapter changes nothing at first.
    """
    (kernel,) = normals(key, {"down/kernel": ((width, size), width**-0.5)}).values()
    return {
        "down": {"kernel": kernel, "bias": jnp.zeros(size)},
        "up": {"kernel": jnp.zeros((size, width)), "bias": jnp.zeros(width)},
    }


def bottleneck(params: PyTree, x: jax.Array) -> jax.Array:
    """up(relu(down(x))): [..., D] -> [..., D], without the residual x, which is the caller's.

    Source: Houlsby et al. 2019, arXiv 1902.00751, section 2.1.
    """
    return linear(params["up"], jax.nn.relu(linear(params["down"], x)))
