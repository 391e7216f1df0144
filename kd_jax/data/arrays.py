"""Dicts of arrays with one leading axis, possibly nested: the shape of every batch.

`rows of a batch` are entries of the leading axis of every leaf.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]  # arrays [N, ...], or mappings of such mappings


def size(arrays: Arrays) -> int:
    """The length of the leading axis; ValueError where leaves disagree or there are none."""
    sizes = {path: np.shape(leaf)[:1] for path, leaf in _leaves(arrays)}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise ValueError(f"arrays: got leading axes {sizes}, takes one length for all")
    return next(iter(sizes.values()))[0]


def take(arrays: Arrays, rows: Any) -> dict[str, Any]:
    """The rows (indices, a mask or a slice) of every leaf."""
    return map_leaves(lambda leaf: leaf[rows], arrays)


def map_leaves(f: Callable[[np.ndarray], Any], arrays: Arrays) -> dict[str, Any]:
    """f of every leaf, in the same nesting."""
    return {k: map_leaves(f, v) if isinstance(v, Mapping) else f(v) for k, v in arrays.items()}


def concatenate(parts: Sequence[Arrays]) -> dict[str, Any]:
    """The rows of all parts, in order; the parts have the same nesting and shapes of rows."""
    return {
        k: concatenate([p[k] for p in parts])
        if isinstance(v, Mapping)
        else np.concatenate([p[k] for p in parts])
        for k, v in parts[0].items()
    }


def pad_rows(batch: Arrays, rows: int) -> dict[str, Any]:
    """The batch grown to `rows` rows: repeats of its first row with index -1 and weights 0.

    Repeating a real row keeps every model's arithmetic ordinary (no empty sequence); index and
    weights say that it does not count.
    """
    missing = rows - size(batch)
    if missing < 0:
        raise ValueError(f"rows: got {rows}, takes at least the batch's {size(batch)}")
    if not missing:
        return dict(batch)

    def pad(name: str, leaf: np.ndarray) -> np.ndarray:
        tail = np.repeat(leaf[:1], missing, axis=0)
        if name == "index":
            tail = np.full_like(tail, -1)
        elif name == "weights":
            tail = np.zeros_like(tail)
        return np.concatenate([leaf, tail])

    return {k: pad_rows(v, rows) if isinstance(v, Mapping) else pad(k, v) for k, v in batch.items()}


def _leaves(arrays: Arrays, prefix: str = ""):
    for key, value in arrays.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
