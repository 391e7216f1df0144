"""Normalisations of channels that convolutional classifiers take: by the batch, or by groups."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.models.common import along_last


class Norm(NamedTuple):
    """A normalisation of channels, before its scale and bias.

    state(channels) -> what it carries from batch to batch, {name: [C]}; {} for none.
    apply(x [B, H, W, C] f32, state, train) -> (normalised x, new state).
    """

    state: Callable[[int], dict[str, jax.Array]]
    apply: Callable[
        [jax.Array, Mapping[str, jax.Array], bool], tuple[jax.Array, Mapping[str, jax.Array]]
    ]


def batch_norm(momentum: float = 0.9, eps: float = 1e-5) -> Norm:
    """Batch normalisation (arXiv 1502.03167): (x - mean) / sqrt(var + eps) for each channel.

    train=True: mean and (biased) variance of the whole batch, over all devices that hold a part of
    it; new state = momentum * old + (1 - momentum) * batch. train=False: those of the state, left
    as they are. Every row of the batch counts, rows of weight 0 too: train on batches without
    padding. Microbatches are normalised each for itself.
    """

    def state(channels: int) -> dict[str, jax.Array]:
        return {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}

    def apply(x: jax.Array, held: Mapping[str, jax.Array], train: bool):
        if not train:
            return _standard(x, held["mean"], held["var"], eps), held
        mean = x.mean((0, 1, 2))
        var = jnp.mean(jnp.square(x - along_last(mean, x)), (0, 1, 2))
        batch = {"mean": mean, "var": var}
        new = {k: momentum * held[k] + (1.0 - momentum) * batch[k] for k in batch}
        return _standard(x, mean, var, eps), jax.lax.stop_gradient(new)

    return Norm(state, apply)


def group_norm(groups: int = 8, eps: float = 1e-5) -> Norm:
    """Group normalisation (arXiv 1803.08494): each example by itself, no state.

    Mean and variance over the height, width and channels of each of `groups` groups of adjacent
    channels; ValueError unless they divide the channels.
    """

    def apply(x: jax.Array, held: Mapping[str, jax.Array], train: bool):
        b, h, w, c = x.shape
        if c % groups:
            raise ValueError(f"groups: got {groups}, takes a divisor of the {c} channels")
        grouped = x.reshape(b, h * w, groups, c // groups)
        mean = grouped.mean((1, 3), keepdims=True)
        var = jnp.mean(jnp.square(grouped - mean), (1, 3), keepdims=True)
        return ((grouped - mean) * jax.lax.rsqrt(var + eps)).reshape(x.shape), held

    return Norm(lambda channels: {}, apply)


def _standard(x: jax.Array, mean: jax.Array, var: jax.Array, eps: float) -> jax.Array:
    return (x - along_last(mean, x)) * along_last(jax.lax.rsqrt(var + eps), x)
