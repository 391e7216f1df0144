"""Low-rank adaptation (LoRA, arXiv 2106.09685) as functions on pytrees.

A LoRA tree holds {path of a kernel: {"a": [..., in, r], "b": [..., r, out]}}, nested as the
kernels are; leading axes (stacked layers) are batched.
"""

import math
import re
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models.parts import LowRank, fetched
from kd_jax.trees import PyTree, Rule, as_predicate, flatten, map_with_path, nest

LogicalRules = Sequence[tuple[str, tuple[str | None, ...]]]


def init(key: jax.Array, base: PyTree, targets: Rule, *, rank: int) -> PyTree:
    """The LoRA tree for the leaves of base whose path `targets` matches, in float32.

    a is uniform in +-1 / sqrt(in), as in Hugging Face's PEFT, and b is zero, so that `attach`
    changes nothing at first. A leaf depends on key and its path only. base may be abstract: only
    its shapes are read.

    targets: a pattern of whole paths, "layers/(attn|mlp)/.*/kernel", or a predicate over paths.
    ValueError if it selects nothing or a leaf of fewer than two axes, or if rank is not in
        1 to min(in, out).
    """
    chosen = {path: x for path, x in flatten(base).items() if as_predicate(targets)(path)}
    if not chosen:
        raise ValueError(f"targets: got {targets!r}, which matches no path of base")
    flat = {}
    for path, leaf in chosen.items():
        if len(leaf.shape) < 2:
            raise ValueError(f"targets: {path} has shape {leaf.shape}, takes [..., in, out]")
        *layers, fan_in, fan_out = leaf.shape
        if not 1 <= rank <= min(fan_in, fan_out):
            raise ValueError(f"rank: got {rank} for {path} {leaf.shape}, takes 1 to min(in, out)")
        path_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        bound = 1 / math.sqrt(fan_in)
        flat[f"{path}/a"] = jax.random.uniform(
            path_key, (*layers, fan_in, rank), jnp.float32, -bound, bound
        )
        flat[f"{path}/b"] = jnp.zeros((*layers, rank, fan_out), jnp.float32)
    return nest(flat)


def attach(base: PyTree, lora: PyTree, *, alpha: float) -> PyTree:
    """base with `LowRank(W, a, (alpha / r) b)` for each adapted kernel W, and the rest as it is.

    A model takes the result for weights: x @ W + (x @ a) @ b costs 2 r (in + out) a token more
    than x @ W, and a frozen W, which may be in host memory, has no gradient of its own size. Parts
    that need the kernel whole (embeddings, experts, convolutions, modules of other libraries)
    `merge` it on the way, and their backward pass then does make one. ValueError if lora does not
    fit base.
    """
    pairs = flatten(lora)
    stems = {path.rpartition("/")[0] for path in pairs}
    unknown = sorted(stems - set(flatten(base)))
    if unknown:
        raise ValueError(f"lora: got {', '.join(unknown)}, which base does not have")

    def adapted(path: str, leaf: jax.Array) -> jax.Array | LowRank:
        if path not in stems:
            return leaf
        a, b = pairs[f"{path}/a"], pairs[f"{path}/b"]
        shape = (*a.shape[:-1], b.shape[-1])
        if shape != leaf.shape or a.shape[-1] != b.shape[-2]:
            raise ValueError(f"lora: {path} is {a.shape} @ {b.shape}, base has {leaf.shape}")
        return LowRank(leaf, a, (alpha / a.shape[-1]) * b)

    return map_with_path(adapted, base)


def merge(tree: PyTree, *, dtype: jnp.dtype | type | None = None) -> PyTree:
    """The tree with W + a @ b in place of each `LowRank`: plain weights, to keep or to export.

    The sum is float32 and then has `dtype`, by default that of W: in 16 bits an update below W's
    resolution is lost, which `attach` keeps. It is on the device even where W is in host memory.
    A tree without `LowRank` comes back as it is.
    """

    def merged(x: Any) -> Any:
        if not isinstance(x, LowRank):
            return x
        product = jnp.matmul(x.a, x.b, preferred_element_type=jnp.float32)
        total = fetched(x.kernel).astype(jnp.float32) + product
        return total.astype(x.kernel.dtype if dtype is None else dtype)

    return jax.tree.map(merged, tree, is_leaf=lambda x: isinstance(x, LowRank))


def lora_rules(rules: LogicalRules, lora: PyTree) -> LogicalRules:
    """Logical axes of a LoRA tree from its base's rules: a has W's input axis, b its output axis.

    The rank's axis has no name. Only rules that match a leaf of lora (which may be abstract) are
    given back, as strict matching asks.
    """
    paths = flatten(lora)
    derived = []
    for pattern, axes in rules:
        if len(axes) >= 2:
            derived += [
                (f"(?:{pattern})/a", (*axes[:-1], None)),
                (f"(?:{pattern})/b", (*axes[:-2], None, axes[-1])),
            ]
    return tuple(r for r in derived if any(re.fullmatch(r[0], path) for path in paths))
