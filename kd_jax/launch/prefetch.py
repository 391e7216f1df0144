"""Batches made ahead of the loop by a thread, and put where they belong on the mesh."""

import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from kd_jax.launch.errors import UserError
from kd_jax.trees import map_with_path

Batches = Callable[[int, slice], Mapping[str, Any]]


def own_rows(sharding: NamedSharding, batch_size: int) -> slice:
    """The rows of the global batch that this process makes.

    UserError when the batch does not divide over the mesh; ValueError when this process's rows
    are not one piece (a mesh with the processes interleaved).
    """
    ways = sharding.num_devices // sharding.mesh.shape["tensor"]
    if batch_size % ways:
        raise UserError(
            f"batch_size: got {batch_size}, takes a multiple of {ways}, the ways in which "
            "--mesh.data and --mesh.fsdp split it"
        )
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    pieces = sorted({where[0].indices(batch_size)[:2] for where in places if where})
    if any(end != start for (_, end), (start, _) in zip(pieces, pieces[1:], strict=False)):
        raise ValueError(f"mesh: this process has the rows {pieces}, takes one piece")
    return slice(pieces[0][0], pieces[-1][1])


def place(batch: Any, sharding: NamedSharding, batch_size: int, rows: slice) -> Any:
    """Global arrays from this process's rows; jax arrays pass as they are.

    ValueError names a leaf that has another number of rows.
    """

    def check(path: str, x: Any) -> None:
        if not isinstance(x, jax.Array) and np.shape(x)[:1] != (rows.stop - rows.start,):
            raise ValueError(
                f"batches: {path} has the shape {np.shape(x)}, takes {rows.stop - rows.start} rows"
            )

    map_with_path(check, batch)
    if jax.process_count() == 1:
        return jax.tree.map(
            lambda x: x if isinstance(x, jax.Array) else jax.device_put(x, sharding), batch
        )
    return jax.tree.map(
        lambda x: (
            x
            if isinstance(x, jax.Array)
            else jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:]))
        ),
        batch,
    )


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
                    self._ready.put(place(batches(draw, rows), sharding, batch_size, rows))
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
