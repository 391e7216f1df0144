"""Augmentation in a training: a `prepare` that changes the images of each batch, jitted."""

import jax.numpy as jnp

from kd_jax.objectives.augment.images import Augment, each
from kd_jax.objectives.augment.mix import Mix
from kd_jax.objectives.on_policy import Prepare, draw_keys
from kd_jax.types import Batch, Frozen, TrainState


def augmented(augment: Augment | None = None, *, mix: Mix | None = None) -> Prepare:
    """The batch with its images changed one by one, and then mixed with each other.

    inputs: u8 (scaled by 1/255) or floating [B, H, W, C]; f32 afterwards. Student and teacher see
    the same images. Draws depend on the state's key and step and on batch["index"]: batches of
    another size or on other devices, with padding or without, change an example alike. With
    `prepare_every` above 1 the same images are held.

    mix: `mixup`, `cutmix` or the like; adds "lam" f32 [B] and "partner_targets" [B], the labels of
    the other images. batch["weights"] says which rows are padding.
    """

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        alone, together = draw_keys(state)
        images = jnp.asarray(batch["inputs"])
        scale = 255.0 if images.dtype == jnp.uint8 else 1.0
        images = images.astype(jnp.float32) / scale
        if augment is not None:
            images = each(augment)(alone, images, batch["index"])
        if mix is None:
            return {**batch, "inputs": images}
        mixed = mix(together, images, batch["index"], batch["weights"])
        other = jnp.asarray(batch["targets"])[mixed.partners]
        return {**batch, "inputs": mixed.images, "lam": mixed.lam, "partner_targets": other}

    return prepare
