"""Ancestors whose blocks are made of few weights, and descendants of other depths from them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.distillation.common.classifiers import classifier
from kd_jax import trees
from kd_jax.launch import stages, weights
from kd_jax.launch.sharding import shardings_of
from kd_jax.models.learngene import in_stages, linear_genes, on_a_line, stage_genes
from kd_jax.models.vit import ViTConfig
from kd_jax.types import Model, PyTree


class Genes(NamedTuple):
    """init(key) -> genes; expand(genes, depth) -> the weights of a network of so many blocks."""

    init: Callable[[jax.Array], PyTree]
    expand: Callable[[PyTree, int], PyTree]


def line(sizes: ViTConfig) -> Genes:
    """TLEG. Drawn as wide as other kernels are: 0.02, as released, is for wider networks."""
    return Genes(lambda key: linear_genes(sizes, key, std=sizes.width**-0.5), on_a_line)


def shared(sizes: ViTConfig, count: int) -> Genes:
    """SWS with so many stages, as even as they can be, the earlier ones longer; 1: one block."""
    return Genes(
        lambda key: stage_genes(sizes, key, count),
        lambda genes, depth: in_stages(genes, even(depth, count)),
    )


def even(depth: int, count: int) -> tuple[int, ...]:
    """How often each of `count` stages is repeated: 7 blocks of 3 stages are (3, 2, 2)."""
    each, more = divmod(depth, count)
    return tuple(each + (i < more) for i in range(count))


def shuffled(genes: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The genes of stages in another order: each moves up by one, the first to the end."""
    count = len(genes) - 1
    moved = {f"stage_{i}": genes[f"stage_{(i + 1) % count}"] for i in range(count)}
    return {"shared": genes["shared"], **moved}


def deep(sizes: ViTConfig, depth: int) -> ViTConfig:
    return dataclasses.replace(sizes, depth=depth)


def network(sizes: ViTConfig) -> Model:
    return classifier(sizes, 1)


def ancestor(sizes: ViTConfig, genes: Genes) -> Model:
    """The network of these sizes as a function of its genes, which are its parameters."""
    model = network(sizes)

    def apply(params, inputs, **how):
        return model.apply(genes.expand(params, sizes.depth), inputs, **how)

    return Model(genes.init, apply, model.state)


def derived(source: weights.Weights, f: Callable[[PyTree], PyTree]) -> weights.Weights:
    """f of weights, all of them on every device."""

    def make(placed: PyTree) -> PyTree:
        mesh = stages.mesh_of(placed)
        found = stages.materialise(source, mesh)
        return jax.jit(f, out_shardings=shardings_of(placed))(found)

    return weights.Weights(jax.eval_shape(f, source.abstract), make)


def size(init: Callable[[jax.Array], PyTree]) -> int:
    """How many numbers init(key) makes."""
    return trees.size(jax.eval_shape(init, jax.random.key(0)))


def blocks(params: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
    """{kernel of a block: [L, in, out]} of a network's weights."""
    own = [params[f"block_{i}"] for i in range(sum(name.startswith("block_") for name in params))]
    flat = [trees.flatten(block) for block in own]
    return {p: np.stack([x[p] for x in flat]) for p in flat[0] if p.endswith("kernel")}


def line_r2(layers: Sequence[np.ndarray]) -> float:
    """R^2 of a line through each weight as a function of its layer: of arrays [L, ...], over all.

    1 - (squares that lines leave) / (squares about means), least squares; 1 / (L - 1) is expected
    of layers drawn independently, 1 of layers on a line. NaN where all layers are alike.
    """
    x = np.concatenate([np.asarray(one, np.float64).reshape(len(one), -1) for one in layers], 1)
    at = np.arange(len(x)) - (len(x) - 1) / 2
    x = x - x.mean(0)
    total = np.square(x).sum()
    explained = np.square(at @ x).sum() / np.square(at).sum()
    return float(explained / total) if total else float("nan")
