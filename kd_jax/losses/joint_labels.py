"""Joint labels of a class and a transformation (SLA): one softmax over both.

Views of an image lie one after the other: row b M + k is transformation k of image b, and output
c M + k says class c and transformation k. Lee et al. 2020, arXiv 1910.05872, by released code.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def rotations(images: Shaped[Array, "B S S C"]) -> Shaped[Array, "R S S C"]:
    """Square images of any dtype by 0, 90, 180 and 270 degrees: [B, S, S, C] -> [4 B, S, S, C]."""
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"images: got shape {images.shape}, takes squares [B, S, S, C]")
    turned = jnp.stack([jnp.rot90(images, k, (1, 2)) for k in range(4)], 1)
    return turned.reshape(-1, *images.shape[1:])


def joint_labels(labels: Int[Array, " B"], transformations: int) -> Int[Array, " R"]:
    """y M + k for every transformation k: [B] -> [B M]."""
    each = labels[:, None] * transformations + jnp.arange(transformations)[None]
    return each.reshape(-1)


def aggregated(joint_logits: Float[Array, "R K"], transformations: int) -> Float[Array, "B C"]:
    """The mean over views k of logit (c, k) of view k: f32 [B M, C M] -> [B, C].

    Logits are averaged, not probabilities, and each view tells of its own transformation alone.
    """
    rows, outputs = joint_logits.shape
    if rows % transformations or outputs % transformations:
        raise ValueError(
            f"transformations: got {transformations}, takes a divisor of the {rows} rows and the "
            f"{outputs} logits"
        )
    z = joint_logits.astype(jnp.float32)
    z = z.reshape(rows // transformations, transformations, -1, transformations)
    return jnp.einsum("bkck->bc", z) / transformations
