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
first, all of them with its targets and weights. `over_rotations` makes them of a batch of images.
Xu et al. 2020, ECCV, by released code.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.joint_labels import rotations
from kd_jax.losses.self_supervised import least_wrong, plain, view_similarities
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.attached import projection
from kd_jax.objectives.transfer.weighing import present
from kd_jax.types import (
    Batch,
    Logits,
    Model,
    ModelOutput,
    Objective,
    PyTree,
    Term,
    weighted_sum,
)


def over_rotations(objective: Objective) -> Objective:
    """The objective on four rotations of each image: B rows of a batch become 4 B.

    Those of an image stand one after the other, 0 degrees first, with its targets, weights, index
    and whatever else the batch holds. Stored outputs of a teacher are [B, 4, ...], those of
    `in_rotations`. batch["inputs"]: squares [B, S, S, C].
    """

    def of(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, carry, frozen, batch, ctx: f(
            params, carry, frozen, _turned(batch), ctx
        )

    return objective._replace(
        init=lambda key, params, frozen, batch: objective.init(key, params, frozen, _turned(batch)),
        loss=of(objective.loss),
        stats=objective.stats and of(objective.stats),
    )


def in_rotations(model: Model) -> Model:
    """The model of an image's four rotations, as they are stored: logits and taps [B, 4, ...]."""

    def by_image(x: jax.Array) -> jax.Array:
        return x.reshape(-1, 4, *x.shape[1:])

    def apply(params, inputs, **how):
        output = model.apply(params, _turned(inputs), **how)
        taps = {name: by_image(x) for name, x in output.taps.items()}
        return output._replace(head=Logits(by_image(output.head.logits())), taps=taps)

    return model._replace(apply=apply)


def _turned(batch: Batch) -> Batch:
    rows = {
        name: x.reshape(-1, *x.shape[2:]) if name.startswith("teacher_") else jnp.repeat(x, 4, 0)
        for name, x in batch.items()
        if name != "inputs"
    }
    return {**rows, "inputs": rotations(batch["inputs"])}


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
