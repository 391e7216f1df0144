"""Keeping the answers of a model that is replaced: two teachers, one for each position.

Source: Echterhoff et al. 2024 (MUSCLE), arXiv 2407.09435.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from kd_jax.losses import _checks
from kd_jax.losses.divergences import forward_kl


def own_errors(
    student_logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]
) -> Bool[Array, "*batch"]:
    """m = 1[argmax z != y]: where the student itself is wrong now. No gradient.

    logits [..., V], labels int [...]; the first of tied classes is the student's answer.
    """
    _checks.labels_of(student_logits, labels)
    return jnp.argmax(jax.lax.stop_gradient(student_logits), axis=-1) != labels


def masked_kl(
    student_logits: Float[Array, "*batch V"],
    old_logits: Float[Array, "*batch V"],
    new_logits: Float[Array, "*batch V"],
    follow_old: Bool[Array, "*batch"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """KL(p_old || q) where follow_old is true and KL(p_new || q) elsewhere, unreduced.

    p_old, p_new, q: softmax of the old, new and student's logits [..., V] over tau -> f32 [...],
    nats, not multiplied by tau**2. Nothing is stopped: the objective stops the teachers.
    Source: arXiv 2407.09435, the equation of the masked loss, for any mask.
    """
    _checks.same_shape(student_logits=student_logits, old_logits=old_logits, new_logits=new_logits)
    if follow_old.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"follow_old: got shape {follow_old.shape}, takes the leading shape of "
            f"student_logits, {student_logits.shape[:-1]}"
        )
    # One divergence from the chosen teacher: the other's logits are never looked at.
    teacher = jnp.where(
        follow_old[..., None], old_logits.astype(jnp.float32), new_logits.astype(jnp.float32)
    )
    return forward_kl(student_logits, teacher, temperature=temperature)


def muscle(
    student_logits: Float[Array, "*batch V"],
    old_logits: Float[Array, "*batch V"],
    new_logits: Float[Array, "*batch V"],
    labels: Int[Array, "*batch"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """m KL(p_old || q) + (1 - m) KL(p_new || q) with m = `own_errors(student_logits, labels)`.

    The student copies the old model where it is itself wrong, and the new one where it is right:
    the old model's answer, right or wrong, is what a user expects there. Shapes, units and
    temperature as `masked_kl`; labels int [...]. Masks made of the old model's errors or of
    likelihoods are worse in the paper (its table 7): give them to `masked_kl`.
    Source: Echterhoff et al. 2024, arXiv 2407.09435.
    """
    mask = own_errors(student_logits, labels)
    return masked_kl(student_logits, old_logits, new_logits, mask, temperature=temperature)
