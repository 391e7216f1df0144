"""Logit distillation class by class: each logit by itself, which no softmax ties to the others.

Sums over classes, f32 [B]; without the factor tau^2, which belongs in the term's scale. Neither is
invariant to a constant added to the student's logits alone. Yang et al. 2024 (dual-head
distillation), arXiv 2411.08937, by released code, which clamps the sigmoids to [1e-8, 1 - 1e-8];
log-sigmoids are exact beyond.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.losses import _checks


def binary_kl(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    *,
    temperature: float = 2.0,
) -> Float[Array, " B"]:
    """sum_c KL(Bernoulli(sigmoid(t_c / tau)) || Bernoulli(sigmoid(s_c / tau)))."""
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    s, t = (z.astype(jnp.float32) / temperature for z in (student_logits, teacher_logits))
    p = jax.nn.sigmoid(t)
    yes = p * (jax.nn.log_sigmoid(t) - jax.nn.log_sigmoid(s))
    no = (1 - p) * (jax.nn.log_sigmoid(-t) - jax.nn.log_sigmoid(-s))
    return (yes + no).sum(-1)


def binary_kl_of_difference(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    *,
    temperature: float = 2.0,
) -> Float[Array, " B"]:
    """sum_c KL(Bernoulli(1/2) || Bernoulli(sigmoid((s_c - t_c) / tau))): BinaryKL-Norm.

    0 where the logits are the teacher's, constants of a row included.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    d = (student_logits.astype(jnp.float32) - teacher_logits.astype(jnp.float32)) / temperature
    both = jax.nn.log_sigmoid(d) + jax.nn.log_sigmoid(-d)
    return (-0.5 * both - jnp.log(2.0)).sum(-1)
