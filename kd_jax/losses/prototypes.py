"""The means of classes in a teacher's feature space, and losses that pull towards them."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd_jax.losses import _checks, _geometry


def class_means(
    features: Float[Array, "n D"],
    labels: Int[Array, " n"],
    classes: int,
    present: Bool[Array, " n"] | None = None,
) -> Float[Array, "C D"]:
    """The mean feature of each class, f32 [classes, D]; 0 for a class without examples.

    Of the training set alone: means that know test examples leak them.
    """
    _checks.labels_of(features, labels)
    here = _geometry.those(present, features)
    member = (jnp.arange(classes)[:, None] == labels[None]) & here[None]
    x = _geometry.without_absent(features.astype(jnp.float32), here)
    return member.astype(jnp.float32) @ x / jnp.maximum(member.sum(1), 1)[:, None]


def norm_and_direction(
    student: Float[Array, "B D"],
    teacher: Float[Array, "B D"],
    means: Float[Array, "C D"],
    labels: Int[Array, " B"],
) -> Float[Array, " B"]:
    """ND: 1 - <f_s, e_y> / max(||f_s||, ||f_t||), e_y the direction of class y's mean: f32 [B].

    In [0, 2]. A student shorter than its teacher gains by growing along e_y, with gradient
    -e_y / ||f_t||; a longer one by its direction alone, the maximum being differentiated with the
    rest. 1 where both are 0, or the class has no mean; scales of the means do not count.
    Source: Wang et al. 2023 (KD++), arXiv 2305.17007, by released code (weights 0.5 to 2).
    """
    _checks.same_shape(student=student, teacher=teacher)
    _checks.labels_of(student, labels)
    e = _geometry.normalised(means.astype(jnp.float32))[labels]
    s, t = student.astype(jnp.float32), teacher.astype(jnp.float32)
    longest = jnp.maximum(_geometry.norm(s), _geometry.norm(t))
    safe = jnp.where(longest > 0, longest, 1.0)
    return 1 - (s * e).sum(-1) / safe
