"""Swing distillation: soft targets that say less where a position may be private.

Source: Li et al. 2022, arXiv 2212.08349, of which the abstract alone was at hand: it names
temperatures that adapt to each token's likelihood of being private, and noise on soft targets. The
formulas are INFERRED.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from kd_jax.losses import _checks
from kd_jax.losses._logs import kl, log_softmax


def swing_temperature(
    private: Float[Array, "*batch"], *, low: float = 1.0, high: float
) -> Float[Array, "*batch"]:
    """low + (high - low) * private: flat targets where a token is likely private (1), [...]."""
    _checks.positive("low", low)
    return low + (high - low) * private


def swing_targets(
    teacher_logits: Float[Array, "*batch V"],
    private: Float[Array, "*batch"],
    key: Key[Array, ""],
    *,
    low: float = 1.0,
    high: float,
    sigma: float,
) -> Float[Array, "*batch V"]:
    """max(p + n, 0) made a distribution again: p = softmax(t / tau), n ~ N(0, sigma^2 private).

    teacher_logits t [..., V], private [...] in [0, 1], tau of `swing_temperature` -> f32 [..., V].
    A fresh key at every step: noise that stays the same is learnt. Where nothing is left of a
    position, p is kept. sigma = 0 draws nothing.
    """
    _checks.not_negative("sigma", sigma)
    tau = swing_temperature(private, low=low, high=high)[..., None]
    p = jnp.exp(log_softmax(teacher_logits, tau))
    if sigma == 0:
        return p
    noise = sigma * jnp.sqrt(private)[..., None] * jax.random.normal(key, p.shape)
    noisy = jnp.maximum(p + noise, 0.0)
    total = noisy.sum(-1, keepdims=True)
    return jnp.where(total > 0, noisy / jnp.where(total > 0, total, 1.0), p)


def swing_kl(
    student_logits: Float[Array, "*batch V"],
    targets: Float[Array, "*batch V"],
    *,
    temperature: ArrayLike = 1.0,
) -> Float[Array, "*batch"]:
    """KL(p' || softmax(s / temperature)) with the targets p' of `swing_targets`: f32 [...], nats.

    temperature is `low`, also where a position is private: there the student learns the flat
    distribution itself. With the position's own temperature on both sides it would learn the
    teacher's logits, the more exactly the higher the temperature (Hinton et al. 2015, section 2.1).
    """
    _checks.positive("temperature", temperature)
    return kl(jnp.log(targets), log_softmax(student_logits, temperature))
