"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from their binary archives."""

import pathlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kd_jax.data.builders import files

_ORIGIN = "https://www.cs.toronto.edu/~kriz/"
_PIXELS = 3 * 32 * 32


def read_members(path: pathlib.Path, names: Sequence[str], *, labels: int) -> np.ndarray:
    """u8[N, labels + 3072]: the records of an archive's members, in this order.

    A record is its labels, a byte each, then 1024 bytes each of red, green and blue, row by row.
    ValueError names the archive and the member that is missing or has no whole number of records.
    """
    parts = []
    try:
        with tarfile.open(path) as archive:
            for name in names:
                try:
                    member = archive.extractfile(name)
                except KeyError:
                    member = None
                if member is None:
                    raise ValueError(f"{path}: lacks {name}")
                data = np.frombuffer(member.read(), np.uint8)
                if not len(data) or len(data) % (labels + _PIXELS):
                    raise ValueError(
                        f"{path}: {name} holds {len(data)} bytes, takes a multiple of "
                        f"{labels + _PIXELS}"
                    )
                parts.append(data.reshape(-1, labels + _PIXELS))
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: broken archive ({error})") from None
    return np.concatenate(parts)


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """train (50000) and test (10000): image u8[32, 32, 3] and label 0 to 9, in file order."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.HOW.format(name="cifar10")
    ARCHIVE = "cifar-10-binary.tar.gz"
    LABELS = {"label": 10}  # in the order of a record's bytes
    MEMBERS = {
        "train": tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("cifar-10-batches-bin/test_batch.bin",),
    }

    def _info(self) -> Any:
        image = tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8)
        labels = {n: tfds.features.ClassLabel(num_classes=k) for n, k in self.LABELS.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="60000 photographs of 32x32 pixels.",
            features=tfds.features.FeaturesDict({"image": image, **labels}),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation="@techreport{krizhevsky2009learning, author={Krizhevsky, Alex}, "
            "title={Learning Multiple Layers of Features from Tiny Images}, year={2009}}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        archive = {self.ARCHIVE: _ORIGIN + self.ARCHIVE}
        path = files.find(self.name, archive, dl_manager)[self.ARCHIVE]
        return {split: self._generate_examples(path, m) for split, m in self.MEMBERS.items()}

    def _generate_examples(self, path: pathlib.Path, members: Sequence[str]) -> Iterator[Any]:
        count = len(self.LABELS)
        records = read_members(path, members, labels=count)
        limits = np.array(list(self.LABELS.values()))
        if (records[:, :count] >= limits).any():
            raise ValueError(f"{path}: {', '.join(members)} hold labels over {list(limits - 1)}")
        images = records[:, count:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for i, (image, labels) in enumerate(zip(images, records[:, :count].tolist(), strict=True)):
            yield i, {"image": image, **dict(zip(self.LABELS, labels, strict=True))}


class Cifar100(Cifar10):
    """As Cifar10, with label 0 to 99 and coarse_label 0 to 19, its group of five classes."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = files.HOW.format(name="cifar100")
    ARCHIVE = "cifar-100-binary.tar.gz"
    LABELS = {"coarse_label": 20, "label": 100}
    MEMBERS = {"train": ("cifar-100-binary/train.bin",), "test": ("cifar-100-binary/test.bin",)}
