"""The geometry between student, teacher, label and the teacher's mean of the class (TGeo-KD).

Hu et al. 2024, arXiv 2312.15112, by a released script ("option 3"); the paper's own vector of
edges, angles and vertices is UNVERIFIED.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_jax.losses import _checks


def geometry(
    student: Float[Array, "B C"],
    teacher: Float[Array, "B C"],
    means: Float[Array, "C C"],
    labels: Int[Array, " B"],
) -> Float[Array, "B 9*C"]:
    """[S, T, G, M, (M - S)^2, (G - S)^2, (T - S)^2, (T - G)^2, (M - G)^2] side by side: [B, 9 C].

    student S, teacher T: probabilities at temperature 1; G: the label's one-hot row; M: means[y],
    the teacher's mean distribution over the class's training examples (`prototypes.class_means` of
    its probabilities, never of test examples). Squares are of each element. f32; the student is
    stopped: the geometry is read, not shaped.
    """
    _checks.same_shape(student=student, teacher=teacher)
    _checks.labels_of(student, labels)
    s = jax.lax.stop_gradient(student.astype(jnp.float32))
    t, m = teacher.astype(jnp.float32), means.astype(jnp.float32)[labels]
    g = jax.nn.one_hot(labels, s.shape[1])
    between = [(m, s), (g, s), (t, s), (t, g), (m, g)]
    return jnp.concatenate([s, t, g, m, *(jnp.square(a - b) for a, b in between)], -1)
