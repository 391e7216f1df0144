"""Teachers of another family: one-for-all distillation between convolutions and MLP-Mixers.

Papers: OFA-KD, Hao et al. 2023 (arXiv 2310.19444); Hinton et al. 2015 (arXiv 1503.02531); FitNets,
Romero et al. 2015 (arXiv 1412.6550). A ResNet learns a part of Fashion-MNIST from an MLP-Mixer, and
a Mixer from a ResNet: from labels alone, from the teacher's logits, from its hidden features by a
hint, and by OFA: exits at the student's last two stages learn the teacher's logits, with the
label's part amplified by a power of 1 (not at all), 1.5 or 2.

Measured are test accuracy, and how alike hidden layers of student and teacher are (linear CKA).

Claim: hidden features of different families are unlike, so OFA does better than KD and hints.

    python -m experiments.distillation.ofa_hetero smoke     # digits, a Mixer of a ResNet: 12 s
    python -m experiments.distillation.ofa_hetero laptop    # Fashion-MNIST, 4 seeds

`laptop` needs the files of Fashion-MNIST (environment KD_JAX_DATA, or --pictures.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import depths
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import cka, ofa_report
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive
from kd_jax.launch.stages import Stage, Training
from kd_jax.losses.logits import amplified_target
from kd_jax.models.mixer import MixerConfig
from kd_jax.models.resnet import ResNetConfig
from kd_jax.objectives.distil import distil, hint, labels, soft_labels
from kd_jax.objectives.parts import Part
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.objectives.transfer.heads import exits
from kd_jax.objectives.transfer.logits import soft
from kd_jax.objectives.transfer.token_exits import token_exits
from kd_jax.steps import make_train_step

CLAIMS = ofa_report.CLAIMS
Found = Mapping[str, Any]
Family = Literal["cnn", "mixer"]
Method = Literal["ce", "kd", "hint", "ofa_10", "ofa_15", "ofa_20"]
FAMILIES: tuple[Family, ...] = get_args(Family)
OTHER: Mapping[str, Family] = {"cnn": "mixer", "mixer": "cnn"}
POWERS = {"ofa_10": 1.0, "ofa_15": 1.5, "ofa_20": 2.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """One of each family, for images folded 2 x 2."""

    cnn: ResNetConfig
    mixer: MixerConfig

    def __post_init__(self):
        if len(self.cnn.blocks) < 2:
            raise ValueError(f"cnn.blocks: got {self.cnn.blocks}, takes two stages or more")
        if self.mixer.patch != 2:
            raise ValueError(
                f"mixer.patch: got {self.mixer.patch}, takes 2: as many patches as the cnn's "
                "second stage has places"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pupils.Schooling):
    teachers: Networks
    students: Networks
    families: tuple[Family, ...] = FAMILIES
    """Of the students; a teacher is of the other one."""
    methods: tuple[Method, ...] = get_args(Method)
    """How students learn."""
    hint: float = 1.0
    """Weight of the hint beside the label loss."""
    heads: int = 4
    """Attention heads of the exits on tokens."""
    similar: int = 256
    """Test images that CKA is measured on."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "hint", "heads")
        check_distinct(self, "families", "methods")
        if self.similar < 4:
            raise ValueError(f"similar: got {self.similar}, takes at least 4 images")
        for name in ("teachers", "students"):
            side = getattr(self, name).mixer.image
            if 2 * side != self.pictures.side:
                raise ValueError(
                    f"{name}.mixer.image: got {side}, takes half of {self.pictures.side}"
                )


def _networks(side: int, widths: tuple[int, ...], **mixer: int) -> Networks:
    return Networks(
        cnn=ResNetConfig(blocks=(1,) * len(widths), widths=widths, channels=4),
        mixer=MixerConfig(image=side, patch=2, channels=4, **mixer),
    )


# Leaves of few shapes: the generator compiles once for each.
_SMALL = _networks(4, (8, 8), width=16, depth=1, patch_mlp=4, channel_mlp=16)

