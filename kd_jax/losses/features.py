"""Losses between features: a student's and a teacher's, or a model's and where they should lie.

One value an example, but for those that say otherwise.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kd_jax.losses import _checks, _geometry


def direction(features: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """x / ||x||_2 over the last axis, f32; a feature of zeros stays 0, with gradient 0."""
    return _geometry.normalised(features.astype(jnp.float32))


def hint(
    student: Float[Array, "B *place D"], teacher: Float[Array, "B *place D"]
) -> Float[Array, " B"]:
    """FitNets hint: the mean of (student - teacher)**2 over each example's elements.

    student: the guided layer's features after the regressor, [B, ..., D]; teacher: the hint
    layer's, the same shape -> f32 [B]. Its mean over the batch is the mean over every element.
    The paper has half the sum of squares, 0.5 ||u_h(x) - r(v_g(x))||**2 (equation 3): that is
    this value times half the number of elements of an example, to be put in the term's scale.
    Nothing is stopped: the objective stops the teacher.
    Source: Romero et al. 2015, arXiv 1412.6550, equation 3.
    """
    _checks.same_shape(student=student, teacher=teacher)
    difference = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    return jnp.square(difference).reshape(difference.shape[0], -1).mean(-1)


def squared_distance(
    student: Float[Array, "B *place D"], teacher: Float[Array, "B *place D"]
) -> Float[Array, " B"]:
    """The sum of (student - teacher)**2 over each example's elements: f32 [B].

    Head network distillation (HND) and its sum over later layers (GHND) in torchdistill, which sums
    over the batch too: there only the replaced front of a copy of the teacher is trained
    (`objectives.transfer.maps.matched`).
    """
    _checks.same_shape(student=student, teacher=teacher)
    difference = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    return jnp.square(difference).reshape(difference.shape[0], -1).sum(-1)


def factor_distance(
    student: Float[Array, "B *place"], teacher: Float[Array, "B *place"], *, power: int = 1
) -> Float[Array, " B"]:
    """The distance of two factors, each flattened and of length 1: f32 [B].

    power 1: the mean over elements of |s - t|. power p above: ||s - t||_p, a sum. Factor transfer's
    factors are of a paraphraser and a translator; knowledge translation and adaptation (KTA) has
    the same distance. A factor of zeros stays 0; the gradient is 0 where the two agree.
    Source: Kim et al. 2018 (factor transfer), arXiv 1802.04977, equation 2 (number UNVERIFIED), by
    torchdistill (power 1, weight 1000).
    """
    _checks.same_shape(student=student, teacher=teacher)
    _checks.positive("power", power)
    s, t = (_geometry.normalised(_geometry.rows(x)) for x in (student, teacher))
    if power == 1:
        return jnp.abs(s - t).mean(-1)
    total = (jnp.abs(s - t) ** power).sum(-1)
    apart = total > 0
    return jnp.where(apart, jnp.where(apart, total, 1.0) ** (1 / power), 0.0)


def activation_boundary(
    student: Float[Array, "B *place"], teacher: Float[Array, "B *place"], *, margin: float = 1.0
) -> Float[Array, " B"]:
    """AB: sum of (s + m)^2 where s > -m and t <= 0, and of (s - m)^2 where s <= m and t > 0.

    student s: before the activation, after a connector; teacher t before its activation -> f32 [B].
    Only the side of the boundary is asked for, by a margin m: 0 once every unit is beyond it.
    Source: Heo et al. 2019 (AB), arXiv 1811.03233, equation 6 (number UNVERIFIED), by torchdistill.
    """
    _checks.same_shape(student=student, teacher=teacher)
    _checks.not_negative("margin", margin)
    s, t = _geometry.rows(student), _geometry.rows(teacher)
    off = jnp.square(jnp.where((s > -margin) & (t <= 0), s + margin, 0.0))
    on = jnp.square(jnp.where((s <= margin) & (t > 0), s - margin, 0.0))
    return (off + on).sum(-1)


def log_power_distance(
    student: Float[Array, "B *place"],
    teacher: Float[Array, "B *place"],
    present: Bool[Array, " B"] | None = None,
    *,
    power: float = 4.0,
) -> Float[Array, ""]:
    """SRD: log of the sum of |student - teacher|^power over all elements of the batch; f32 scalar.

    Examples that are not `present` are left out. It goes to -inf as the two agree; it stops at
    power * log(1e-12), with gradient 0. Released weight 2, power 4.
    Source: Miles and Mikolajczyk 2024 (SRD), arXiv 2303.11098, by released code.
    """
    _checks.same_shape(student=student, teacher=teacher)
    _checks.positive("power", power)
    here = _geometry.those(present, student)
    difference = _geometry.rows(student) - _geometry.rows(teacher)
    size = jnp.abs(_geometry.without_absent(difference, here))
    apart = size > 1e-12
    logs = jnp.where(apart, power * jnp.log(jnp.where(apart, size, 1.0)), -jnp.inf)
    floor = power * math.log(1e-12)
    return jax.nn.logsumexp(jnp.append(logs, floor))


def output_norm(
    features: Float[Array, "B *place"],
    present: Bool[Array, " B"] | None = None,
    *,
    power: int = 1,
) -> Float[Array, ""]:
    """||z||_p of all elements of the batch; f32 scalar: the regularisation loss of torchdistill."""
    _checks.positive("power", power)
    here = _geometry.those(present, features)
    total = (jnp.abs(_geometry.without_absent(_geometry.rows(features), here)) ** power).sum()
    return jnp.where(total > 0, jnp.where(total > 0, total, 1.0) ** (1 / power), 0.0)


def sequence_mse(
    features: Float[Array, "B T D"],
    target: Float[Array, "B T D"],
    weights: Float[Array, "B T"],
) -> Float[Array, " B"]:
    """(1 / n_b) sum over t with weight != 0 of mean_d (features - target)**2, one a sequence.

    features, target [B, T, D], weights [B, T] -> f32 [B]; n_b is the row's count of weighed
    positions, and a row without any is 0. The weights are only a mask here; what stands in masked
    positions is replaced, so that a NaN there stays out of the value and the gradient. Nothing is
    stopped: the objective stops the target.
    Source: Li et al. 2024 (RMU), arXiv 2403.03218, section 4; one released implementation divides
    [B] sums by [B, 1] counts, which broadcasts to the mean sum times the mean of 1 / n.
    """
    _checks.same_shape(features=features, target=target)
    if weights.shape != features.shape[:2]:
        raise ValueError(
            f"weights: got shape {weights.shape}, takes [B, T] of the features, "
            f"{features.shape[:2]}"
        )
    kept = weights != 0
    difference = features.astype(jnp.float32) - target.astype(jnp.float32)
    squares = jnp.square(jnp.where(kept[..., None], difference, 0.0)).mean(-1)
    return squares.sum(-1) / jnp.maximum(kept.sum(-1), 1)
