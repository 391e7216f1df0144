"""PortLLM: the low-rank patch of an old model, put on its successor (arXiv 2410.10870).

A patch holds {path of a kernel: {"a": [..., in, r], "b": [..., r, out]}}, nested as the kernels
are; leading axes (stacked layers) are batched. It is a tree of `kd_jax.models.lora`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.merging._checks import check_floating, check_models
from kd_jax.merging.arithmetic import inner_product, task_vector
from kd_jax.types import PyTree


def port(base: PyTree, patch: PyTree, *, scale: Any) -> PyTree:
    """W + scale * a @ b for each kernel of the patch, and the other leaves of base as they are.

    base: the updated model, of the paths and shapes of the model that the patch was trained on.
    scale: LoRA's alpha / r; a number, or [L, 1, 1] for one a layer; may be traced, and the result
    is linear in it up to the rounding to base's dtypes. Sums are in float32. On the model that the
    patch was trained on this is `lora.merge(lora.attach(base, patch, alpha=alpha))`, bit for bit.
    ValueError naming the paths of a patch that does not fit.

    arXiv 2410.10870: theta' + dtheta, in place of the theta' + dtheta' of training again.
    """
    check_floating("base", base)
    check_floating("patch", patch)
    pairs = trees.flatten(patch)
    kernels = sorted({path.rpartition("/")[0] for path in pairs})
    found = trees.flatten(base)
    faults = [f"{path} is not in base" for path in kernels if path not in found]
    for path in (path for path in kernels if path in found):
        a, b = (jnp.shape(pairs.get(f"{path}/{part}", 0.0)) for part in "ab")
        shape = jnp.shape(found[path])
        if len(a) < 2 or a[-1:] != b[-2:-1] or (*a[:-1], b[-1]) != shape:
            faults.append(f"{path} is {a} @ {b}, base has {shape}")
    if faults or not kernels:
        raise ValueError(f"patch: does not fit base: {'; '.join(faults) or 'it is empty'}")

    def ported(path: str, leaf: jax.Array) -> jax.Array:
        if path not in kernels:
            return leaf
        a, b = (jnp.asarray(pairs[f"{path}/{part}"], jnp.float32) for part in "ab")
        change = jnp.matmul(a, scale * b, preferred_element_type=jnp.float32)
        return (jnp.asarray(leaf, jnp.float32) + change).astype(leaf.dtype)

    return trees.map_with_path(ported, base)


def residual_ratio(fresh: PyTree, ported: PyTree, updated: PyTree) -> jax.Array:
    """||fresh - ported||_F / ||fresh - updated||_F over all leaves together, f32 scalar.

    fresh: the updated model with a patch trained on it; ported: with the old patch; updated:
    without one. = ||dtheta' - dtheta|| / ||dtheta'||: 0 where the old patch is the new one, 1 for a
    patch of nothing, and above 1 where it leads away. Not finite where fresh is updated. The paper
    argues by ranks, which say nothing of size.
    """
    check_models([fresh, ported], updated)
    off, whole = task_vector(ported, fresh), task_vector(updated, fresh)
    return jnp.sqrt(inner_product(off, off) / inner_product(whole, whole))
