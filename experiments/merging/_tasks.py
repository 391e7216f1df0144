"""Tasks made of one data set: digits changed in several ways."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from kd_jax.data import arrays, images, prepare
from kd_jax.data.builders.digits import Digits

# What is done to the images [N, 8, 8, 1] of each task.
TASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned": lambda x: np.rot90(x, axes=(1, 2)),
    "mirrored": lambda x: x[:, :, ::-1],
    "upside down": lambda x: x[:, ::-1],
    "transposed": lambda x: x.swapaxes(1, 2),
    "inverted": lambda x: 255 - x,
}
HELD_OUT = 8  # every eighth training image is kept for validation


@functools.cache
def _digits() -> dict[str, dict[str, np.ndarray]]:
    splits = prepare.load(Digits)
    train, test = (images.image_arrays(splits[split]) for split in ("train", "test"))
    held_out = np.arange(arrays.size(train)) % HELD_OUT == 0
    return {
        "train": arrays.take(train, ~held_out),
        "validation": arrays.take(train, held_out),
        "test": test,
    }


def changed(task: str, split: str, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    """Images of train, validation or test as a task sees them."""
    found = arrays.take(_digits()[split], rows)
    return found | {"inputs": np.ascontiguousarray(TASKS[task](found["inputs"]))}


def mixed(tasks: Sequence[str], total: int) -> dict[str, np.ndarray]:
    """`total` training images shared out among the tasks, each changed as one of them does."""
    each = total // len(tasks)
    parts = [changed(t, "train", slice(i * each, (i + 1) * each)) for i, t in enumerate(tasks)]
    return arrays.concatenate(parts)
