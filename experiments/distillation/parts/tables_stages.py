"""Stages of image_tables: a teacher, trained here or read from a file, and each of its students."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from experiments.distillation.common.classifiers import Classifier, classifier
from experiments.distillation.common.descent import Descent
from experiments.distillation.parts import tables_images, tables_methods
from experiments.distillation.parts.tables_images import Images
from experiments.distillation.parts.tables_methods import Losses, Method
from kd_jax.data.image_sets import IMAGE_SETS
from kd_jax.launch import evaluation, weights
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.config import Settings, check_positive, identity
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import (
    REPLICATED,
    Compute,
    Evaluation,
    Program,
    Stage,
    Training,
    materialise,
    mesh_of,
    shapes_on,
)
from kd_jax.models import torch_modules
from kd_jax.models.mixer import MixerConfig
from kd_jax.models.mobilenet import MobileNetConfig
from kd_jax.models.normalised import normalised
from kd_jax.models.pretrained_images import open_classifier
from kd_jax.models.resnet import ImageNetResNetConfig
from kd_jax.models.shufflenet import ShuffleNetConfig
from kd_jax.models.vit import ClassTokenViTConfig
from kd_jax.objectives.distil import student_state
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_accuracy, label_cross_entropy
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Model, Objective

PyTree = Any
Found = Mapping[str, Artefact]
TEACHER_SEED = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables(Settings):
    """A teacher and its students on one set of images."""

    images: Images
    teacher: Classifier
    teacher_weights: str | None = None
    """A safetensors file of torchvision's or timm's weights, or its folder; by default the teacher
    is trained in the run."""
    student: Classifier
    learn_teacher: Descent
    """How the teacher is trained, where it is."""
    learn: Descent
    """How a student is trained."""
    losses: Losses = Losses()
    """Weights of each method."""
    seeds: int = 3
    """Students of each method; seed s fixes initial weights, order and augmentation."""
    seed: int = 0
    """The first of them."""
    measurements: int = 1
    """How often test images are looked at along a training; the last time counts."""
    score_batch: int = 512
    """Test images measured at once."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "seeds", "measurements", "score_batch")
        for name in ("teacher", "student"):
            network = getattr(self, name)
            if network.classes != self.images.set.classes:
                raise ValueError(
                    f"{name}.classes: got {network.classes}, {self.images.name} has "
                    f"{self.images.set.classes}"
                )
        if self.teacher_weights is not None:
            modules(self.teacher)

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def model(self, network: Classifier) -> Model:
        """Of images in [0, 1]: it takes the set's mean off by itself."""
        return _model(network, self.images.name)


@functools.cache  # one model, so that what is compiled for it is shared
def _model(network: Classifier, images: str) -> Model:
    model, statistics = classifier(network, 1), IMAGE_SETS[images].statistics
    return model if statistics is None else normalised(model, *statistics)


def teacher(config: Tables) -> Stage:
    """Its artefact is {"teacher": parameters, "teacher_state": statistics}."""
    network = _named(config.teacher)
    if config.teacher_weights is not None:
        depends = {
            "network": network,
            "weights": config.teacher_weights,
            "images": identity(config.images),
        }
        return Stage("teacher", lambda _: _given(config, config.teacher_weights), (), depends)

    def build(_: Found) -> Training:
        model = config.model(config.teacher)
        labelled = functools.partial(tables_methods.labelled, config.losses.smoothing)
        objective = supervise(model, {"ce": labelled})
        training = _training(config, model, objective, config.learn_teacher, TEACHER_SEED)
        return training._replace(
            result=lambda reached, _: {
                "teacher": reached.params["model"],
                "teacher_state": student_state(reached.carry),
            }
        )

    depends = {
        "network": network,
        "images": identity(config.images),
        "learn": identity(config.learn_teacher),
        "smoothing": config.losses.smoothing,
        "measurements": config.measurements,
    }
    return Stage("teacher", build, (), depends)


def student(config: Tables, method: Method, seed: int) -> Stage:
    """Its artefact is {"model": parameters, "state": statistics}."""
    own, taught = ((x, config.model(x)) for x in (config.student, config.teacher))

    def build(found: Found) -> Training:
        epoch = config.images.count / config.learn.batch_size
        objective = tables_methods.objective(method, config.losses, own, taught, epoch)
        training = _training(config, own[1], objective, config.learn, seed)
        if method == "ce":
            return training
        frozen = found["teacher"].weights()
        # A teacher without statistics has an empty part, which no rule may match.
        rules = {k: REPLICATED if jax.tree.leaves(x) else () for k, x in frozen.abstract.items()}
        return training._replace(frozen=frozen, frozen_rules=rules)

    depends = {
        "network": _named(config.student),
        "images": identity(config.images),
        "learn": identity(config.learn),
        "seed": seed,
        "measurements": config.measurements,
        **tables_methods.depends(method, config.losses),
    }
    return Stage(f"{method}_{seed}", build, () if method == "ce" else ("teacher",), depends)


