"""The order of records: a pure function of (seed, source, position), whatever the hosts.

Row r of the global batch at step t, of G rows, is position t * G + r. Epoch e of a source of N
records is positions e * N to (e + 1) * N - 1; batches run across epoch boundaries, so that no
record is dropped.
"""

import functools
import zlib
from collections.abc import Callable

import numpy as np

Draw = Callable[[int, str, int, np.ndarray], np.ndarray]


def order(seed: int, source: str, size: int, positions: np.ndarray) -> np.ndarray:
    """The record at each position when every epoch is a fresh permutation: i64, positions' shape.

    seed: 0 to 2**64 - 1. source: its name; two names give two unrelated orders. size: number of
    records. positions: non-negative integers.
    Memory: two epochs are kept for each (seed, source, size), 8 bytes a record and epoch; making
    one needs 16 bytes a record for a moment (10 million records: 0.16 GB kept).
    """
    return _draw(_permutation, seed, source, size, positions)


def uniform(seed: int, source: str, size: int, positions: np.ndarray) -> np.ndarray:
    """The record at each position when every position draws any record: with replacement.

    Arguments, result and memory as in `order`. For what is paired with something else, as the
    retain rows that TOFU draws anew for each forget row (arXiv 2401.06121).
    """
    return _draw(_integers, seed, source, size, positions)


def sequential(seed: int, source: str, size: int, positions: np.ndarray) -> np.ndarray:
    """The records in their own order, again and again: for one pass over rows that are padded.

    Arguments and result as in `order`; seed and source decide nothing.
    """
    return np.asarray(positions) % size


def fractions(seed: int, source: str, step: int, size: int) -> np.ndarray:
    """f64[size] of uniform draws from [0, 1), a pure function of (seed, source, step)."""
    # 53 bits: the finest grid of [0, 1) that a float64 holds evenly.
    return (_raw(seed, source, step, size) >> np.uint64(11)) * 2.0**-53


def _draw(epoch_of, seed, source, size, positions) -> np.ndarray:
    if size < 1:
        raise ValueError(f"size: got {size} records in {source!r}, takes at least 1")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed}, takes 0 to 2**64 - 1")
    positions = np.asarray(positions)
    if not positions.size:
        return np.zeros(positions.shape, np.int64)
    low, high = int(positions.min()), int(positions.max())
    if low < 0:
        raise ValueError(f"positions: got {low}, takes positions from 0")
    epoch = _epochs(epoch_of, seed, source, size)
    first, last = low // size, high // size
    if first == last:
        return epoch(first)[positions - first * size]
    epochs, offsets = np.divmod(positions, size)
    drawn = np.empty(positions.shape, np.int64)
    for e in range(first, last + 1):
        here = epochs == e
        drawn[here] = epoch(e)[offsets[here]]
    return drawn


@functools.cache
def _epochs(epoch_of, seed: int, source: str, size: int) -> Callable[[int], np.ndarray]:
    """The last two epochs of one source: a batch touches two at most unless it is huge."""
    return functools.lru_cache(maxsize=2)(functools.partial(epoch_of, seed, source, size))


def _raw(seed: int, source: str, epoch: int, size: int) -> np.ndarray:
    # Raw bits, not Generator.permutation: numpy promises the stream of a bit generator for ever,
    # and that of a Generator's methods only within a version.
    key = [seed, zlib.crc32(source.encode()) << 32 | epoch]
    return np.random.Philox(key=np.array(key, np.uint64)).random_raw(size)


def _permutation(seed: int, source: str, size: int, epoch: int) -> np.ndarray:
    return np.argsort(_raw(seed, source, epoch, size), kind="stable")


def _integers(seed: int, source: str, size: int, epoch: int) -> np.ndarray:
    # The 2**63 bits' remainder is uneven by size / 2**63: unmeasurable for any real source.
    return (_raw(seed, source, epoch, size) >> np.uint64(1)).astype(np.int64) % size
