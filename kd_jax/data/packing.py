"""Packing: several examples in a row, kept apart by segment ids."""

from collections.abc import Sequence

import numpy as np

from kd_jax.data import collate


def pack(
    examples: Sequence[collate.Example], *, length: int, eos_id: int | None, pad_id: int = 0
) -> dict[str, np.ndarray]:
    """A text batch with `segments` and `positions` i32[B, T] besides, examples packed first-fit.

    Each example goes, in order, into the first row with room for it: first-fit fills the rows to
    more than half on average, usually to 95 %. segments is 1, 2, ... along a row and 0 on
    padding; positions restart at 0 in every segment. An example's last input predicts its own last
    token, so no target crosses a boundary; a model that reads `segments` must not attend across
    them either. Cutting, labels, weights and errors as in `collate.collate_qa`.
    `members` i32[B, T] is the number of the example at each place, -1 on padding; index is the
    row's number.
    """
    collate.check_ids(length, eos_id, pad_id)
    cut = [collate.shifted(e, i, length=length, eos_id=eos_id) for i, e in enumerate(examples)]
    starts, n_rows = first_fit([len(tokens) - 1 for tokens, _ in cut], length)
    shape = (n_rows, length)
    inputs, targets = (np.full(shape, pad_id, np.int32) for _ in range(2))
    segments, positions = (np.zeros(shape, np.int32) for _ in range(2))
    members, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    used = np.zeros(n_rows, np.int32)
    for i, ((tokens, first), (row, start)) in enumerate(zip(cut, starts, strict=True)):
        n = len(tokens) - 1
        here = slice(start, start + n)
        used[row] += 1
        inputs[row, here] = tokens[:-1]
        targets[row, here] = tokens[1:]
        weights[row, start + first : start + n] = 1
        segments[row, here] = used[row]
        positions[row, here] = np.arange(n)
        members[row, here] = i
    return {
        "inputs": inputs,
        "targets": targets,
        "weights": weights,
        "index": np.arange(n_rows, dtype=np.int32),
        "segments": segments,
        "positions": positions,
        "members": members,
    }


def first_fit(sizes: Sequence[int], length: int) -> tuple[list[tuple[int, int]], int]:
    """([(row, start) of each item], number of rows); sizes are 1 to length."""
    free = np.zeros(len(sizes), np.int64) + length
    rows, placed = 0, []
    for n in sizes:
        row = int(np.argmax(free[: rows + 1] >= n))
        rows = max(rows, row + 1)
        placed.append((row, length - int(free[row])))
        free[row] -= n
    return placed, rows
