"""Rotary position embeddings (RoFormer, arXiv 2104.09864), in the half-split order of HF models."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): every frequency divided by `factor`."""

    factor: float
    """How many times longer than in pretraining a context may be; at least 1."""

    def __post_init__(self):
        if self.factor < 1:
            raise ValueError(f"factor: got {self.factor}, takes a number of at least 1")

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """The scaling of Llama 3.1 and later: long wavelengths are stretched, short ones are kept.

    With n = original_length / wavelength the turns that a frequency makes in the pretraining
    context: kept where n > high_frequency_factor, divided by factor where
    n < low_frequency_factor, and between them (1 - s) / factor + s of the frequency, where
    s = (n - low) / (high - low).
    """

    factor: float = 8.0
    """How much the longest wavelengths are stretched."""
    low_frequency_factor: float = 1.0
    """Turns in the original context under which a frequency is divided by factor."""
    high_frequency_factor: float = 4.0
    """Turns in the original context above which a frequency is kept."""
    original_length: int = 8192
    """Tokens of context in pretraining."""

    def __post_init__(self):
        if self.factor < 1:
            raise ValueError(f"factor: got {self.factor}, takes a number of at least 1")
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                f"low_frequency_factor: got {self.low_frequency_factor}, takes less than "
                f"high_frequency_factor, {self.high_frequency_factor}"
            )

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original_length * frequencies / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return frequencies * ((1 - kept) / self.factor + kept)


Scaling = LinearScaling | Llama3Scaling


def frequencies(head_dim: int, theta: float, scaling: Scaling | None = None) -> np.ndarray:
    """f32 [K / 2]: theta ** (-2i / K) for i < K / 2, in radians a token, then scaled."""
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return (plain if scaling is None else scaling(plain)).astype(np.float32)


def tables(
    positions: Int[Array, "B T"], frequencies: np.ndarray
) -> tuple[Float[Array, "B T 1 K2"], Float[Array, "B T 1 K2"]]:
    """(cos, sin) of position times frequency, f32 [B, T, 1, K / 2]: made once for all layers."""
    angles = positions.astype(jnp.float32)[:, :, None, None] * jnp.asarray(
        frequencies[None, None, None, :]
    )
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T H K"], table: tuple[jax.Array, jax.Array]
) -> Float[Array, "B T H K"]:
    """Turns each pair (x[..., i], x[..., i + K/2]) by the angle of `tables`.

    The arithmetic is float32 and the result has the dtype of x.
    """
    cos, sin = table
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
