"""A model that takes images as published weights were trained on: less a mean, by a deviation."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models.common import along_last, to_float
from kd_jax.types import Model, ModelOutput, PyTree


def normalised(model: Model, mean: Sequence[float], std: Sequence[float]) -> Model:
    """The model on (inputs - mean) / std, channel by channel of images in [0, 1] (u8 / 255).

    A teacher and a student of different statistics so take the same batch. Parameters, state,
    taps and add are the model's own. Weights of torchvision and DeiT take
    `data.image_sets.IMAGENET`; timm's ViT and Mixer of Google's weights take 0.5 and 0.5.
    """
    mean_, std_ = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    if mean_.ndim != 1 or mean_.shape != std_.shape or min(std) <= 0:
        raise ValueError(f"mean, std: got {mean}, {std}, takes as many, std over 0")

    def apply(params: PyTree, inputs: Mapping[str, jax.Array], **options: Any) -> ModelOutput:
        images = to_float(inputs["inputs"])
        if images.shape[-1] != len(mean_):
            raise ValueError(f"inputs: got {images.shape[-1]} channels, takes {len(mean_)}")
        images = (images - along_last(mean_, images)) / along_last(std_, images)
        return model.apply(params, {**inputs, "inputs": images}, **options)

    return model._replace(apply=apply)
