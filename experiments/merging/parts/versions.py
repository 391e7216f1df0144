"""Two versions of a classifier, what a third learns from both, and the answers of each."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.merging.common.tasks import held_out
from kd_jax.data import arrays, images, prepare, shapes
from kd_jax.data.builders.digits import Digits
from kd_jax.data.builders.fashion_mnist import FashionMnist
from kd_jax.launch import evaluation
from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.stages import Evaluation, Program, mesh_of
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.compatibility import masked_kl, muscle
from kd_jax.objectives.compatibility import Loss, compatible
from kd_jax.objectives.terms import label_accuracy
from kd_jax.steps import make_eval_step
from kd_jax.types import Model, Objective, Output, stateless, weighted_sum

BUILDERS = {"digits": Digits, "fashion_mnist": FashionMnist}
SIDES = {"digits": 8, "fashion_mnist": 28}
MEASURED = 720  # images in a batch


def _old_right(z: jax.Array, old: jax.Array, new: jax.Array, y: jax.Array) -> jax.Array:
    return masked_kl(z, old, new, old.argmax(-1) == y)


def _old_always(z: jax.Array, old: jax.Array, new: jax.Array, y: jax.Array) -> jax.Array:
    return masked_kl(z, old, new, jnp.ones(y.shape, bool))


class Arm(NamedTuple):
    """How the third version learns: scale * loss + hard * cross-entropy."""

    label: str
    loss: Loss
    scale: float = 1.0
    hard: float = 0.0

    def objective(self, student: Model, old: Model, new: Model) -> Objective:
        return compatible(student, old, new, self.loss, self.scale, hard=self.hard)


ARMS = {
    "muscle": Arm("MUSCLE: old where wrong", muscle),
    "old_right": Arm("old where the old is right", _old_right),
    "old_always": Arm("old everywhere", _old_always),
    "labels": Arm("labels alone", muscle, 0.0, 1.0),
    "muscle_labels": Arm("MUSCLE and labels", muscle, 1.0, 1.0),
}


@functools.cache
def splits(
    data: str, folder: str | None, noise: float, copies: int
) -> dict[str, dict[str, np.ndarray]]:
    """train, validation and test: image arrays. Digits are copied, each with noise of its own."""
    found = prepare.load(BUILDERS[data], manual_dir=folder)
    train, test = (images.image_arrays(found[split]) for split in ("train", "test"))
    whole = held_out(train) | {"test": test}
    if data == "digits":
        whole = {
            name: _noisy(x, noise, copies, seed) for seed, (name, x) in enumerate(whole.items())
        }
    return whole


def _noisy(
    examples: Mapping[str, np.ndarray], noise: float, copies: int, seed: int
) -> dict[str, np.ndarray]:
    """`copies` of every image with Gaussian noise of standard deviation `noise`, in grey levels."""
    many = arrays.concatenate([examples] * copies)
    rng = np.random.Generator(np.random.Philox(key=seed))
    shaken = many["inputs"] + noise * rng.standard_normal(many["inputs"].shape, np.float32)
    return many | {
        "inputs": np.clip(shaken, 0, 255).astype(np.uint8),
        "index": np.arange(len(shaken), dtype=np.int32),
    }


@functools.cache  # one compilation for all stages of a model
def _answers(model: Model) -> Callable[..., Output]:
    """An evaluation step with a row for each image: the answer and the label's probability."""

    def loss(params, carry, frozen, batch, ctx) -> Output:
        output = model.apply(params["model"], batch)
        z, log_p = output.head.logits(), label_log_probs(output.head.logits(), batch["targets"])
        return Output(
            {"ce": weighted_sum(-log_p, batch["weights"])},
            {"accuracy": label_accuracy(output, batch)},
            {"answer": z.argmax(-1), "likelihood": jnp.exp(log_p)},
        )

    return make_eval_step(stateless(loss))


def measured(
    model: Model, examples: Callable[[], arrays.Arrays], *, side: int, steps: int
) -> Evaluation:
    """Accuracy and cross-entropy, and the rows answer [N] and likelihood [N], at the end."""
    step = _answers(model)

    def measure(params, carry, frozen) -> Mapping[str, Any]:
        own, mesh = {"model": params["model"], "aux": {}}, mesh_of(params)
        values, rows = evaluate(step, own, {}, {}, examples(), batch_size=MEASURED, mesh=mesh)
        return {"accuracy": 100 * values["accuracy"], "ce": values["ce"], **rows}

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        batch, mesh = shapes.images(MEASURED, side), mesh_of(params)
        own = {"model": params["model"], "aux": {}}
        return {"answers": evaluation.program(step, own, {}, {}, batch, mesh=mesh)}

    return Evaluation("held_out", steps, measure, plan)
