"""A tensor on disk, read piece by piece."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np

Index = tuple[slice, ...] | EllipsisType

# Larger shapes than this are lies: 256 Ti elements are more than any file here can hold.
MAX_ELEMENTS = 2**48


class Place(NamedTuple):
    """Where a tensor's bytes lie: from `offset` on in a file, row by row."""

    path: Path
    offset: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor on disk: what it is, and how to read a part of it.

    read(index): a NumPy array with the entries of `index`, a tuple of slices of step 1, one an
        axis, or `...` for all. Only what it needs is read from the file.
    place: where its bytes lie in `dtype`; None where they are not in a file as they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[Index], np.ndarray]
    place: Place | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of the whole tensor in `dtype`."""
        return count(self.shape) * self.dtype.itemsize


def from_array(name: str, array: np.ndarray) -> LazyTensor:
    """A tensor that is in memory already."""
    return LazyTensor(name, array.shape, array.dtype, lambda index: array[index])


def count(shape: tuple[int, ...]) -> int:
    """The number of elements, in Python's integers, which do not overflow."""
    total = 1
    for size in shape:
        total *= size
    return total


def plausible(shape: tuple[int, ...]) -> bool:
    """Whether NumPy can hold such a shape at all, empty ones included."""
    return len(shape) <= 32 and count(tuple(max(size, 1) for size in shape)) <= MAX_ELEMENTS


def bounds(index: Index, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """`index` as slices with explicit ends, one an axis.

    ValueError where it has another rank than `shape`, or a step other than 1.
    """
    if isinstance(index, EllipsisType):
        return tuple(slice(0, size) for size in shape)
    if len(index) != len(shape):
        raise ValueError(f"index: got {len(index)} slices, takes one for each axis of {shape}")
    ranges = [part.indices(size) for part, size in zip(index, shape, strict=True)]
    if any(step != 1 for _, _, step in ranges):
        raise ValueError(f"index: got {index}, takes slices of step 1")
    return tuple(slice(start, max(start, stop)) for start, stop, _ in ranges)
