"""Losses on class logits [B, C] that are more than a divergence of two rows.

Those that couple the examples of a batch take `present` [B], which of them there are (all by
default). Nothing is stopped: the objective stops the teacher. No factor tau^2 is in them: it is a
coefficient of the method and belongs in the term's scale.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd_jax.losses import _checks, _geometry
from kd_jax.losses._logs import log_softmax


def standardised(
    logits: Float[Array, "*batch C"], *, eps: float = 1e-7
) -> Float[Array, "*batch C"]:
    """(z - mean z) / (eps + std z) over the last axis: f32 [..., C].

    The unbiased std, so C is at least 2. Logits that are all the same become 0, with gradient 0.
    Distillation on both sides' standardised logits asks for their order and shape, not for their
    size; the label loss stays on the raw ones.
    Source: Sun et al. 2024, arXiv 2403.01427, algorithm 1 (number UNVERIFIED).
    """
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError(f"logits: got {classes} class, takes at least 2")
    z = logits.astype(jnp.float32)
    z = z - z.mean(-1, keepdims=True)
    std = _geometry.norm(z, keepdims=True) / (classes - 1) ** 0.5
    return z / (eps + std)


def inter_class(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    *,
    temperature: float = 1.0,
    eps: float = 1e-8,
) -> Float[Array, " B"]:
    """DIST, between classes: 1 - Pearson correlation of an example's two distributions: f32 [B].

    eps is added to the product of the two lengths. A positive affine map of the teacher's
    probabilities changes nothing. Source: Huang et al. 2022 (DIST), arXiv 2205.10536, equations 6
    to 8 (numbers UNVERIFIED), by released code.
    """
    p, q = _distributions(student_logits, teacher_logits, temperature)
    return 1 - _geometry.pearson(p, q, 1, jnp.ones(p.shape, bool), eps)


def intra_class(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    present: Bool[Array, " B"] | None = None,
    *,
    temperature: float = 1.0,
    eps: float = 1e-8,
) -> Float[Array, " C"]:
    """DIST, within a class: 1 - Pearson correlation over the batch of a class's probabilities: [C].

    With two examples every correlation is 1 or -1. Source: as `inter_class`, equations 9 and 10.
    """
    p, q = _distributions(student_logits, teacher_logits, temperature)
    here = jnp.broadcast_to(_geometry.those(present, p)[:, None], p.shape)
    return 1 - _geometry.pearson(p, q, 0, here, eps)


def amplified_target(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
    *,
    power: float = 1.0,
    temperature: float = 1.0,
) -> Float[Array, " B"]:
    """OFA: -sum_c ((p_c + 1[c = y])^power - 1[c = y]) log q_c, p the teacher's: f32 [B].

    power 1 is the soft cross-entropy, whatever the label; above 1 the label's part grows, and the
    smallest value is no longer at q = p. There is no factor tau^2 in the method.
    Source: Hao et al. 2023 (OFA-KD), arXiv 2310.19444, by released code (power 1 to 1.5).
    """
    _checks.labels_of(student_logits, labels)
    _checks.positive("power", power)
    _, p = _distributions(student_logits, teacher_logits, temperature)
    log_q = log_softmax(student_logits, temperature)
    target = jnp.arange(p.shape[1])[None] == labels[:, None]
    weight = (p + target) ** power - target
    return -(weight * jnp.where(weight > 0, log_q, 0.0)).sum(-1)


def soft_cross_entropy(
    logits: Float[Array, "B C"], probabilities: Float[Array, "B C"]
) -> Float[Array, " B"]:
    """-sum_c p_c log softmax(z)_c, with labels that are mixed or smoothed: f32 [B], nats."""
    _checks.same_shape(logits=logits, probabilities=probabilities)
    p, log_q = probabilities.astype(jnp.float32), log_softmax(logits, 1.0)
    return -(p * jnp.where(p > 0, log_q, 0.0)).sum(-1)


def batch_correlation(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    present: Bool[Array, " B"] | None = None,
    *,
    temperature: float = 1.0,
) -> Float[Array, " B"]:
    """MLKD, batch level: sum_j ((P_t P_t^T)_ij - (P_s P_s^T)_ij)^2, P = softmax(z / T): f32 [B].

    The loss is the mean over examples. Source: Jin et al. 2023 (MLKD), CVPR, by released code.
    """
    p, q = _distributions(student_logits, teacher_logits, temperature)
    here = _geometry.those(present, p)
    p, q = (_geometry.without_absent(x, here) for x in (p, q))
    return jnp.square(q @ q.T - p @ p.T).sum(-1)


def class_correlation(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    present: Bool[Array, " B"] | None = None,
    *,
    temperature: float = 1.0,
) -> Float[Array, " C"]:
    """MLKD, class level: sum_d ((P_t^T P_t)_cd - (P_s^T P_s)_cd)^2: f32 [C].

    The loss is the mean over classes; it grows with the square of the batch. Source: as
    `batch_correlation`.
    """
    p, q = _distributions(student_logits, teacher_logits, temperature)
    here = _geometry.those(present, p)
    p, q = (_geometry.without_absent(x, here) for x in (p, q))
    return jnp.square(q.T @ q - p.T @ p).sum(-1)


def direction_distance(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B D"],
    present: Bool[Array, " B"] | None = None,
    *,
    ridge: float = 0.1,
) -> Float[Array, " B"]:
    """SKD, directions: sqrt(D_b^T S^-1 D_b), D = Z_s Z_s^T - Z_t Z_t^T of rows of length 1: [B].

    S = cov(D) + ridge I, the unbiased covariance between the rows of D, which is symmetric: a
    Mahalanobis distance. At least two examples. The gradient is 0 where a row of D is; it goes
    through S (UNVERIFIED). The method adds KL at temperature 4 without tau^2, both of weight 1 and
    without the label loss.
    Source: SKD in torchdistill's set, by its formula; ridge and weights by its sample settings.
    """
    _geometry.same_examples(student_logits, teacher_logits)
    _checks.positive("ridge", ridge)
    here = _geometry.those(present, student_logits)
    s, t = (
        _geometry.normalised(_geometry.without_absent(_geometry.rows(x), here))
        for x in (student_logits, teacher_logits)
    )
    d = s @ s.T - t @ t.T
    count = here.sum()
    spread = jnp.where(here[:, None] & here[None], d - d.sum(0, keepdims=True) / count, 0.0)
    covariance = spread.T @ spread / jnp.maximum(count - 1, 1)
    solved = jnp.linalg.solve(covariance + ridge * jnp.eye(len(d)), d)
    square = (d * solved).sum(0)
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def _distributions(student, teacher, temperature) -> tuple[jax.Array, jax.Array]:
    _checks.same_shape(student_logits=student, teacher_logits=teacher)
    _checks.positive("temperature", temperature)
    return jnp.exp(log_softmax(student, temperature)), jnp.exp(log_softmax(teacher, temperature))
