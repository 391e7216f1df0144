"""RegMean: linear layers merged in closed form, by least squares (arXiv 2212.09849)."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from kd_jax import trees
from kd_jax.merging._checks import check_models
from kd_jax.merging.average import average
from kd_jax.types import PyTree


def regmean_linear(
    kernels: Sequence[jax.Array],
    grams: Sequence[jax.Array],
    *,
    off_diagonal: float = 0.9,
    ridge: float = 1e-6,
) -> jax.Array:
    """The kernel whose outputs are nearest to those of each model on its own inputs.

    W = M + (sum_n G_n + e I)^-1 sum_n G_n (W_n - M), with M the mean of the W_n and e `ridge`
    times the mean diagonal of the sum. At e = 0 that is (sum G_n)^-1 sum G_n W_n, which minimises
    sum_n E|x_n W - x_n W_n|^2. The ridge is towards the mean: rows whose inputs are 0 in all models
    (dead units, empty pixels) are averaged.

    kernels: N of [..., in, out], applied as x @ W. grams: N of [..., in, in], E[x x^T] of the
        inputs of that layer in that model; other axes (stacked layers) are batched.
    off_diagonal: the off-diagonal entries of the G_n are first multiplied by it, in [0, 1]. 0 is a
        mean weighed by the second moment of each input; below 1 no direction is empty but those of
        inputs that are 0. With 1 and fewer examples than inputs the sum is singular, and needs a
        ridge above float32's resolution, 1e-4 or more: less can give NaN.

    Returns the dtype of kernels[0]. Jin et al. 2023, equation 2 and section 4 (off-diagonals).
    """
    _check(off_diagonal, ridge)
    ws = jnp.stack([jnp.asarray(w, jnp.float32) for w in kernels])
    gs = jnp.stack([_shrunk(jnp.asarray(g, jnp.float32), off_diagonal) for g in grams])
    mean, total = ws.mean(0), gs.sum(0)
    size = total.shape[-1]
    scale = jnp.trace(total, axis1=-2, axis2=-1)[..., None, None] / size
    # Where no input was ever seen there is nothing to solve.
    scale = jnp.where(scale == 0, 1.0, scale)
    identity = jnp.eye(size).reshape((1,) * (total.ndim - 2) + (size, size))
    factor = cho_factor(total / scale + ridge * identity)
    wanted = jnp.matmul(gs, ws - mean[None], precision="highest").sum(0)
    return (mean + cho_solve(factor, wanted / scale)).astype(kernels[0].dtype)


def regmean(
    models: Sequence[PyTree],
    grams: Sequence[Mapping[str, jax.Array]],
    *,
    off_diagonal: float = 0.9,
    ridge: float = 1e-6,
) -> PyTree:
    """`regmean_linear` of the kernels that grams name, the plain mean of the other leaves.

    models: N trees of the same paths and shapes, floating leaves. grams: for each model {path of a
    kernel: [..., in, in]}, of the inputs that the kernel has in that model
    (`attribution.grams.gram_matrices`); 256 examples a model were enough for CLIP. Each kernel is
    merged for itself, in the dtypes of models[0].
    off_diagonal: 0.95 for CLIP, 0.6 for GPT-2; the default of 0.9 is UNVERIFIED.

    Jin, Ren, Preotiuc-Pietro, Cheng 2023 (arXiv 2212.09849), algorithm 1.
    """
    check_models(models)
    _check(off_diagonal, ridge)
    if len(grams) != len(models):
        raise ValueError(f"grams: got {len(grams)}, takes one a model, {len(models)}")
    leaves = trees.flatten(models[0])
    for n, found in enumerate(grams):
        name = f"grams[{n}]"
        trees.check_same(name, dict(found), "grams[0]", dict(grams[0]))
        for path, gram in found.items():
            if path not in leaves:
                raise ValueError(f"{name}: got {path}, which the models do not have")
            shape = leaves[path].shape
            if len(shape) < 2 or gram.shape != (*shape[:-1], shape[-2]):
                raise ValueError(
                    f"{name}: {path} is {gram.shape}, takes [..., in, in] for the kernel "
                    f"[..., in, out] of {shape}"
                )

    def merged(path: str, *kernels: jax.Array) -> jax.Array:
        if path not in grams[0]:
            return average(kernels)
        own = [found[path] for found in grams]
        return regmean_linear(kernels, own, off_diagonal=off_diagonal, ridge=ridge)

    return trees.map_with_path(merged, *models)


def _shrunk(gram: jax.Array, off_diagonal: float) -> jax.Array:
    diagonal = jnp.eye(gram.shape[-1], dtype=bool)
    return jnp.where(jnp.broadcast_to(diagonal, gram.shape), gram, off_diagonal * gram)


def _check(off_diagonal: float, ridge: float) -> None:
    if not 0.0 <= off_diagonal <= 1.0:
        raise ValueError(f"off_diagonal: got {off_diagonal}, takes a number in [0, 1]")
    if not ridge >= 0:
        raise ValueError(f"ridge: got {ridge}, takes at least 0")
