"""The kinds of students of dual_head: which losses they learn by, on which head."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax

from kd_jax.gradients import plain, surgery, yield_to_first
from kd_jax.losses.binary import binary_kl, binary_kl_of_difference
from kd_jax.objectives.distil import distil, labels, soft_labels
from kd_jax.objectives.parts import Part
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.objectives.transfer.heads import auxiliary_head
from kd_jax.objectives.transfer.logits import soft
from kd_jax.types import GradientRule, Model, Objective

LogitLoss = Callable[..., jax.Array]
Heads = Literal["labels", "logits", "one", "two", "dhkd"]
Name = Literal[
    "ce", "kd", "binary_alone", "binary_one", "binary_two",
    "norm_alone", "norm_one", "norm_two", "norm_dhkd",
]  # fmt: skip


class How(NamedTuple):
    """alpha, temperature: of the loss on logits. hidden: of DHKD's head. tap: what heads read."""

    alpha: float
    temperature: float
    hidden: int
    tap: str


class Arm(NamedTuple):
    """loss: on logits; None for KL at temperature 4. heads: which losses there are, and on what."""

    label: str
    heads: Heads
    loss: LogitLoss | None = None

    @property
    def taught(self) -> bool:
        return self.heads != "labels"

    @property
    def compared(self) -> bool:
        """Are there two losses, "ce" and "kd"?"""
        return self.heads not in ("labels", "logits")

    def rule(self) -> GradientRule:
        return surgery(("ce", "kd"), yield_to_first) if self.heads == "dhkd" else plain()


ARMS: dict[Name, Arm] = {
    "ce": Arm("CE", "labels"),
    "kd": Arm("CE + KL (KD), one head", "one"),
    "binary_alone": Arm("BinaryKL alone", "logits", binary_kl),
    "binary_one": Arm("CE + BinaryKL, one head", "one", binary_kl),
    "binary_two": Arm("CE + BinaryKL, two heads", "two", binary_kl),
    "norm_alone": Arm("BinaryKL-Norm alone", "logits", binary_kl_of_difference),
    "norm_one": Arm("CE + BinaryKL-Norm, one head", "one", binary_kl_of_difference),
    "norm_two": Arm("CE + BinaryKL-Norm, two heads", "two", binary_kl_of_difference),
    "norm_dhkd": Arm("DHKD", "dhkd", binary_kl_of_difference),
}


def objective(arm: Arm, student: Model, how: How) -> Objective:
    """Of terms "ce" and "kd", or one of them, with a teacher whose logits come with the batch."""
    if not arm.taught:
        return supervise(student, {"ce": label_cross_entropy})
    if arm.loss is None:
        parts = {"ce": labels(0.1), "kd": soft_labels(0.9, temperature=4.0)}
    else:
        parts = {"kd": _logits(arm.heads, arm.loss, how)}
        parts = {"ce": labels(), **parts} if arm.compared else parts
    return distil(student, stored_teacher(), parts, teacher_policy=nothing)


def _logits(heads: Heads, loss: LogitLoss, how: How) -> Part:
    t = how.temperature
    if heads in ("two", "dhkd"):
        hidden = how.hidden if heads == "dhkd" else None
        return auxiliary_head(how.tap, how.alpha, temperature=t, hidden=hidden, loss=loss)
    return soft(lambda student, teacher, _: loss(student, teacher, temperature=t), how.alpha * t**2)
