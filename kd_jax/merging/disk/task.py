"""What is done to one tensor of the output."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kd_jax.formats.tensors import LazyTensor, count
from kd_jax.merging.disk.parameters import Value


class Part(NamedTuple):
    """A tensor that goes into a merge, with the parameters of its model; model: for messages."""

    model: str
    tensor: LazyTensor
    parameters: Mapping[str, Value]


class Task(NamedTuple):
    """One tensor of the output.

    merge(task, work): writes its blocks. base: the base model's tensor, where the method has one;
    parts: the other models'. parameters: those of the whole tensor. seed: for random methods.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    merge: Callable[["Task", Any], None]
    base: LazyTensor | None
    parts: tuple[Part, ...]
    parameters: Mapping[str, Value]
    seed: int = 0

    @property
    def size(self) -> int:
        return count(self.shape)

    @property
    def nbytes(self) -> int:
        """Of the output."""
        return self.size * self.dtype.itemsize

    @property
    def inputs(self) -> list[LazyTensor]:
        return [part.tensor for part in self.parts] + ([self.base] if self.base else [])
