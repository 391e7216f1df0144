"""Scores of weights, one for each: trees of float32 arrays like the parameters.

All are at least 0, and only their order matters to `masks.top_mask`, which ranks all weights of a
model together: a module with larger weights or gradients (norms, biases) ranks higher.
"""

import jax
import jax.numpy as jnp

from kd_jax.trees import check_same
from kd_jax.types import PyTree


def saliency(gradient: PyTree) -> PyTree:
    """|g|: how fast the loss of the data changes with each weight.

    gradient: the sum over batches of the forget set's gradient of the mean loss, at the weights
    before unlearning; its sign does not matter. SalUn (Fan et al. 2024, arXiv 2310.12508) lets
    the half of all weights with the largest move; checked against the released code.
    """
    return jax.tree.map(lambda g: jnp.abs(_f32(g)), gradient)


def wagle(params: PyTree, forget: PyTree, retain: PyTree, *, gamma: float) -> PyTree:
    """|(theta - g_r / gamma) g_f|: what removing a weight does to forgetting, retaining considered.

    forget, retain: sums over the batches of one pass of the gradients g_f and g_r of the mean loss
    of a token, both at theta, of the shapes of params. gamma > 0 stands for the diagonal of the
    retain loss's Hessian. As gamma grows the score becomes |theta g_f| (SNIP's); the released
    configurations have 1e-6, so that g_r decides. It is not free of scale: more retain batches
    make g_r larger. Jia et al. 2024, arXiv 2410.17509; checked against the released code.
    """
    if not gamma > 0:
        raise ValueError(f"gamma: got {gamma}, takes a number above 0")
    check_same("forget", forget, "params", params)
    check_same("retain", retain, "params", params)
    return jax.tree.map(
        lambda x, f, r: jnp.abs((_f32(x) - _f32(r) / gamma) * _f32(f)), params, forget, retain
    )


def magnitude(params: PyTree) -> PyTree:
    """|theta|: the score of magnitude pruning; the data do not enter."""
    return jax.tree.map(lambda x: jnp.abs(_f32(x)), params)


def uniform(key: jax.Array, params: PyTree) -> PyTree:
    """Independent draws from [0, 1): the random mask that others are compared with."""
    leaves, outline = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.uniform(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(outline, draws)


def _f32(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
