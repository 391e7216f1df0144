"""Augmentation in a training: a `prepare` that changes the images of each batch, jitted."""

import jax
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
    the other images. batch["weights"] says which rows are padding. ValueError for images of other
    whole numbers than u8.
    """

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        alone, together = draw_keys(state)
        images = floating(jnp.asarray(batch["inputs"]))
        if augment is not None:
            images = each(augment)(alone, images, batch["index"])
        if mix is None:
            return {**batch, "inputs": images}
        mixed = mix(together, images, batch["index"], batch["weights"])
        other = jnp.asarray(batch["targets"])[mixed.partners]
        return {**batch, "inputs": mixed.images, "lam": mixed.lam, "partner_targets": other}

    return prepare


def in_views(augment: Augment, count: int = 2) -> Prepare:
    """The batch with "views" f32 [B, count, H, W, C]: each image augmented `count` times.

    "inputs" stay as they are; draws as in `augmented`.
    """
    if count < 1:
        raise ValueError(f"count: got {count}, takes at least 1")

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        key, _ = draw_keys(state)
        images = floating(jnp.asarray(batch["inputs"]))
        views = [
            each(augment)(jax.random.fold_in(key, v), images, batch["index"]) for v in range(count)
        ]
        return {**batch, "views": jnp.stack(views, 1)}

    return prepare


def as_stored(augment: Augment | None) -> Prepare:
    """The batch as `view_of` changes it: what a teacher saw whose outputs are stored by view."""

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        return batch if augment is None else view_of(augment, batch)

    return prepare


def view_of(augment: Augment, batch: Batch) -> Batch:
    """The batch with every image changed with the key fold_in(key(view), index).

    view: batch["view"] int [B], a seed for each image; index: its number in the data set. The same
    in every training, at every step, in batches of any size: outputs can be stored by both.
    inputs and ValueError as in `augmented`.
    """

    def one(view, index, image):
        return augment(jax.random.fold_in(jax.random.key(view), index), image)

    images = floating(jnp.asarray(batch["inputs"]))
    return {**batch, "inputs": jax.vmap(one)(batch["view"], batch["index"], images)}


def floating(images: jax.Array) -> jax.Array:
    """f32 images: u8 is scaled by 1/255, floating numbers are taken as they are."""
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"inputs: got {images.dtype}, takes uint8 or floating")
    scale = 255.0 if images.dtype == jnp.uint8 else 1.0
    return images.astype(jnp.float32) / scale
