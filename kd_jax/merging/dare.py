"""DARE: drop entries of task vectors at random and rescale the rest (arXiv 2311.03099)."""

from typing import Any

import jax

from kd_jax.merging.sparse import Rescale, by_probability, keep_at_random
from kd_jax.types import PyTree


def dare(vector: PyTree, key: jax.Array, *, drop: Any, rescale: Rescale = by_probability) -> PyTree:
    """The task vector with each entry dropped with probability `drop`, the rest rescaled.

    m ~ Bernoulli(1 - drop), result m tau / (1 - drop) in float32; its mean is tau and its variance
    tau**2 drop / (1 - drop). drop: a number in [0, 1), which may be traced (and is then not
    checked). rescale: `by_probability`, `by_realised_l1` (per leaf), `unscaled` or another such
    function; otherwise each entry is by itself. A NaN stays one, dropped or not.

    arXiv 2311.03099, section 3.
    """
    if isinstance(drop, int | float) and not 0.0 <= drop < 1.0:
        raise ValueError(f"drop: got {drop}, takes a number in [0, 1)")
    return keep_at_random(vector, key, lambda x: 1.0 - drop, rescale)
