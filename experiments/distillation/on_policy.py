"""On-policy distillation: a student that learns on what it writes itself.

Papers: GKD (arXiv 2306.13649) and DistiLLM (arXiv 2402.03898). A character language model learns a
text, and so does a smaller one, the student. Then the student learns from the larger by reverse KL
and by forward KL, on rows of the text, on beginnings of rows that the student itself goes on from,
and on a mixture of both; and by skew KL with DistiLLM's schedule, which keeps what the student
wrote in a ring. Its threshold begins at `threshold`: from the paper's 0 it rises only when the loss
does, which it never did here, and then all is data.

Measured are both KL divergences between student and teacher, on held-out text and on what the
student itself goes on to write, which is what it is used for.

Claim: on-policy data makes the student nearer to its teacher on the student's own text.

    python -m experiments.distillation.on_policy smoke     # generated text: 20 s
    python -m experiments.distillation.on_policy laptop    # tiny Shakespeare, 3 seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --text.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from experiments.distillation.common import reporting, runs
from experiments.distillation.common import text as text_lib
from experiments.distillation.common.arms import LOSSES
from experiments.distillation.common.config import SMALL, STUDENT, TEACHER, Common
from experiments.distillation.common.learning import Learning
from kd_jax.launch import run, weights
from kd_jax.launch.claims import Claim, Results, above
from kd_jax.launch.config import check_distinct, check_positive, identity
from kd_jax.launch.stages import Stage, Training
from kd_jax.models import decoder, rollouts
from kd_jax.objectives.distil import TokenLoss, distil, token_divergence
from kd_jax.objectives.on_policy import Write, on_policy
from kd_jax.objectives.replay import adaptive_off_policy, off_policy
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.types import Objective


class Arm(NamedTuple):
    """share: of batches that the student writes; None for DistiLLM's schedule."""

    label: str
    loss: TokenLoss
    share: float | None


