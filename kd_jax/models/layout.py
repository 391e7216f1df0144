"""The two layouts of a decoder's layers: stacked for a scan, or one subtree a layer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def stack(params: Mapping[str, Any]) -> dict[str, Any]:
    """params with "layers" {"0": tree, "1": tree, ...} as one tree of leaves [L, ...].

    ValueError if the layers are not numbered 0 to L - 1 or differ in outline.
    """
    layers = params["layers"]
    names = [str(i) for i in range(len(layers))]
    if not names or set(layers) != set(names):
        raise ValueError(f"params: got layers {sorted(layers)}, takes '0', '1', ... without a gap")
    trees = [layers[name] for name in names]
    return {**params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)}


def unstack(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack`. ValueError if the leaves under "layers" differ in their L."""
    layers = params["layers"]
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(layers)}
    if len(lengths) != 1:
        raise ValueError(f"params: got layers of lengths {sorted(lengths)}, takes one length")
    (length,) = lengths
    trees = {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(length)}
    return {**params, "layers": trees}
