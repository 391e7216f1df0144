"""Batches made ahead of the loop by a thread, and put where they belong on the mesh."""

import functools
import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from kd_jax.launch.errors import UserError
from kd_jax.launch.sharding import batch_ways
from kd_jax.trees import map_with_path

Batches = Callable[[int, slice], Mapping[str, Any]]


def own_rows(sharding: NamedSharding, batch_size: int) -> tuple[slice, ...]:
    """The rows of the global batch that this process makes, as few pieces as there can be.

    On a pod the mesh follows the network, so that a process's rows need not be one piece.
    UserError when the batch does not divide over the mesh.
    """
    split = batch_ways(sharding.mesh)
    if batch_size % split:
        raise UserError(
            f"batch_size: got {batch_size}, takes a multiple of {split}, the ways in which "
            "--mesh.data, --mesh.fsdp and --mesh.expert split it"
        )
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    pieces: list[tuple[int, int]] = []
    for start, stop in sorted({where[0].indices(batch_size)[:2] for where in places if where}):
        if pieces and pieces[-1][1] == start:
            start = pieces.pop()[0]
        pieces.append((start, stop))
    return tuple(slice(*piece) for piece in pieces)


def place(
    make: Callable[[slice], Any], sharding: NamedSharding, batch_size: int, rows: tuple[slice, ...]
) -> Any:
    """Global arrays of make(piece), nested mappings of arrays, for each piece of `own_rows`.

    With one process, jax arrays pass as they are. ValueError names a leaf that has another number
    of rows.
    """
    parts = [make(piece) for piece in rows]
    for piece, part in zip(rows, parts, strict=True):
        map_with_path(functools.partial(_check, piece.stop - piece.start), part)
    if jax.process_count() == 1:
        (whole,) = parts
        return jax.tree.map(
            lambda x: x if isinstance(x, jax.Array) else jax.device_put(x, sharding), whole
        )

    def put(*leaves: Any) -> jax.Array:
        shape = (batch_size, *leaves[0].shape[1:])

        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            for piece, leaf in zip(rows, leaves, strict=True):
                if piece.start <= start and stop <= piece.stop:
                    return np.asarray(leaf)[start - piece.start : stop - piece.start]
            raise AssertionError(f"rows {start} to {stop} are none of {rows}")

        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(put, *parts)


def _check(rows: int, path: str, x: Any) -> None:
    if not isinstance(x, jax.Array) and np.shape(x)[:1] != (rows,):
        raise ValueError(f"batches: {path} has the shape {np.shape(x)}, takes {rows} rows")


class Prefetch:
    """The global batches batches(draw, rows) for draw in range(first, last), `depth` ahead.

    Arrays that `batches` returns may be read after it returns: it hands out its own or never
    writes them again. What it raises is raised by `next`. Use it as a context: leaving ends the
    thread.
    """

    def __init__(
        self,
        batches: Batches,
        sharding: NamedSharding,
        batch_size: int,
        *,
        first: int,
        last: int,
        depth: int = 2,
    ):
        rows = own_rows(sharding, batch_size)
        # Both queues are C: a handover costs a microsecond, queue.Queue's ten.
        self._free: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def work() -> None:
            try:
                for draw in range(first, last):
                    if not self._free.get():
                        return
                    make = functools.partial(batches, draw)
                    self._ready.put(place(make, sharding, batch_size, rows))
            except BaseException as error:  # it belongs to the loop, all of it
                self._ready.put(_Failure(error))

        for _ in range(depth):
            self._free.put(True)
        self._thread = threading.Thread(target=work, name="prefetch", daemon=True)

    def __next__(self) -> Any:
        batch = self._ready.get()
        if isinstance(batch, _Failure):
            raise batch.error
        self._free.put(True)
        return batch

    def __enter__(self) -> "Prefetch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The thread may have room for batches still; each is taken away before it is used.
        while self._thread.is_alive():
            _drain(self._free)
            self._free.put(False)
            self._thread.join(timeout=1.0)


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


def _drain(items: queue.SimpleQueue[bool]) -> None:
    try:
        while True:
            items.get_nowait()
    except queue.Empty:
        return
