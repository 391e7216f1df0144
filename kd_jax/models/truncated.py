"""Some layers of a decoder as a model of their own, with its embedding, last norm and head.

So are students (DistilBERT, arXiv 1910.01108), ULD's assistants (arXiv 2406.08607) and early-exit
drafts made: no new parameters.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from kd_jax.models.config import DecoderConfig
from kd_jax.types import PyTree


def truncated_config(config: DecoderConfig, depth: int) -> DecoderConfig:
    """The config of `depth` of its layers. ValueError unless depth is 1 to config.depth."""
    if not 1 <= depth <= config.depth:
        raise ValueError(f"depth: got {depth}, takes 1 to {config.depth}")
    return dataclasses.replace(config, depth=depth)


def truncated(config: DecoderConfig, params: PyTree, depth: int) -> PyTree:
    """The weights of the first `depth` layers of a model of `config`, in either layout.

    Works on arrays, also inside jit; the result has the shapes of
    `decoder(truncated_config(config, depth))`. Copies are made of the stacked layers only.
    """
    truncated_config(config, depth)  # refuses a depth that is not there
    return selected(config, params, range(depth))


def selected(config: DecoderConfig, params: PyTree, layers: Sequence[int]) -> PyTree:
    """The weights of these layers, in their order, as `truncated`.

    ValueError for none, for one that is not there, and for an order that is not that of the model.
    """
    wanted = list(layers)
    if (
        not wanted
        or wanted != sorted(set(wanted))
        or not 0 <= wanted[0] <= wanted[-1] < config.depth
    ):
        said = " ".join(map(str, wanted)) or "none"
        raise ValueError(f"layers: got {said}, takes some of 0 to {config.depth - 1}, in order")
    kept = (
        jax.tree.map(lambda x: x[np.array(wanted)], params["layers"])
        if config.scan
        else {str(i): params["layers"][str(layer)] for i, layer in enumerate(wanted)}
    )
    return {**params, "layers": kept}


def spread(config: DecoderConfig, depth: int) -> tuple[int, ...]:
    """`depth` of the layers, evenly spread, with the first, and the last where depth is above 1."""
    truncated_config(config, depth)
    places = np.linspace(0, config.depth - 1, depth)
    return tuple(int(i) for i in np.round(places))
