"""Low-rank adaptation (LoRA, arXiv 2106.09685) as functions on pytrees.

A LoRA tree holds {path of a kernel: {"a": [..., in, r], "b": [..., r, out]}}, nested as the
kernels are; leading axes (stacked layers) are batched.
"""

import math
import re
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax.models.parts import fetched
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


def attach(
    base: PyTree, lora: PyTree, *, alpha: float, dtype: jnp.dtype | type | None = None
) -> PyTree:
    """base with W + (alpha / r) a @ b in place of each adapted kernel W; other leaves as they are.

    The sum is float32 and then has `dtype`, by default that of W. The merged kernels exist while
    the result is used, on the device even where W is in host memory; their cost is in * out * r
    products a kernel. Gradients reach a and b, and W where it is differentiated. ValueError if
    lora does not fit base.
    """
    pairs = flatten(lora)
    stems = {path.rpartition("/")[0] for path in pairs}
    unknown = sorted(stems - set(flatten(base)))
    if unknown:
        raise ValueError(f"lora: got {', '.join(unknown)}, which base does not have")

    def merged(path: str, leaf: jax.Array) -> jax.Array:
        if path not in stems:
            return leaf
        a, b = pairs[f"{path}/a"], pairs[f"{path}/b"]
        shape = (*a.shape[:-1], b.shape[-1])
        if shape != leaf.shape or a.shape[-1] != b.shape[-2]:
            raise ValueError(f"lora: {path} is {a.shape} @ {b.shape}, base has {leaf.shape}")
        product = jnp.matmul(a, b, preferred_element_type=jnp.float32)
        total = fetched(leaf).astype(jnp.float32) + (alpha / a.shape[-1]) * product
        return total.astype(leaf.dtype if dtype is None else dtype)

    return map_with_path(merged, base)


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
