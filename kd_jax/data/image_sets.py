"""Image data sets of published tables by name: what they are, and how they are read.

Those that fit are read into memory by `arrays`; ImageNet is streamed:

    found = image_sets.records("imagenet2012")
    source = crops.crop_batches(found["train"], side=224, seed=0, name="train", batch_size=256)
    test = crops.centre_arrays(found["test"], side=224, shorter=256)
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import imagenet, images, prepare

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Of pixels / 255, by channel: mean, standard deviation.
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageSet(NamedTuple):
    """classes; side of the images, 0 where they differ; channels; images of the training split; the
    split that tables report; the mean and the standard deviation that models of the tables take
    off, None for none."""

    classes: int
    side: int
    channels: int
    train: int
    held_out: str = "test"
    statistics: Statistics | None = None


IMAGE_SETS = {
    "digits": ImageSet(10, 8, 1, 1437),
    "fashion_mnist": ImageSet(10, 28, 1, 60_000),
    "cifar10": ImageSet(
        10, 32, 3, 50_000, "test", ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    ),
    "cifar100": ImageSet(
        100, 32, 3, 50_000, "test", ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    ),
    "tiny_imagenet": ImageSet(200, 64, 3, 100_000, "validation", IMAGENET),
    "imagenet2012": ImageSet(1000, 0, 3, 1_281_167, "validation", IMAGENET),
}


def records(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Sequence[Any]]:
    """{"train": records, "test": records of the split that tables report}, prepared if need be.

    data_dir, manual_dir and errors as in `prepare.load`, ImageNet's as in `imagenet.load`;
    ValueError for another name.
    """
    if name not in IMAGE_SETS:
        raise ValueError(f"name: got {name!r}, takes {', '.join(IMAGE_SETS)}")
    if name == "imagenet2012":
        splits = imagenet.load(data_dir=data_dir, manual_dir=manual_dir)
    else:
        builder = prepare.builders()[name]
        splits = prepare.load(builder, data_dir=data_dir, manual_dir=manual_dir)
    return {"train": splits["train"], "test": splits[IMAGE_SETS[name].held_out]}


def arrays(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """{"train", "test"} as `images.image_arrays`, in memory (Tiny ImageNet: 1.4 GB).

    Arguments and errors as in `records`; ValueError for images of different sizes.
    """
    if name in IMAGE_SETS and not IMAGE_SETS[name].side:
        raise ValueError(f"name: got {name}, whose images differ in size: takes crops of `records`")
    found = records(name, data_dir=data_dir, manual_dir=manual_dir)
    return {split: images.image_arrays(rows) for split, rows in found.items()}
