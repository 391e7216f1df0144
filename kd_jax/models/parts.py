"""What models are made of: norm, matrix product, weights in host memory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kd_jax.axes import named


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


class LowRank(NamedTuple):
    """kernel + a @ b, kept apart: what `matmul` takes in a kernel's place (`lora.attach`)."""

    kernel: jax.Array  # [..., M, N]
    a: jax.Array  # [..., M, r]
    b: jax.Array  # [..., r, N]


def matmul(
    x: Float[Array, "... M"], kernel: Float[Array, "M N"] | LowRank
) -> Float[Array, "... N"]:
    """x @ kernel in the dtype of x, summed in float32.

    For 16-bit x all three products, forward and backward, take 16-bit operands and give float32,
    which is then rounded; the kernel's gradient is not rounded if the kernel is float32. Asked
    for as x @ kernel with a cast, the backward products would have a float32 operand, and run at
    half the speed or less. What is not differentiated has no product in the backward pass.

    LowRank: x @ kernel + (x @ a) @ b, so that a frozen kernel has no gradient of its size, which
    a @ b, multiplied out first, would need.
    """
    if isinstance(kernel, LowRank):
        return matmul(x, kernel.kernel) + matmul(matmul(x, kernel.a), kernel.b)
    if x.dtype.itemsize == 2:
        return _narrow_matmul(kernel.dtype, x, kernel)
    return x @ kernel.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_matmul(dtype: jnp.dtype, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """dtype: the kernel's, which the backward pass needs where it needs no kernel."""
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(dtype, x, kernel):
    # Residuals are arrays, so what is wanted is told by which of them are there.
    kept = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    return _narrow_matmul(dtype, x.value, kernel.value), kept


def _backward(dtype, residuals, grad):
    x, kernel = residuals
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_x = to_kernel = None
    if kernel is not None:
        to_x = product("...n,mn->...m", grad, kernel.astype(grad.dtype)).astype(grad.dtype)
    if x is not None:
        rows = list(range(x.ndim - 1))
        to_kernel = jnp.tensordot(x, grad, (rows, rows), preferred_element_type=jnp.float32)
        to_kernel = to_kernel.astype(dtype)
    return to_x, to_kernel


_narrow_matmul.defvjp(_forward, _backward, symbolic_zeros=True)


def swiglu(
    layer: Any, x: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T D"], Float[Array, "B T F"]]:
    """(down h, h), h = silu(gate x) * up x; the wide products are "gate_up" for `jax.checkpoint`.

    layer: gate/kernel and up/kernel [D, F], down/kernel [F, D] (arXiv 2002.05202).
    """
    gate, up = (
        checkpoint_name(matmul(x, layer[name]["kernel"]), "gate_up") for name in ("gate", "up")
    )
    hidden = named(jax.nn.silu(gate) * up, "batch", "length", "mlp")
    return matmul(hidden, layer["down"]["kernel"]), hidden


def fetched(tree: Any) -> Any:
    """The tree with its arrays in host memory brought to the device; the others as they are.

    Frozen weights may be arguments in host memory (sharding with memory_kind "pinned_host"). Called
    on a layer inside a scan or a checkpoint, one layer at a time is on the device.
    """

    def fetch(x: Any) -> Any:
        if jax.typeof(x).memory_space == jax.memory.Space.Host:
            return jax.device_put(x, jax.memory.Space.Device)
        return x

    return jax.tree.map(fetch, tree)
