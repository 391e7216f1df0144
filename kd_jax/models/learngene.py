"""Vision transformers of any depth from few weights: a line through layers, or shared stages.

    config = ViTConfig(depth=8)
    genes = linear_genes(config, key)
    policy = lambda params, frozen: on_a_line(params["model"], config.depth)
    start = on_a_line(genes, 5)

The genes are trained through the policy, by distillation; what they start, of vit(ViTConfig(depth=
5)), is trained freely. Genes are {"shared": {"embed", "position", "final_norm", "head"}, ...}, of
which the shared weights are the same at every depth.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from kd_jax.models.vit import ViTConfig, vit
from kd_jax.types import PyTree

_BLOCK = "block_"


def linear_genes(config: ViTConfig, key: jax.Array, *, std: float = 0.02) -> PyTree:
    """{"shared", "base", "slope"}: the weights of a block at the start of the line, and its slope.

    Kernels of both are normal of standard deviation `std`, cut at two of them; base norms are
    (1, 0), slopes of norms and all biases 0. The shared weights are `vit`'s.
    """
    shared, blocks = _apart(vit(dataclasses.replace(config, depth=1)).init(key))

    def drawn(key: jax.Array, slope: bool) -> PyTree:
        leaves, tree = jax.tree.flatten(blocks[0])
        keys = jax.random.split(key, len(leaves))
        made = [
            std * jax.random.truncated_normal(k, -2.0, 2.0, x.shape, x.dtype)
            if x.ndim > 1
            else (jnp.zeros_like(x) if slope else x)
            for k, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, made)

    one, two = jax.random.split(jax.random.fold_in(key, 1))
    return {"shared": shared, "base": drawn(one, False), "slope": drawn(two, True)}


def on_a_line(genes: Mapping[str, PyTree], depth: int) -> PyTree:
    """Weights of a transformer of `depth` blocks: block l is base + (l / depth) slope, l from 0.

    The last block has (depth - 1) / depth of the slope. Works inside jit and has a gradient.
    Source: Xia et al. 2024 (TLEG), arXiv 2312.05614, by released code.
    """
    _positive(depth)

    def block(layer: int) -> PyTree:
        return jax.tree.map(lambda b, s: b + layer / depth * s, genes["base"], genes["slope"])

    return {**genes["shared"], **{f"{_BLOCK}{i}": block(i) for i in range(depth)}}


def stage_genes(config: ViTConfig, key: jax.Array, stages: int) -> PyTree:
    """{"shared", "stage_0", ...}: the weights of one block for each stage, as `vit` makes them."""
    _positive(stages)
    shared, blocks = _apart(vit(dataclasses.replace(config, depth=stages)).init(key))
    return {"shared": shared, **{f"stage_{i}": block for i, block in enumerate(blocks)}}


def in_stages(genes: Mapping[str, PyTree], repeats: Sequence[int]) -> PyTree:
    """Weights of a transformer that has the block of stage s repeats[s] times, in order.

    A trained auxiliary network ties them through a policy: its gradient is the sum of its layers'.
    A descendant of other repeats starts from them and is trained freely. A stage may be left out
    with 0. ValueError unless there is a number for each stage, and a block in all.
    Source: Xia et al. 2024 (SWS), arXiv 2404.16897, by released code (repeats 3, 3, 4, 3, 3).
    """
    stages = len(genes) - 1
    if len(repeats) != stages or min(repeats) < 0 or not sum(repeats):
        raise ValueError(
            f"repeats: got {tuple(repeats)}, takes a number for each of {stages} stages"
        )
    chosen = [stage for stage, count in enumerate(repeats) for _ in range(count)]
    blocks = {f"{_BLOCK}{i}": genes[f"stage_{stage}"] for i, stage in enumerate(chosen)}
    return {**genes["shared"], **blocks}


def _apart(params: Mapping[str, PyTree]) -> tuple[PyTree, list[PyTree]]:
    """What all depths share, and the blocks in order."""
    shared = {name: x for name, x in params.items() if not name.startswith(_BLOCK)}
    return shared, [params[f"{_BLOCK}{i}"] for i in range(len(params) - len(shared))]


def _positive(count: int) -> None:
    if count < 1:
        raise ValueError(f"depth, stages: got {count}, takes at least 1")
