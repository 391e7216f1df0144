"""Tasks made of one data set: images changed in several ways, labels as they are.

A task sees every image changed in its own way, so that what it asks of a model can be told from the
image alone, and one head serves all tasks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import arrays, images, prepare
from kd_jax.data.builders.digits import Digits
from kd_jax.data.builders.fashion_mnist import FashionMnist
from kd_jax.launch.sharding import Rules
from kd_jax.models import mlp, vit
from kd_jax.types import Model

Splits = Mapping[str, Mapping[str, np.ndarray]]  # train, validation and test: image arrays
HELD_OUT = 8  # every eighth training image is kept for validation


def _shuffled(x: np.ndarray) -> np.ndarray:
    """Every image with its pixels in one other, fixed order."""
    order = np.argsort(np.random.Philox(key=0).random_raw(x[0].size), kind="stable")
    return x.reshape(len(x), -1)[:, order].reshape(x.shape)


# What is done to the images u8[N, side, side, 1] of each task.
TASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned": lambda x: np.rot90(x, axes=(1, 2)),
    "mirrored": lambda x: x[:, :, ::-1],
    "upside_down": lambda x: x[:, ::-1],
    "transposed": lambda x: x.swapaxes(1, 2),
    "inverted": lambda x: 255 - x,
    "shuffled": _shuffled,
}


class Benchmark(NamedTuple):
    """Images, and a model of them whose trunk is merged.

    head: the name, at the top of the model's parameters, of what is frozen after pretraining and
    shared by all specialists; the trunk is all the rest. rules: the model's sharding rules.
    side: height and width of the images. splits: () -> train, validation and test.
    """

    model: Model
    head: str
    rules: Rules
    side: int
    splits: Callable[[], Splits]


@functools.cache  # one object for each model, so that compiled functions are found again
def digits(widths: tuple[int, ...]) -> Benchmark:
    """Perceptrons of scikit-learn's digits; `widths` are the hidden layers."""
    model = mlp.mlp(mlp.MLPConfig(inputs=64, widths=widths, classes=10))
    return Benchmark(model, f"layer_{len(widths)}", mlp.RULES, 8, _digits)


@functools.cache
def _digits() -> Splits:
    splits = prepare.load(Digits)
    train, test = (images.image_arrays(splits[split]) for split in ("train", "test"))
    return held_out(train) | {"test": test}


class Sample(NamedTuple):
    """How many images of Fashion-MNIST are read, of `folder` (by default KD_JAX_DATA).

    With `generated` they are made: noise around one pattern a class. Nothing is read then.
    """

    train: int
    validation: int
    test: int
    generated: bool = False
    folder: str | None = None


@functools.cache
def fashion(config: vit.ViTConfig, sample: Sample) -> Benchmark:
    """Vision transformers of Fashion-MNIST."""
    splits = functools.partial(_fashion, sample)
    return Benchmark(vit.vit(config), "head", vit.RULES, 28, splits)


@functools.cache
def _fashion(sample: Sample) -> Splits:
    if sample.generated:
        found = _generated(sample.train + sample.validation + sample.test)
        train = arrays.take(found, slice(sample.train + sample.validation))
        test = arrays.take(found, slice(sample.train + sample.validation, None))
    else:
        splits = prepare.load(FashionMnist, manual_dir=sample.folder)
        train, test = (images.image_arrays(splits[split]) for split in ("train", "test"))
    end = sample.train + sample.validation
    return {
        "train": arrays.take(train, slice(sample.train)),
        "validation": arrays.take(train, slice(sample.train, end)),
        "test": arrays.take(test, slice(sample.test)),
    }


def _generated(total: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (10, 28, 28, 1))
    targets = rng.integers(0, 10, total).astype(np.int32)
    noisy = patterns[targets] + rng.normal(0, 60, (total, 28, 28, 1))
    return {
        "inputs": noisy.clip(0, 255).astype(np.uint8),
        "targets": targets,
        "weights": np.ones(total, np.float32),
        "index": np.arange(total, dtype=np.int32),
    }


def held_out(train: arrays.Arrays) -> dict[str, dict[str, np.ndarray]]:
    """Training images as train and validation."""
    chosen = np.arange(arrays.size(train)) % HELD_OUT == 0
    return {"train": arrays.take(train, ~chosen), "validation": arrays.take(train, chosen)}


def changed(
    benchmark: Benchmark, task: str, split: str, rows: slice = slice(None)
) -> dict[str, np.ndarray]:
    """Images of a split as a task sees them, an image batch's arrays."""
    found = arrays.take(benchmark.splits()[split], rows)
    return found | {"inputs": np.ascontiguousarray(TASKS[task](found["inputs"]))}


def mixed(benchmark: Benchmark, tasks: Sequence[str], total: int) -> dict[str, np.ndarray]:
    """`total` training images shared out among the tasks, each changed as one of them does."""
    each = total // len(tasks)
    return arrays.concatenate(
        [
            changed(benchmark, task, "train", slice(i * each, (i + 1) * each))
            for i, task in enumerate(tasks)
        ]
    )


class Examples(NamedTuple):
    """What T tasks are measured on: inputs u8[T, N, side, side, 1], targets i32[T, N]."""

    inputs: Any
    targets: Any


def examples(
    benchmark: Benchmark, tasks: Sequence[str], split: str, rows: slice = slice(None)
) -> Examples:
    """The images of a split, as each of the tasks sees them, in the order of `tasks`."""
    found = [changed(benchmark, task, split, rows) for task in tasks]
    return Examples(np.stack([x["inputs"] for x in found]), np.stack([x["targets"] for x in found]))
