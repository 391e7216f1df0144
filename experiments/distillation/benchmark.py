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

`laptop` and `gpu` need Fashion-MNIST (environment KD_JAX_DATA, or --pictures.folder). Not here are
losses that want views, labels or teachers of their own: SSKD (four views an image), SLA, mixup,
TGeo-KD, MTARD, data partition and multi-aspect distillation (experiments of their own, or none).
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import Classifier, classifier, depths
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import benchmark_report
from experiments.distillation.parts.benchmark_methods import METHODS, Here
from kd_jax.launch import output_cache, precompute, run, weights
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive
from kd_jax.launch.planning import flops
from kd_jax.launch.stages import Compute, Stage, Training
from kd_jax.losses.features import hint
from kd_jax.losses.prototypes import class_means
from kd_jax.models.mobilenet import MobileNetConfig
from kd_jax.models.mobilenet import Stage as Blocks
from kd_jax.models.resnet import ResNetConfig
from kd_jax.objectives.distil import distil
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.objectives.transfer.attached import attached, beside, paraphraser
from kd_jax.objectives.transfer.maps import matched
from kd_jax.repetition import batched
from kd_jax.steps import make_train_step
from kd_jax.types import Model, Objective, TrainStep

CLAIMS = benchmark_report.CLAIMS
CLASSES = 10
Found = Mapping[str, Artefact]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pupils.Schooling):
    teacher: ResNetConfig
    teacher_fold: int
    """Of the images that the teacher sees: a finer one than the students' makes it better."""
    same: ResNetConfig
    """A student like the teacher: as wide in every stage."""
    cross: MobileNetConfig
    """A student of another family, as wide in every stage."""
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
        for name, fold in (
            ("teacher", self.teacher_fold),
            ("same", self.pictures.fold),
            ("cross", self.pictures.fold),
        ):
            channels = getattr(self, name).channels
            if channels != fold**2:
                raise ValueError(f"{name}.channels: got {channels}, takes {fold**2}, of its fold")
        if self.same.widths != self.teacher.widths:
            raise ValueError(f"same: got {self.same}, takes stages as wide as the teacher's")

    @property
    def teacher_model(self) -> Model:
        return classifier(self.teacher, self.teacher_fold)

    def network(self, pair: str) -> Classifier:
        return self.same if pair == "same" else self.cross


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
        pupils.outputs(config, config.teacher_model, _taps(config)),
    ]
    kinds = {METHODS[name].of for name in config.methods}
    if "factor" in kinds:
        found += [_factor(config), _factor_outputs(config)]
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
                    functools.partial(_students, config, pair, name, strength),
                    _needs(pair, name),
                    pupils.depends(config, network, method=name, strength=strength),
                )
            )
        each = (_needs(pair, name) for pair in config.pairs for name in config.methods)
    needs = tuple(dict.fromkeys(need for needed in each for need in needed))
    costs = pupils.depends(config, config.teacher, methods=list(config.methods))
    found.append(Stage("costs", functools.partial(_costs, config), needs, costs))
    return tuple(found)


def cells(config: Config) -> list[tuple[str, int]]:
    """(loss, number of its strength); labels alone have one."""
    return [
        (name, number)
        for name in config.methods
        for number in range(1 if name == "ce" else len(config.strengths))
    ]


def _needs(pair: str, name: str) -> tuple[str, ...]:
    of = _of(pair, name)
    own = ("teacher", "teacher_outputs") if name == "nd" else ()  # its means
    return tuple(dict.fromkeys((of, f"{of}_outputs", *own)))


def _of(pair: str, name: str) -> str:
    """The stage whose stored outputs the loss reads."""
    of = METHODS[name].of
    return f"twin_{pair}" if of == "twin" else of


def _taps(config: Config) -> tuple[str, ...]:
    return (*depths(config.teacher), "pooled")


class Lesson(NamedTuple):
    """How a student is taught by a loss: its model, a step, and the outputs that it reads."""

    model: Model
    step: TrainStep
    read: pupils.Read


def _lesson(config: Config, pair: str, name: str, found: Found) -> Lesson:
    network, method, of = config.network(pair), METHODS[name], _of(pair, name)
    model, parts = config.model(network), method.parts(_here(config, network, found))
    taps = tuple(dict.fromkeys(tap for part in parts.values() for tap in part.teacher_taps))
    read = {
        "teacher": pupils.Read(config.teacher_model, _taps(config), taps),
        "factor": pupils.Read(_teller(config), ("factor",), taps, of),
        "twin": pupils.Read(model, (), taps, of),
    }[method.of]
    objective = _strengthened(distil(model, stored_teacher(), parts, teacher_policy=nothing))
    step = make_train_step(objective, config.learn.optimizer(), gradient=method.gradient)
    return Lesson(model, step, read)


