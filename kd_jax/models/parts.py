"""What decoder layers are made of: norm, matrix product and named activations."""

import jax
import jax.numpy as jnp
from flax.linen import spmd
from jaxtyping import Array, Float


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (arXiv 1910.07467).

    Computed in float32, given back in the dtype of x.
    """
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    weight = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + scale.shape)
    return (normed * weight).astype(x.dtype)


def matmul(x: Float[Array, "B T M"], kernel: Float[Array, "M N"]) -> Float[Array, "B T N"]:
    """x @ kernel in the dtype of x, summed in float32.

    For 16-bit x all three products, forward and backward, take 16-bit operands and give float32,
    which is then rounded; the kernel's gradient is not rounded if the kernel is float32. Asked
    for as x @ kernel with a cast, the backward products would have a float32 operand, and run at
    half the speed or less.
    """
    if x.dtype.itemsize == 2:
        return _narrow_matmul(x, kernel)
    return x @ kernel.astype(x.dtype)


@jax.custom_vjp
def _narrow_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(x, kernel):
    return _narrow_matmul(x, kernel), (x, kernel)


def _backward(residuals, grad):
    x, kernel = residuals
    to_x = jnp.einsum(
        "btn,mn->btm", grad, kernel.astype(x.dtype), preferred_element_type=jnp.float32
    )
    to_kernel = jnp.einsum("btm,btn->mn", x, grad, preferred_element_type=jnp.float32)
    return to_x.astype(x.dtype), to_kernel.astype(kernel.dtype)


_narrow_matmul.defvjp(_forward, _backward)


def named(x: jax.Array, *axes: str | None) -> jax.Array:
    """x with its axes named for sharding.

    Does nothing unless flax's logical axis rules and a mesh (`jax.set_mesh`) are in context.
    """
    return spmd.with_logical_constraint(x, axes)
