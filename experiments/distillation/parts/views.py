"""Classifiers that see an image in four rotations, and what they are trained on (arXiv 1910.05872).

Rows of views are in the order of `losses.joint_labels`: view k of image b is row 4 b + k.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.joint_labels import aggregated, joint_labels, rotations
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.objectives.transfer.joint import VIEWS, rotation_labels
from kd_jax.types import Batch, Logits, Model, ModelOutput, Objective, Term, weighted_sum

CLASSES = 10

Read = Callable[[Model], Model]


class Arm(NamedTuple):
    """A way to train on few images.

    outputs: logits of the network. objective(network) -> Objective. single(network) -> the
    classifier of an image as it is; together: that of its four rotations, where there is one.
    """

    label: str
    outputs: int
    objective: Callable[[Model], Objective]
    single: Read
    together: Read | None = None


def of_views(model: Model) -> Model:
    """The model on the four rotations of its images: [B, S, S, C] -> logits [4 B, K]."""

    def apply(params, inputs, **how):
        return model.apply(params, {"inputs": rotations(inputs["inputs"])}, **how)

    return model._replace(apply=apply)


def reading(f: Callable[[jax.Array], jax.Array]) -> Read:
    """The model with f of its logits in place of them."""

    def of(model: Model) -> Model:
        def apply(params, inputs, **how):
            output = model.apply(params, inputs, **how)
            return output._replace(head=Logits(f(output.head.logits())))

        return model._replace(apply=apply)

    return of


def averaged(model: Model) -> Model:
    """The mean of the logits of an image's four rotations."""
    return reading(lambda z: z.reshape(-1, VIEWS, z.shape[-1]).mean(1))(of_views(model))


def _classes(output: ModelOutput, batch: Batch) -> Term:
    """Cross-entropy of the class, the same in every rotation; the first logits are classes."""
    z = output.head.logits()[:, :CLASSES]
    return _over_views(cross_entropy(z, jnp.repeat(batch["targets"], VIEWS)), batch)


def _turns(output: ModelOutput, batch: Batch) -> Term:
    """Cross-entropy of the rotation; the logits behind the classes are rotations."""
    z = output.head.logits()[:, CLASSES:]
    turns = jnp.tile(jnp.arange(VIEWS), len(batch["targets"]))
    return _over_views(cross_entropy(z, turns), batch)


def _both(output: ModelOutput, batch: Batch) -> Term:
    """Cross-entropy of the joint label of class and rotation."""
    both = joint_labels(batch["targets"], VIEWS)
    return _over_views(cross_entropy(output.head.logits(), both), batch)


def _over_views(x: jax.Array, batch: Batch) -> Term:
    return weighted_sum(x, jnp.repeat(batch["weights"], VIEWS))


def _as_it_is(model: Model) -> Model:
    return model


ARMS = {
    "alone": Arm(
        "class only",
        CLASSES,
        lambda model: supervise(model, {"ce": label_cross_entropy}),
        _as_it_is,
    ),
    "augmented": Arm(
        "rotated images (DA)",
        CLASSES,
        lambda model: supervise(of_views(model), {"ce": _classes}),
        _as_it_is,
        averaged,
    ),
    "multi_task": Arm(
        "class and rotation (MT)",
        CLASSES + VIEWS,
        lambda model: supervise(of_views(model), {"ce": _classes, "turn": _turns}),
        reading(lambda z: z[:, :CLASSES]),
    ),
    "joint": Arm(
        "joint label (SLA)",
        CLASSES * VIEWS,
        lambda model: supervise(of_views(model), {"joint": _both}),
        reading(lambda z: z[:, ::VIEWS]),
        lambda model: reading(lambda z: aggregated(z, VIEWS))(of_views(model)),
    ),
    "distilled": Arm(
        "joint label, distilled (SLA+SD)",
        CLASSES,
        lambda model: rotation_labels(model, "pooled"),
        _as_it_is,
    ),
}
