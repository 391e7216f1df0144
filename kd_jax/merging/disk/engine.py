"""Threads that each merge a tensor at a time and write it where it belongs.

While one thread waits for a file the others compute, and what is written goes to disk behind their
backs; on files that are in memory already, all compute.
"""

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.formats.tensors import LazyTensor
from kd_jax.merging.disk.blocks import Files, Work, write_at
from kd_jax.merging.disk.errors import WriteFailed
from kd_jax.merging.disk.shards import Shard
from kd_jax.merging.disk.task import Task


class Job(NamedTuple):
    """Something to do, and the tensors that it reads."""

    run: Callable[[Work], None]
    reads: Sequence[LazyTensor] = ()


def run_jobs(jobs: Sequence[Job], threads: int, *, allow_nan: bool) -> None:
    """All jobs, by several threads, started in order; the first error is raised.

    After an error, or Ctrl-C, the others end with the block they are at.
    """
    waiting = iter(range(len(jobs)))
    lock = threading.Lock()
    stop = threading.Event()
    errors: list[BaseException] = []

    def work(files: Files) -> None:
        mine = Work(files, allow_nan=allow_nan, stop=stop)
        try:
            while True:
                with lock:
                    i = next(waiting, None)
                if i is None or stop.is_set():
                    return
                if i + threads < len(jobs):
                    _ask_for(jobs[i + threads].reads)
                jobs[i].run(mine)
        except BaseException as error:  # whatever it is, it is raised in the main thread
            errors.append(error)
            stop.set()

    with Files() as files:
        crew = [threading.Thread(target=work, args=(files,)) for _ in range(threads)]
        try:
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join()
        finally:
            stop.set()
            for thread in crew:
                thread.join()
    if errors:
        raise errors[0]


def _ask_for(tensors: Sequence[LazyTensor]) -> None:
    """Has the system read tensors ahead, where it can."""
    if not hasattr(os, "posix_fadvise"):
        return
    for tensor in tensors:
        if tensor.place is not None:
            descriptor = os.open(tensor.place.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                place = tensor.place
                os.posix_fadvise(descriptor, place.offset, tensor.nbytes, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)


class Writer:
    """One shard that is being written; it appears under its name when its last tensor is there."""

    def __init__(self, folder: Path, shard: Shard):
        self._path = folder / shard.name
        self._part = folder / f".{shard.name}.part"
        self._shard = shard
        self._lock = threading.Lock()
        self._left = len(shard.tasks)
        self._descriptor: int | None = None

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                try:
                    self._descriptor = os.open(self._part, flags, 0o666)
                    os.truncate(self._descriptor, self._shard.nbytes)
                except OSError as error:
                    raise WriteFailed(
                        f"{self._part}: cannot be written ({error.strerror})"
                    ) from None
                write_at(self._descriptor, 0, np.frombuffer(self._shard.head, np.uint8))
            return self._descriptor

    def jobs(self, progress: Callable[[int], None]) -> list[Job]:
        """What is to be done for this shard, the largest tensors first."""
        pairs = zip(self._shard.tasks, self._shard.offsets, strict=True)
        return [
            Job(partial(self._do, task, offset, progress), task.inputs)
            for task, offset in sorted(pairs, key=lambda pair: -pair[0].size)
        ]

    def _do(self, task: Task, offset: int, progress: Callable[[int], None], work: Work) -> None:
        descriptor = self._open()
        share = traffic(task) / max(task.size, 1)

        def sink(start: int, block: np.ndarray) -> None:
            write_at(descriptor, offset + start * task.dtype.itemsize, block)
            progress(round(block.size * share))

        work.begin(task, sink)
        task.merge(task, work)
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._finish(descriptor)

    def _finish(self, descriptor: int) -> None:
        try:
            os.fsync(descriptor)
            self._part.rename(self._path)
        except OSError as error:
            raise WriteFailed(f"{self._path}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        """Drops what is not finished."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._part.unlink(missing_ok=True)


def traffic(task: Task) -> int:
    """Bytes read, each once, and written."""
    return sum(tensor.nbytes for tensor in task.inputs) + task.nbytes
