"""Curriculum temperature: a temperature that is learned against the student, ever more so.

Source: Li et al. 2022 (CTKD), arXiv 2211.16231, equations 4 to 7 (UNVERIFIED), after a released
port. That port lets the temperature help the student and the share fade; here the temperature's
gradient is reversed and the share grows, as the paper's text has it.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kd_jax.losses.divergences import forward_kl


def temperature(theta: ArrayLike, *, least: float = 1.0, span: float = 20.0) -> Float[Array, ""]:
    """tau = least + span sigmoid(theta), in (least, least + span)."""
    return least + span * jax.nn.sigmoid(jnp.asarray(theta, jnp.float32))


def difficulty(progress: ArrayLike, *, until: float = 0.5) -> Float[Array, ""]:
    """(1 - cos(pi min(progress / until, 1))) / 2: from 0 to 1 in the first `until` of training.

    progress: the part of the training that is done, in [0, 1].
    """
    return 0.5 * (1 - jnp.cos(jnp.pi * jnp.minimum(jnp.asarray(progress) / until, 1.0)))


def tempered(
    student_logits: Float[Array, "*batch V"],
    teacher_logits: Float[Array, "*batch V"],
    tau: ArrayLike,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """(tau^2 KL(p || q) at temperature tau, its derivative by tau), f32 [...], nats."""

    def loss(t: jax.Array) -> jax.Array:
        return t**2 * forward_kl(student_logits, teacher_logits, temperature=t)

    return jax.jvp(loss, (jnp.asarray(tau, jnp.float32),), (jnp.ones(()),))
