"""Two teachers, one accurate and one robust, and a student that is balanced between them.

Papers: MTARD and B-MTARD, Zhao et al. 2022 and 2024 (arXiv 2306.16170); adversarially robust
distillation (ARD), Goldblum et al. 2020 (arXiv 1905.09747). Perceptrons learn Fashion-MNIST: one
teacher as it is, another with every image attacked (projected gradient, up to 0.1 on every pixel).
Smaller students learn from attacked images: their labels; the robust teacher's answers to them,
which is ARD but for its label loss and its teacher's clean images; and besides the accurate
teacher's answers to clean images, with half a weight each, with weights that balance how far both
losses have come, and with temperatures that balance both teachers' entropies too.

Measured are the accuracy on test images as they are and under an attack of 20 steps.

Claim: balancing the two gives the best mean of the two accuracies.

    python -m experiments.distillation.mtard_robust smoke     # digits, 2 kinds of students: 12 s
    python -m experiments.distillation.mtard_robust laptop    # Fashion-MNIST, 5 seeds

`laptop` needs the files of Fashion-MNIST (environment KD_JAX_DATA, or --pictures.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax

from experiments.distillation.common import pupils
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import attacks, mtard_report
from experiments.distillation.parts.attacks import Attack
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive
from kd_jax.launch.stages import Stage, Training
from kd_jax.launch.weights import Weights
from kd_jax.losses.balance import mean_kl
from kd_jax.models.mlp import MLPConfig
from kd_jax.objectives.distil import distil, student_state
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.objectives.transfer.adversarial import two_teachers
from kd_jax.objectives.transfer.logits import soft
from kd_jax.steps import make_train_step

CLAIMS = mtard_report.CLAIMS
TEACHERS = {"clean": "accurate_teacher", "robust": "robust_teacher"}
Found = Mapping[str, Any]
Name = Literal["labels", "robust", "halves", "shares", "both"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pupils.Schooling):
    teacher: tuple[int, ...] = (256,)
    """Widths of a teacher's hidden layers."""
    student: tuple[int, ...] = (64,)
    """Widths of a student's."""
    attack: Attack = dataclasses.field(default_factory=Attack)
    methods: tuple[Name, ...] = get_args(Name)
    """Kinds of students that are compared."""
    share_rate: float = 0.025
    """How fast the losses' weights follow their balance."""
    temperature_rate: float = 0.01
    """How far a step moves the temperatures. The paper's 0.001 is for 100,000 steps and more."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "teacher", "student", "share_rate", "temperature_rate")
        check_distinct(self, "methods")

    def network(self, widths: tuple[int, ...]) -> MLPConfig:
        return MLPConfig(inputs=self.pictures.side**2, widths=widths, classes=10)


PRESETS = {
    "smoke": Config(
        pictures=Pictures(test=200),
        teacher=(16,),
        student=(16,),
        learn_teacher=Learning(rate=1e-2, steps=40, batch_size=64),
        learn=Learning(rate=1e-2, steps=20, batch_size=64),
        attack=Attack(steps=2, test_steps=4),
        methods=("halves", "both"),
        seeds=2,
        score_batch=200,
    ),
    "laptop": Config(
        pictures=Pictures(fashion=True, images=5000, validation=1000, test=2000),
        learn_teacher=Learning(rate=1e-3, steps=800, batch_size=64),
        learn=Learning(rate=1e-3, steps=1000, batch_size=64),
        seed=10,  # rates and sizes were chosen on seeds from 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    network, pupil = config.network(config.teacher), config.network(config.student)
    attack = {"radius": config.attack.radius, "steps": config.attack.steps}
    teachers = (
        pupils.teacher(config, network, name=TEACHERS["clean"]),
        pupils.teacher(
            config,
            network,
            name=TEACHERS["robust"],
            prepare=attacks.instead(config.model(network), config.attack),
            more=attack,
        ),
    )
    students = tuple(
        Stage(
            name,
            functools.partial(_student, config, name),
            _needs(name),
            pupils.depends(
                config,
                pupil,
                attack=attack,
                method=name,
                rates=_rates(config, name)._asdict(),
            ),
        )
        for name in config.methods
    )
    return (
        *teachers,
        attacks.scored(config, network, "teachers_scored", (*TEACHERS.values(),), config.attack),
        *students,
        *(
            attacks.scored(config, pupil, f"{name}_scored", (name,), config.attack)
            for name in config.methods
        ),
    )


def _needs(name: Name) -> tuple[str, ...]:
    match name:
        case "labels":
            return ()
        case "robust":
            return (TEACHERS["robust"],)
        case _:
            return tuple(TEACHERS.values())


class Rates(NamedTuple):
    """Of the balances; 0 is none."""

    share: float
    temperature: float


def _rates(config: Config, name: Name) -> Rates:
    return Rates(
        config.share_rate if name in ("shares", "both") else 0.0,
        config.temperature_rate if name == "both" else 0.0,
    )


def _student(config: Config, name: Name, found: Found) -> Training:
    student = config.model(config.network(config.student))
    teacher = config.model(config.network(config.teacher))
    state = student_state
    prepare = attacks.instead(student, config.attack)
    match name:
        case "labels":
            objective, frozen = supervise(student, {"ce": label_cross_entropy}), None
        case "robust":
            kl = soft(lambda s, t, y: mean_kl(s, t))
            objective = distil(student, teacher, {"kd": kl})
            frozen = _frozen({"teacher": found[TEACHERS["robust"]].weights()})
        case _:
            share, temperature = _rates(config, name)
            objective = two_teachers(
                student, teacher, teacher, share_rate=share, temperature_rate=temperature
            )
            frozen = _frozen({side: found[x].weights() for side, x in TEACHERS.items()})
            state = attacks.own_state
            prepare = attacks.beside(student, config.attack)
    training = pupils.students(
        config,
        student,
        make_train_step(objective, config.learn.optimizer()),
        frozen=frozen,
        prepare=prepare,
        state=state,
    )
    if name not in ("shares", "both"):
        return training
    balance = attacks.balance(max(1, config.learn.steps // 20))
    return training._replace(evaluations=(*training.evaluations, balance))


def _frozen(teachers: Mapping[str, Weights]) -> Weights:
    """{name: parameters, name_state: statistics, where there are any} of artefacts of teachers."""

    def entries(name: str) -> dict[str, str]:
        held = teachers[name].abstract
        named = {"teacher": name, "teacher_state": f"{name}_state"}
        return {part: entry for part, entry in named.items() if jax.tree.leaves(held.get(part))}

    def make(placed: Mapping[str, Any]) -> dict[str, Any]:
        made = {}
        for name, held in teachers.items():
            wanted = {part: placed[entry] for part, entry in entries(name).items()}
            tree = held.make(dict.fromkeys(held.abstract, {}) | wanted)
            made |= {entry: tree[part] for part, entry in entries(name).items()}
        return made

    abstract = {
        entry: held.abstract[part]
        for name, held in teachers.items()
        for part, entry in entries(name).items()
    }
    return Weights(abstract, make)


def report(config: Config, artefacts: Found, folder: Path) -> Results:
    return mtard_report.results(config.methods, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
