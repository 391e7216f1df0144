"""How far a student is from its teacher and from the oracle, on prompts held out."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common.text import rows
from experiments.distillation.parts import oracle
from kd_jax.data import shapes
from kd_jax.launch import evaluation
from kd_jax.launch.stages import Evaluation, Program, mesh_of
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.steps import make_eval_step


class Held(NamedTuple):
    """Rows [N, length + 1]: what the oracle and the teacher say to the held-out prompts."""

    oracle: np.ndarray
    teacher: np.ndarray


class Measured(NamedTuple):
    """What is measured. held: called when it is. rows: in a batch. length: of a row, predicted."""

    student: DecoderConfig
    teacher: DecoderConfig
    held: Callable[[], Held]
    rows: int
    length: int


def golden(
    model: DecoderConfig, weights: Any, table: Any, tokens: np.ndarray, rows: int, mesh: Mesh
) -> float:
    """KL(oracle || model) of a whole response, in nats: the mean over rows of the oracle."""
    return _mean(_from_oracle(model), weights, table, tokens, rows, mesh)


def along(measured: Measured, every: int) -> Evaluation:
    """{"proxy", "golden"} along a training with frozen["teacher"] and frozen["oracle"]: `golden`,
    and KL(teacher || student) likewise, on rows of the teacher."""
    models = measured.student, measured.teacher

    def run(params, carry, frozen) -> Mapping[str, float]:
        mesh, held, ours, batch = mesh_of(params), measured.held(), params["model"], measured.rows
        proxy = _mean(_from_teacher(*models), ours, frozen["teacher"], held.teacher, batch, mesh)
        table = frozen["oracle"]
        return {
            "proxy": proxy,
            "golden": golden(models[0], ours, table, held.oracle, batch, mesh),
        }

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        ours = {"model": params["model"], "aux": {}}
        batch = shapes.text(measured.rows, measured.length)

        def of(step: Any, other: Any) -> Program:
            mesh = mesh_of(params)
            return evaluation.program(step, ours, {}, {"other": other}, batch, mesh=mesh)

        return {
            "proxy": of(_from_teacher(*models), frozen["teacher"]),
            "golden": of(_from_oracle(models[0]), frozen["oracle"]),
        }

    return Evaluation("held_out", every, run, plan)


# One step for all students, so that they share compilations.
@functools.cache
def _from_oracle(model: DecoderConfig) -> Any:
    return make_eval_step(oracle.sequence_kl(decoder.decoder(model), oracle.model()))


@functools.cache
def _from_teacher(student: DecoderConfig, teacher: DecoderConfig) -> Any:
    return make_eval_step(oracle.sequence_kl(decoder.decoder(student), decoder.decoder(teacher)))


def _mean(step: Any, weights: Any, other: Any, tokens: np.ndarray, batch: int, mesh: Mesh) -> float:
    params, frozen = {"model": weights, "aux": {}}, {"other": other}
    examples = rows(tokens, given=oracle.PROMPT)
    _, found = evaluation.evaluate(step, params, {}, frozen, examples, batch_size=batch, mesh=mesh)
    return float(found["kl"].mean(dtype=np.float64))