ARMS = {
    "forward_data": Arm("forward KL, data", LOSSES["forward"], 0.0),
    "forward_mixed": Arm("forward KL, half own", LOSSES["forward"], 0.5),
    "forward_own": Arm("forward KL, own text", LOSSES["forward"], 1.0),
    "reverse_data": Arm("reverse KL, data", LOSSES["reverse"], 0.0),
    "reverse_mixed": Arm("reverse KL, half own", LOSSES["reverse"], 0.5),
    "reverse_own": Arm("reverse KL, own text", LOSSES["reverse"], 1.0),
    "skew_data": Arm("skew KL, data", LOSSES["skew"], 0.0),
    "distillm": Arm("skew KL, adaptive", LOSSES["skew"], None),
}
Name = Literal[
    "forward_data", "forward_mixed", "forward_own", "reverse_data", "reverse_mixed", "reverse_own",
    "skew_data", "distillm",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    methods: tuple[Name, ...] = get_args(Name)
    """Kinds of students that are compared."""
    capacity: int = 1000
    """Rows that DistiLLM's ring holds."""
    validate: int = 50
    """Steps between two validations of DistiLLM's schedule, on rows of the held-out text."""
    threshold: float = 0.5
    """The first threshold of DistiLLM's schedule: how often the student's own text is used."""
    begin: Learning
    """How a student learns the text before."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "capacity", "validate")
        check_distinct(self, "methods")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: got {self.threshold}, takes a number in [0, 1]")


PRESETS = {
    "smoke": Config(
        text=text_lib.Text(length=32, held_out=32),
        teacher=SMALL,
        student=dataclasses.replace(SMALL, width=16, mlp=32),
        learn_teacher=Learning(rate=1e-2, steps=60),
        begin=Learning(rate=1e-2, steps=30),
        learn=Learning(rate=3e-3, steps=20),
        methods=("forward_mixed", "distillm"),
        seeds=1,
        evaluations=1,
        score_batch=32,
        prompt=8,
        capacity=64,
        validate=5,
    ),
    "laptop": Config(
        text=text_lib.Text(shakespeare=True, length=64, held_out=512),
        teacher=TEACHER,
        student=STUDENT,
        learn_teacher=Learning(rate=3e-3, steps=2000, batch_size=64),
        begin=Learning(rate=3e-3, steps=1000),
        learn=Learning(rate=1e-3, steps=600),
        seed=10,
    ),
}

_FORWARD = (
    "Measured by the divergence that is trained, KL(teacher || student) on own text, the student "
    "of own text is the nearer one. One rate and 600 steps for all; a first run with students that "
    "did not know the text before failed as well."
)
_SHORT = (
    "One rate and 600 steps for all; other rates, longer trainings and more seeds were not tried."
)

CLAIMS = (
    Claim(
        "With forward KL, a student of its own text is nearer to the teacher there than one of "
        "data (difference of KL(student || teacher), above 0).",
        "arXiv 2306.13649, abstract and section 3 (tables UNVERIFIED)",
        "on-policy data is better than fixed data for every divergence",
        reporting.better("forward_own", "forward_data", "own_reverse"),
        above(0.0),
        _FORWARD,
    ),
    Claim(
        "With reverse KL too.",
        "arXiv 2306.13649, abstract and section 3 (tables UNVERIFIED)",
        "on-policy data is better than fixed data for every divergence",
        reporting.better("reverse_own", "reverse_data", "own_reverse"),
        above(0.0),
        _SHORT,
    ),
    Claim(
        "Half own text is enough for it: with reverse KL, nearer on own text than data alone.",
        "arXiv 2306.13649, section 4 (tables UNVERIFIED)",
        "lambda 0.5 is between",
        reporting.better("reverse_mixed", "reverse_data", "own_reverse"),
        above(0.0),
        _SHORT,
    ),
    Claim(
        "DistiLLM's schedule is nearer to the teacher on own text than skew KL on data alone "
        "(difference of KL(student || teacher), above 0).",
        "arXiv 2402.03898, section 4 (tables UNVERIFIED)",
        "adaptive off-policy training is better than fixed data",
        reporting.better("distillm", "skew_data", "own_reverse"),
        above(0.0),
        _SHORT,
    ),
)


def stages(config: Config) -> tuple[Stage, ...]:
    found = [runs.teacher(config)]
    for seed in config.repetitions:
        shared = runs.student_depends(config, seed) | {"begin": identity(config.begin)}
        text = {"text": identity(config.text)}
        start = f"start_{seed}"
        found.append(Stage(start, functools.partial(_start, config, seed), (), shared | text))
        schedule = [config.capacity, config.validate, config.threshold]
        found += [
            Stage(
                f"{name}_{seed}",
                functools.partial(_student, config, name, seed),
                ("teacher", start),
                shared | {"method": name, "schedule": schedule},
            )
            for name in config.methods
        ]
    return tuple(found)


def _start(config: Config, seed: int, found: Mapping[str, Any]) -> Training:
    objective = supervise(decoder.decoder(config.student), {"nll": next_token_nll})
    return runs.training(config, config.student, objective, config.begin, seed)


def _student(config: Config, name: str, seed: int, found: Mapping[str, Any]) -> Training:
    arm = ARMS[name]
    student, teacher = (decoder.decoder(x) for x in (config.student, config.teacher))
    objective = distil(student, teacher, {"kd": token_divergence(arm.loss)})
    write: Write = functools.partial(
        rollouts.continued, config.student, max_new=config.text.length + 1 - config.prompt
    )

    def begun(objective: Objective) -> Training:
        rows = functools.partial(_rows, config)
        start = found[f"start_{seed}"].weights()
        return runs.student(config, objective, seed, found, rows)._replace(weights=start)

    if arm.share is not None:
        prepare = on_policy(write, share=arm.share) if arm.share else None
        return begun(objective)._replace(prepare=prepare)
    training = begun(
        adaptive_off_policy(
            objective,
            every=config.validate,
            capacity=config.capacity,
            start=config.threshold,
        )
    )
    held = text_lib.load(config.text).held_out[: config.learn.batch_size]
    validation = weights.from_arrays(text_lib.rows(held, given=config.prompt))
    return training._replace(
        prepare=off_policy(write, steps=config.learn.steps),
        frozen=weights.joined(teacher=found["teacher"].weights(), validation=validation),
        frozen_rules={**training.frozen_rules, "validation": ((".*", ()),)},
    )


def _rows(config: Config) -> Mapping[str, Any]:
    return text_lib.rows(text_lib.load(config.text).train, given=config.prompt)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    labels = {name: ARMS[name].label for name in config.methods}
    return reporting.results(labels, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
