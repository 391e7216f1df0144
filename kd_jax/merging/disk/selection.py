"""The k-th largest of numbers that come in blocks, exactly, holding few of them and sorting none.

Magnitudes are compared as the bits of their float32 with the sign cleared, which have the same
order. A pass over the blocks narrows an interval of bits down to one value: from a sample it is
known between which values the k-th largest probably is; what lies there is collected and the rest
counted. Where the sample misled, or too much lies there, a pass counts by histogram instead, 65536
intervals at a time.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAGNITUDE = np.uint32(0x7FFF_FFFF)  # all bits of a float32 but its sign
_BINS = 1 << 16
_SMALL = 1 << 18  # so many numbers are collected whatever their share
_ERRORS = 5  # standard errors of the sample, on either side of the rank, that are collected
_MARGIN = 0.02  # but no more of all numbers than this


class Cut(NamedTuple):
    """The k largest are those over `bits` and the first `ties` that are equal to it.

    all_ties: every number equal to it is among the k largest.
    """

    bits: int
    ties: int
    all_ties: bool


class Selection:
    """Finds the k-th largest of `size` magnitudes, 1 <= k <= size.

    sample: some of the magnitudes, to start from, [places, n]: n numbers that lie together are
    alike, and how much the places differ tells how far to trust it. None where there are few.
    Feed every block, then `finish`; until `cut` is set, feed all of them again. Threads may feed at
    the same time.
    """

    def __init__(self, size: int, k: int, sample: np.ndarray | None = None):
        self.cut: Cut | None = None
        self._k = k
        self._limit = max(_SMALL, size // 16)
        self._lock = threading.Lock()
        low, high = 0, int(MAGNITUDE)
        if sample is not None and len(sample):
            low, high = _bracket(sample, k / size)
        self._start(low, high, collect=sample is not None or size <= self._limit)

    def _start(self, low: int, high: int, *, collect: bool) -> None:
        self._low, self._high = np.uint32(low), np.uint32(high)
        self._above = 0  # numbers over the interval
        self._inside = 0
        self._collected: list[np.ndarray] | None = [] if collect else None
        self._shift = max((high - low).bit_length() - 16, 0)
        self._counts = np.zeros(_BINS, np.int64)

    def feed(self, bits: np.ndarray) -> None:
        """bits: uint32, the magnitudes of a block."""
        inside = bits >= self._low
        over = 0
        if self._high != MAGNITUDE:
            above = bits > self._high
            over = int(np.count_nonzero(above))
            inside ^= above  # what is above is not under
        # Where few are taken, faster than an index: no branch for each number.
        found = np.compress(inside, bits)
        if self._collected is None:
            counts = np.bincount((found - self._low) >> np.uint32(self._shift), minlength=_BINS)
        with self._lock:
            self._above += over
            self._inside += len(found)
            if self._collected is None:
                self._counts += counts
            elif self._inside <= self._limit:
                self._collected.append(found)

    def finish(self) -> None:
        """To be called after each pass."""
        rank = self._k - self._above  # in the interval, from its largest on
        if not 1 <= rank <= self._inside:  # the sample misled
            self._start(0, int(MAGNITUDE), collect=False)
        elif self._collected is None:
            self._narrow(rank)
        elif self._inside > self._limit:
            self._start(int(self._low), int(self._high), collect=False)
        else:
            found = np.concatenate(self._collected)
            self._collected = None
            found.partition(len(found) - rank)
            value = found[len(found) - rank]
            over = int(np.count_nonzero(found > value))
            self._found(int(value), rank - over, int(np.count_nonzero(found == value)))

    def _narrow(self, rank: int) -> None:
        """To the bin in which the rank is."""
        from_top = np.cumsum(self._counts[::-1])
        i = int(np.searchsorted(from_top, rank))
        over = int(from_top[i - 1]) if i else 0
        bin_ = _BINS - 1 - i
        low = int(self._low) + (bin_ << self._shift)
        high = low + (1 << self._shift) - 1
        inside = int(self._counts[bin_])
        if self._shift == 0:
            self._found(low, rank - over, inside)
        else:
            self._start(low, high, collect=inside <= self._limit)

    def _found(self, bits: int, ties: int, equal: int) -> None:
        self.cut = Cut(bits, ties, ties == equal)


def _bracket(sample: np.ndarray, share: float) -> tuple[int, int]:
    """Bits between which the number is that a share of all reaches, going by a sample."""
    flat = sample.ravel()
    last = len(flat) - 1

    def place(share: float) -> int:
        return min(max(round((1.0 - share) * last), 0), last)

    def value(place: int) -> int:
        return int(np.partition(flat, place)[place])  # two at once would take far longer

    error = float((sample > value(place(share))).mean(1).std()) / len(sample) ** 0.5
    margin = min(_ERRORS * error + 1.0 / len(flat), _MARGIN)
    lower, upper = place(share + margin), place(share - margin)
    return value(lower) if lower > 0 else 0, value(upper) if upper < last else int(MAGNITUDE)


class Largest:
    """Tells block after block, in order, which entries are among the k largest."""

    def __init__(self, cut: Cut):
        self._bits = np.uint32(cut.bits)
        self._left = None if cut.all_ties else cut.ties

    def mask(self, bits: np.ndarray, out: np.ndarray) -> np.ndarray:
        """bits: uint32 magnitudes of the next block; out: booleans, written and returned."""
        if self._left == 0:
            return np.greater(bits, self._bits, out=out)
        np.greater_equal(bits, self._bits, out=out)
        if self._left is not None:
            equal = np.flatnonzero(bits == self._bits)
            out[equal[self._left :]] = False
            self._left = max(self._left - len(equal), 0)
        return out


def cut_of(blocks: Sequence[np.ndarray], k: int) -> Cut:
    """The cut of magnitudes (uint32) that are all at hand."""
    selection = Selection(sum(map(len, blocks)), k)
    while selection.cut is None:
        for block in blocks:
            selection.feed(block)
        selection.finish()
    return selection.cut
