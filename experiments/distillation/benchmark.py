"""Every loss under one protocol: what a small classifier gains from a larger one.

Papers: torchdistill (arXiv 2011.12913) and the losses it ships, CRD's benchmark (arXiv 1910.10699),
and others; `parts.benchmark_methods` names them all. A residual network learns Fashion-MNIST, all
training images but those of validation. Students learn 5,000 of them from it: a shallower residual
network, and a MobileNetV2, which see coarser images. (A teacher of the same 5,000 images is half a
point better than a student, and nothing can be told.) Every loss has the same initial weights, the
same batches, the same optimiser and the weight it was published with, times the one of two
strengths that is better on validation images. Accuracy is on test images, over seeds.

Claim: soft labels help, and most of what came after them does not exceed them.

    python -m experiments.distillation.benchmark smoke     # digits, two losses: 20 s
    python -m experiments.distillation.benchmark laptop    # Fashion-MNIST, all losses: 70 minutes
    python -m experiments.distillation.benchmark laptop --pairs same   # 35 minutes
    python -m experiments.distillation.benchmark gpu       # 55,000 images, larger networks

At `laptop` five students of a loss take 17 to 25 s, most of which is the first compilation and 800
steps of 15 ms; ReviewKD and SSKD (four views of an image) take 70 to 110 s, CRD more.

`laptop` and `gpu` need Fashion-MNIST (environment KD_JAX_DATA, or --pictures.folder). Not here are
losses that want labels, images or teachers of their own: SLA, mixup, TGeo-KD, MTARD, data partition
and multi-aspect distillation (experiments of their own, or none).
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import benchmark_lessons as lessons
from experiments.distillation.parts import benchmark_report
from experiments.distillation.parts.benchmark_methods import METHODS
from kd_jax.launch import run
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive
from kd_jax.launch.stages import Compute, Stage
from kd_jax.models.mobilenet import MobileNetConfig
from kd_jax.models.mobilenet import Stage as Blocks
from kd_jax.models.resnet import ResNetConfig

CLAIMS = benchmark_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(lessons.Course):
    pairs: tuple[str, ...] = ("same", "cross")
    """Students that are taught."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Losses that are compared."""
    strengths: tuple[float, ...] = (0.1, 1.0)
    """Factors of a loss's published weight, of which validation images choose one."""

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("pairs", ("same", "cross")), ("methods", tuple(METHODS))):
            check_distinct(self, name)
            if wrong := [x for x in getattr(self, name) if x not in known]:
                raise ValueError(f"{name}: got {' '.join(wrong)}, takes some of {' '.join(known)}")
        check_positive(self, "strengths")
        check_distinct(self, "strengths")


def _sizes(fold: int, widths: tuple[int, int, int], teacher_fold: int, deep: int) -> dict[str, Any]:
    """Three networks whose stages are as wide."""
    channels, (first, second, third) = fold**2, widths
    return {
        "teacher": ResNetConfig(blocks=(deep,) * 3, widths=widths, channels=teacher_fold**2),
        "teacher_fold": teacher_fold,
        "same": ResNetConfig(blocks=(1, 1, 1), widths=widths, channels=channels),
        "cross": MobileNetConfig(
            stem=first,
            stem_stride=1,
            stages=(Blocks(1, first, 1, 1), Blocks(3, second, 1, 2), Blocks(3, third, 1, 2)),
            last=third,
            channels=channels,
        ),
    }


PRESETS = {
    "smoke": Config(
        pictures=Pictures(images=300, validation=100),
        **_sizes(2, (4, 8, 8), 2, 1),
        learn_teacher=Learning(rate=1e-2, steps=20, batch_size=32),
        learn=Learning(rate=1e-2, steps=8, batch_size=32),
        methods=("ce", "at"),
        pairs=("same",),
        strengths=(1.0,),
        seeds=2,
    ),
    "laptop": Config(
        pictures=Pictures(fashion=True, images=5000, validation=1000, fold=7),
        **_sizes(7, (8, 16, 32), 4, 2),
        learn_teacher=Learning(rate=3e-3, steps=4000, batch_size=128),
        learn=Learning(rate=3e-3, steps=800, batch_size=64),
        score_batch=1000,
        seed=10,
        # A cell takes seconds: it is lost at a kill, and saved at its end.
        checkpoint_every=1000,
        log_every=50,
    ),
    "gpu": Config(
        pictures=Pictures(fashion=True, images=55_000, validation=5000, fold=2),
        **_sizes(2, (16, 32, 64), 1, 3),
        learn_teacher=Learning(rate=3e-3, steps=20_000, batch_size=128),
        learn=Learning(rate=3e-3, steps=12_000, batch_size=128),
        score_batch=1000,
        seed=10,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    """Teachers, what they say of every image, and a stage for each student, loss and strength."""
    found = [
        pupils.teacher(
            config,
            config.teacher,
            fold=config.teacher_fold,
            images=lambda _: pictures_lib.all_training(config.pictures),
            more={"images": "all but validation"},
        ),
        pupils.outputs(config, config.teacher_model, config.teacher_taps),
    ]
    kinds = {METHODS[name].of for name in config.methods}
    for kind, told in lessons.TOLD.items():
        if kind in kinds:
            found += told(config).stages(config)
    for pair in config.pairs:
        network = config.network(pair)
        if "twin" in kinds:
            twin = f"twin_{pair}"
            as_student = dataclasses.replace(config, learn_teacher=config.learn)
            found.append(pupils.teacher(as_student, network, name=twin))
            found.append(pupils.outputs(config, network, (), of=twin))
        for name, number in cells(config):
            strength = config.strengths[number]
            found.append(
                Stage(
                    f"{pair}_{name}_{number}",
                    functools.partial(lessons.students, config, pair, name, strength),
                    _needs(pair, name),
                    pupils.depends(config, network, method=name, strength=strength),
                )
            )
    each = (_needs(pair, name) for pair in config.pairs for name in config.methods)
    needs = tuple(dict.fromkeys(need for needed in each for need in needed))
    depends = pupils.depends(config, config.teacher, methods=list(config.methods))
    found.append(Stage("costs", functools.partial(_costs, config), needs, depends))
    return tuple(found)


def cells(config: Config) -> list[tuple[str, int]]:
    """(loss, number of its strength); labels alone have one."""
    return [
        (name, number)
        for name in config.methods
        for number in range(1 if name == "ce" else len(config.strengths))
    ]


def _needs(pair: str, name: str) -> tuple[str, ...]:
    of = lessons.source(pair, name)
    own = ("teacher", "teacher_outputs") if name == "nd" else ()  # its means
    return tuple(dict.fromkeys((of, f"{of}_outputs", *own)))


def _costs(config: Config, found: Mapping[str, Artefact]) -> Compute:
    """Values "<pair>/<loss>": what `benchmark_lessons.cost` says."""

    def run() -> tuple[None, Mapping[str, Any]]:
        return None, {
            f"{pair}/{name}": lessons.cost(config, lessons.lesson(config, pair, name, found))
            for pair in config.pairs
            for name in config.methods
        }

    return Compute(run)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    found = {
        pair: {
            name: [artefacts[f"{pair}_{name}_{number}"] for _, number in numbers]
            for name, numbers in itertools.groupby(cells(config), lambda cell: cell[0])
        }
        for pair in config.pairs
    }
    return benchmark_report.results(
        found, artefacts["teacher"], artefacts["costs"].values, config.strengths, folder
    )


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
