"""Teacher hacking: on a fixed set of responses a student nears its teacher and leaves the truth.

Paper: Tiapkin et al. 2025 (arXiv 2502.02671). The truth is an oracle, a random process over a few
symbols whose distribution is a table. A teacher learns it from few rows, and a student from fewer.
Then the student learns from the teacher by token-level forward KL for many epochs, on responses
that are the same in every epoch, or sampled anew in each step from the teacher or from the student
itself; or on equally many responses to fewer prompts, or on more responses.

Measured are, on prompts that nobody has trained on, the proxy KL(teacher || student) and the golden
KL(oracle || student), sums over the tokens of responses sampled from the first of the two (what the
paper samples from, and in which direction, is UNVERIFIED).

Claim: offline the golden distance turns up while the proxy goes on falling; online it does not; and
with less diverse prompts the student ends farther from the oracle.

    python -m experiments.distillation.teacher_hacking smoke     # two ways: 20 s
    python -m experiments.distillation.teacher_hacking laptop    # five ways, 3 seeds

It needs no data.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.distillation.common.config import SMALL
from experiments.distillation.common.learning import Learning
from experiments.distillation.parts import hacking_report, hacking_stages, oracle
from experiments.distillation.parts.hacking_report import ARMS, Name
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_distinct, check_positive, identity
from kd_jax.launch.stages import Stage
from kd_jax.models.config import DecoderConfig

CLAIMS = hacking_report.CLAIMS
SYMBOLS = 16
MODEL = dataclasses.replace(SMALL, vocab=SYMBOLS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    sharpness: float = 0.7
    """How far the oracle is from drawing evenly."""
    length: int = 20
    """Symbols that a row has to predict."""
    teacher_rows: int = 4000
    """Rows of the oracle that the teacher learns."""
    student_rows: int = 500
    """Rows of the oracle that the student learns first."""
    prompts: int = 600
    """Responses of the teacher that a student learns from offline, each to a prompt of its own."""
    held_out: int = 512
    """Prompts to measure on."""
    teacher: DecoderConfig = MODEL
    student: DecoderConfig = MODEL
    learn_teacher: Learning
    learn_start: Learning
    """How the student learns from the oracle."""
    learn: Learning
    """How it learns from the teacher."""
    methods: tuple[Name, ...] = tuple(ARMS)
    """Where the responses come from."""
    seeds: int = 3
    """Teachers, each with its students; seed s fixes weights, samples and the order of rows."""
    seed: int = 0
    """The first of them."""
    evaluations: int = 25
    """How often a student is measured."""
    score_batch: int = 256
    """Rows measured at once."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "sharpness", "teacher_rows", "student_rows", "prompts", "held_out")
        check_positive(self, "seeds", "evaluations", "score_batch")
        if self.length < oracle.PROMPT:
            raise ValueError(f"length: got {self.length}, takes at least {oracle.PROMPT}")
        most = SYMBOLS**oracle.PROMPT - self.held_out
        if self.prompts % 10 or self.prompts > most:
            raise ValueError(f"prompts: got {self.prompts}, takes multiples of 10 up to {most}")
        for name in ("teacher", "student"):
            if getattr(self, name).vocab != SYMBOLS:
                raise ValueError(
                    f"{name}.vocab: got {getattr(self, name).vocab}, takes {SYMBOLS}, the symbols"
                )
        check_distinct(self, "methods")

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)


PRESETS = {
    "smoke": Config(
        length=8,
        teacher_rows=200,
        student_rows=50,
        prompts=50,
        held_out=64,
        learn_teacher=Learning(rate=1e-2, steps=40),
        learn_start=Learning(rate=1e-2, steps=10),
        learn=Learning(rate=1e-2, steps=20, batch_size=10),
        methods=("offline", "online_student"),
        seeds=2,
        evaluations=2,
        score_batch=64,
    ),
    "laptop": Config(
        teacher=dataclasses.replace(MODEL, width=64, depth=2, head_dim=32, mlp=128),
        student=dataclasses.replace(MODEL, width=64, depth=2, head_dim=32, mlp=128),
        learn_teacher=Learning(rate=3e-3, steps=1500, batch_size=64),
        learn_start=Learning(rate=3e-3, steps=100),
        learn=Learning(rate=3e-3, steps=2000, batch_size=25),
        methods=("offline", "online_teacher", "online_student", "offline_5", "more_5"),
        evaluations=20,
        seed=10,  # sizes and rates were chosen on seeds from 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for seed in config.repetitions:
        data = {"oracle": [config.sharpness, config.length, config.held_out], "seed": seed}
        teacher = {"rows": config.teacher_rows, "model": identity(config.teacher)}
        start = {"rows": config.student_rows, "model": identity(config.student)}
        measured = {"evaluations": config.evaluations, "score_batch": config.score_batch}
        found += [
            Stage(
                f"teacher_{seed}",
                functools.partial(hacking_stages.teacher, config, seed),
                (),
                data | teacher | {"learn": identity(config.learn_teacher)},
            ),
            Stage(
                f"start_{seed}",
                functools.partial(hacking_stages.start, config, seed),
                (),
                data | start | {"learn": identity(config.learn_start)},
            ),
            Stage(
                f"responses_{seed}",
                functools.partial(hacking_stages.responses, config, seed),
                (f"teacher_{seed}",),
                data | {"prompts": config.prompts, "score_batch": config.score_batch},
            ),
        ]
        found += [
            Stage(
                f"{name}_{seed}",
                functools.partial(hacking_stages.student, config, name, seed),
                (f"teacher_{seed}", f"start_{seed}", f"responses_{seed}"),
                data | measured | {"method": name, "learn": identity(config.learn)},
            )
            for name in config.methods
        ]
    return tuple(found)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    return hacking_report.results(config.methods, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
