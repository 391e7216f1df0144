"""New classes found beside known ones, with and without what the known classes say of them.

Paper: Gu et al. 2023, class-relation knowledge distillation for novel class discovery (arXiv
2307.09158). A perceptron with cosine classifiers learns the first five classes of Fashion-MNIST
from labels. It then also sees images of the other five without labels, and clusters them by swapped
prediction of balanced assignments, in the manner of UNO: alone, with the frozen first model's
distribution over the known classes kept for every new image, and with that term weighted by how
near the image is to the known classes, a weight that is learnt.

Measured are the accuracy of clusters on test images, matched one to one with the new classes,
the accuracy among all ten, and how far the distribution over known classes has moved on new images.
Temperatures, weight of the term and assignments are the released code's; there are no small views,
projectors are small and normalised by the layer, and the figures are means over heads.

Claim: without the term the relations to known classes decay; with it new classes are found better.

    python -m experiments.distillation.class_discovery smoke     # digits: 12 s
    python -m experiments.distillation.class_discovery laptop    # Fashion-MNIST, 5 seeds

`laptop` needs Fashion-MNIST's files (environment KD_JAX_DATA, or --pictures.folder).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import classifier, last
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from experiments.distillation.parts import discovered, discovery_report
from experiments.distillation.parts.discovery_report import ArmName
from kd_jax.launch import evaluation, run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct, check_positive, identity
from kd_jax.launch.stages import Evaluation, Program, Stage, Training, mesh_of
from kd_jax.launch.weights import Weights
from kd_jax.models.cosine_heads import CosineHeadsConfig, cosine_heads
from kd_jax.models.mlp import MLPConfig
from kd_jax.objectives.augment.images import Augment, chain, crop, flip
from kd_jax.objectives.augment.prepare import augmented, in_views
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.objectives.transfer.discovery import class_relations
from kd_jax.repetition import batched, repeated, repeated_prepare
from kd_jax.steps import make_train_step
from kd_jax.types import Model

CLAIMS = discovery_report.CLAIMS
PyTree = Any
Found = Mapping[str, Any]
CLASSES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pupils.Schooling):
    arms: tuple[ArmName, ...] = get_args(ArmName)
    """Ways of discovery that are compared."""
    widths: tuple[int, ...] = (128, 64)
    """Hidden units of the perceptron's layers."""
    known: int = 5
    """Classes with labels, the first ones."""
    heads: int = 2
    """Clustering heads; figures are means over them."""
    hidden: int = 64
    """Hidden units of a head's projector."""
    projection: int = 32
    """Width of what a head clusters."""
    alpha: float = 0.1
    """Weight of the relation term."""
    softening: float = 4.0
    """Its temperature, a factor to that of the cosines."""
    evaluations: int = 5
    """Points along the discovery that are measured, besides the start."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "arms")
        check_positive(
            self, "widths", "heads", "hidden", "projection", "alpha", "softening", "evaluations"
        )
        if not 0 < self.known < CLASSES:
            raise ValueError(f"known: got {self.known}, takes 1 to {CLASSES - 1} of {CLASSES}")

    @property
    def encoder(self) -> MLPConfig:
        return MLPConfig(inputs=self.pictures.side**2, widths=self.widths, classes=CLASSES)

    @property
    def before(self) -> CosineHeadsConfig:
        """The model of the known classes."""
        return CosineHeadsConfig(
            width=self.widths[-1], known=self.known, hidden=self.hidden, projection=self.projection
        )

    @property
    def after(self) -> CosineHeadsConfig:
        return dataclasses.replace(self.before, novel=CLASSES - self.known, heads=self.heads)

    @property
    def augment(self) -> Augment:
        return chain(flip, functools.partial(crop, pad=max(1, self.pictures.side // 14)))


PRESETS = {
    "smoke": Config(
        arms=("alone", "learnt"),
        widths=(32, 16),
        heads=1,
        hidden=16,
        projection=8,
        learn_teacher=Learning(rate=1e-2, steps=40, batch_size=64),
        learn=Learning(rate=3e-3, steps=20, batch_size=64),
        seeds=2,
        evaluations=1,
    ),
    "laptop": Config(
        pictures=Pictures(fashion=True, images=5000, validation=1000),
        learn_teacher=Learning(rate=2e-3, steps=400, batch_size=128),
        learn=Learning(rate=2e-3, steps=500, batch_size=256),
        seed=10,  # sizes, rates and steps were chosen on seeds from 0, by validation images
        score_batch=1000,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return (_known(config), *(_discovery(config, arm) for arm in config.arms))


@functools.cache
def _model(encoder: MLPConfig, fold: int, heads: CosineHeadsConfig) -> Model:
    return cosine_heads(classifier(encoder, fold), last(encoder), heads)


def _models(config: Config) -> tuple[Model, Model]:
    """Before and after discovery."""
    encoder, fold = config.encoder, config.pictures.fold
    return _model(encoder, fold, config.before), _model(encoder, fold, config.after)


def _known(config: Config) -> Stage:
    """Models of the known classes, from labels."""
    (model, _), learning = _models(config), config.learn_teacher

    def images(_: int) -> dict[str, np.ndarray]:
        examples = pictures_lib.load(config.pictures).train
        return pictures_lib.part(examples, examples["targets"] < config.known)

    def build(_: Found) -> Training:
        objective = supervise(model, {"ce": label_cross_entropy})
        step = make_train_step(objective, learning.optimizer())
        training = pupils.students(config, model, step, learning=learning, images=images)
        return training._replace(
            step=repeated(step, config.seeds, over=batched),
            prepare=repeated_prepare(augmented(config.augment), config.seeds, over=batched),
            evaluations=(),
            result=lambda reached, _: {"teacher": reached.params["model"]},
        )

    depends = {
        "encoder": identity(config.encoder),
        "heads": identity(config.before),
        "pictures": identity(config.pictures),
        "learn": identity(learning),
        "seeds": list(config.repetitions),
    }
    return Stage("known", build, (), depends)


def _discovery(config: Config, arm: ArmName) -> Stage:
    (old, new), learning = _models(config), config.learn

    def images(_: int) -> dict[str, np.ndarray]:
        examples = pictures_lib.load(config.pictures).train
        labelled = examples["targets"] < config.known
        return examples | {
            "targets": np.where(labelled, examples["targets"], 0),
            "labelled": labelled.astype(np.float32),
        }

    def build(found: Found) -> Training:
        objective = class_relations(
            new,
            old,
            0.0 if arm == "alone" else config.alpha,
            weigh=arm == "learnt",
            temperature=config.after.temperature,
            softening=config.softening,
        )
        step = make_train_step(objective, learning.optimizer())
        before = found["known"].weights()
        training = pupils.students(
            config, new, step, frozen=before, own=("teacher",), images=images,
            start=_grown(pupils.fresh(new, config.repetitions), before),
        )  # fmt: skip
        labelled = jax.ShapeDtypeStruct((learning.batch_size, config.seeds), np.float32)
        return training._replace(
            step=repeated(step, config.seeds, own=("teacher",), over=batched),
            prepare=repeated_prepare(in_views(config.augment), config.seeds, over=batched),
            batch=training.batch | {"labelled": labelled},
            evaluations=[_measured(config, split) for split in ("test", "validation")],
            result=lambda reached, _: None,
        )

    depends = {
        "heads": identity(config.after),
        "learn": identity(learning),
        "relation": None if arm == "alone" else [arm, config.alpha, config.softening],
        "evaluations": config.evaluations,
    }
    return Stage(arm, build, ("known",), depends)


def _grown(fresh: Weights, before: Weights) -> Weights:
    """Weights [S, ...] with fresh heads, and what lies below them from before."""

    def make(placed: PyTree) -> PyTree:
        below = {"teacher": {name: placed[name] for name in before.abstract["teacher"]}}
        return {**fresh.make(placed), **before.make(below)["teacher"]}

    return Weights({**fresh.abstract, **before.abstract["teacher"]}, make)


@functools.cache
def _step(old: Model, new: Model) -> Callable:
    return discovered.cosines(new, old)


def _measured(config: Config, split: str) -> Evaluation:
    """Of a split's images: `discovered.measures`, [S] each."""
    step = _step(*_models(config))

    def measure(params: PyTree, carry: PyTree, frozen: PyTree) -> Mapping[str, np.ndarray]:
        examples = getattr(pictures_lib.load(config.pictures), split)
        _, rows = evaluation.evaluate(
            step, params["model"], {}, frozen, examples,
            batch_size=config.score_batch, mesh=mesh_of(params),
        )  # fmt: skip
        each = [
            discovered.measures(
                rows["old"][:, s],
                rows["known"][:, s],
                rows["novel"][:, s],
                examples["targets"],
                config.after.temperature,
            )
            for s in range(config.seeds)
        ]
        return {name: np.array([found[name] for found in each]) for name in each[0]}

    def plan(params: PyTree, carry: PyTree, frozen: PyTree) -> Mapping[str, Program]:
        batch = pupils.batch_shapes(config, config.score_batch)
        model = params["model"]
        return {"cosines": evaluation.program(step, model, {}, frozen, batch, mesh=mesh_of(params))}

    return Evaluation(split, -(-config.learn.steps // config.evaluations), measure, plan)


def report(config: Config, artefacts: Found, folder: Path) -> Results:
    return discovery_report.results(config.arms, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
