"""A frozen residual perceptron with adapters behind its blocks, combined in several ways.

A combination is what `residual_mlp` does behind each block, with its weights in two parts: what is
trained, and the adapters, which are not. Leaves of adapters are [L, N, ...]: blocks, adapters.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.merging.scalearn import init_scales, of_places, scalearn
from kd_jax.models import bottleneck, residual_mlp
from kd_jax.models.residual_mlp import ResidualMLPConfig
from kd_jax.types import Model, PyTree


class Combination(NamedTuple):
    """How the outputs of N adapters become one.

    after: as of `residual_mlp`; a block's part is {"own": ..., "adapters": leaves [N, ...]}.
    init(key, L, N, D) -> own: what is trained besides the head.
    of_places(own, L) -> own with leaves [L, ...], where they are shared.
    """

    label: str
    after: residual_mlp.After
    init: Callable[[jax.Array, int, int, int], PyTree]
    of_places: Callable[[PyTree, int], PyTree] = lambda own, places: own


def _outputs(adapters: PyTree, x: jax.Array) -> jax.Array:
    """[B, N, D] of adapters with leaves [N, ...], without the residual x [B, D]."""
    return jax.vmap(bottleneck.bottleneck, (0, None), -2)(adapters, x)


def _scaled(part: PyTree, x: jax.Array, key: jax.Array | None, *, dropout: float) -> jax.Array:
    return scalearn(_outputs(part["adapters"], x), part["own"], x, dropout=dropout, key=key)


def _fused(part: PyTree, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """x + sum_n softmax_n(<q x, k_n>) v output_n: AdapterFusion, arXiv 2005.00247, equation 2."""
    outputs, own = _outputs(part["adapters"], x), part["own"]
    keys, values = outputs @ own["key"], outputs @ own["value"]
    scores = jnp.einsum("bd,bnd->bn", x @ own["query"], keys)
    return x + jnp.einsum("bn,bnd->bd", jax.nn.softmax(scores), values)


def _fusion_init(key: jax.Array, places: int, adapters: int, width: int) -> PyTree:
    """Queries and keys small, values the identity, as in the paper."""
    shape = (places, width, width)
    query, keys = (jax.random.normal(k, shape) / width for k in jax.random.split(key))
    return {"query": query, "key": keys, "value": jnp.broadcast_to(jnp.eye(width), shape)}


def _own_adapter(part: PyTree, x: jax.Array, key: jax.Array | None) -> jax.Array:
    return x + bottleneck.bottleneck(part["own"], x)


def single(adapter: int) -> Combination:
    """One new adapter of so many dimensions at each block; the others are not used."""

    def init(key: jax.Array, places: int, adapters: int, width: int) -> PyTree:
        one = functools.partial(bottleneck.init, width=width, size=adapter)
        return jax.vmap(one)(jax.random.split(key, places))

    return Combination("own adapter alone", _own_adapter, init)


def scaled(label: str, *, shared: bool, vector: bool, dropout: float) -> Combination:
    """ScaLearn in its four forms, which differ in the shape of omega alone."""

    def init(key: jax.Array, places: int, adapters: int, width: int) -> jax.Array:
        return init_scales(key, (1 if shared else places, adapters, width if vector else 1))

    return Combination(label, functools.partial(_scaled, dropout=dropout), init, of_places)


def average() -> Combination:
    """The mean of the adapters' outputs: nothing is trained but the head."""

    def after(part: PyTree, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return x + _outputs(part["adapters"], x).mean(-2)

    return Combination("average of outputs", after, lambda *_: {})


def fusion() -> Combination:
    return Combination("attention fusion", _fused, _fusion_init)


def model(config: ResidualMLPConfig, combination: Combination) -> Model:
    """The perceptron with the combination behind each block; weights as `assemble` makes them."""
    return residual_mlp.residual_mlp(config, combination.after)


def start(combination: Combination, config: ResidualMLPConfig, adapters: int, key: jax.Array):
    """What is trained, {"own": ..., "head": what is added to the pretrained head, 0 at first}."""
    head = {
        "kernel": jnp.zeros((config.width, config.classes)),
        "bias": jnp.zeros(config.classes),
    }
    return {"own": combination.init(key, config.depth, adapters, config.width), "head": head}


def assemble(combination: Combination, trunk: PyTree, adapters: PyTree, trained: PyTree) -> PyTree:
    """The weights of `model` from a frozen trunk, frozen adapters and what `start` makes."""
    places = jax.tree.leaves(trunk["blocks"])[0].shape[0]
    own = combination.of_places(trained["own"], places)
    head = jax.tree.map(jnp.add, trunk["head"], trained["head"])
    return {**trunk, "head": head, "after": {"own": own, "adapters": adapters}}


def stacked(adapters: Sequence[PyTree]) -> PyTree:
    """N adapters of leaves [L, ...] as one tree of leaves [L, N, ...]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *adapters)
