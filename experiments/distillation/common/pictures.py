"""Images of the family's classifiers: digits, or a part of Fashion-MNIST."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import arrays, images, prepare
from kd_jax.data.builders.digits import Digits
from kd_jax.data.builders.fashion_mnist import FashionMnist
from kd_jax.launch.config import check_positive, not_identity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """Digits, or Fashion-MNIST: the first images of a fixed order of the training images."""

    fashion: bool = False
    """Fashion-MNIST instead of digits."""
    images: int = 1000
    """Images that are trained on."""
    validation: int = 400
    """The next training images, for choices."""
    test: int = 10_000
    """Test images, at most; digits have fewer."""
    fold: int = 2
    """Squares of fold x fold pixels become channels of what a classifier sees."""
    folder: str | None = not_identity(None)
    """Where Fashion-MNIST's files lie (by default the environment's KD_JAX_DATA)."""

    def __post_init__(self):
        check_positive(self, "images", "validation", "test", "fold")
        if self.side % self.fold:
            raise ValueError(f"pictures.fold: got {self.fold}, takes a divisor of {self.side}")

    @property
    def side(self) -> int:
        """Of an image before it is folded."""
        return 28 if self.fashion else 8


class Split(NamedTuple):
    """Image batches {"inputs" u8 [N, H, W, 1], "targets", "weights", "index"}."""

    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    test: dict[str, np.ndarray]


@functools.cache
def load(pictures: Pictures) -> Split:
    train, test = (_read(pictures, name) for name in ("train", "test"))
    order = _order(arrays.size(train))
    wanted = pictures.images + pictures.validation
    if wanted > len(order):
        raise ValueError(
            f"pictures.images, pictures.validation: got {wanted} in all, there are {len(order)}"
        )
    return Split(
        part(train, order[: pictures.images]),
        part(train, order[pictures.images : wanted]),
        part(test, np.arange(min(pictures.test, arrays.size(test)))),
    )


@functools.cache
def all_training(pictures: Pictures) -> dict[str, np.ndarray]:
    """Every training image that is not one of validation, those that `load` has first."""
    train = _read(pictures, "train")
    order = _order(arrays.size(train))
    held = slice(pictures.images, pictures.images + pictures.validation)
    return part(train, np.delete(order, held))


def _read(pictures: Pictures, split: str) -> dict[str, np.ndarray]:
    builder = FashionMnist if pictures.fashion else Digits
    return images.image_arrays(prepare.load(builder, manual_dir=pictures.folder)[split])


def _order(count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=0)).permutation(count)


def part(examples: dict[str, np.ndarray], rows: Any) -> dict[str, np.ndarray]:
    """The rows of examples, numbered anew."""
    found = arrays.take(examples, rows)
    return found | {"index": np.arange(len(found["index"]), dtype=np.int32)}
