"""MTARD's two balances of a clean and a robust teacher, and the loss that they balance.

Zhao et al. 2022 and 2024 (B-MTARD), arXiv 2306.16170, by released code.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses import _checks
from kd_jax.losses._logs import log_softmax


def mean_kl(
    student_logits: Float[Array, "B C"],
    teacher_logits: Float[Array, "B C"],
    *,
    temperature: ArrayLike = 1.0,
    eps: float = 1e-5,
) -> Float[Array, " B"]:
    """(1 / C) sum_c p_c (log(p_c + eps) - log q_c), p = softmax(t / tau), q = softmax(s): f32 [B].

    A mean over classes, so KL / C but for eps; the student has temperature 1.
    """
    _checks.same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _checks.positive("temperature", temperature)
    _checks.positive("eps", eps)
    p = jnp.exp(log_softmax(teacher_logits, temperature))
    return (p * (jnp.log(p + eps) - log_softmax(student_logits, 1.0))).mean(-1)


def mean_entropy(
    logits: Float[Array, "B C"], *, temperature: ArrayLike = 1.0
) -> Float[Array, " B"]:
    """-(1 / C) sum_c p_c log p_c, p = softmax(z / tau): f32 [B]."""
    _checks.positive("temperature", temperature)
    log_p = log_softmax(logits, temperature)
    return -(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0.0)).mean(-1)


def balanced_temperatures(
    robust: ArrayLike,
    clean: ArrayLike,
    robust_entropy: ArrayLike,
    clean_entropy: ArrayLike,
    *,
    rate: float = 0.001,
) -> tuple[jax.Array, jax.Array]:
    """Both teachers' temperatures, moved by `rate` so that their entropies meet; in [1, 10].

    The teacher of higher entropy gets cooler, the other warmer; where they are equal neither moves.
    """
    _checks.not_negative("rate", rate)
    sign = jnp.sign(jnp.asarray(robust_entropy, jnp.float32) - clean_entropy)
    return jnp.clip(robust - rate * sign, 1.0, 10.0), jnp.clip(clean + rate * sign, 1.0, 10.0)


def balanced_share(
    clean: ArrayLike, robust_progress: ArrayLike, clean_progress: ArrayLike, *, rate: float = 0.025
) -> jax.Array:
    """w - rate (w - r_c / (r_r + r_c)): the clean loss's share w; the robust one's is 1 - w.

    progress r: a loss over what it was at the first step; the slower one gains. So it depends on
    the very first batch.
    """
    _checks.share("rate", rate)
    total = jnp.asarray(robust_progress, jnp.float32) + clean_progress
    known = total > 0
    target = jnp.where(known, clean_progress / jnp.where(known, total, 1.0), 0.5)
    share = jnp.asarray(clean, jnp.float32)
    return share - rate * (share - target)
