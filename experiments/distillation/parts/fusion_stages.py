"""Stages of tgeo_fusion: teachers that are wrong on known images, and ways to weigh their word."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from kd_jax.data import arrays
from kd_jax.gradients import bilevel
from kd_jax.launch import evaluation
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Evaluation, Program, Training, materialise, mesh_of
from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.prototypes import class_means
from kd_jax.models.mlp import MLPConfig
from kd_jax.objectives.distil import distil, labels, soft_labels
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.trilateral import trilateral
from kd_jax.repetition import batched
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Batch, Model, ModelOutput, Objective, Output, Term, TrainStep, weighted_sum

CLASSES = 10
TEMPERATURE = 1.5  # the released script's

Images = Callable[[], dict[str, np.ndarray]]


class Cut(NamedTuple):
    """Of the training images: a student's, those that the fusion network learns from, the rest."""

    train: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    rest: dict[str, np.ndarray]


def cut(pictures: Pictures, student: int, other: int) -> Cut:
    images = pictures_lib.load(pictures).train
    ends = np.cumsum([student, other, arrays.size(images) - student - other])
    starts = (0, *ends[:-1])
    parts = zip(starts, ends, strict=True)
    return Cut(*(pictures_lib.part(images, np.arange(a, b)) for a, b in parts))


def misled(
    images: Cut, wrong: float, seed: int, *, gathered: bool, copies: int
) -> dict[str, np.ndarray]:
    """What a teacher learns: a student's images, `copies` times, and the rest; some mislabelled.

    gathered: all images of a share `wrong` of the classes, each time with another wrong label. Else
    a share `wrong` of a student's images, each with one wrong label. The seed draws them.
    """
    draw = np.random.default_rng(seed)
    own, rest = images.train, images.rest
    if gathered:
        both = arrays.concatenate([own] * copies + [rest])
        classes = draw.permutation(CLASSES)[: round(wrong * CLASSES)]
        chosen = np.flatnonzero(np.isin(both["targets"], classes))
        both["targets"] = _mislabelled(both["targets"], chosen, draw)
    else:
        count = arrays.size(own)
        chosen = draw.permutation(count)[: round(wrong * count)]
        own = own | {"targets": _mislabelled(own["targets"], chosen, draw)}
        both = arrays.concatenate([own] * copies + [rest])
    return pictures_lib.part(both, np.arange(arrays.size(both)))


def _mislabelled(targets: np.ndarray, chosen: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    targets = targets.copy()
    targets[chosen] = (targets[chosen] + draw.integers(1, CLASSES, len(chosen))) % CLASSES
    return targets


def said(
    config: pupils.Schooling, network: MLPConfig, teachers: Artefact, train: Images
) -> Compute:
    """{"teacher": weights, "class_means": mean probabilities [S, C, C]} of a student's images.

    values: "right" [S, N], whether the teacher names the label of each. train() -> the images.
    """
    weights, model = teachers.weights(), config.model(network)

    @jax.jit
    def of_all(teachers: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        def one(teacher: Any) -> tuple[jax.Array, jax.Array]:
            z, y = model.apply(teacher, batch).head.logits(), batch["targets"]
            return class_means(jax.nn.softmax(z), y, CLASSES), z.argmax(-1) == y

        return batched(one, config.seeds)(teachers)

    def run() -> tuple[Any, Mapping[str, Any]]:
        own = materialise(weights, make_mesh(config.mesh))
        means, right = of_all(own["teacher"], train())
        return {**own, "class_means": means}, {"right": np.asarray(right)}

    means = jax.ShapeDtypeStruct((config.seeds, CLASSES, CLASSES), jnp.float32)
    return Compute(run, shapes={**weights.abstract, "class_means": means})


def fixed(student: Model, teacher: Model, alpha: float) -> Objective:
    """alpha * T^2 KL(teacher || student) + (1 - alpha) * CE, the same for every image."""
    parts = {"ce": labels(1 - alpha), "kd": soft_labels(alpha, temperature=TEMPERATURE)}
    return distil(student, teacher, parts)


def by_correctness(student: Model, teacher: Model) -> Objective:
    """alpha 1 where the teacher names the label, 0 where it does not: nothing is learned."""

    def loss(aux: Any, ours: ModelOutput, theirs: ModelOutput, batch: Batch) -> Term:
        s, t, y = ours.head.logits(), theirs.head.logits(), batch["targets"]
        soft = TEMPERATURE**2 * forward_kl(s, t, temperature=TEMPERATURE)
        values = jnp.where(t.argmax(-1) == y, soft, cross_entropy(s, y))
        return weighted_sum(values, batch["weights"])

    return distil(student, teacher, {"either": Part(loss)})


@functools.cache  # one for training and measuring
def fusing(student: Model, teacher: Model) -> Objective:
    return trilateral(student, teacher, temperature=TEMPERATURE)


def learned(objective: Objective, model: Learning, fusion: Learning, rate: float) -> TrainStep:
    """The fusion network follows the loss on other images through one step of size `rate`."""
    rule = bilevel(inner="inner", outer="outer", learning_rate=rate)
    return make_train_step(objective, _optimizer(model, fusion), gradient=rule)


def jointly(objective: Objective, model: Learning, fusion: Learning) -> TrainStep:
    """The fusion network minimises the student's own loss, as early released code does."""

    def loss(*args: Any) -> Output:
        output = objective.loss(*args)
        return output._replace(terms={"inner": output.terms["inner"]})

    return make_train_step(objective._replace(loss=loss), _optimizer(model, fusion))


def _optimizer(model: Learning, fusion: Learning) -> optax.GradientTransformation:
    return optax.multi_transform(
        {"model": model.optimizer(), "aux": fusion.optimizer()},
        lambda params: {name: name for name in params},
    )


def with_other(train: Training, other: Training) -> Training:
    """The first training on batches {"train", "other"}: its own and those of the second."""
    both = {"train": train, "other": other}
    return train._replace(
        batch={name: x.batch for name, x in both.items()},
        batches=lambda step, rows: {name: x.batches(step, rows) for name, x in both.items()},
    )


def shares(config: pupils.Schooling, objective: Objective, train: Images, steps: int) -> Evaluation:
    """alpha of each of a student's images, "share" [S, N]. objective: `fusing`; train() -> them."""
    step = _shares(objective, config.seeds)

    def measure(params: Any, carry: Any, frozen: Any) -> Mapping[str, np.ndarray]:
        images = train()
        _, rows = evaluation.evaluate(
            step, params, carry, frozen, {"train": images, "other": images},
            batch_size=config.score_batch, mesh=mesh_of(params),
        )  # fmt: skip
        return {"share": rows["share"].T}

    def plan(params: Any, carry: Any, frozen: Any) -> Mapping[str, Program]:
        batch = dict.fromkeys(("train", "other"), pupils.batch_shapes(config, config.score_batch))
        mesh = mesh_of(params)
        return {"shares": evaluation.program(step, params, carry, frozen, batch, mesh=mesh)}

    return Evaluation("fusion", steps, measure, plan)


@functools.cache
def _shares(objective: Objective, count: int) -> evaluation.EvalStep:
    step = make_eval_step(objective)

    def measured(params: Any, carry: Any, frozen: Any, batch: Any) -> Output:
        def one(params: Any, frozen: Any) -> jax.Array:
            return step(params, {}, frozen, batch).rows["share"]

        return Output({}, {}, {"share": batched(one, count)(params, dict(frozen)).T})

    return measured
