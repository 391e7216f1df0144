"""Twin-Merging (arXiv 2406.15479): what models share, and what each alone knows, compressed.

The two are put together again for every input, with weights that a router predicts from it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax import trees
from kd_jax.merging._checks import check_floating, check_share, coefficients
from kd_jax.merging.arithmetic import task_arithmetic, task_vector
from kd_jax.types import PyTree

LowRankOf = Callable[[jax.Array, jax.Array, jax.Array], Any]


class Factors(NamedTuple):
    """The matrix u @ v, of low rank: a leaf of a compressed task vector."""

    u: jax.Array  # [..., in, r]
    v: jax.Array  # [..., r, out]


class Twins(NamedTuple):
    """shared: weights; exclusive: for each model a tree of its paths, of arrays and `Factors`."""

    shared: PyTree
    exclusive: list[PyTree]


def truncate(matrix: jax.Array, rank: int) -> Factors:
    """The nearest matrix of this rank in the Frobenius norm, by the SVD; float32 factors.

    matrix: [..., in, out], other axes batched. rank: 0 (a matrix of zeros) to min(in, out).
    """
    if not 0 <= rank <= min(matrix.shape[-2:]):
        raise ValueError(f"rank: got {rank} for {matrix.shape}, takes 0 to min(in, out)")
    u, s, v = jnp.linalg.svd(jnp.asarray(matrix, jnp.float32), full_matrices=False)
    return Factors(u[..., :, :rank] * s[..., None, :rank], v[..., :rank, :])


def compress(vector: PyTree, *, density: float) -> PyTree:
    """Each matrix of a task vector at rank int(density * min(in, out)), as `Factors`; per leaf.

    Vectors are kept whole, and matrices of full rank too. Leaves of more axes are batches of
    matrices [..., in, out]. density: in (0, 1]; a rank of 0 leaves nothing of a small matrix.

    arXiv 2406.15479, section 3.3, and the released code.
    """
    check_share("density", density)
    check_floating("vector", vector)

    def low_rank(x: jax.Array) -> jax.Array | Factors:
        full = min(x.shape[-2:]) if x.ndim >= 2 else 0
        rank = int(density * full)
        return x if rank == full else truncate(x, rank)

    return jax.tree.map(low_rank, vector)


def twins(
    base: PyTree, models: Sequence[PyTree], *, density: float = 0.1, scale: Any = 0.29
) -> Twins:
    """Shared: base + scale * sum_n tau_n; exclusive: `compress`(theta_n - shared) for each model.

    base, models: trees of the same paths and shapes, floating leaves. The defaults are those of the
    released code (mask rate 0.9; GLUE). Another merge may be shared: `task_vector(shared, model)`
    of each, compressed by any function of a task vector (`ties.trim`, say), is exclusive then.

    Lu et al. 2024, Twin-Merging (arXiv 2406.15479), equations 3 to 5.
    """
    shared = task_arithmetic(base, models, scale=scale)
    return Twins(shared, [compress(task_vector(shared, m), density=density) for m in models])


def combine(shared: PyTree, exclusive: Sequence[PyTree], weights: Any) -> PyTree:
    """shared + sum_n w_n v_n, leaf by leaf, in the dtypes of `shared`.

    weights: [N], of a router's softmax; may be traced, and the result is differentiable in them.
    One model's alone, at density 1, gives that model; uniform ones the mean of all. For weights
    [B, N], one row an example, map it: `jax.vmap(combine, (None, None, 0))`, or see `attach`.
    """
    w = _weights(shared, exclusive, weights)

    def add(theta: jax.Array, *parts: jax.Array | Factors) -> jax.Array:
        total = sum(w[n] * _whole(part) for n, part in enumerate(parts))
        return (jnp.asarray(theta, jnp.float32) + total).astype(theta.dtype)

    return jax.tree.map(add, shared, *exclusive)


def attach(
    shared: PyTree, exclusive: Sequence[PyTree], weights: Any, *, low_rank: LowRankOf
) -> PyTree:
    """As `combine`, with low_rank(theta, a, b) for theta + a @ b where all exclusive are `Factors`.

    a [..., in, R] has the factors u of all models side by side and b [..., R, out] has w_n v_n, R
    the sum of their ranks. With `models.parts.LowRank` a model multiplies x @ theta + (x @ a) @ b.
    Mapped over examples' weights, b alone is made for each of them, R x out numbers in place of the
    in x out of `combine`; theta and a stay one for all.
    """
    w = _weights(shared, exclusive, weights)

    def join(theta: jax.Array, *parts: Any) -> Any:
        if not all(isinstance(part, Factors) for part in parts):
            return combine(theta, parts, w)
        a = jnp.concatenate([part.u for part in parts], axis=-1)
        b = jnp.concatenate([w[n] * part.v for n, part in enumerate(parts)], axis=-2)
        return low_rank(theta, a.astype(theta.dtype), b.astype(theta.dtype))

    return jax.tree.map(join, shared, *exclusive)


def _weights(shared: PyTree, exclusive: Sequence[PyTree], weights: Any) -> jax.Array:
    """f32 [N]; ValueError unless there is a model and all are like `shared`."""
    if not exclusive:
        raise ValueError("exclusive: got none, takes at least one")
    check_floating("shared", shared)
    for n, tree in enumerate(exclusive):
        shapes = jax.tree.map(_shape, tree, is_leaf=_is_factors)
        trees.check_same(f"exclusive[{n}]", shapes, "shared", shared)
    return coefficients("weights", weights, len(exclusive))


def _whole(part: jax.Array | Factors) -> jax.Array:
    if isinstance(part, Factors):
        return jnp.matmul(part.u, part.v, precision="highest")
    return jnp.asarray(part, jnp.float32)


def _shape(part: jax.Array | Factors) -> jax.ShapeDtypeStruct:
    if isinstance(part, Factors):
        shape = (*part.u.shape[:-1], part.v.shape[-1])
        return jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.ShapeDtypeStruct(part.shape, part.dtype)


def _is_factors(x: Any) -> bool:
    return isinstance(x, Factors)
