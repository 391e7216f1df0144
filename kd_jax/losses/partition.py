"""Transfer between any two models: where the teacher knows more, and the student itself elsewhere.

Roth et al. 2024, arXiv 2310.17653; the rule by public summaries, the factor of the temperature
UNVERIFIED (no code was released). The student's copy at the start is the second teacher.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from kd_jax.losses import _checks
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.divergences import forward_kl


def flips(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """1 where the teacher alone is right, and 1 where the student alone is: f32 [B] each.

    Their means are the complementary knowledge of the two; of data held out.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    s, t = (z.argmax(-1) == labels for z in (student_logits, teacher_logits))
    return (t & ~s).astype(jnp.float32), (s & ~t).astype(jnp.float32)


def teacher_knows_label(
    teacher_logits: Float[Array, "B C"],
    initial_logits: Float[Array, "B C"],
    labels: Int[Array, " B"],
) -> Bool[Array, " B"]:
    """Is the teacher's probability of the label above the initial student's? Ties are not."""
    return label_log_probs(teacher_logits, labels) > label_log_probs(initial_logits, labels)


def teacher_is_surer(
    teacher_logits: Float[Array, "B C"], initial_logits: Float[Array, "B C"]
) -> Bool[Array, " B"]:
    """Is the teacher's largest probability above the initial student's? Without labels."""
    _checks.same_shape(teacher_logits=teacher_logits, initial_logits=initial_logits)
    t, s = (
        jax.nn.log_softmax(z.astype(jnp.float32)).max(-1) for z in (teacher_logits, initial_logits)
    )
    return t > s


def knows_label_best(logits: Float[Array, "N B C"], labels: Int[Array, " B"]) -> Int[Array, " B"]:
    """Which of N models gives the label the largest probability: int32 [B], from 0.

    The first at a tie: with the initial student as model 0, ties are the student's, and of two
    models this is `teacher_knows_label`.
    """
    every = jnp.broadcast_to(labels[None], logits.shape[:2])
    return label_log_probs(logits, every).argmax(0).astype(jnp.int32)


def is_surest(logits: Float[Array, "N B C"]) -> Int[Array, " B"]:
    """Which of N models has the largest probability of any class: int32 [B], the first at a tie."""
    surest = jax.nn.log_softmax(logits.astype(jnp.float32)).max(-1)
    return surest.argmax(0).astype(jnp.int32)


def chosen_kl(
    student_logits: Float[Array, "B C"],
    logits: Float[Array, "N B C"],
    chosen: Int[Array, " B"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, " B"]:
    """KL(p_i || p_s) of the model i = chosen [B] of each example, at the temperature: f32 [B].

    Several teachers in parallel: `partitioned_kl` is this of two models, the initial student and
    the teacher. Without the factor tau^2.
    """
    _checks.same_shape(student_logits=student_logits, logits_of_a_model=logits[0])
    target = jnp.take_along_axis(logits, chosen[None, :, None], 0)[0]
    return forward_kl(student_logits, target, temperature=temperature)


def partitioned_kl(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    initial_logits: Float[Array, "B C"],
    from_teacher: Bool[Array, " B"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, " B"]:
    """KL(p_t || p_s) where `from_teacher`, KL(p_0 || p_s) elsewhere, at the temperature: f32 [B].

    Without the factor tau^2, which belongs in the term's scale.
    """
    _checks.same_shape(student_logits=student_logits, initial_logits=initial_logits)
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    target = jnp.where(from_teacher[:, None], teacher_logits, initial_logits)
    return forward_kl(student_logits, target, temperature=temperature)
