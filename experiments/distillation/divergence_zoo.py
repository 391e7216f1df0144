"""Which divergence: every loss between next-token distributions, under one protocol.

Papers: Hinton et al. 2015 (arXiv 1503.02531), GKD (arXiv 2306.13649), DistiLLM (arXiv 2402.03898),
adaptive KL (arXiv 2404.02657), decoupled KD (arXiv 2203.08679), TAID (arXiv 2501.16937) and others.
A character language model learns a text. Shallower and narrower students learn from it on the same
text: with each loss from the same initial weights, on the same batches, at the same rate, and once
from the text alone.

Measured are both KL divergences between student and teacher, on held-out text and on what the
student itself goes on to write.

Claim: a teacher helps, and the divergence that is trained is the one that gets small.

    python -m experiments.distillation.divergence_zoo smoke     # generated text, two losses: 20 s
    python -m experiments.distillation.divergence_zoo laptop    # tiny Shakespeare, 3 seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --text.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from experiments.distillation.common import reporting, runs
from experiments.distillation.common.arms import ARMS, Name
from experiments.distillation.common.config import SMALL, STUDENT, TEACHER, Common
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.text import Text
from experiments.distillation.parts import zoo_report
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct
from kd_jax.launch.stages import Stage, Training
from kd_jax.models import decoder

CLAIMS = zoo_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    methods: tuple[Name, ...] = get_args(Name)
    """Losses that are compared."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "methods")


PRESETS = {
    "smoke": Config(
        text=Text(length=32, held_out=32),
        teacher=SMALL,
        student=dataclasses.replace(SMALL, width=16, mlp=32),
        learn_teacher=Learning(rate=1e-2, steps=60),
        learn=Learning(rate=1e-2, steps=40),
        methods=("alone", "forward", "taid"),
        seeds=2,
        evaluations=1,
        score_batch=32,
        prompt=8,
    ),
    "laptop": Config(
        text=Text(shakespeare=True, length=64, held_out=512),
        teacher=TEACHER,
        student=STUDENT,
        learn_teacher=Learning(rate=3e-3, steps=2000, batch_size=64),
        learn=Learning(rate=3e-3, steps=600, batch_size=32),
        seed=10,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return (runs.teacher(config),) + tuple(
        Stage(
            f"{name}_{seed}",
            functools.partial(_student, config, name, seed),
            ("teacher",),
            runs.student_depends(config, seed) | {"method": name},
        )
        for seed in config.repetitions
        for name in config.methods
    )


def _student(config: Config, name: str, seed: int, found: Mapping[str, Any]) -> Training:
    student, teacher = (decoder.decoder(x) for x in (config.student, config.teacher))
    objective = ARMS[name].make(student, teacher, config.learn.steps)
    return runs.student(config, objective, seed, found)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    labels = {name: ARMS[name].label for name in config.methods}
    return reporting.results(labels, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
