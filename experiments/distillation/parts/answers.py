"""What models side by side say of some images, kept with them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kd_jax.launch import evaluation
from kd_jax.launch.stages import Evaluation, Program, mesh_of
from kd_jax.types import Model, Output

PyTree = Any


def answers(
    name: str,
    every: int,
    model: Model,
    examples: Callable[[], Mapping[str, np.ndarray]],
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> Evaluation:
    """The rows "logits" [S, N, C] of examples(), an image batch; batch: shapes of those at once."""
    rows = batch["index"].shape[0]

    def run(params: PyTree, carry: PyTree, frozen: PyTree) -> Mapping[str, np.ndarray]:
        _, found = evaluation.evaluate(
            _step(model), params["model"], {}, {}, examples(),
            batch_size=rows, mesh=mesh_of(params),
        )  # fmt: skip
        return {"logits": found["logits"].swapaxes(0, 1)}

    def plan(params: PyTree, carry: PyTree, frozen: PyTree) -> Mapping[str, Program]:
        of = params["model"]
        return {"logits": evaluation.program(_step(model), of, {}, {}, batch, mesh=mesh_of(params))}

    return Evaluation(name, every, run, plan)


@functools.cache  # one for a model, so that it is compiled once
def _step(model: Model) -> evaluation.EvalStep:
    def answered(params: PyTree, carry: PyTree, frozen: PyTree, batch: Any) -> Output:
        z = jax.vmap(lambda params: model.apply(params, batch).head.logits())(params)
        return Output({}, {}, {"logits": z.swapaxes(0, 1)})

    return answered
