"""Sources: `batches(step, rows) -> {name: array}`, pure functions of the step and the global rows.

`rows` is the slice of the global batch that this process makes: the concatenation over processes
is the same for any number of them. Leaves have a leading axis of the rows asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.data import arrays as arrays_lib
from kd_jax.data import order

Batch = dict[str, Any]
Source = Callable[[int, slice], Batch]
Mixture = Callable[[int, slice, Any], Batch]


def array_batches(
    arrays: arrays_lib.Arrays,
    *,
    seed: int,
    name: str,
    batch_size: int,
    draw: order.Draw = order.order,
) -> Source:
    """Batches of arrays that lie in memory, by fancy indexing: the fastest source.

    arrays: {name: [N, ...]}, possibly nested (chosen, rejected). `index` (record numbers) and
        `weights` (ones) are added to flat ones that lack them.
    seed, name: decide the order. batch_size: rows of the global batch.
    draw: `order.order` (an epoch is a permutation) or `order.uniform` (with replacement).
    """
    total = arrays_lib.size(arrays)
    arrays = arrays_lib.map_leaves(np.asarray, arrays)
    nested = any(isinstance(leaf, Mapping) for leaf in arrays.values())
    if not nested:
        arrays.setdefault("weights", np.ones(total, np.float32))
        arrays.setdefault("index", np.arange(total, dtype=np.int32))
    _check_batch_size(batch_size)

    def batches(step: int, rows: slice) -> Batch:
        records = draw(seed, name, total, _positions(step, rows, batch_size))
        return arrays_lib.take(arrays, records)

    return batches


def record_batches(
    records: Sequence[Any],
    transform: Callable[[Any], Any],
    collate: Callable[[list[Any]], Batch],
    *,
    seed: int,
    name: str,
    batch_size: int,
    draw: order.Draw = order.order,
) -> Source:
    """Batches of records that are read when they are needed.

    records: `len` and `[i]`, as a TFDS data source; its `__getitems__` is used where it has one
        (array_record reads a list of records on its own threads).
    transform: a record -> an example. collate: a list of examples -> a batch, a row an example.
        Both are pure. `index` of the batch becomes the records' numbers.
    """
    total = len(records)
    read_many = getattr(records, "__getitems__", None)
    _check_batch_size(batch_size)

    def batches(step: int, rows: slice) -> Batch:
        wanted = draw(seed, name, total, _positions(step, rows, batch_size))
        numbers = wanted.tolist()
        found = read_many(numbers) if read_many else [records[i] for i in numbers]
        batch = collate([transform(record) for record in found])
        return _numbered(batch, wanted.astype(np.int32))

    return batches


def abreast(sources: Sequence[Source]) -> Source:
    """The batches of several sources side by side, leaves [B, S, ...]: for `repeated` steps."""

    def batches(step: int, rows: slice) -> Batch:
        parts = [source(step, rows) for source in sources]
        return {name: np.stack([part[name] for part in parts], 1) for name in parts[0]}

    return batches


def mixture(
    sources: Sequence[Source], *, seed: int, batch_size: int, name: str = "mixture"
) -> Mixture:
    """`mixed(step, rows, weights) -> batch`: each row comes from one source, drawn by the weights.

    weights: [N] non-negative, not all zero, one for each source; they may change from step to step
        (domain weights that a method keeps in carry), and the rows are a pure function of
        (seed, name, step, weights). With weights that stay, `partial(mixed, weights=w)` is a
        source. Row r of step t is row r of step t of the source drawn for it, so a source's
        records are met in its own order with those of unchosen rows left out.
    The batch has `source` i32[B] besides: the number of the source of each row.
    """
    if not sources:
        raise ValueError("sources: got none, takes at least one")

    def mixed(step: int, rows: slice, weights: Any) -> Batch:
        weights = np.asarray(weights, np.float64)
        if weights.shape != (len(sources),):
            raise ValueError(f"weights: got shape {weights.shape}, takes ({len(sources)},)")
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError(f"weights: got {weights}, takes finite, non-negative, not all zero")
        in_batch = _rows(rows, batch_size)
        start = int(in_batch[0])
        points = order.fractions(seed, name, step, batch_size)[in_batch]
        ends = np.cumsum(weights)
        chosen = np.searchsorted(ends[:-1] / ends[-1], points, side="right").astype(np.int32)
        parts, where = [], []
        for i in np.unique(chosen):
            here = np.flatnonzero(chosen == i)
            first, last = int(here[0]), int(here[-1]) + 1
            part = sources[i](step, slice(start + first, start + last))
            parts.append(arrays_lib.take(part, here - first))
            where.append(here)
        batch = arrays_lib.take(
            arrays_lib.concatenate(parts), np.argsort(np.concatenate(where), kind="stable")
        )
        return {**batch, "source": chosen}

    return mixed


def prefetch(
    source: Source, *, rows: slice, start: int, steps: int, threads: int = 2, ahead: int = 4
) -> Iterator[Batch]:
    """The source's batches of steps start to steps - 1, made ahead on threads, in order.

    For sources that read or decode; grain keeps the order and the number in flight.
    """
    import grain  # imports JAX: only where it is used

    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    batches = grain.MapDataset.source(range(start, steps)).map(lambda step: source(step, rows))
    yield from batches.to_iter_dataset(read)


def _positions(step: int, rows: slice, batch_size: int) -> np.ndarray:
    return int(step) * batch_size + _rows(rows, batch_size)


def _rows(rows: slice, batch_size: int) -> np.ndarray:
    start, stop, stride = rows.indices(batch_size)
    if stride != 1 or stop <= start or (rows.stop is not None and rows.stop > batch_size):
        raise ValueError(f"rows: got {rows}, takes a non-empty slice of {batch_size} rows")
    return np.arange(start, stop)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, takes at least 1")


def _numbered(batch: Mapping[str, Any], index: np.ndarray) -> Batch:
    return {
        **{k: _numbered(v, index) if isinstance(v, Mapping) else v for k, v in batch.items()},
        **({} if all(isinstance(v, Mapping) for v in batch.values()) else {"index": index}),
    }
