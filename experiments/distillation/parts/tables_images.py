"""Images of published tables as a training takes them: batches, their augmentation, the test set.

Nothing is read before the first batch is wanted: sizes are known, so that a plan needs no data.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from kd_jax.data import arrays, crops, image_sets, shapes, sources
from kd_jax.launch.config import check_positive, not_identity
from kd_jax.objectives.augment.images import chain, crop, flip
from kd_jax.objectives.augment.prepare import augmented
from kd_jax.objectives.on_policy import Prepare

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop:
    """Crops of photographs: random ones of any part for training, the centre for the test."""

    side: int = 224
    """Height and width of a crop."""
    shorter: int = 256
    """A test image's shorter side before its centre is cropped."""

    def __post_init__(self):
        check_positive(self, "side")
        if self.shorter < self.side:
            raise ValueError(f"shorter: got {self.shorter}, takes at least the side, {self.side}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """A data set of `image_sets`, and how its training images are changed on the device."""

    name: str = "cifar100"
    """digits, fashion_mnist, cifar10, cifar100, tiny_imagenet or imagenet2012."""
    first: int = 0
    """Training images, the first of a fixed order; 0 for all."""
    crop: Crop | None = None
    """Of a set whose images differ in size."""
    pad: int = 4
    """Pixels around an image, of which a window of the image's size is drawn."""
    flip: bool = True
    """Whether every other image is mirrored."""
    folder: str | None = not_identity(None)
    """Where the set's files lie (by default the environment's KD_JAX_DATA)."""

    def __post_init__(self):
        known = image_sets.IMAGE_SETS
        if self.name not in known:
            raise ValueError(f"images.name: got {self.name}, takes {', '.join(known)}")
        if bool(self.set.side) == (self.crop is not None):
            takes = "none: its images are of one size" if self.set.side else "one: sizes differ"
            raise ValueError(f"images.crop: got {self.crop}, {self.name} takes {takes}")
        if not 0 <= self.first <= self.set.train:
            raise ValueError(
                f"images.first: got {self.first}, takes 0 for all, or up to {self.set.train}"
            )
        if self.first and self.crop:
            raise ValueError(f"images.first: got {self.first}, {self.name} takes 0: it is streamed")
        if self.pad < 0:
            raise ValueError(f"images.pad: got {self.pad}, takes numbers from 0")

    @property
    def set(self) -> image_sets.ImageSet:
        return image_sets.IMAGE_SETS[self.name]

    @property
    def count(self) -> int:
        """Training images."""
        return self.first or self.set.train

    @property
    def side(self) -> int:
        """Of an image as a network sees it."""
        return self.set.side if self.crop is None else self.crop.side

    def batch(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        return shapes.images(rows, self.side, self.set.channels)


def batches(images: Images, *, seed: int, batch_size: int) -> sources.Source:
    """Training images in the order of a seed."""

    @functools.cache
    def held() -> sources.Source:
        if images.crop is not None:
            records = _records(images.name, images.folder)["train"]
            return crops.crop_batches(
                records, side=images.crop.side, seed=seed, name="images", batch_size=batch_size
            )
        rows = _train(images.name, images.folder, images.first)
        return sources.array_batches(rows, seed=seed, name="images", batch_size=batch_size)

    return lambda step, rows: held()(step, rows)


def augment(images: Images) -> Prepare:
    """Windows and mirror images, drawn anew for every image of every batch, on the device."""
    changes = [functools.partial(crop, pad=images.pad)] * bool(images.pad) + [flip] * images.flip
    return augmented(chain(*changes))


def test(images: Images) -> Batch:
    """All test images, in memory (ImageNet's centres: 7.5 GB)."""
    if images.crop is None:
        return _arrays(images.name, images.folder)["test"]
    return _centres(images.name, images.folder, images.crop)


@functools.cache
def _arrays(name: str, folder: str | None) -> dict[str, Batch]:
    return image_sets.arrays(name, manual_dir=folder)


@functools.cache
def _train(name: str, folder: str | None, first: int) -> Batch:
    train = _arrays(name, folder)["train"]
    if not first:
        return train
    order = np.random.Generator(np.random.Philox(key=0)).permutation(arrays.size(train))
    return arrays.take(train, order[:first])


@functools.cache
def _records(name: str, folder: str | None) -> dict[str, Any]:
    return image_sets.records(name, manual_dir=folder)


@functools.cache
def _centres(name: str, folder: str | None, crop: Crop) -> Batch:
    records = _records(name, folder)["test"]
    return crops.centre_arrays(records, side=crop.side, shorter=crop.shorter)
