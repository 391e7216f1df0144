"""A teacher for every student: of the same seed, trained side by side and read side by side.

What is measured over seeds is then over teachers too, not over the students of one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from kd_jax.launch.config import identity
from kd_jax.launch.stages import Evaluation, Stage
from kd_jax.models.mlp import MLPConfig
from kd_jax.objectives.on_policy import Prepare
from kd_jax.repetition import batched
from kd_jax.types import TrainStep

OWN = ("teacher",)
_APART = 1000  # teachers have other initial weights and orders of images than students


def perceptron(config: pupils.Schooling, widths: Sequence[int]) -> MLPConfig:
    """Of the config's images and their ten classes."""
    return MLPConfig(inputs=config.pictures.side**2, widths=tuple(widths), classes=10)


def stage(
    name: str,
    config: pupils.Schooling,
    network: MLPConfig,
    step: Callable[[], TrainStep],
    *,
    prepare: Prepare | None = None,
    images: Callable[[int], dict[str, np.ndarray]] | None = None,
    evaluations: Sequence[Evaluation] = (),
    **more: Any,
) -> Stage:
    """Teachers of all seeds. The artefact, {"teacher": weights [S, ...]}, is a student's `frozen`,
    in which `OWN` names the entries of each.

    prepare: of the batch of all teachers, leaves [B, S, ...]. images(seed): what the teacher of a
    student's seed learns. more: plain data that names what these and the step are.
    """

    def build(_: pupils.Found) -> pupils.Training:
        def own_images(seed: int) -> dict[str, np.ndarray]:
            if images is None:
                return pictures_lib.load(config.pictures).train
            return images(seed - _APART)

        training = pupils.students(
            config,
            config.model(network),
            step(),
            learning=config.learn_teacher,
            seeds=[_APART + seed for seed in config.repetitions],
            images=own_images,
            over=batched,
        )
        return training._replace(
            prepare=prepare,
            evaluations=(*training.evaluations, *evaluations),
            result=lambda reached, _: {"teacher": reached.params["model"]},
        )

    depends = pupils.depends(config, network) | {"learn": identity(config.learn_teacher)}
    return Stage(name, build, (), depends | more)
