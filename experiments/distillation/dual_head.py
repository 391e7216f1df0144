"""One head for labels and logits, or one for each: what two losses do to a classifier.

Paper: Yang et al. 2024, dual-head knowledge distillation (DHKD, arXiv 2411.08937).
A perceptron teaches smaller ones on Fashion-MNIST by its logits, each class by itself: BinaryKL
compares sigmoids of both, BinaryKL-Norm the sigmoid of their difference with 1/2. Students learn
from labels, from such a loss, from both with one head, and from both with a second head for the
logits, which is dropped. DHKD's second head has a hidden layer, and where the gradient of its loss
runs against that of the labels, it gives way.

Measured are the test accuracy, and along the training the cosine of the gradients of both losses on
a batch: in the classifier and in what lies below it.

Claim: in one head the two losses run against each other and end worse than either alone; in the
backbone they agree, and with two heads they end better than either.

Measured at `laptop` (two CPU cores, 2026-11): none of it but the agreement in the backbone (cosine
0.34). In the classifier there is as much (0.32), one head is not seen to do harm, and DHKD ends
half a point below the better of its losses alone. Over all images instead of a batch both cosines
are negative at the end (-0.65, -0.71): where the sum of two losses is at rest, their gradients are
opposite, in classifier and backbone alike.

    python -m experiments.distillation.dual_head smoke     # digits, two kinds: 12 s
    python -m experiments.distillation.dual_head laptop    # 2000 images of Fashion-MNIST, 6 seeds

`laptop` needs Fashion-MNIST's files (environment KD_JAX_DATA, or --pictures.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import last
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import conflict, dual_arms, dual_report, stored_images
from experiments.distillation.parts.dual_arms import ARMS, Name
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, Training, materialise
from kd_jax.models.mlp import MLPConfig
from kd_jax.steps import make_train_step
from kd_jax.types import Objective

CLAIMS = dual_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pupils.Schooling):
    teacher_widths: tuple[int, ...] = (256, 256)
    """Hidden layers of the teacher."""
    student_widths: tuple[int, ...] = (32, 32)
    """Hidden layers of a student."""
    methods: tuple[Name, ...] = get_args(Name)
    """Kinds of students; a claim about others is not tested."""
    alpha: float = 1.0
    """Weight of the loss on logits; labels have 1."""
    temperature: float = 2.0
    """Of the loss on logits."""
    hidden: int = 200
    """Units of DHKD's second head."""
    measurements: int = 8
    """How often along a training gradients are compared."""
    batches: int = 8
    """Batches that they are compared on."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "methods")
        check_positive(self, "teacher_widths", "student_widths", "alpha", "temperature", "hidden")
        check_positive(self, "measurements", "batches")
        if not self.student_widths:
            raise ValueError("student_widths: got none, takes at least one: heads read a layer")

    @property
    def teacher(self) -> MLPConfig:
        return self._perceptron(self.teacher_widths)

    @property
    def student(self) -> MLPConfig:
        return self._perceptron(self.student_widths)

    def _perceptron(self, widths: tuple[int, ...]) -> MLPConfig:
        return MLPConfig(inputs=self.pictures.side**2, widths=widths, classes=10)


PRESETS = {
    "smoke": Config(
        learn_teacher=Learning(rate=3e-3, steps=60, batch_size=64),
        learn=Learning(rate=3e-3, steps=20, batch_size=64),
        teacher_widths=(32,),
        student_widths=(16,),
        methods=("ce", "norm_one"),
        measurements=1,
        batches=1,
        seeds=2,
    ),
    "laptop": Config(
        # So few images, so many times, that students fit them, as the analysis has it.
        pictures=Pictures(fashion=True, images=2000, validation=2000),
        learn_teacher=Learning(rate=1e-3, steps=1500, batch_size=64),
        learn=Learning(rate=3e-3, steps=3000, batch_size=64),
        seeds=6,
        seed=10,  # sizes were chosen on seeds from 0
        score_batch=2000,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return (
        pupils.teacher(config, config.teacher),
        pupils.outputs(config, config.teacher, ()),
        *(
            Stage(
                name,
                functools.partial(_students, config, name),
                ("teacher", "teacher_outputs") if ARMS[name].taught else (),
                pupils.depends(config, config.student, method=name, how=_on(config, name)),
            )
            for name in config.methods
        ),
        *_over_all_images(config),
    )


def _over_all_images(config: Config) -> tuple[Stage, ...]:
    """Gradients over all training images, of students with both losses on one head."""
    names: list[Name] = [name for name in config.methods if ARMS[name].heads == "one"]
    needs = ("teacher", "teacher_outputs", *names)
    return (Stage("whole", functools.partial(_whole, config, names), needs, []),) if names else ()


def _whole(config: Config, names: Sequence[Name], found: Mapping[str, Any]) -> Compute:
    def run() -> tuple[None, Mapping[str, Any]]:
        mesh, examples = make_mesh(config.mesh), stored_images.load(config, found)
        rows = {}
        for name in names:
            model = materialise(found[name].weights(), mesh)["model"]
            params = {"model": model, "aux": {"ce": {}, "kd": {}}}
            cosines = conflict.whole(
                _objective(config, name), params, examples, classifier=_classifier(config)
            )
            rows |= {f"{name}/{side}": x for side, x in cosines.items()}
        return None, rows

    return Compute(run)


def _objective(config: Config, name: Name) -> Objective:
    how = dual_arms.How(config.alpha, config.temperature, config.hidden, last(config.student))
    return dual_arms.objective(ARMS[name], config.model(config.student), how)


def _classifier(config: Config) -> str:
    """The pattern of the paths of the layer that makes logits."""
    return rf"layer_{len(config.student_widths)}/.*"


def _on(config: Config, name: Name) -> dict[str, Any]:
    """What the students of one kind read of the config besides."""
    if not ARMS[name].taught:
        return {}
    fields = ("alpha", "temperature", "hidden", "measurements", "batches")
    return {field: getattr(config, field) for field in fields}


def _students(config: Config, name: Name, found: Mapping[str, Any]) -> Training:
    arm, objective = ARMS[name], _objective(config, name)
    training = pupils.students(
        config,
        config.model(config.student),
        make_train_step(objective, config.learn.optimizer(), gradient=arm.rule()),
        found,
        read=pupils.Read(config.teacher) if arm.taught else None,
    )
    if not arm.compared:
        return training
    measured = conflict.along(
        training,
        objective,
        classifier=_classifier(config),
        every=max(1, config.learn.steps // config.measurements),
        batches=config.batches,
    )
    return training._replace(evaluations=(*training.evaluations, measured))


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return dual_report.results(config.methods, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
