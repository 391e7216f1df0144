"""Features as draws of a distribution whose parameters the student predicts: VID, PAD."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.losses import _checks


def variational_information(
    mean: Float[Array, "B *place C"],
    teacher: Float[Array, "B *place C"],
    raw_variance: Float[Array, " C"],
    *,
    eps: float = 1e-5,
) -> Float[Array, " B"]:
    """VID: the mean over elements of ((mean - t)^2 / v + log v) / 2, v = softplus(a_c) + eps.

    mean [B, ..., C], what the student predicts of the teacher's features t [B, ..., C]; a [C], raw
    and trained, see `raw_variance_of` -> f32 [B]. A Gaussian's negative log-likelihood less its
    constant: it goes below 0. Smallest over v at v = (mean - t)^2.
    Source: Ahn et al. 2019 (VID), arXiv 1904.05835, equations 5 and 6 (numbers UNVERIFIED).
    """
    _checks.same_shape(mean=mean, teacher=teacher)
    _checks.not_negative("eps", eps)
    if raw_variance.shape != mean.shape[-1:]:
        raise ValueError(
            f"raw_variance: got shape {raw_variance.shape}, takes one a channel, {mean.shape[-1:]}"
        )
    variance = jax.nn.softplus(raw_variance.astype(jnp.float32)) + eps
    variance = variance.reshape((1,) * (mean.ndim - 1) + (-1,))
    square = jnp.square(mean.astype(jnp.float32) - teacher.astype(jnp.float32))
    value = 0.5 * (square / variance + jnp.log(variance))
    return value.reshape(value.shape[0], -1).mean(-1)


def raw_variance_of(variance: float = 5.0, *, eps: float = 1e-5) -> float:
    """a with softplus(a) + eps = variance: log(exp(variance - eps) - 1)."""
    _checks.positive("variance - eps", variance - eps)
    return variance - eps + math.log(-math.expm1(eps - variance))


def precision_weighted(
    student: Float[Array, "B D"],
    teacher: Float[Array, "B D"],
    log_variance: Float[Array, "B D"],
    *,
    eps: float = 1e-6,
) -> Float[Array, " B"]:
    """PAD: the mean over elements of (t - s)^2 / (eps + exp(v)) + v, v = log_variance: f32 [B].

    v is predicted from the student's features, so that hard examples count less; it goes below 0.
    Source: Zhang et al. 2020 (PAD), ECCV, by torchdistill.
    """
    _checks.same_shape(student=student, teacher=teacher, log_variance=log_variance)
    _checks.not_negative("eps", eps)
    s, t, v = (x.astype(jnp.float32) for x in (student, teacher, log_variance))
    return (jnp.square(t - s) / (eps + jnp.exp(v)) + v).mean(-1)
