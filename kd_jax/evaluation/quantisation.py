"""Quantising the weights as an attack: does what was unlearned come back at 8 or 4 bits?

Zhang et al. 2024, "Catastrophic failure of LLM unlearning via quantization" (arXiv 2410.16454):
unlearning with small rates moves weights by less than a step of the grid, so that rounding takes
the unlearned model back to the one before.
"""

import re

import jax
import jax.numpy as jnp

from kd_jax.trees import map_with_path
from kd_jax.types import PyTree

# The path of a matrix, and the axis along which an output channel's weights lie.
_AXES = ((r"(.*/)?kernel", -2), (r"(.*/)?embedding", -1))


def round_to_nearest(weights: PyTree, *, bits: int) -> PyTree:
    """The weights with every matrix rounded to a grid of 2**bits - 1 levels, in its own dtype.

    Symmetric, a scale for each output channel: w -> s round(w / s), s = max |w| / (2**(bits-1) - 1)
    over the channel's inputs, in float32, halves to even. A channel is a column of a kernel
    [..., in, out] and a row of an embedding [V, D]. Biases and norms' scales stay, as they are.

    weights: a model's plain weights (of adapters, first merge them). bits: 2 to 16. Idempotent, up
    to the rounding of dtype. Jittable; sharded weights stay so.
    ValueError where no path ends with "kernel" or "embedding".

    The paper's attack rounds so, to 8 and 4 bits (its details UNVERIFIED). Embeddings, which
    its libraries keep, are rounded here as well: all matrices are attacked alike.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits: got {bits}, takes 2 to 16")
    found = []

    def attack(path: str, x: jax.Array) -> jax.Array:
        for pattern, axis in _AXES:
            if re.fullmatch(pattern, path):
                found.append(path)
                return _rounded(x, bits, axis)
        return x

    result = map_with_path(attack, weights)
    if not found:
        raise ValueError("weights: got no path that ends with kernel or embedding")
    return result


def _rounded(x: jax.Array, bits: int, axis: int) -> jax.Array:
    wide = x.astype(jnp.float32)
    scale = jnp.abs(wide).max(axis, keepdims=True) / (2 ** (bits - 1) - 1)
    safe = jnp.where(scale == 0, 1.0, scale)
    return (jnp.round(wide / safe) * scale).astype(x.dtype)
