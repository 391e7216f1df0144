"""Less or more from teacher: a network that decides, image by image, whom to believe.

Paper: TGeo-KD, Hu et al. 2024 (arXiv 2312.15112). Teachers learn many more images than their
students, but with wrong labels where it is known: either on 30 % of the student's images, scattered
at random, which they learn by heart; or on 30 % of the classes, which they never get to know.
Students learn from the teacher and from the true labels: alpha * T^2 KL + (1 - alpha) *
cross-entropy. alpha is the same for all images; or what a network makes of the geometry between
student, teacher, label and the teacher's mean of the class. That network is trained by two levels:
by what the student's loss on other images gains by a step. For comparison it is trained on the
student's own loss as well, as early released code has it; and alpha is 1 where the teacher is right
and 0 where it is wrong, which nothing has to learn.

Measured are test accuracies, and how well alpha tells images that the teacher is right on from
those that it is wrong on (AUC).

Claim: alpha is small where the teacher is wrong, and no fixed alpha is better.

    python -m experiments.distillation.tgeo_fusion smoke     # digits, 2 seeds: 12 s
    python -m experiments.distillation.tgeo_fusion laptop    # Fashion-MNIST, 5 seeds

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
from experiments.distillation.parts import fusion_report, fusion_stages, own_teachers
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive, identity
from kd_jax.launch.stages import Stage, Training
from kd_jax.launch.weights import Weights
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.repetition import batched
from kd_jax.steps import make_train_step
from kd_jax.types import Model, TrainStep

CLAIMS = fusion_report.CLAIMS

World = Literal["scattered", "gathered"]
Method = Literal["correct", "joint", "learned"]

_OWN = ("teacher", "class_means")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pupils.Schooling):
    teacher_widths: tuple[int, ...] = (256,)
    """Hidden layers of a teacher."""
    student_widths: tuple[int, ...] = (64,)
    """Hidden layers of a student."""
    student_images: int
    """Images that a student learns: the first of pictures.images."""
    other_images: int
    """The next, that the fusion network learns from; the rest are the teacher's alone."""
    worlds: tuple[World, ...] = get_args(World)
    """Where teachers are wrong: on images at random, or on classes."""
    wrong: float = 0.3
    """The share of them."""
    copies: int = 4
    """How often a teacher's images have each of the student's."""
    alphas: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 1.0)
    """Fixed ones."""
    methods: tuple[Method, ...] = get_args(Method)
    """Of an alpha for each image: by whether the teacher is right, or a network's."""
    learn_fusion: Learning
    """How the fusion network learns; steps and batches are the student's."""
    lookahead: float = 0.1
    """Size of the student's step that the fusion network looks through."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(
            self, "teacher_widths", "student_widths", "student_images", "other_images", "copies",
            "lookahead",
        )  # fmt: skip
        check_distinct(self, "worlds", "alphas", "methods")
        if not 0 < self.wrong < 1:
            raise ValueError(f"wrong: got {self.wrong}, takes a number between 0 and 1")
        if not 0 <= min(self.alphas) <= max(self.alphas) <= 1:
            raise ValueError(f"alphas: got {self.alphas}, takes numbers in [0, 1]")
        wanted = self.student_images + self.other_images
        if wanted > self.pictures.images:
            raise ValueError(
                f"student_images, other_images: got {wanted} in all, takes up to pictures.images, "
                f"{self.pictures.images}"
            )
        if self.learn_fusion.steps != self.learn.steps:
            raise ValueError(
                f"learn_fusion.steps: got {self.learn_fusion.steps}, takes those of learn, "
                f"{self.learn.steps}"
            )

    @property
    def cut(self) -> fusion_stages.Cut:
        return fusion_stages.cut(self.pictures, self.student_images, self.other_images)


PRESETS = {
    "smoke": Config(
        pictures=Pictures(images=600, validation=100),
        learn_teacher=Learning(rate=1e-2, steps=60, batch_size=64),
        learn=Learning(rate=1e-2, steps=20, batch_size=64),
        learn_fusion=Learning(rate=1e-2, steps=20, batch_size=64),
        teacher_widths=(32,),
        student_widths=(8,),
        student_images=300,
        other_images=100,
        worlds=("gathered",),
        alphas=(0.5,),
        methods=("learned",),
        seeds=2,
    ),
    "laptop": Config(
        pictures=Pictures(fashion=True, images=5000, validation=1000),
        learn_teacher=Learning(rate=3e-3, steps=1000, batch_size=128, weight_decay=0.0),
        learn=Learning(rate=3e-3, steps=300, batch_size=100),
        learn_fusion=Learning(rate=3e-3, steps=300, batch_size=100, weight_decay=0.05),
        student_images=300,
        other_images=300,
        score_batch=1000,
        checkpoint_every=1000,
        seed=10,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return tuple(stage for world in config.worlds for stage in _stages_of(config, world))


def _stages_of(config: Config, world: World) -> tuple[Stage, ...]:
    teacher, student = (
        own_teachers.perceptron(config, widths)
        for widths in (config.teacher_widths, config.student_widths)
    )
    seen = [config.student_images, config.other_images]
    fusion = identity(config.learn_fusion)
    methods: dict[str, dict[str, Any]] = {
        "joint": {"fusion": fusion},
        "learned": {"fusion": fusion, "lookahead": config.lookahead},
    }
    arms = {
        fusion_report.name(alpha): (functools.partial(_fixed, alpha), {"alpha": alpha})
        for alpha in config.alphas
    } | {name: (_METHODS[name], methods.get(name, {})) for name in config.methods}
    learned = own_teachers.stage(
        f"{world}_teacher",
        config,
        teacher,
        lambda: make_train_step(
            supervise(config.model(teacher), {"ce": label_cross_entropy}),
            config.learn_teacher.optimizer(),
        ),
        images=lambda seed: fusion_stages.misled(
            config.cut, config.wrong, seed, gathered=world == "gathered", copies=config.copies
        ),
        seen=seen,
        wrong=[config.wrong, world, config.copies],
    )
    said = Stage(
        f"{world}_said",
        lambda found: fusion_stages.said(
            config, teacher, found[f"{world}_teacher"], lambda: config.cut.train
        ),
        (f"{world}_teacher",),
        {},
    )
    return (learned, said) + tuple(
        Stage(
            f"{world}_{name}",
            lambda found, make=make: make(config, found[f"{world}_said"].weights()),
            (f"{world}_said",),
            pupils.depends(config, student, seen=seen, **more),
        )
        for name, (make, more) in arms.items()
    )


def _models(config: Config) -> tuple[Model, Model]:
    """Student and teacher."""
    widths = config.student_widths, config.teacher_widths
    student, teacher = (config.model(own_teachers.perceptron(config, w)) for w in widths)
    return student, teacher


def _students(config: Config, step: TrainStep, said: Weights) -> Training:
    student, _ = _models(config)
    return pupils.students(
        config,
        student,
        step,
        frozen=said,
        own=_OWN,
        images=lambda _: config.cut.train,
        over=batched,
    )


def _fixed(alpha: float, config: Config, said: Weights) -> Training:
    objective = fusion_stages.fixed(*_models(config), alpha)
    return _students(config, make_train_step(objective, config.learn.optimizer()), said)


def _correct(config: Config, said: Weights) -> Training:
    objective = fusion_stages.by_correctness(*_models(config))
    return _students(config, make_train_step(objective, config.learn.optimizer()), said)


def _joint(config: Config, said: Weights) -> Training:
    objective = fusion_stages.fusing(*_models(config))
    return _fused(config, fusion_stages.jointly(objective, config.learn, config.learn_fusion), said)


def _learned(config: Config, said: Weights) -> Training:
    objective = fusion_stages.fusing(*_models(config))
    step = fusion_stages.learned(objective, config.learn, config.learn_fusion, config.lookahead)
    return _fused(config, step, said)


def _fused(config: Config, step: TrainStep, said: Weights) -> Training:
    """With the fusion network, whose alphas are measured."""
    student, _ = _models(config)
    other = pupils.students(config, student, step, images=lambda _: config.cut.other)
    training = fusion_stages.with_other(_students(config, step, said), other)
    measured = fusion_stages.shares(
        config,
        fusion_stages.fusing(*_models(config)),
        lambda: config.cut.train,
        config.learn.steps,
    )
    return training._replace(evaluations=(*training.evaluations, measured))


_METHODS = {"correct": _correct, "joint": _joint, "learned": _learned}


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return fusion_report.results(config.worlds, config.alphas, config.methods, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
