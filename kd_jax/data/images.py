"""Prepared image records -> the image batch's arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.data import pillow


def image_arrays(records: Sequence[Any]) -> dict[str, np.ndarray]:
    """inputs u8[N, H, W, C], targets i32[N], weights f32[N] of ones, index i32[N] 0 to N - 1.

    records: a prepared split with the features `image`, all of one size, and `label`; the bytes of
        image files are decoded to RGB.
    """
    rows = read_all(records)
    return {
        "inputs": np.stack([_decoded(row["image"]) for row in rows]),
        "targets": np.array([row["label"] for row in rows], np.int32),
        "weights": np.ones(len(rows), np.float32),
        "index": np.arange(len(rows), dtype=np.int32),
    }


def _decoded(image: Any) -> np.ndarray:
    return np.asarray(pillow.decode(image)) if isinstance(image, bytes) else image


def read_all(records: Sequence[Any]) -> list[Any]:
    """Every record, in order; in one request where the source knows how."""
    read_many = getattr(records, "__getitems__", None)
    return list(read_many(list(range(len(records)))) if read_many else records)
