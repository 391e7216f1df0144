"""A batch of 64 digits: the in-memory source against bare NumPy indexing; the limit is 100 µs."""

import itertools
import tempfile

import numpy as np

from benchmarks import Row, microseconds
from kd_jax.data import images, prepare, sources
from kd_jax.data.builders.digits import Digits

ROWS = 64


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        arrays = images.image_arrays(prepare.load(Digits, data_dir=folder)["train"])
    source = sources.array_batches(arrays, seed=0, name="train", batch_size=ROWS)
    order = np.random.default_rng(0).permutation(len(arrays["index"]))
    steps, again = itertools.count(), itertools.count()

    def ours():
        return source(next(steps), slice(0, ROWS))

    def by_hand():
        start = next(again) * ROWS % (len(order) - ROWS)
        chosen = order[start : start + ROWS]
        return {name: array[chosen] for name, array in arrays.items()}

    return [Row("data: 64 digits a batch", *microseconds(ours, by_hand, calls=2000))]
