"""The shapes of global batches, as ShapeDtypeStructs: what a training says of them, and a plan."""

from collections.abc import Sequence

import jax
import numpy as np


def text(rows: int, length: int, extra: Sequence[str] = ()) -> dict[str, jax.ShapeDtypeStruct]:
    """A text batch of `collate`, [rows, length], with `extra` float32 entries for each row."""
    of = jax.ShapeDtypeStruct
    return {
        "inputs": of((rows, length), np.int32),
        "targets": of((rows, length), np.int32),
        "weights": of((rows, length), np.float32),
        "index": of((rows,), np.int32),
    } | {name: of((rows,), np.float32) for name in extra}


def images(rows: int, side: int, channels: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of square images with labels, bytes [rows, side, side, channels]."""
    of = jax.ShapeDtypeStruct
    return {
        "inputs": of((rows, side, side, channels), np.uint8),
        "targets": of((rows,), np.int32),
        "weights": of((rows,), np.float32),
        "index": of((rows,), np.int32),
    }
