"""The first layers of a decoder as a model of their own, with its embedding, last norm and head.

So are ULD's assistants (arXiv 2406.08607) and early-exit drafts made: no new parameters.
"""

import dataclasses

import jax

from kd_jax.models.config import DecoderConfig
from kd_jax.types import PyTree


def truncated_config(config: DecoderConfig, depth: int) -> DecoderConfig:
    """The config of the first `depth` layers. ValueError unless depth is 1 to config.depth."""
    if not 1 <= depth <= config.depth:
        raise ValueError(f"depth: got {depth}, takes 1 to {config.depth}")
    return dataclasses.replace(config, depth=depth)


def truncated(config: DecoderConfig, params: PyTree, depth: int) -> PyTree:
    """The weights of the first `depth` layers of a model of `config`, in either layout.

    Works on arrays, also inside jit; the result has the shapes of
    `decoder(truncated_config(config, depth))`. Copies are made of the stacked layers only.
    """
    truncated_config(config, depth)  # refuses a depth that is not there
    layers = params["layers"]
    kept = (
        jax.tree.map(lambda x: x[:depth], layers)
        if config.scan
        else {str(i): layers[str(i)] for i in range(depth)}
    )
    return {**params, "layers": kept}
