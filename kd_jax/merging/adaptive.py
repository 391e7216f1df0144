"""Task vectors with a coefficient for each model and leaf, to be learned (arXiv 2310.02575)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.merging._checks import check_floating, check_models
from kd_jax.types import PyTree


def layerwise_scales(base: PyTree, models: int, value: float = 0.3) -> PyTree:
    """A tree of the base's paths with f32 [N] leaves, all `value`: where learning starts from."""
    check_floating("base", base)
    return jax.tree.map(lambda _: jnp.full((models,), value, jnp.float32), base)


def add_layerwise(base: PyTree, vectors: Sequence[PyTree], scales: PyTree) -> PyTree:
    """base[l] + sum_n scales[l][n] tau_n[l] for each leaf l, in the dtypes of the base.

    vectors: N task vectors like the base. scales: a tree of the base's paths with leaves [N], or
    [N, ...] with leading axes of the leaf, such as [N, L] for L stacked layers. Differentiable in
    the scales: d loss / d scales[l][n] = <d loss / d theta[l], tau_n[l]>. Equal scales give
    `add_task_vectors`.

    As an objective's policy it is AdaMerging: params["model"] are the scales and
        policy = lambda params, frozen: add_layerwise(
            frozen["base"], frozen["vectors"], params["model"])
    of `objectives.adaptive.minimise_entropy`; task by task with `add_task_vectors`.

    Yang et al. 2024, AdaMerging (arXiv 2310.02575), equation 6.
    """
    check_models(vectors, base, "vectors")
    ours, theirs = trees.paths(scales), trees.paths(base)
    if ours != theirs:
        apart = ", ".join(sorted(set(ours) ^ set(theirs)))
        raise ValueError(f"scales: takes one leaf a leaf of the base; they differ in {apart}")

    def add(path: str, theta0: jax.Array, scale: jax.Array, *taus: jax.Array) -> jax.Array:
        scale = jnp.asarray(scale, jnp.float32)
        lead = scale.shape[1:]
        if scale.shape[:1] != (len(taus),) or lead != theta0.shape[: len(lead)]:
            raise ValueError(
                f"scales: {path} is {scale.shape}, takes ({len(taus)},) and leading axes of "
                f"{theta0.shape}"
            )
        each = scale.reshape(scale.shape + (1,) * (theta0.ndim - len(lead)))
        total = sum(each[n] * jnp.asarray(tau, jnp.float32) for n, tau in enumerate(taus))
        return (jnp.asarray(theta0, jnp.float32) + total).astype(theta0.dtype)

    return trees.map_with_path(add, base, scales, *vectors)
