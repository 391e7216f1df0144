"""Tiny ImageNet (Stanford's course CS231N, 2015) from its zip file; needs the extra `images`."""

import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kd_jax.data import pillow
from kd_jax.data.builders import files

_ORIGIN = "http://cs231n.stanford.edu/"
_FILE = "tiny-imagenet-200.zip"
_TOP = "tiny-imagenet-200/"
_TRAIN = re.compile(_TOP + r"train/(n\d+)/images/n\d+_(\d+)\.JPEG")
SIDE = 64


class TinyImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """train (100000) and validation (10000): image, the bytes of its file, and label 0 to 199.

    Images are of 64 x 64, some of them grey. They are kept as files, since TFDS without TensorFlow
    prepares no split of over a gigabyte. Labels number the WordNet ids in alphabetical order, as
    folders are read, not in that of wnids.txt. Training images lie by label, then by number. The
    test images have no labels and are left out; what tables report is the validation set.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.HOW.format(name="tiny_imagenet")

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="110000 photographs of 64x64 pixels in 200 classes of ImageNet.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(), dtype=np.object_),
                    "label": tfds.features.ClassLabel(num_classes=200),
                }
            ),
            homepage="http://cs231n.stanford.edu/",
            citation="@misc{le2015tiny, title={Tiny ImageNet Visual Recognition Challenge}, "
            "author={Le, Ya and Yang, Xuan}, year={2015}}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        path = files.find("tiny_imagenet", {_FILE: _ORIGIN + _FILE}, dl_manager)[_FILE]
        try:
            with zipfile.ZipFile(path) as archive:
                members = listed(path, archive)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path}: broken zip file ({error})") from None
        return {split: self._generate_examples(path, found) for split, found in members.items()}

    def _generate_examples(
        self, path: pathlib.Path, members: list[tuple[str, int]]
    ) -> Iterator[Any]:
        with zipfile.ZipFile(path) as archive:
            for i, (name, label) in enumerate(members):
                try:
                    image = archive.read(name)
                    size = pillow.decode(image).size
                except (ValueError, zipfile.BadZipFile) as error:
                    raise ValueError(f"{path}: {name}: {error}") from None
                if size != (SIDE, SIDE):
                    raise ValueError(f"{path}: {name} is {size}, takes {SIDE} by {SIDE}")
                yield i, {"image": image, "label": label}


def listed(path: pathlib.Path, archive: zipfile.ZipFile) -> dict[str, list[tuple[str, int]]]:
    """{split: (member, label) of every image}; ValueError names file and fault."""
    names = set(archive.namelist())
    for wanted in (f"{_TOP}wnids.txt", f"{_TOP}val/val_annotations.txt"):
        if wanted not in names:
            raise ValueError(f"{path}: lacks {wanted}")
    wnids = sorted(archive.read(f"{_TOP}wnids.txt").decode().split())
    labels = {wnid: i for i, wnid in enumerate(wnids)}
    train = []
    for name in names:
        if found := _TRAIN.fullmatch(name):
            wnid, number = found.groups()
            if wnid not in labels:
                raise ValueError(f"{path}: {name} is of no class of wnids.txt")
            train.append((labels[wnid], int(number), name))
    empty = labels.keys() - {wnids[label] for label, _, _ in train}
    if empty:
        raise ValueError(f"{path}: no training images of {', '.join(sorted(empty)[:4])}")
    validation = []
    # file name, WordNet id, and a box that is not read, between tabs.
    for line in archive.read(f"{_TOP}val/val_annotations.txt").decode().splitlines():
        name, wnid, *_ = [*line.split("\t"), ""]
        member = f"{_TOP}val/images/{name}"
        if wnid not in labels or member not in names:
            raise ValueError(f"{path}: val_annotations.txt: {line!r} names no image and class")
        validation.append((member, labels[wnid]))
    return {
        "train": [(name, label) for label, _, name in sorted(train)],
        "validation": validation,
    }
