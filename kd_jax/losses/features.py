"""Losses between features: a student's and a teacher's, or a model's and where they should lie.

One value an example.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_jax.losses import _checks


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
