"""Mixing the batches of several students, and how soft their teachers are."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from kd_jax.launch import evaluation
from kd_jax.launch.stages import Evaluation, Program, mesh_of
from kd_jax.losses.logits import standardised
from kd_jax.models.mlp import MLPConfig
from kd_jax.objectives.augment.prepare import floating
from kd_jax.objectives.on_policy import Prepare, draw_keys
from kd_jax.objectives.transfer.mixing import partial_mixup
from kd_jax.repetition import batched
from kd_jax.types import Batch, Frozen, Model, Output, TrainState

CLASSES = 10
SOFTENED = {"t1": lambda z: z, "t4": lambda z: z / 4, "std": standardised}
VIEWS = ("plain", "mixed")


@functools.cache  # one for all trainings, so that they share what is compiled
def mixing(unmixed: float) -> Prepare:
    """`partial_mixup` of the batches of trainings side by side, leaves [B, S, ...], alpha 1.

    As a `prepare`, which is compiled once and not for each training. A training's draws depend on
    key, step and its place alone: they are the same whatever is unmixed.
    """

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        keys = jax.random.split(draw_keys(state)[0], batch["targets"].shape[1])
        mix = functools.partial(partial_mixup, classes=CLASSES, unmixed=unmixed)
        return jax.vmap(mix, (0, 1), 1)(keys, dict(batch))

    return prepare


def softness(config: pupils.Schooling, network: MLPConfig, steps: int) -> Evaluation:
    """Mean entropies [S], nats, of what models say of test images: "<view>_<softened>".

    view: images as they are, or means of two that follow each other; softened: at temperature 1
    and 4, and of standardised logits.
    """
    model = config.model(network)

    def measure(params: Any, carry: Any, frozen: Any) -> Mapping[str, np.ndarray]:
        own = params["model"]
        _, rows = evaluation.evaluate(
            _entropies(model, len(jax.tree.leaves(own)[0])), own, {}, {},
            pictures_lib.load(config.pictures).test,
            batch_size=config.score_batch, mesh=mesh_of(own),
        )  # fmt: skip
        return {name: x.mean(0) for name, x in rows.items()}

    def plan(params: Any, carry: Any, frozen: Any) -> Mapping[str, Program]:
        own = params["model"]
        step = _entropies(model, len(jax.tree.leaves(own)[0]))
        batch = pupils.batch_shapes(config, config.score_batch)
        return {"softness": evaluation.program(step, own, {}, {}, batch, mesh=mesh_of(own))}

    return Evaluation("softness", steps, measure, plan)


@functools.cache
def _entropies(model: Model, count: int) -> evaluation.EvalStep:
    def measured(params: Any, carry: Any, frozen: Any, batch: Any) -> Output:
        x = floating(batch["inputs"])
        halves = (x + jnp.roll(x, 1, axis=0)) / 2
        views = {"plain": batch, "mixed": {**batch, "inputs": halves}}

        def one(params: Any) -> dict[str, jax.Array]:
            logits = {view: model.apply(params, x).head.logits() for view, x in views.items()}
            return {
                f"{view}_{name}": _entropy(soften(z))
                for view, z in logits.items()
                for name, soften in SOFTENED.items()
            }

        found = batched(one, count)(params)
        return Output({}, {}, {name: x.T for name, x in found.items()})

    return measured


def _entropy(logits: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_p) * log_p).sum(-1)
