"""Blocks of tensors: read from input files, written to the output, by position and by any thread.

Each thread has a `Work` with its buffers: a few blocks, small enough for the processor's cache.
Files are read by position rather than mapped: a file that changes under us is then an error and
not a crash, and what is read stays the system's to forget.
"""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kd_jax.formats.tensors import LazyTensor, count
from kd_jax.merging.disk.errors import MergeError, WriteFailed
from kd_jax.merging.disk.task import Task

BLOCK = 1 << 17  # elements: their conversions stay in cache, and Python is not what takes time
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = {
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


def is_float(dtype: np.dtype) -> bool:
    """Whether tensors of this dtype are merged; the others (integers, booleans) are copied."""
    return dtype in FLOATS.values()


class Files:
    """Open input files, shared by all threads."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._open[path]

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def read_at(descriptor: int, path: Path, offset: int, out: np.ndarray) -> None:
    """Fill `out`, contiguous, with a file's bytes from `offset` on. path: for the message."""
    view = out.view(np.uint8).data
    while len(view):
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise MergeError(f"{path}: became shorter while it was read")
        view, offset = view[count:], offset + count


def spans(size: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of a tensor's elements, whole rows of `multiple` each."""
    step = max(BLOCK // multiple, 1) * multiple
    for start in range(0, size, step):
        yield start, min(start + step, size)


class Stopped(Exception):
    """Another thread has failed, or the user has had enough."""


class Work:
    """What one thread works with: its buffers, the task at hand, and where the result goes.

    begin(task, sink): sink(start, block) takes the result, in the dtype of the output.
    """

    def __init__(self, files: Files, *, allow_nan: bool, stop: threading.Event | None = None):
        self._files = files
        self._stop = stop or threading.Event()
        self._allow_nan = allow_nan
        self._buffers: dict[Any, np.ndarray] = {}
        self.begin(None, lambda start, block: None)

    def begin(self, task: Task | None, sink: Callable[[int, np.ndarray], None]) -> None:
        self.task = task
        self._sink = sink
        # Of each tensor, by its id: its file, and up to where it is known to be finite.
        self._descriptors: dict[int, int] = {}
        self._checked: dict[int, int] = {}

    def buffer(self, name: Any, size: int, dtype: Any = np.float32) -> np.ndarray:
        """An array of this size, kept under its name for the next block; not cleared."""
        found = self._buffers.get((name, dtype))
        if found is None or found.size < size:
            found = np.empty(max(size, BLOCK), dtype)
            self._buffers[name, dtype] = found
        return found[:size]

    def read(self, name: Any, tensor: LazyTensor, start: int, stop: int) -> np.ndarray:
        """The tensor's elements start..stop in float32, in the buffer `name`.

        What a shorter tensor lacks is as in `task`'s base, and what that lacks the mean of the
        models that have it. MergeError for a NaN or an infinity, unless they are allowed.
        """
        if self._stop.is_set():
            raise Stopped
        out = self.buffer(name, stop - start)
        there = min(max(count(tensor.shape) - start, 0), out.size)
        if there:
            self._read(tensor, start, out[:there])
        if there < out.size:
            self._grow(start + there, out[there:])
        return out

    def _read(self, tensor: LazyTensor, start: int, out: np.ndarray) -> None:
        raw = out
        if tensor.dtype != out.dtype:
            raw = self.buffer("raw", out.size, tensor.dtype)
        self._read_raw(tensor, start, raw)
        if raw is not out:
            with np.errstate(over="ignore"):  # of float64: found below
                np.copyto(out, raw, casting="same_kind")
        self._check(tensor, start, out)

    def _grow(self, start: int, out: np.ndarray) -> None:
        assert self.task is not None
        base, models = self.task.base, [part.tensor for part in self.task.parts]
        ends = [count(x.shape) for x in ([base] if base else []) + models]
        stop = start + out.size
        while start < stop:
            until = min([stop, *(end for end in ends if end > start)])
            piece, out = out[: until - start], out[until - start :]
            if base and count(base.shape) > start:
                self._read(base, start, piece)
            else:
                having = [x for x in models if count(x.shape) > start]
                one = self.buffer("one", piece.size)
                piece.fill(0.0)
                for x in having:
                    self._read(x, start, one)
                    np.add(piece, one, out=piece)
                np.divide(piece, np.float32(len(having)), out=piece)
            start = until

    def read_as_it_is(self, tensor: LazyTensor, start: int, stop: int) -> np.ndarray:
        """The tensor's elements start..stop in its own dtype, checked as those of `read`."""
        out = self.buffer("copy", stop - start, tensor.dtype)
        self._read_raw(tensor, start, out)
        if is_float(tensor.dtype):
            self._check(tensor, start, out.astype(np.float32, copy=False))
        return out

    def _read_raw(self, tensor: LazyTensor, start: int, out: np.ndarray) -> None:
        assert tensor.place is not None, "inputs lie in safetensors files"
        path, offset = tensor.place
        descriptor = self._descriptors.get(id(tensor))
        if descriptor is None:
            descriptor = self._descriptors[id(tensor)] = self._files.descriptor(path)
        read_at(descriptor, path, offset + start * tensor.dtype.itemsize, out)

    def write(self, start: int, block: np.ndarray) -> None:
        """The task's result from element `start` on, cast to the dtype of the output."""
        assert self.task is not None
        dtype = self.task.dtype
        if block.dtype != dtype:
            cast = self.buffer("cast", block.size, dtype)
            with np.errstate(over="ignore"):
                np.copyto(cast, block, casting="same_kind")
            if dtype == np.float16 and not self._allow_nan and not np.isfinite(cast).all():
                raise MergeError(
                    f"{self.task.name}: is too large for float16; say dtype: bfloat16 or float32"
                )
            block = cast
        self._sink(start, block)

    def _check(self, tensor: LazyTensor, start: int, block: np.ndarray) -> None:
        known, stop = self._checked.get(id(tensor), 0), start + block.size
        if self._allow_nan or stop <= known:
            return
        if start <= known:
            self._checked[id(tensor)] = stop
        # The sum of squares of finite numbers is finite, unless they are huge.
        if np.isfinite(np.dot(block, block)):
            return
        bad = int(np.count_nonzero(~np.isfinite(block)))
        if bad:
            assert tensor.place is not None
            raise MergeError(
                f"{tensor.place.path}: {tensor.name} has NaN or infinite entries ({bad} in a block "
                f"of {block.size}); say allow_nan: true in the recipe to merge them all the same"
            )


def write_at(descriptor: int, offset: int, array: np.ndarray) -> None:
    """Write a contiguous array's bytes to a file; WriteFailed when that fails.

    The system is told to start bringing them to the disk, so that little is left to wait for when
    the file is synchronised.
    """
    view = array.view(np.uint8).data
    size, at = len(view), offset
    try:
        while len(view):
            count = os.pwrite(descriptor, view, at)
            view, at = view[count:], at + count
        if hasattr(os, "posix_fadvise"):
            # Linux starts to write what it is to forget, and does not forget what it has to write.
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise WriteFailed(f"the output cannot be written ({error.strerror})") from None
