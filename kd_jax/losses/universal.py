"""Universal logit distillation: distributions over two vocabularies, compared by size alone."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks


def universal_logit_distance(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch W"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """sum_i |p_(i) - q_(i)|, p_(i) the i-th largest of p = softmax(t / tau), q of softmax(s / tau).

    student_logits s [..., V], teacher_logits t [..., W], of unequal sizes -> f32 [...], unreduced,
    in [0, 2], no unit. The smaller vocabulary is filled up with probabilities of 0. Only which
    probabilities there are counts, not of which tokens: it is 0 for any permutation of the
    teacher's distribution, so it goes along with a loss on labels.

    It is the 1-Wasserstein distance under a cost that is the same between any two tokens. The sort
    needs all of a position's vocabulary: one that is sharded over devices is gathered, a piece of
    the sequence at a time. The gradient has a jump where p_(i) = q_(i) (0 is taken there), and
    where two of the student's probabilities change places. Nothing is stopped.

    Source: Boizard et al. 2024, arXiv 2402.12030, section 3 (equation numbers UNVERIFIED). The
    released code has a temperature for each model; which positions it compares, and how it
    averages, is in `data.alignment.pairs_in_order`.
    """
    leading = student_logits.shape[:-1]
    if teacher_logits.shape[:-1] != leading:
        raise ValueError(
            f"teacher_logits: got shape {teacher_logits.shape}, takes [..., W] with the leading "
            f"shape of student_logits, {leading}"
        )
    _checks.positive("temperature", temperature)
    size = max(student_logits.shape[-1], teacher_logits.shape[-1])

    def by_size(logits: jax.Array) -> jax.Array:
        """Ascending: the zeros come first."""
        p = jnp.sort(jax.nn.softmax(logits.astype(jnp.float32) / temperature, axis=-1), axis=-1)
        return jnp.pad(p, [(0, 0)] * len(leading) + [(size - p.shape[-1], 0)])

    return jnp.abs(by_size(teacher_logits) - by_size(student_logits)).sum(-1)
