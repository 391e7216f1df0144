"""Parts over several views of each image: self-supervised distillation (SSKD).

    teller = attached(teacher, "pooled", projection(64, 64), "views")
    distil(teller, teacher, {"ss": view_contrast("views")}, policy=beside("teacher"))
    distil(student, teller, {
        "ce": on_plain(labels()),
        "kd": on_plain(soft_labels(0.9, temperature=4.0)),
        "ss": view_relations("pooled", "views", 10.0),
        "tf": augmented_labels(2.7),
    })

Batches as in `losses.self_supervised`: rows of an image's views one after the other, the plain one
first, all of them with its targets and weights. Xu et al. 2020, ECCV, by released code.
"""

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.self_supervised import least_wrong, plain, view_similarities
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.attached import projection
from kd_jax.objectives.transfer.weighing import present
from kd_jax.types import Batch, ModelOutput, PyTree, Term, weighted_sum


def on_plain(part: Part, *, views: int = 4) -> Part:
    """The part on the plain views alone: the others have weight 0."""

    def loss(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        weights = jnp.where(plain(len(batch["weights"]), views), batch["weights"], 0.0)
        return part.loss(aux, student, teacher, dict(batch) | {"weights": weights})

    # Rows of an image would be torn apart.
    return part._replace(loss=loss, whole_batch=True)


def view_contrast(tap: str, scale: float = 1.0, *, views: int = 4) -> Part:
    """scale * cross-entropy of each augmented view with its own plain one, by their cosines.

    A mean over augmented views; for what is attached to a teacher, whose tap the "student" has.
    """

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        near = view_similarities(student.taps[tap], present(batch), views=views)
        values = cross_entropy(near, _own(near, views))
        return weighted_sum(values, _augmented(batch["weights"], views), scale)

    return Part(part, student_taps=(tap,), whole_batch=True)


def view_relations(
    student_tap: str,
    teacher_tap: str,
    scale: float = 10.0,
    *,
    temperature: float = 0.5,
    ratio: float = 0.75,
    views: int = 4,
) -> Part:
    """scale * T^2 * KL(teacher || student) of the cosines of views, a mean over the kept views.

    The student's features go through a trained `projection` as wide as they are; the teacher's tap
    is of one trained before. Kept are augmented views that the teacher finds its own plain view
    for, and the share `ratio` of the others that it misses least (`least_wrong`).
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        width = student.taps[student_tap].shape[-1]
        return projection(width, width).make(key)

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x, here = student.taps[student_tap], present(batch)
        x = projection(x.shape[-1], x.shape[-1]).apply(aux, x, here)[""]
        ours = view_similarities(x, here, views=views)
        theirs = view_similarities(teacher.taps[teacher_tap], here, views=views)
        weights = _augmented(batch["weights"], views)
        kept = least_wrong(theirs, _own(theirs, views), weights != 0, ratio=ratio)
        values = forward_kl(ours, theirs, temperature=temperature)
        return weighted_sum(values, jnp.where(kept, weights, 0.0), scale * temperature**2)

    return Part(part, init, (student_tap,), (teacher_tap,), whole_batch=True)


def augmented_labels(
    scale: float = 2.7, *, temperature: float = 4.0, ratio: float = 1.0, views: int = 4
) -> Part:
    """scale * T^2 * KL(teacher || student) on augmented views, a mean over the kept ones.

    Kept as in `view_relations`, by the teacher's logits and the images' targets.
    """

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        s, t = (_augmented(x.head.logits(), views) for x in (student, teacher))
        weights, targets = (_augmented(batch[k], views) for k in ("weights", "targets"))
        kept = least_wrong(t, targets, weights != 0, ratio=ratio)
        values = forward_kl(s, t, temperature=temperature)
        return weighted_sum(values, jnp.where(kept, weights, 0.0), scale * temperature**2)

    return Part(part, whole_batch=True)


def _augmented(x: jax.Array, views: int) -> jax.Array:
    """The rows of augmented views."""
    return x.reshape(-1, views, *x.shape[1:])[:, 1:].reshape(-1, *x.shape[1:])


def _own(near: jax.Array, views: int) -> jax.Array:
    return jnp.arange(near.shape[0]) // (views - 1)
