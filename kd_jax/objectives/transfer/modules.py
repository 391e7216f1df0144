"""What parts train beside the student: linear maps, convolutions, norms of batch and layer.

Each is a pair make(key, sizes) -> weights and apply(weights, x) -> x, in float32.
"""

import math

import jax
import jax.numpy as jnp

from kd_jax.types import PyTree


def size_of(x: jax.Array) -> int:
    """How many elements an example has; x may be a shape only."""
    return math.prod(x.shape[1:])


def flat(x: jax.Array) -> jax.Array:
    """[B, ...] -> [B, elements]."""
    return x.reshape(x.shape[0], -1)


def make_linear(key: jax.Array, inputs: int, outputs: int, *, bias: bool = True) -> PyTree:
    """kernel [inputs, outputs], normal of variance 1 / inputs; bias of zeros."""
    kernel = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
    return {"kernel": kernel} | ({"bias": jnp.zeros(outputs)} if bias else {})


def linear(weights: PyTree, x: jax.Array) -> jax.Array:
    """x [..., inputs] -> f32 [..., outputs]; on a map it is the 1x1 convolution."""
    y = x.astype(jnp.float32) @ weights["kernel"]
    return y + _last(weights["bias"], y) if "bias" in weights else y


def make_conv(
    key: jax.Array, size: int, inputs: int, outputs: int, *, bias: bool = False
) -> PyTree:
    """kernel [size, size, inputs, outputs], normal of variance 2 / (size^2 inputs)."""
    std = (2 / (size * size * inputs)) ** 0.5
    kernel = std * jax.random.normal(key, (size, size, inputs, outputs))
    return {"kernel": kernel} | ({"bias": jnp.zeros(outputs)} if bias else {})


def conv(weights: PyTree, x: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """x [B, H, W, inputs] -> f32 [B, H', W', outputs], with zeros around."""
    y = jax.lax.conv_general_dilated(
        x.astype(jnp.float32),
        weights["kernel"],
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + _last(weights["bias"], y) if "bias" in weights else y


def transposed_conv(weights: PyTree, x: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """x [B, H, W, inputs] -> f32 [B, H', W', outputs], H' = (H - 1) stride + size - 2 padding."""
    around = weights["kernel"].shape[0] - 1 - padding
    return jax.lax.conv_general_dilated(
        x.astype(jnp.float32),
        weights["kernel"],
        (1, 1),
        [(around, around)] * 2,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def make_norm(channels: int) -> PyTree:
    """A scale of ones and a shift of zeros."""
    return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}


def batch_norm(weights: PyTree, x: jax.Array, present: jax.Array, eps: float = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(var + eps) scale + bias over present rows and all places: f32 as x.

    x [B, ..., C], present bool [B]. There are no running statistics: a part is never used without
    a batch. It couples the examples of one. A row that is not there is 0.
    """
    here = present.reshape((-1,) + (1,) * (x.ndim - 1))
    x = jnp.where(here, x.astype(jnp.float32), 0.0)
    axes = tuple(range(x.ndim - 1))
    places = x[0, ..., 0].size
    count = jnp.maximum(present.sum() * places, 1)
    x = jnp.where(here, x - _last(x.sum(axes) / count, x), 0.0)
    var = jnp.square(x).sum(axes) / count
    y = x * _last(weights["scale"] * jax.lax.rsqrt(var + eps), x) + _last(weights["bias"], x)
    return jnp.where(here, y, 0.0)


def layer_norm(weights: PyTree, x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(var + eps) scale + bias over the last axis: f32 as x."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
    return x * _last(weights["scale"], x) + _last(weights["bias"], x)


def _last(v: jax.Array, x: jax.Array) -> jax.Array:
    return v.reshape((1,) * (x.ndim - 1) + (-1,))