def _students(config: Config, pair: str, name: str, strength: float, found: Found) -> Training:
    model, step, read = _lesson(config, pair, name, found)
    frozen = weights.from_arrays({"strength": np.float32(strength)})
    return pupils.students(config, model, step, found, read=read, frozen=frozen, over=batched)


def _costs(config: Config, found: Found) -> Compute:
    """Values "<pair>/<loss>": [FLOPs of a student's step, weights trained beside the student]."""

    def run() -> tuple[None, Mapping[str, Any]]:
        return None, {
            f"{pair}/{name}": _cost(config, _lesson(config, pair, name, found))
            for pair in config.pairs
            for name in config.methods
        }

    return Compute(run)


def _cost(config: Config, lesson: Lesson) -> list[float]:
    model, step, read = lesson
    batch = pupils.batch_shapes(config, config.learn.batch_size)
    batch |= output_cache.shapes(config.model(read.network), batch, read.taps)
    frozen = {"strength": jax.ShapeDtypeStruct((), np.float32)}
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(step.init, jax.random.key(0), params, frozen, batch)
    beside = sum(x.size for x in jax.tree.leaves(state.params["aux"]))
    return [flops.of(step, state, frozen, batch).model, beside]


def _here(config: Config, network: Classifier, found: Found) -> Here:
    def labels() -> np.ndarray:
        return pictures_lib.load(config.pictures).train["targets"]

    def means() -> jax.Array:
        about = output_cache.About(
            precompute.model_hash(found["teacher"]),
            precompute.data_hash(pictures_lib.load(config.pictures).train),
            _taps(config),
        )
        cache = output_cache.opened(found["teacher_outputs"].files, about, only=("pooled",))
        index = np.arange(len(labels()))
        pooled = cache.columns(index, np.zeros_like(index))["teacher_pooled"]
        return class_means(jnp.asarray(pooled), jnp.asarray(labels()), CLASSES)

    return Here(
        depths(network), depths(config.teacher), config.teacher.widths[-1], config.learn.steps,
        labels, means,
    )  # fmt: skip


def _strengthened(objective: Objective) -> Objective:
    """All terms but that of the labels times frozen["strength"]: one program for all strengths."""

    def loss(params, carry, frozen, batch, ctx):
        output = objective.loss(params, carry, frozen, batch, ctx)
        terms = {
            name: term if name == "ce" else term._replace(scale=term.scale * frozen["strength"])
            for name, term in output.terms.items()
        }
        return output._replace(terms=terms)

    return objective._replace(loss=loss)


def _teller(config: Config) -> Model:
    """The teacher with a paraphraser on its last map, tap "factor", half as wide."""
    width = config.teacher.widths[-1]
    module = paraphraser(width, width // 2)
    return attached(config.teacher_model, depths(config.teacher)[-1], module, "factor")


def _factor(config: Config) -> Stage:
    """The teacher with a paraphraser trained to give its last map back."""
    width, last = config.teacher.widths[-1], depths(config.teacher)[-1]

    def build(found: Found) -> Training:
        back = matched(hint, ("factor/back",), (last,))._replace(whole_batch=True)
        objective = distil(
            _teller(config), config.teacher_model, {"back": back}, policy=beside("teacher")
        )
        training = pupils.students(
            config,
            Model(paraphraser(width, width // 2).make, config.teacher_model.apply),
            make_train_step(objective, config.learn.optimizer()),
            found,
            seeds=(config.seed,),
            frozen=found["teacher"].weights(),
        )

        def result(reached, frozen):
            module = jax.tree.map(lambda x: x[0], reached.params["model"])
            own = {"model": frozen["teacher"], "state": frozen["teacher_state"], "attached": module}
            return {"teacher": own, "teacher_state": {}}

        return training._replace(evaluations=(), result=result)

    return Stage("factor", build, ("teacher",), pupils.depends(config, config.teacher))


def _factor_outputs(config: Config) -> Stage:
    return pupils.outputs(config, _teller(config), ("factor",), of="factor")


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
