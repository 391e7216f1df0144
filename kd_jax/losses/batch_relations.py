"""Relations between the examples of a batch: what a student may copy whatever its width.

Each takes student [B, ...] and teacher [B, ...] features, flattened to one row an example, and
`present` [B], which of the examples there are (all by default): the others are in no sum, mean or
norm. Losses are unreduced over pairs or triples, so that the objective weighs those; entries that
an absent example has part in are finite and belong under a zero weight. Nothing is stopped: the
objective stops the teacher. The features of the whole batch have to be there: no microbatches.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kd_jax.losses import _checks, _geometry

Kernel = Callable[[jax.Array], jax.Array]


def distances(
    student: Float[Array, "B *s"],
    teacher: Float[Array, "B *t"],
    present: Bool[Array, " B"] | None = None,
) -> Float[Array, "B B"]:
    """RKD, distances: smooth_l1(d^s_ij - d^t_ij), d_ij = ||f_i - f_j|| over its mean: f32 [B, B].

    The mean is over the pairs of different examples, for student and teacher by itself. smooth_l1
    is e^2 / 2 below 1 and |e| - 1/2 above. The loss is the mean over all pairs, the diagonal of
    zeros among them. Moving, turning or scaling either side changes nothing. Examples nearer than
    1e-6 count as that far apart, without gradient.
    Source: Park et al. 2019 (RKD), arXiv 1904.05068, section 3.2.1; weight 25 on pooled features of
    CIFAR's networks.
    """
    here = _both(student, teacher, present)
    return _geometry.smooth_l1(_distances(student, here) - _distances(teacher, here))


def _distances(x: jax.Array, here: jax.Array) -> jax.Array:
    x = _geometry.without_absent(_geometry.rows(x), here)
    square = jnp.square(x[:, None] - x[None]).sum(-1)
    far = square > 1e-12
    distance = jnp.where(far, jnp.sqrt(jnp.where(far, square, 1.0)), 1e-6)
    pairs = here[:, None] & here[None] & ~jnp.eye(len(x), dtype=bool)
    distance = jnp.where(pairs, distance, 0.0)
    total = distance.sum()
    mean = jnp.where(total > 0, total, 1.0) / jnp.maximum(pairs.sum(), 1)
    return distance / mean


def angles(
    student: Float[Array, "B *s"],
    teacher: Float[Array, "B *t"],
    present: Bool[Array, " B"] | None = None,
) -> Float[Array, "B B B"]:
    """RKD, angles: smooth_l1(A^s_ijk - A^t_ijk), A_ijk = cos of the angle at i between j and k.

    f32 [B, B, B]; a direction from an example to itself (or its double) is 0. The loss is the mean
    over all triples. Moving, turning or scaling either side changes nothing. Memory: B^2 D and B^3.
    Source: as `distances`, section 3.2.2; weight 50.
    """
    here = _both(student, teacher, present)

    def cosines(x: jax.Array) -> jax.Array:
        x = _geometry.without_absent(_geometry.rows(x), here)
        e = _geometry.normalised(x[None] - x[:, None])
        return jnp.einsum("ijd,ikd->ijk", e, e)

    return _geometry.smooth_l1(cosines(student) - cosines(teacher))


def similarities(
    student: Float[Array, "B *s"],
    teacher: Float[Array, "B *t"],
    present: Bool[Array, " B"] | None = None,
) -> Float[Array, "B B"]:
    """SP: (G^t_ij - G^s_ij)^2, the rows of G = F F^T scaled to length 1: f32 [B, B].

    Its mean over pairs is ||G^t - G^s||_F^2 / B^2, which falls with the size of the batch; the
    usual weight is 3000 on the last map. Any orthogonal map and any positive scale of either side
    change nothing.
    Source: Tung and Mori 2019, arXiv 1907.09682, equations 1 to 4 (numbers UNVERIFIED).
    """
    here = _both(student, teacher, present)

    def gram(x: jax.Array) -> jax.Array:
        x = _geometry.without_absent(_geometry.rows(x), here)
        return _geometry.normalised(x @ x.T)

    return jnp.square(gram(teacher) - gram(student))


def probabilities(
    student: Float[Array, "B *s"],
    teacher: Float[Array, "B *t"],
    present: Bool[Array, " B"] | None = None,
    *,
    eps: float = 1e-7,
) -> Float[Array, "B B"]:
    """PKT: t_ij log((t_ij + eps) / (s_ij + eps)), rows of (cos_ij + 1) / 2 summing to 1: [B, B].

    The diagonal is among them. Its mean over pairs is the sum over KL of the rows over B^2, which
    is why the usual weight is 30000 (on pooled features). Turning either side changes nothing, nor
    does a positive scale of an example, but for eps. A feature of zeros has cosine 0 with all,
    and no gradient.
    Source: Passalis and Tefas 2018 (PKT), ECCV; form of the released code.
    """
    here = _both(student, teacher, present)
    _checks.positive("eps", eps)

    def conditional(x: jax.Array) -> jax.Array:
        x = _geometry.without_absent(_geometry.rows(x), here)
        length = _geometry.norm(x, keepdims=True)
        x = jnp.where(length > 0, x / (length + eps), 0.0)
        near = jnp.where(here[None], (x @ x.T + 1) / 2, 0.0)
        total = near.sum(-1, keepdims=True)
        return near / jnp.where(total > 0, total, 1.0)

    s, t = conditional(student), conditional(teacher)
    return t * jnp.log((t + eps) / (s + eps))


def bilinear_kernel(features: Float[Array, "B D"]) -> Float[Array, "B B"]:
    """F F^T."""
    return features @ features.T


def gaussian_kernel(gamma: float = 0.4, order: int = 2) -> Kernel:
    """exp(-2 gamma) sum_{p <= order} (2 gamma)^p / p! (F F^T)^p: [B, D] -> [B, B].

    The Taylor series of exp(-gamma ||f_i - f_j||^2) for features of length 1.
    """
    _checks.positive("gamma", gamma)
    _checks.not_negative("order", order)

    def kernel(features: jax.Array) -> jax.Array:
        dot = features @ features.T
        terms = [(2 * gamma) ** p / math.factorial(p) * dot**p for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms[1:], terms[0])

    return kernel


def correlation_congruence(
    student: Float[Array, "B *s"],
    teacher: Float[Array, "B *t"],
    present: Bool[Array, " B"] | None = None,
    *,
    kernel: Kernel = bilinear_kernel,
) -> Float[Array, ""]:
    """CC: ||K(student) - K(teacher)||_F, over the pairs of present examples; f32 scalar.

    The loss is this over B^2. A norm, not its square, as in the released code; the gradient is 0
    where the kernels are the same. kernel: `bilinear_kernel` or `gaussian_kernel()`, which takes
    features of length 1 (embeddings are scaled to that beforehand).
    Source: Peng et al. 2019 (CCKD), arXiv 1904.01802, equations 5 to 8 (numbers UNVERIFIED).
    """
    here = _both(student, teacher, present)
    s, t = (kernel(_geometry.without_absent(_geometry.rows(x), here)) for x in (student, teacher))
    return _geometry.norm(jnp.where(here[:, None] & here[None], s - t, 0.0), axis=None)


def _both(student: jax.Array, teacher: jax.Array, present: jax.Array | None) -> jax.Array:
    _geometry.same_examples(student, teacher)
    return _geometry.those(present, student)
