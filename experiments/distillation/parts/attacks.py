"""Classifiers under projected gradient: attacked batches, and accuracy on attacked images."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from experiments.distillation.common.classifiers import Classifier
from kd_jax.launch import evaluation
from kd_jax.launch.config import check_positive, identity
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Evaluation, Program, Stage, materialise, shapes_on
from kd_jax.models.common import to_float
from kd_jax.objectives.on_policy import Prepare
from kd_jax.objectives.transfer.adversarial import attacked
from kd_jax.repetition import side_by_side
from kd_jax.types import Model, Output, TrainState

PyTree = Any
Found = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """Projected gradient on images in [0, 1]. Steps are radius / 4 in training, / 10 in a test."""

    radius: float = 0.1
    """How far a pixel may be moved."""
    steps: int = 5
    """Steps in training."""
    test_steps: int = 20
    """Steps in a test."""

    def __post_init__(self):
        check_positive(self, "radius", "steps", "test_steps")


def own_state(carry: PyTree) -> PyTree:
    """The student's own state in the carry of `two_teachers`."""
    return carry["model"]


def beside(model: Model, attack: Attack) -> Prepare:
    """The `prepare` of `two_teachers`: the batch in [0, 1], with "attacked" beside "inputs"."""
    return _prepare(model, attack, own_state, attack.radius / 4, attack.steps)


def instead(model: Model, attack: Attack) -> Prepare:
    """The `prepare` of an objective of one model: attacked images are its "inputs"."""
    attacked_too = _prepare(model, attack, lambda carry: carry, attack.radius / 4, attack.steps)

    def prepare(state, frozen, batch):
        both = attacked_too(state, frozen, batch)
        return {name: x for name, x in both.items() if name != "attacked"} | {
            "inputs": both["attacked"]
        }

    return prepare


def balance(every: int) -> Evaluation:
    """Along a training of `two_teachers`: the clean loss's share, and both temperatures, [S]."""

    def run(params, carry, frozen) -> Mapping[str, np.ndarray]:
        held = jax.device_get({"share": carry["share"], **carry["temperatures"]})
        return {name: np.asarray(x) for name, x in held.items()}

    return Evaluation("balance", every, run)


def scored(
    config: pupils.Schooling, network: Classifier, name: str, of: Sequence[str], attack: Attack
) -> Stage:
    """How well models do on test images. rows: clean, robust [S], accuracies in %.

    of: a stage of `pupils.students`, or several of `pupils.teacher`, whose models are then the S.
    """

    def build(found: Found) -> Compute:
        held = [found[stage].weights() for stage in of]
        students = held[0].abstract.get("model")
        count = len(of) if students is None else jax.tree.leaves(students)[0].shape[0]
        step = _step(config.model(network), count, attack)

        def run() -> tuple[None, Mapping[str, Any]]:
            mesh = make_mesh(config.mesh)
            trees = [materialise(weights, mesh) for weights in held]
            models = _abreast(trees, lambda *x: jnp.stack(x))
            examples = pictures_lib.load(config.pictures).test
            _, rows = evaluation.evaluate(
                step, *models, {}, examples, batch_size=config.score_batch, mesh=mesh
            )
            return None, {measure: 100 * x.mean(0) for measure, x in rows.items()}

        def plan(mesh: Mesh) -> Mapping[str, Program]:
            def stack(x: Any, *_: Any) -> jax.ShapeDtypeStruct:
                return jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=x.sharding)

            models = _abreast([shapes_on(weights, mesh) for weights in held], stack)
            batch = pupils.batch_shapes(config, config.score_batch)
            return {"attacked": evaluation.program(step, *models, {}, batch, mesh=mesh)}

        return Compute(run, plan=plan)

    depends = {"attack": identity(attack), "pictures": identity(config.pictures)}
    return Stage(name, build, tuple(of), depends)


def _abreast(
    trees: Sequence[Mapping[str, PyTree]], stack: Callable[..., Any]
) -> tuple[PyTree, PyTree]:
    """(parameters, statistics) [S, ...]: of an artefact of students, or of several of teachers."""
    if "model" in trees[0]:
        return trees[0]["model"], trees[0].get("state", {})
    params, state = ([tree.get(x, {}) for tree in trees] for x in ("teacher", "teacher_state"))
    return jax.tree.map(stack, *params), jax.tree.map(stack, *state)


@functools.cache  # one for all kinds of students, so that they share compilations
def _step(model: Model, count: int, attack: Attack) -> evaluation.EvalStep:
    attack_of = _prepare(model, attack, lambda carry: carry, attack.radius / 10, attack.test_steps)

    def step(params: PyTree, state: PyTree, frozen: PyTree, batch: Any) -> Output:
        def one(params, state) -> dict[str, jax.Array]:
            held = TrainState(
                jnp.zeros((), jnp.int32), {"model": params}, (), state, jax.random.key(0)
            )
            seen = attack_of(held, {}, batch)

            def right(images: jax.Array) -> jax.Array:
                output = model.apply(params, {**batch, "inputs": images}, state=state)
                return output.head.logits().argmax(-1) == batch["targets"]

            return {"clean": right(seen["inputs"]), "robust": right(seen["attacked"])}

        found = side_by_side(one, count)(params, state)
        return Output({}, {}, {name: x.T for name, x in found.items()})

    return step


def _prepare(
    model: Model, attack: Attack, state_of: Callable[[PyTree], PyTree], size: float, steps: int
) -> Prepare:
    found = attacked(model, radius=attack.radius, step=size, steps=steps, model_state=state_of)

    def prepare(state, frozen, batch):
        return found(state, frozen, {**batch, "inputs": to_float(batch["inputs"])})

    return prepare