def accuracy(artefact: Any) -> float:
    """On test images, %, of a teacher or a student at its end."""
    if "accuracy" in artefact.values:
        return artefact.values["accuracy"]
    return artefact.series("test/accuracy")[1][-1]


def modules(network: Classifier) -> Mapping[str, torch_modules.Module]:
    """How a published file names the layers; ValueError for networks that none is known of."""
    match network:
        case ImageNetResNetConfig():
            return torch_modules.of_resnet(network)
        case MobileNetConfig():
            return torch_modules.of_mobilenet(network)
        case ShuffleNetConfig():
            return torch_modules.of_shufflenet(network)
        case ClassTokenViTConfig():
            return torch_modules.of_vit(network)
        case MixerConfig():
            return torch_modules.of_mixer(network)
        case _:
            raise ValueError(
                f"teacher_weights: got a file for {type(network).__name__}, takes networks of "
                "torchvision or timm; leave it out to train the teacher"
            )


def _named(network: Classifier) -> dict[str, Any]:
    return {"kind": type(network).__name__, **identity(network)}


def _training(
    config: Tables, model: Model, objective: Objective, learn: Descent, seed: int
) -> Training:
    images = config.images
    steps = learn.steps(images.count)
    return Training(
        step=make_train_step(objective, learn.optimizer(images.count)),
        weights=weights.from_init(model.init, jax.random.key(seed)),
        batches=tables_images.batches(images, seed=seed, batch_size=learn.batch_size),
        batch=images.batch(learn.batch_size),
        batch_size=learn.batch_size,
        steps=steps,
        rules=REPLICATED,
        seed=seed,
        prepare=tables_images.augment(images),
        evaluations=(
            Evaluation(
                "test",
                max(1, steps // config.measurements),
                lambda params, carry, frozen: _measured(config, model, params, carry),
                lambda params, carry, frozen: _programs(config, model, params, carry),
            ),
        ),
        result=lambda reached, _: {
            "model": reached.params["model"],
            "state": student_state(reached.carry),
        },
    )


def _given(config: Tables, path: str | None) -> Compute:
    """The teacher of a file, and how good it is here."""
    model = config.model(config.teacher)
    shapes = {
        "teacher": jax.eval_shape(model.init, jax.random.key(0)),
        "teacher_state": jax.eval_shape(model.state),
    }

    def parts(tree: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
        return {"model": tree["teacher"]}, tree["teacher_state"]

    def run() -> tuple[PyTree, Mapping[str, Any]]:
        opened = open_classifier(str(path), model, modules(config.teacher))
        read = weights.joined(
            teacher=weights.Weights(*opened.params), teacher_state=weights.Weights(*opened.state)
        )
        tree = materialise(read, make_mesh(config.mesh))
        return tree, _measured(config, model, *parts(tree))

    def plan(mesh: jax.sharding.Mesh) -> Mapping[str, Program]:
        placed = shapes_on(weights.Weights(shapes, lambda _: None), mesh)
        return _programs(config, model, *parts(placed))

    return Compute(run, shapes, plan)


@functools.cache  # one for all students, so that they share a compilation
def _score(model: Model) -> evaluation.EvalStep:
    terms = {"ce": label_cross_entropy}
    return make_eval_step(supervise(model, terms, metrics={"accuracy": label_accuracy}))


def _measured(config: Tables, model: Model, params: PyTree, carry: PyTree) -> Mapping[str, float]:
    values, _ = evaluation.evaluate(
        _score(model), {"model": params["model"], "aux": {}}, student_state(carry), {},
        tables_images.test(config.images),
        batch_size=config.score_batch, mesh=mesh_of(params),
    )  # fmt: skip
    return {"accuracy": 100 * values["accuracy"], "ce": values["ce"]}


def _programs(config: Tables, model: Model, params: PyTree, carry: PyTree) -> Mapping[str, Program]:
    own = {"model": params["model"], "aux": {}}
    batch, mesh = config.images.batch(config.score_batch), mesh_of(params)
    scored = evaluation.program(_score(model), own, student_state(carry), {}, batch, mesh=mesh)
    return {"test": scored}
