"""A row's k likeliest tokens of a teacher, and what is left to the rest, as bytes.

A record holds the weighed positions of one row: of each the ids in ascending order, as gaps; for
each id a code, round(M sqrt(p / max p)) with M = 2**bits - 1; and the logarithm of the tail, the
mass of all other tokens, in float16. Read back, the k probabilities are in proportion to the
squares of their codes and sum to 1 - tail. One below max p / 4 M**2 reads 0.

Error. With p' for what is read and the tail as one more entry,

    sum |p - p'| <= sqrt(k - 1) / M + (k - 1) / 2 M**2 + 2**-11,

which is `error_bound`: 0.028 at k = 50 and 8 bits; a tenth of it is usual. By as much, in the same
norm, is the gradient of a forward KL for the logits off. Its value moves by at most
T log(n - 1) + h(T) + T s: T half that sum, n the entries, h the entropy of (T, 1 - T), s the spread
of log q over the entries (the entropy's part after Audenaert 2007, quant-ph/0610146).

Size. Equal bytes of all numbers lie together and are deflated. The gaps of k ids out of V need
about log2(e V / k) bits each, and get little more. Codes of a language model are mostly small and
get 5 to 6.5 of their 8 bits. Bytes a token at 8 bits, all included:

                                                            k = 50    k = 128
    SmolLM2-135M (V = 49152) on tiny Shakespeare             102.5      236.0
    random ids, p as rank**-1.5 and noise, V = 49152         113        253
    the same, V = 131072 (k = 50 at 6 bits: 110)             122        273

There the 8 bits cost a sum of |p - p'| of 0.004 and 0.005 on average, 0.007 and 0.010 at most.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

VERSION = 1  # of all that is said above
_SIZE = struct.Struct("<I")


class Layout(NamedTuple):
    """k tokens a position out of a vocabulary, 4 to 16 bits a code."""

    k: int
    vocabulary: int
    bits: int = 8

    def checked(self) -> "Layout":
        """Itself; ValueError names what is out of range."""
        if not 1 <= self.k <= self.vocabulary:
            raise ValueError(f"k: got {self.k}, takes 1 to the vocabulary's {self.vocabulary}")
        if not 4 <= self.bits <= 16:
            raise ValueError(f"bits: got {self.bits}, takes 4 to 16")
        return self


class Known(NamedTuple):
    """What is known of a teacher: of a row [T, ...], or of rows [B, T, ...].

    ids i32 [..., K]: those of a position differ. log_probs f32 [..., K]: of these tokens, in the
    whole vocabulary. log_tail f32 [...]: of the mass of all others; -inf where there is none.
    """

    ids: np.ndarray
    log_probs: np.ndarray
    log_tail: np.ndarray


def error_bound(layout: Layout) -> float:
    """The largest sum of |p - p'| over the k tokens and the tail that a record can have."""
    most = _most(layout)
    others = layout.k - 1
    return math.sqrt(others) / most + others / (2 * most**2) + 2.0**-11


def encode(layout: Layout, known: Known, weights: np.ndarray) -> bytes:
    """The record of a row; known [T, ...], weights [T]: 0 where nothing is kept.

    ValueError for ids that repeat or are not in the vocabulary, and for a position without a finite
    log-probability.
    """
    weighed = np.asarray(weights) != 0
    ids, log_probs, log_tail = (np.asarray(x)[weighed] for x in known)
    order = np.argsort(ids, -1)
    ids = np.take_along_axis(ids, order, -1).astype(np.int64)
    gaps = np.diff(ids, prepend=-1) - 1
    if ids.shape[1:] != (layout.k,) or (gaps < 0).any() or (ids >= layout.vocabulary).any():
        raise ValueError(f"ids: takes {layout.k} different ones, 0 to {layout.vocabulary - 1}")
    log_probs = np.take_along_axis(log_probs, order, -1).astype(np.float64)
    largest = log_probs.max(-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise ValueError("log_probs: got a position without a finite one")
    codes = np.rint(_most(layout) * np.exp((log_probs - largest) / 2))
    with np.errstate(over="ignore"):  # what is too small for float16 is no tail
        tail = log_tail.astype(np.float16).view(np.uint16)
    numbers = (np.packbits(weighed), tail, gaps, codes)
    return b"".join(map(_deflated, numbers, _widths(layout)))


def decode(layout: Layout, record: bytes, *, length: int) -> Known:
    """What `encode` was given, [T, ...] with T = length; ids ascend, zeros where nothing was kept.

    ValueError for bytes that are no record of this layout.
    """
    try:
        planes = _planes(record)
        mask, tail, gaps, codes = (_joined(planes, width) for width in _widths(layout))
        weighed = np.unpackbits(mask.astype(np.uint8), count=length).astype(bool)
        count = int(weighed.sum())
        gaps, codes = (x.reshape(count, layout.k) for x in (gaps, codes))
        log_tail = tail.astype(np.uint16).view(np.float16).reshape(count)
    except (StopIteration, RuntimeError, ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"record: not of {length} positions and k = {layout.k}") from error
    row = Known(
        np.zeros((length, layout.k), np.int32),
        np.zeros((length, layout.k), np.float32),
        np.zeros(length, np.float32),
    )
    row.ids[weighed] = np.cumsum(gaps + 1, -1) - 1
    squares = np.square(codes.astype(np.float64))
    held = -np.expm1(log_tail.astype(np.float64))[:, None]
    with np.errstate(divide="ignore"):
        row.log_probs[weighed] = np.log(squares * (held / squares.sum(-1, keepdims=True)))
    row.log_tail[weighed] = log_tail
    return row


def _most(layout: Layout) -> int:
    return 2**layout.bits - 1


def _widths(layout: Layout) -> tuple[int, ...]:
    """Bytes of a number of the mask, the tails, the gaps and the codes."""
    of_id = -(-(layout.vocabulary - 1).bit_length() // 8)
    return 1, 2, max(1, of_id), -(-layout.bits // 8)


def _deflated(numbers: np.ndarray, width: int) -> bytes:
    """The `width` low bytes of whole numbers, the first of all of them, the second of all, ..."""
    found = []
    for plane in numbers.astype("<u8").reshape(-1, 1).view(np.uint8)[:, :width].T:
        # Noise has no repetitions to look for, but those of a plane that is all but constant.
        packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
        data = packer.compress(plane.tobytes()) + packer.flush()
        found += [_SIZE.pack(len(data)), data]
    return b"".join(found)


def _planes(record: bytes) -> Iterator[np.ndarray]:
    start = 0
    while start < len(record):
        (size,) = _SIZE.unpack_from(record, start)
        start += _SIZE.size
        yield np.frombuffer(zlib.decompress(record[start : start + size]), np.uint8)
        start += size


def _joined(planes: Iterator[np.ndarray], width: int) -> np.ndarray:
    """The numbers of the next `width` planes, i64."""
    total = next(planes).astype(np.int64)
    for i in range(1, width):
        total |= next(planes).astype(np.int64) << 8 * i
    return total
