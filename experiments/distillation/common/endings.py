"""How well students of several seeds do at both ends of a training: measured, and read again."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common.pictures import Pictures
from kd_jax.data import shapes
from kd_jax.launch import evaluation
from kd_jax.launch.stages import Evaluation, Program, mesh_of
from kd_jax.repetition import side_by_side
from kd_jax.types import Model, Output

PyTree = Any
State = Callable[[PyTree], PyTree]


class Ending(NamedTuple):
    """How well students do at the end. accuracy (%), nll (nats): [S]; predicted: [S, N] classes."""

    accuracy: np.ndarray
    nll: np.ndarray
    predicted: np.ndarray


def ending(artefact: Any, *, split: str = "test") -> Ending:
    """Of an artefact of `pupils.students`, or, with S of 1, of `pupils.teacher`.

    split: or "validation".
    """
    steps = artefact.values["steps"]
    read = (artefact.rows[f"{steps}/{split}/{name}"] for name in Ending._fields)
    return Ending(*read)


def tested(
    pictures: Pictures, model: Model, state: State, steps: int, *, rows: int
) -> tuple[Evaluation, ...]:
    """At both ends of a training, on test and on validation images.

    state: of the step's carry, the model's own. rows: images measured at once.
    """
    return tuple(
        Evaluation(
            split,
            steps,
            functools.partial(_measure, pictures, model, state, rows, split),
            functools.partial(_program, pictures, model, state, rows),
        )
        for split in ("test", "validation")
    )


@functools.cache  # one for all kinds of students, so that they share compilations
def _scores(model: Model, count: int) -> evaluation.EvalStep:
    def scored(params: PyTree, state: PyTree, frozen: PyTree, batch: Any) -> Output:
        def one(params, state):
            log_p = jax.nn.log_softmax(model.apply(params, batch, state=state).head.logits())
            nll = -jnp.take_along_axis(log_p, batch["targets"][:, None], -1)[:, 0]
            return {"predicted": log_p.argmax(-1).astype(jnp.uint8), "nll": nll}

        found = side_by_side(one, count)(params, state)
        return Output({}, {}, {name: x.T for name, x in found.items()})

    return scored


def _measure(
    pictures: Pictures,
    model: Model,
    state: State,
    rows: int,
    split: str,
    params: PyTree,
    carry: PyTree,
    frozen: PyTree,
) -> Mapping[str, float | np.ndarray]:
    examples = getattr(pictures_lib.load(pictures), split)
    own = params["model"], state(carry)
    count = len(jax.tree.leaves(own[0])[0])
    _, found = evaluation.evaluate(
        _scores(model, count), *own, {}, examples, batch_size=rows, mesh=mesh_of(params)
    )
    right = found["predicted"] == examples["targets"][:, None]
    return {
        "accuracy": 100 * right.mean(0),
        "nll": found["nll"].mean(0),
        "predicted": found["predicted"].T,
        "mean_accuracy": 100 * right.mean(),
    }


def _program(
    pictures: Pictures, model: Model, state: State, rows: int, params, carry, frozen
) -> Mapping[str, Program]:
    own = params["model"], state(carry)
    count = jax.tree.leaves(own[0])[0].shape[0]
    batch, mesh = shapes.images(rows, pictures.side), mesh_of(params)
    return {"scores": evaluation.program(_scores(model, count), *own, {}, batch, mesh=mesh)}
