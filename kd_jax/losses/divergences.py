"""Divergences between a student's and a teacher's distribution over the last axis.

No temperature correction is made here. With temperature tau the gradient with respect to the
student's logits is (q - p) / tau, so the soft term fades as 1 / tau**2 against a label loss;
Hinton et al. (arXiv 1503.02531, section 2) multiply the term by tau**2. That factor is a
coefficient of the method: write it as the scale of the objective's term, where the paper has it
(LM distillation papers mostly take tau = 1 and no factor).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks


def forward_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), p = softmax(t / tau), q = softmax(s / tau).

    student_logits s, teacher_logits t [..., V] of any float type -> f32 [...], nats, unreduced;
    not multiplied by tau**2 (see the module). The full divergence, not only its cross-entropy
    part. Where p_v is 0 the term is 0, with zero gradient: teacher logits of -inf are fine. It is
    inf where only the student's logit is -inf. Nothing is stopped: the objective stops the
    teacher. Source: Hinton et al. 2015, arXiv 1503.02531, equations 1 and 2.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    return _kl(_log_softmax(teacher_logits, temperature), _log_softmax(student_logits, temperature))


def reverse_kl(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """KL(q || p) = sum_v q_v (log q_v - log p_v), p = softmax(t / tau), q = softmax(s / tau).

    Shapes, units and temperature as `forward_kl`. The gradient flows through both q; at tau = 1 it
    is q_v ((log q_v - log p_v) - KL(q || p)). It is inf, with no useful gradient, where the
    teacher's logit is -inf and the student's is not. Source: Gu et al. 2023 (MiniLLM), arXiv
    2306.08543, equation 1, for one token.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    return _kl(_log_softmax(student_logits, temperature), _log_softmax(teacher_logits, temperature))


def _log_softmax(logits: jax.Array, temperature: ArrayLike) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """sum p (log p - log q) over the last axis, with 0 log 0 = 0 in the value and the gradient."""
    p = jnp.exp(log_p)
    # The mask is on the logs, not on the product: 0 * (-inf - x) is NaN, and so is its gradient.
    return (p * jnp.where(p > 0, log_p - log_q, 0.0)).sum(-1)
