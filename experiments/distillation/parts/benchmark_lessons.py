"""How the benchmark's students are taught: whose outputs a loss reads, and a step for each loss."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import Classifier, classifier, depths
from experiments.distillation.parts.benchmark_methods import METHODS, Here
from kd_jax.convolution import as_product
from kd_jax.launch import output_cache, precompute, weights
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.planning import flops
from kd_jax.launch.stages import Stage, Training
from kd_jax.losses.features import hint
from kd_jax.losses.prototypes import class_means
from kd_jax.models.mobilenet import MobileNetConfig
from kd_jax.models.resnet import ResNetConfig
from kd_jax.objectives.distil import distil
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.objectives.transfer.attached import Module, attached, beside, paraphraser, projection
from kd_jax.objectives.transfer.maps import matched
from kd_jax.objectives.transfer.self_supervised import in_rotations, over_rotations, view_contrast
from kd_jax.repetition import batched
from kd_jax.steps import make_train_step
from kd_jax.types import Model, Objective, TrainStep

CLASSES = 10
Found = Mapping[str, Artefact]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course(pupils.Schooling):
    """A teacher and students of two families, as wide as it in every stage."""

    teacher: ResNetConfig
    teacher_fold: int
    """Of the images that the teacher sees: a finer one than the students' makes it better."""
    same: ResNetConfig
    """A student like the teacher: as wide in every stage."""
    cross: MobileNetConfig
    """A student of another family, as wide in every stage."""

    def __post_init__(self):
        super().__post_init__()
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

    def model(self, network: Classifier | Model) -> Model:
        """Students of all seeds are in one program: `convolution.as_product` is the faster."""
        if isinstance(network, Model):
            return network
        return classifier(network, self.pictures.fold, as_product)

    @property
    def teacher_model(self) -> Model:
        return classifier(self.teacher, self.teacher_fold)

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """On maps, from the input on, and on the features."""
        return (*depths(self.teacher), "pooled")

    def network(self, pair: str) -> Classifier:
        return self.same if pair == "same" else self.cross


class Told(NamedTuple):
    """A module that is trained on a tap of the teacher, and what a loss reads of it.

    objective: of the teacher with the module. model: what is stored, with the module's output as
    the tap `name`. over: the losses that read it, as objectives of a batch of images.
    """

    name: str
    module: Module
    objective: Objective
    model: Model
    over: Callable[[Objective], Objective] = lambda objective: objective

    def stages(self, course: Course) -> list[Stage]:
        """The module's training, "<name>", and the stored outputs, "<name>_outputs"."""
        depends = pupils.depends(course, course.teacher)
        return [
            Stage(self.name, functools.partial(self._trained, course), ("teacher",), depends),
            pupils.outputs(course, self.model, (self.name,), of=self.name),
        ]

    def _trained(self, course: Course, found: Found) -> Training:
        training = pupils.students(
            course,
            Model(self.module.make, course.teacher_model.apply),
            make_train_step(self.objective, course.learn.optimizer()),
            found,
            seeds=(course.seed,),
            frozen=found["teacher"].weights(),
        )

        def result(reached, frozen):
            module = jax.tree.map(lambda x: x[0], reached.params["model"])
            own = {"model": frozen["teacher"], "state": frozen["teacher_state"], "attached": module}
            return {"teacher": own, "teacher_state": {}}

        return training._replace(evaluations=(), result=result)


def _factor(course: Course) -> Told:
    """A paraphraser of the last map, half as wide, that gives it back (factor transfer)."""
    teacher, width, last = course.teacher_model, course.teacher.widths[-1], depths(course.teacher)
    module = paraphraser(width, width // 2)
    model = attached(teacher, last[-1], module, "factor")
    back = matched(hint, ("factor/back",), (last[-1],))._replace(whole_batch=True)
    objective = distil(model, teacher, {"back": back}, policy=beside("teacher"))
    return Told("factor", module, objective, model)


def _views(course: Course) -> Told:
    """A projection of the features in which the rotations of an image are alike (SSKD)."""
    teacher, width = course.teacher_model, course.teacher.widths[-1]
    module = projection(width, width)
    model = attached(teacher, "pooled", module, "views")
    objective = distil(model, teacher, {"ss": view_contrast("views")}, policy=beside("teacher"))
    return Told("views", module, over_rotations(objective), in_rotations(model), over_rotations)


# By the stage's name, of losses that read more than the teacher's own outputs.
TOLD = {"factor": _factor, "views": _views}


def source(pair: str, name: str) -> str:
    """The stage whose stored outputs the loss reads."""
    of = METHODS[name].of
    return f"twin_{pair}" if of == "twin" else of


class Lesson(NamedTuple):
    """How a student is taught by a loss: its model, a step, and the outputs that it reads."""

    model: Model
    step: TrainStep
    read: pupils.Read


def lesson(course: Course, pair: str, name: str, found: Found) -> Lesson:
    network, method, of = course.network(pair), METHODS[name], source(pair, name)
    model, parts = course.model(network), method.parts(_here(course, network, found))
    taps = tuple(dict.fromkeys(tap for part in parts.values() for tap in part.teacher_taps))
    objective = _strengthened(distil(model, stored_teacher(), parts, teacher_policy=nothing))
    if method.of == "teacher":
        read = pupils.Read(course.teacher_model, course.teacher_taps, taps)
    elif method.of == "twin":
        read = pupils.Read(model, (), taps, of)
    else:
        told = TOLD[of](course)
        read, objective = pupils.Read(told.model, (of,), taps, of), told.over(objective)
    step = make_train_step(objective, course.learn.optimizer(), gradient=method.gradient)
    return Lesson(model, step, read)


def students(course: Course, pair: str, name: str, strength: float, found: Found) -> Training:
    """Of all seeds. strength: a factor of what is distilled."""
    model, step, read = lesson(course, pair, name, found)
    frozen = weights.from_arrays({"strength": np.float32(strength)})
    return pupils.students(course, model, step, found, read=read, frozen=frozen, over=batched)


def cost(course: Course, taught: Lesson) -> list[float]:
    """[FLOPs of a student's step, weights trained beside the student]."""
    model, step, read = taught
    batch = pupils.batch_shapes(course, course.learn.batch_size)
    batch |= output_cache.shapes(course.model(read.network), batch, read.taps)
    frozen = {"strength": jax.ShapeDtypeStruct((), np.float32)}
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(step.init, jax.random.key(0), params, frozen, batch)
    beside = sum(x.size for x in jax.tree.leaves(state.params["aux"]))
    return [flops.of(step, state, frozen, batch).model, beside]


def _here(course: Course, network: Classifier, found: Found) -> Here:
    def labels() -> np.ndarray:
        return pictures_lib.load(course.pictures).train["targets"]

    def means() -> jax.Array:
        about = output_cache.About(
            precompute.model_hash(found["teacher"]),
            precompute.data_hash(pictures_lib.load(course.pictures).train),
            course.teacher_taps,
        )
        cache = output_cache.opened(found["teacher_outputs"].files, about, only=("pooled",))
        index = np.arange(len(labels()))
        pooled = cache.columns(index, np.zeros_like(index))["teacher_pooled"]
        return class_means(jnp.asarray(pooled), jnp.asarray(labels()), CLASSES)

    return Here(
        depths(network), depths(course.teacher), course.teacher.widths[-1], course.learn.steps,
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
