"""Private text behind a teacher: what plain and swing distillation hand on to a student.

Paper: Swing distillation, Li et al. 2022 (arXiv 2212.08349; formulas INFERRED). A character
language model learns a text in which secrets are hidden: "the pin of ann is 4821", many times. A
student distils it on the same text, where a regular expression marks the digits of secrets as
private: by forward KL; by swing distillation, whose targets are flat and noisy there; and by swing
distillation without noise.

Measured are the exposure of the secrets (Carlini et al. 2019, arXiv 1802.08232), which is how far
up a secret stands among all numbers of as many digits, in bits, and the NLL of held-out text.

Claim: swing distillation takes away over 80 % of the exposure, and costs next to nothing.

    python -m experiments.distillation.swing_privacy smoke     # generated text: 20 s
    python -m experiments.distillation.swing_privacy laptop    # tiny Shakespeare, 3 seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --text.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.distillation.common import runs
from experiments.distillation.common import text as text_lib
from experiments.distillation.common.arms import ARMS, Arm
from experiments.distillation.common.config import SMALL, STUDENT, TEACHER, Common
from experiments.distillation.common.learning import Learning
from experiments.distillation.parts import canaries, swing_report
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_positive, identity
from kd_jax.launch.stages import Evaluation, Program, Stage, Training, mesh_of
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.swing import swing
from kd_jax.objectives.terms import next_token_nll

CLAIMS = swing_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    secrets: int = 10
    """Secrets in the text."""
    digits: int = 4
    """Digits of a secret."""
    copies: int = 30
    """How often each stands in the text."""
    high: float = 20.0
    """The targets' temperature where a character is private."""
    sigma: float = 0.05
    """Standard deviation of the noise on the targets' probabilities there."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "secrets", "digits", "copies", "high")

    @property
    def hidden(self) -> canaries.Secrets:
        return canaries.Secrets(self.secrets, self.digits, self.copies, self.seed)


PRESETS = {
    "smoke": Config(
        text=text_lib.Text(length=32, held_out=32),
        teacher=SMALL,
        student=dataclasses.replace(SMALL, width=16, mlp=32),
        learn_teacher=Learning(rate=1e-2, steps=40),
        learn=Learning(rate=1e-2, steps=20),
        seeds=1,
        evaluations=1,
        score_batch=32,
        prompt=8,
        secrets=2,
        digits=2,
    ),
    "laptop": Config(
        text=text_lib.Text(shakespeare=True, length=64, held_out=512),
        teacher=TEACHER,
        student=STUDENT,
        learn_teacher=Learning(rate=3e-3, steps=2000, batch_size=64),
        learn=Learning(rate=3e-3, steps=1000, batch_size=32),
        evaluations=1,
        score_batch=512,
        copies=100,
        seed=10,
    ),
}


def _arms(config: Config) -> dict[str, Arm]:
    def with_noise(sigma: float):
        return lambda s, t, steps: swing(s, t, high=config.high, sigma=sigma)

    return {
        "plain": Arm("forward KL", ARMS["forward"].make),
        "swing": Arm("swing", with_noise(config.sigma)),
        "flat": Arm("swing without noise", with_noise(0.0)),
    }


def stages(config: Config) -> tuple[Stage, ...]:
    secrets = {"secrets": list(config.hidden)}
    teacher = Stage(
        "teacher",
        lambda _: _teacher(config),
        (),
        {x: identity(getattr(config, x)) for x in ("text", "teacher", "learn_teacher")} | secrets,
    )
    noise = {"high": config.high, "sigma": config.sigma}
    return (teacher,) + tuple(
        Stage(
            f"{name}_{seed}",
            functools.partial(_student, config, arm, seed),
            ("teacher",),
            runs.student_depends(config, seed) | secrets | noise | {"method": name},
        )
        for seed in config.repetitions
        for name, arm in _arms(config).items()
    )


def _teacher(config: Config) -> Training:
    objective = supervise(decoder.decoder(config.teacher), {"nll": next_token_nll})
    rows = functools.partial(_rows, config)
    learn = config.learn_teacher
    made = runs.training(config, config.teacher, objective, learn, config.seed, rows)
    exposed = _exposure(config, config.teacher, learn.steps)
    return _with_private(made)._replace(evaluations=(exposed,))


def _student(config: Config, arm: Arm, seed: int, found: Mapping[str, Any]) -> Training:
    student, teacher = (decoder.decoder(x) for x in (config.student, config.teacher))
    objective = arm.make(student, teacher, config.learn.steps)
    made = runs.student(config, objective, seed, found, functools.partial(_rows, config))
    exposed = _exposure(config, config.student, config.learn.steps)
    return _with_private(made)._replace(evaluations=(*made.evaluations, exposed))


def _rows(config: Config) -> Mapping[str, Any]:
    train, _ = text_lib.read(config.text)
    return canaries.rows(canaries.hidden_in(train, config.hidden), config.text.length)


def _with_private(training: Training) -> Training:
    shape = training.batch["weights"].shape
    private = jax.ShapeDtypeStruct(shape, np.float32)
    return training._replace(batch={**training.batch, "private": private})


def _exposure(config: Config, model: DecoderConfig, every: int) -> Evaluation:
    def measure(params: Any, carry: Any, frozen: Any) -> Mapping[str, Any]:
        weights = params["model"]
        found = canaries.exposures(
            model, weights, config.hidden, mesh_of(weights), batch_size=config.score_batch
        )
        return {"mean": float(np.mean(found)), "bits": np.array(found)}

    def plan(params: Any, carry: Any, frozen: Any) -> Mapping[str, Program]:
        weights = params["model"]
        return canaries.program(
            model, weights, config.hidden, mesh_of(weights), batch_size=config.score_batch
        )

    return Evaluation("exposure", every, measure, plan)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    labels = {name: arm.label for name, arm in _arms(config).items()}
    most = float(np.log2(10**config.digits))
    return swing_report.results(labels, config.repetitions, most, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