PRESETS = {
    "smoke": Config(
        pictures=Pictures(test=200),
        teachers=_SMALL,
        students=_SMALL,
        learn_teacher=Learning(rate=1e-2, steps=40, batch_size=64),
        learn=Learning(rate=1e-2, steps=20, batch_size=64),
        families=("mixer",),
        methods=("ofa_15",),
        seeds=2,
        score_batch=200,
        similar=32,
    ),
    "laptop": Config(
        pictures=Pictures(fashion=True, images=1000, validation=1000),
        teachers=_networks(14, (16, 32, 64), width=32, depth=4, patch_mlp=32, channel_mlp=64),
        students=_networks(14, (8, 16, 32), width=16, depth=2, patch_mlp=16, channel_mlp=32),
        learn_teacher=Learning(rate=3e-3, steps=400, batch_size=64),
        learn=Learning(rate=3e-3, steps=400, batch_size=32),
        seeds=4,
        seed=10,  # sizes were chosen on seeds from 0
        score_batch=1000,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    taught = {f"teacher_{family}": getattr(config.teachers, family) for family in teachers(config)}
    return (
        *(pupils.teacher(config, x, name=name) for name, x in taught.items()),
        *(pupils.outputs(config, x, (_middle(x),), of=name) for name, x in taught.items()),
        *(_student(config, *student) for student in students(config)),
        cka.stage(
            config,
            taught,
            {
                "_".join(student): getattr(config.students, student[0])
                for student in students(config)
            },
            config.similar,
        ),
    )


def teachers(config: Config) -> tuple[Family, ...]:
    """Their families; students of labels alone are compared with a teacher of their own, too."""
    own = config.families if "ce" in config.methods else ()
    needed = {OTHER[family] for family in config.families}.union(own)
    return tuple(family for family in FAMILIES if family in needed)


def students(config: Config) -> tuple[tuple[Family, Method], ...]:
    return tuple((family, method) for family in config.families for method in config.methods)


def _middle(network: ResNetConfig | MixerConfig) -> str:
    """The tap of hints, of half the image's side: the second stage, or half of the blocks."""
    places = depths(network)
    return places[1] if isinstance(network, ResNetConfig) else places[(len(places) - 1) // 2]


def _student(config: Config, family: Family, method: Method) -> Stage:
    network, other = getattr(config.students, family), OTHER[family]
    teacher, of = getattr(config.teachers, other), f"teacher_{other}"
    model = config.model(network)

    def build(found: Found) -> Training:
        if method == "ce":
            objective, read = supervise(model, {"ce": label_cross_entropy}), None
        else:
            parts = _parts(config, network, teacher, method)
            objective = distil(model, stored_teacher(), parts, teacher_policy=nothing)
            stored = (_middle(teacher),)
            read = pupils.Read(teacher, stored, stored if method == "hint" else (), of)
        step = make_train_step(objective, config.learn.optimizer())
        return pupils.students(config, model, step, found, read=read)

    more: dict[str, Any] = {"method": method}
    if method == "hint":
        more["hint"] = config.hint
    if method in POWERS:
        more["heads"] = config.heads if family == "mixer" else 0
    needs = () if method == "ce" else (of, f"{of}_outputs")
    return Stage(f"{family}_{method}", build, needs, pupils.depends(config, network, **more))


def _parts(
    config: Config,
    student: ResNetConfig | MixerConfig,
    teacher: ResNetConfig | MixerConfig,
    method: Method,
) -> dict[str, Part]:
    if method == "kd":
        return {"ce": labels(0.1), "kd": soft_labels(0.9, temperature=4.0)}
    if method == "hint":
        return {"ce": labels(), "hint": hint(_middle(student), _middle(teacher), config.hint)}
    power, taps = POWERS[method], depths(student)[-2:]
    later = tuple(reversed(range(len(taps))))
    if isinstance(student, ResNetConfig):
        width = max(_width(student), _width(teacher))
        at_stages = exits(taps, later, width=width, power=power)
    else:
        blocks = tuple(max(1, count) for count in later)
        at_stages = token_exits(taps, blocks, heads=config.heads, power=power)
    last = soft(functools.partial(amplified_target, power=power))
    return {"ce": labels(), "last": last, "exits": at_stages}


def _width(network: ResNetConfig | MixerConfig) -> int:
    return network.widths[-1] if isinstance(network, ResNetConfig) else network.width


def report(config: Config, artefacts: Found, folder: Path) -> Results:
    return ofa_report.results(OTHER, config.families, config.methods, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
