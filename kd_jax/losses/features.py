"""Losses between features of student and teacher, one value an example."""

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
