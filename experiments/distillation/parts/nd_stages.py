"""The stages of nd_loss: the teacher's class means, and students that are drawn to them.

Class means are data: they come to the loss as frozen["means"], from a stage of their own.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import classifier, last
from experiments.distillation.parts import stored_images
from kd_jax.launch import evaluation, weights
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Evaluation, Program, materialise, mesh_of
from kd_jax.losses.features import direction, hint
from kd_jax.losses.prototypes import class_means, norm_and_direction
from kd_jax.models.mlp import MLPConfig
from kd_jax.objectives.distil import distil, labels, soft_labels, student_state
from kd_jax.objectives.parts import Part, Remembering, scheduled_part, warm_up
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.objectives.transfer.heads import norm_direction
from kd_jax.objectives.transfer.maps import matched
from kd_jax.types import Batch, Model, ModelOutput, Objective, Output, Term, weighted_sum

PyTree = Any
Name = Literal["kd", "mse", "cosine", "nd"]
LABELS: dict[Name, str] = {
    "kd": "KD",
    "mse": "KD + MSE to features",
    "cosine": "KD + cosine to class mean",
    "nd": "KD + ND",
}


class How(NamedTuple):
    """scale: of what stands beside KD. warm_up: steps in which KD's weight rises to 1."""

    scale: float
    temperature: float
    warm_up: int
    student_tap: str
    teacher_tap: str


def objective(name: Name, student: Model, how: How) -> Objective:
    """CE + KD + scale * the term of the name; class means are frozen["means"] [C, D]."""

    def of(means: jax.Array) -> Objective:
        kd = scheduled_part(soft_labels(temperature=how.temperature), warm_up(how.warm_up))
        parts: dict[str, Part | Remembering] = {"ce": labels(), "kd": kd}
        match name:
            case "mse":
                parts["mse"] = matched(hint, (how.student_tap,), (how.teacher_tap,), how.scale)
            case "cosine":
                parts["cosine"] = cosine_to_mean(how.student_tap, means, how.scale)
            case "nd":
                parts["nd"] = norm_direction(how.student_tap, how.teacher_tap, means, how.scale)
        return distil(student, stored_teacher(), parts, teacher_policy=nothing)

    return reading("means", of)


def reading(name: str, make: Callable[[jax.Array], Objective]) -> Objective:
    """The objective that `make` makes of frozen[name], where that is known only when it runs."""
    return Objective(
        lambda key, params, frozen, batch: make(frozen[name]).init(key, params, frozen, batch),
        lambda params, carry, frozen, batch, ctx: make(frozen[name]).loss(
            params, carry, frozen, batch, ctx
        ),
        lambda carry, params, frozen, output, ctx: make(frozen[name]).update(
            carry, params, frozen, output, ctx
        ),
    )


def cosine_to_mean(tap: str, means: jax.Array, scale: float) -> Part:
    """scale * (1 - cos(f_s, mean of the class)), a mean over examples: ND blind to norms."""

    def loss(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x = student.taps[tap]
        # Beside a teacher's feature of length 0 the student's own is the longer one.
        values = norm_and_direction(x, jnp.zeros_like(x), means, batch["targets"])
        return weighted_sum(values, batch["weights"], scale)

    return Part(loss, student_taps=(tap,))


def means(config: pupils.Schooling, network: MLPConfig, found: Mapping[str, Any]) -> Compute:
    """{"means": [C, D]}: of the teacher's stored features of training images, by class.

    Values: "norm" and "cosine" of the teacher's own features, as `along` has them of students.
    """
    tap = last(network)

    def run() -> tuple[PyTree, Mapping[str, Any]]:
        mesh, train = make_mesh(config.mesh), stored_images.load(config, found, (tap,))
        features, targets = (jnp.asarray(train[name]) for name in (f"teacher_{tap}", "targets"))
        of_class = class_means(features, targets, network.classes)
        tree = materialise(weights.from_arrays({"means": of_class}), mesh)
        model = materialise(found["teacher"].weights(), mesh)
        params = jax.tree.map(lambda x: x[None], model["teacher"])
        values = _measured(config, network, params, {}, tree["means"], mesh)
        return tree, {name: float(x[0]) for name, x in values.items()}

    shape = jax.ShapeDtypeStruct((network.classes, network.widths[-1]), np.float32)
    return Compute(run, {"means": shape})


def along(config: pupils.Schooling, network: MLPConfig, every: int) -> Evaluation:
    """{"norm": [S], "cosine": [S]} of students, and "mean_..." of all, on validation images.

    norm: the mean length of what the classifying layer reads; cosine: its mean cosine with the
    teacher's mean of the image's class, frozen["means"].
    """

    def run(params, carry, frozen) -> Mapping[str, float | np.ndarray]:
        own = params["model"], student_state(carry)
        found = _measured(config, network, *own, frozen["means"], mesh_of(params))
        return found | {f"mean_{name}": float(x.mean()) for name, x in found.items()}

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        which = {"student": jax.ShapeDtypeStruct((), np.int32), "means": frozen["means"]}
        batch = pupils.batch_shapes(config, config.score_batch)
        own, mesh = (params["model"], student_state(carry)), mesh_of(params)
        return {
            "features": evaluation.program(
                _features(network, config.pictures.fold), *own, which, batch, mesh=mesh
            )
        }

    return Evaluation("features", every, run, plan)


def _measured(
    config: pupils.Schooling, network: MLPConfig, params, state, means: jax.Array, mesh: Mesh
) -> dict[str, np.ndarray]:
    examples = pictures_lib.load(config.pictures).validation

    def one(student: int) -> dict[str, float]:
        which = {"student": np.int32(student), "means": means}
        values, _ = evaluation.evaluate(
            _features(network, config.pictures.fold), params, state, which, examples,
            batch_size=config.score_batch, mesh=mesh,
        )  # fmt: skip
        return values

    found = [one(student) for student in range(jax.tree.leaves(params)[0].shape[0])]
    return {name: np.array([x[name] for x in found]) for name in ("norm", "cosine")}


@functools.cache  # one for all kinds of students, so that they share a compilation
def _features(network: MLPConfig, fold: int) -> evaluation.EvalStep:
    model, tap = classifier(network, fold), last(network)

    def measured(params: PyTree, state: PyTree, frozen: PyTree, batch: Any) -> Output:
        params, state = jax.tree.map(lambda x: x[frozen["student"]], (params, state))
        x = model.apply(params, batch, state=state, taps=(tap,)).taps[tap]
        of_class = direction(frozen["means"])[batch["targets"]]
        found = {
            "norm": jnp.linalg.norm(x, axis=-1),
            "cosine": (direction(x) * of_class).sum(-1),
        }
        return Output({}, {n: weighted_sum(value, batch["weights"]) for n, value in found.items()})

    return measured
