"""Fashion-MNIST (arXiv 1708.07747) from its idx files."""

import gzip
import math
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kd_jax.data.builders import files

_ORIGIN = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_UNSIGNED_BYTE = 8


def read_idx(path: pathlib.Path, *, dims: int) -> np.ndarray:
    """The u8 array of an idx file, gzipped or not, with `dims` dimensions.

    Header: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each size
    as a big-endian u32. ValueError names the file and what is wrong with it; nothing is
    allocated on the word of the header.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: broken gzip data ({error})") from None
    header = 4 + 4 * dims
    if data[:4] != bytes([0, 0, _UNSIGNED_BYTE, dims]):
        raise ValueError(
            f"{path}: begins with {data[:4].hex()}, takes 0000{_UNSIGNED_BYTE:02x}{dims:02x} (idx "
            f"file of unsigned bytes in {dims} dimensions)"
        )
    if len(data) < header:
        raise ValueError(f"{path}: ends inside its header of {header} bytes")
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    if len(data) - header != math.prod(shape):
        raise ValueError(f"{path}: holds {len(data) - header} values, its header says {shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """train (60000) and test (10000): image u8[28, 28, 1] and label 0 to 9, in file order."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.HOW.format(name="fashion_mnist")

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="70000 grey images of clothing, 28x28 pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(
                        names=[
                            "T-shirt/top",
                            "Trouser",
                            "Pullover",
                            "Dress",
                            "Coat",
                            "Sandal",
                            "Shirt",
                            "Sneaker",
                            "Bag",
                            "Ankle boot",
                        ]
                    ),
                }
            ),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            license="MIT",
            citation="@article{xiao2017fashion, title={Fashion-MNIST: a Novel Image Dataset for "
            "Benchmarking Machine Learning Algorithms}, author={Xiao, Han and Rasul, Kashif and "
            "Vollgraf, Roland}, journal={arXiv:1708.07747}, year={2017}}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        names = [name for pair in _FILES.values() for name in pair]
        found = files.find("fashion_mnist", {n: _ORIGIN + n for n in names}, dl_manager)
        return {
            split: self._generate_examples(found[images], found[labels])
            for split, (images, labels) in _FILES.items()
        }

    def _generate_examples(self, images: pathlib.Path, labels: pathlib.Path) -> Iterator[Any]:
        x, y = read_idx(images, dims=3), read_idx(labels, dims=1)
        if x.shape != (len(y), 28, 28) or (len(y) and y.max() > 9):
            raise ValueError(
                f"{images}, {labels}: got images {x.shape} and {len(y)} labels up to "
                f"{y.max(initial=0)}, takes 28x28 images and as many labels 0 to 9"
            )
        for i in range(len(y)):
            yield i, {"image": x[i, :, :, None], "label": int(y[i])}
