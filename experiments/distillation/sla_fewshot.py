"""Labels of class and rotation together teach more from few images than rotation as augmentation.

Paper: Lee, Hwang, Shin 2020 (arXiv 1910.05872). From a few images of each class, the same small
residual network is trained in five ways: on the class; on the class of all four rotations (DA); on
the class and, by a second head, the rotation (MT); on the joint label of both (SLA); and on the
class, taught by the aggregate of its own joint labels (SLA+SD). SLA is measured on the image as it
is (SI) and aggregated over its rotations (AG), which costs four passes; DA is averaged over
rotations as a control. All have the same steps and images in a batch; only `class only` sees one
view of each, and so computes a quarter.

Clothes have an upright position. Digits are a negative control: a turned 6 is a 9.

Claim: class only < SLA+SD in one pass < SLA+AG in four, and DA is worst.

    python -m experiments.distillation.sla_fewshot smoke     # digits, two ways: 12 s
    python -m experiments.distillation.sla_fewshot laptop    # Fashion-MNIST and digits: 4 minutes

`laptop` needs Fashion-MNIST (environment KD_JAX_DATA or a download).

Measured at `laptop` (two CPU cores, 2026-11): on Fashion-MNIST SLA+AG is 3.9 points above class
only, SLA+SD level with it, DA 8.1 below; on digits SLA+AG gains nothing.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import classifier, folded
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import sla_report
from experiments.distillation.parts.views import ARMS, CLASSES
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_distinct, check_positive, not_identity
from kd_jax.launch.stages import Stage, Training
from kd_jax.models.resnet import ResNetConfig
from kd_jax.steps import make_train_step
from kd_jax.types import Model

CLAIMS = sla_report.CLAIMS

Data = Literal["fashion_mnist", "digits"]
Name = Literal["alone", "augmented", "multi_task", "joint", "distilled"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    data: tuple[Data, ...] = ("fashion_mnist", "digits")
    """What is learned."""
    folder: str | None = not_identity(None)
    """Where Fashion-MNIST's files lie (by default the environment's KD_JAX_DATA)."""
    methods: tuple[Name, ...] = ("alone", "augmented", "multi_task", "joint", "distilled")
    """Ways to learn that are compared."""
    per_class: tuple[int, ...] = (5, 20)
    """Training images of each class."""
    pool: int = 1000
    """Images from which each seed draws its own."""
    validation: int = 400
    """Images for choices."""
    test: int = 2000
    """Test images, at most; digits have fewer."""
    widths: tuple[int, ...] = (16, 32)
    """Channels of the residual network's stages, each of one block."""
    learn: Learning
    """How a network learns; a batch counts images, not views."""
    seeds: int = 5
    """Networks of each kind; seed s fixes images, their order and initial weights."""
    seed: int = 0
    """The first of them."""
    score_batch: int = 500
    """Images measured at once."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "data", "methods", "per_class")
        check_positive(self, "per_class", "widths")
        for data in self.data:
            self.schooling(data)

    def schooling(self, data: Data) -> pupils.Schooling:
        """The same of one data set, as the family's stages take it."""
        return pupils.Schooling(
            pictures=Pictures(
                fashion=data == "fashion_mnist",
                images=self.pool,
                validation=self.validation,
                test=self.test,
                folder=self.folder,
            ),
            learn_teacher=self.learn,  # there is no teacher
            learn=self.learn,
            seeds=self.seeds,
            seed=self.seed,
            score_batch=self.score_batch,
            mesh=self.mesh,
        )


PRESETS = {
    "smoke": Config(
        data=("digits",),
        methods=("alone", "joint"),
        per_class=(10,),
        test=200,
        widths=(8,),
        learn=Learning(rate=3e-3, steps=20, batch_size=32),
        seeds=2,
    ),
    "laptop": Config(learn=Learning(rate=1e-2, steps=300, batch_size=32), seed=10),
}


# How often 2 x 2 pixels become channels: images of 7 x 7 or 4 x 4 are seen, which is cheap.
FOLDS: dict[Data, int] = {"fashion_mnist": 2, "digits": 1}


def sizes(config: Config, data: Data, name: Name) -> ResNetConfig:
    """Of the network of a data set and a way to learn."""
    return ResNetConfig(
        blocks=(1,) * len(config.widths),
        widths=config.widths,
        channels=4 ** FOLDS[data],
        classes=ARMS[name].outputs,
    )


@functools.cache
def network(sizes: ResNetConfig, folds: int) -> Model:
    model = classifier(sizes, 1)
    for _ in range(folds):
        model = folded(model, 2)
    return model


def stages(config: Config) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            f"{name}_{data}_{count}",
            functools.partial(_student, config, name, data, count),
            (),
            pupils.depends(
                config.schooling(data), sizes(config, data, name), per_class=count, arm=name
            ),
        )
        for data in config.data
        for count in config.per_class
        for name in config.methods
    )


def _student(config: Config, name: Name, data: Data, count: int, _: Any) -> Training:
    schooling, arm = config.schooling(data), ARMS[name]
    model = network(sizes(config, data, name), FOLDS[data])
    step = make_train_step(arm.objective(model), config.learn.optimizer())

    def images(seed: int) -> dict[str, np.ndarray]:
        return few(pictures_lib.load(schooling.pictures).train, count, seed)

    training = pupils.students(schooling, arm.single(model), step, images=images)
    if arm.together is None:
        return training
    also = pupils.students(schooling, arm.together(model), step).evaluations
    renamed = (e._replace(name=f"{sla_report.TOGETHER}{e.name}") for e in also)
    return training._replace(evaluations=(*training.evaluations, *renamed))


def few(examples: dict[str, np.ndarray], count: int, seed: int) -> dict[str, np.ndarray]:
    """`count` examples of each class, drawn by the seed. ValueError where a class has fewer."""
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(examples["targets"]))
    labels = examples["targets"][order]
    each = [order[labels == c][:count] for c in range(CLASSES)]
    least = min(map(len, each))
    if least < count:
        raise ValueError(f"per_class: got {count}, a class of the pool has {least}")
    return pictures_lib.part(examples, np.sort(np.concatenate(each)))


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    tests = {data: pictures_lib.load(config.schooling(data).pictures).test for data in config.data}
    targets = {data: x["targets"] for data, x in tests.items()}
    return sla_report.results(config.methods, config.per_class, targets, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
