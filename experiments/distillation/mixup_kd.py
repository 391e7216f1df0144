"""Mixup in distillation: who sees mixed images, the teacher, the student or both, and how soft.

Paper: Choi et al. 2023, arXiv 2211.03946. Teachers learn images as they are or mixed with each
other. Students learn from either on images as they are, on a part of them mixed (10 %), or on all
mixed, of which the teacher says what it thinks of the same mixed image; with distillation at
temperature 1 and 4, and with both sides' logits divided by their own standard deviation.

Measured are test accuracies and how soft teachers are: the mean entropy of their predictions.

Claim: smoothness is what the two have in common. A teacher of mixed images is soft by itself: a
high temperature on top of it is too much, and a student needs few mixed images.

    python -m experiments.distillation.mixup_kd smoke     # digits, a part of the grid: 10 s
    python -m experiments.distillation.mixup_kd laptop    # Fashion-MNIST, 5 seeds

`laptop` needs the files of Fashion-MNIST (environment KD_JAX_DATA, or --pictures.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.distillation.common import pupils
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import mixup_measures, mixup_report, own_teachers
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive
from kd_jax.launch.stages import Stage, Training
from kd_jax.losses.logits import soft_cross_entropy
from kd_jax.objectives.distil import distil, soft_labels
from kd_jax.objectives.parts import Part
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.transfer.logits import standardised_labels
from kd_jax.objectives.transfer.mixing import mixed_labels
from kd_jax.repetition import batched
from kd_jax.steps import make_train_step
from kd_jax.types import Batch, ModelOutput, Objective, Term, TrainStep, weighted_sum

CLAIMS = mixup_report.CLAIMS

Teacher = Literal["plain", "mixed"]
Loss = Literal["t1", "t4", "std"]
Mix = Literal["none", "partial", "full"]

# Of the label loss and of distillation (the paper's released script).
LABELS, TEACHER = 0.1, 0.9
LOSSES: dict[str, dict[str, Part]] = {
    "t1": {"ce": mixed_labels(LABELS, standard=False), "kd": soft_labels(TEACHER)},
    "t4": {
        "ce": mixed_labels(LABELS, standard=False),
        "kd": soft_labels(TEACHER, temperature=4.0),
    },
    "std": {"ce": mixed_labels(LABELS), "kd": standardised_labels(TEACHER, temperature=1.0)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pupils.Schooling):
    teacher_widths: tuple[int, ...] = (128, 128)
    """Hidden layers of a teacher."""
    student_widths: tuple[int, ...] = (24,)
    """Hidden layers of a student."""
    teachers: tuple[Teacher, ...] = get_args(Teacher)
    """What teachers learn: images as they are, or mixed."""
    losses: tuple[Loss, ...] = get_args(Loss)
    """Distillation at temperature 1 and 4, and of standardised logits."""
    mixes: tuple[Mix, ...] = get_args(Mix)
    """How many of a student's images are mixed."""
    part: float = 0.1
    """The share of them where a part is."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "teacher_widths", "student_widths")
        check_distinct(self, "teachers", "losses", "mixes")
        if not 0 < self.part < 1:
            raise ValueError(f"part: got {self.part}, takes a number between 0 and 1")

    def share(self, mix: str) -> float:
        """Of the images that are mixed."""
        return {"none": 0.0, "partial": self.part, "full": 1.0}[mix]


PRESETS = {
    "smoke": Config(
        pictures=Pictures(images=500, validation=100),
        learn_teacher=Learning(rate=1e-2, steps=40, batch_size=64),
        learn=Learning(rate=1e-2, steps=20, batch_size=64),
        teacher_widths=(32,),
        student_widths=(8,),
        losses=("t4",),
        mixes=("full",),
        seeds=2,
    ),
    "laptop": Config(
        pictures=Pictures(fashion=True, images=2000, validation=1000),
        learn_teacher=Learning(rate=3e-3, steps=1000, batch_size=64),
        learn=Learning(rate=5e-3, steps=800, batch_size=64),
        score_batch=1000,
        checkpoint_every=1000,
        seed=10,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    teacher = own_teachers.perceptron(config, config.teacher_widths)
    softness = mixup_measures.softness(config, teacher, config.learn_teacher.steps)
    teachers = tuple(
        own_teachers.stage(
            f"teacher_{name}",
            config,
            teacher,
            lambda: _alone(config, config.teacher_widths, config.learn_teacher),
            prepare=mixup_measures.mixing(0.0 if name == "mixed" else 1.0),
            evaluations=(softness,),
            taught=name,
        )
        for name in config.teachers
    )
    network = own_teachers.perceptron(config, config.student_widths)
    of = functools.partial(pupils.depends, config, network)
    alone = tuple(
        Stage(
            f"alone_{mix}",
            functools.partial(_student, config, None, None, mix),
            (),
            of(share=config.share(mix)),
        )
        for mix in config.mixes
    )
    taught = tuple(
        Stage(
            f"{name}_{loss}_{mix}",
            functools.partial(_student, config, name, loss, mix),
            (f"teacher_{name}",),
            of(teacher=list(config.teacher_widths), loss=loss, share=config.share(mix)),
        )
        for name in config.teachers
        for loss in config.losses
        for mix in config.mixes
    )
    return (*teachers, *alone, *taught)


def _student(
    config: Config, teacher: str | None, loss: str | None, mix: str, found: pupils.Found
) -> Training:
    model = config.model(own_teachers.perceptron(config, config.student_widths))
    if teacher is None or loss is None:
        step = _alone(config, config.student_widths, config.learn)
        made = pupils.students(config, model, step, over=batched)
    else:
        network = config.model(own_teachers.perceptron(config, config.teacher_widths))
        objective: Objective = distil(model, network, LOSSES[loss])
        made = pupils.students(
            config,
            model,
            make_train_step(objective, config.learn.optimizer()),
            frozen=found[f"teacher_{teacher}"].weights(),
            own=own_teachers.OWN,
            over=batched,
        )
    return made._replace(prepare=mixup_measures.mixing(1 - config.share(mix)))


def _alone(config: Config, widths: tuple[int, ...], learning: Learning) -> TrainStep:
    """A training on labels that are mixed as the images are."""

    def cross_entropy(output: ModelOutput, batch: Batch) -> Term:
        values = soft_cross_entropy(output.head.logits(), batch["soft_targets"])
        return weighted_sum(values, batch["weights"])

    model = config.model(own_teachers.perceptron(config, widths))
    return make_train_step(supervise(model, {"ce": cross_entropy}), learning.optimizer())


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    shares = {mix: config.share(mix) for mix in config.mixes}
    return mixup_report.results(config.teachers, config.losses, shares, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
